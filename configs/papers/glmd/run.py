"""GLMD from texts to tables, by the public commands.

    python -m configs.papers.glmd.run runs/glmd/texts runs/glmd

TEXTS holds ``teacher.jsonl``, ``student.jsonl`` and ``task.jsonl``; ``texts.py`` writes them. Every step continues
where it was stopped. Each table shows all students that have finished, those of an earlier command among them.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import click

from configs.papers.glmd.arms import FEW, FORMS, LABELS, RATIOS, SMALL_RATIOS, STAGES, Arm
from configs.papers.glmd.bench import HERE, Bench
from configs.papers.glmd.measure import Measured, bag_of_words, measured
from configs.papers.glmd.tables import (
    print_few,
    print_forms,
    print_labels,
    print_lines,
    print_stages,
    print_vocabularies,
)
from configs.papers.glmd.texts import CLASSES
from configs.papers.recipes import Overrides, capture_file, overrides_option, train_file
from configs.papers.wordpiece import untrained, with_tokenizer_of

PARTS = {
    "forms": (FORMS, print_forms, True),
    "stages": (STAGES, print_stages, False),
    "vocabularies": (RATIOS, print_vocabularies, False),
    "labels": (LABELS, print_labels, False),
    "few-texts": (FEW, print_few, False),
    "small-vocabularies": (SMALL_RATIOS, print_vocabularies, False),
}
"""What is compared, in the order of running: the students by name, the table, and whether it shows distances."""
DEFAULT_PARTS = ("forms", "stages", "vocabularies", "labels")


@click.command()
@click.argument("texts", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--teacher",
    "pretrained",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Pre-trained masked language model whose tokenizer has the classes' words; default: one is trained.",
)
@click.option(
    "--further-steps", default=0, show_default=True, help="Steps of masked words for a pre-trained --teacher."
)
@click.option("--tokens", default=8192, show_default=True, help="Size of the vocabulary of a teacher trained here.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Number of seeds of the students.")
@click.option(
    "--steps", nargs=3, type=int, default=(200, 100, 100), show_default=True, help="Steps of the stages P, F1 and F2."
)
@click.option("--tuning-steps", default=400, show_default=True, help="Steps of the teacher's fine-tuning.")
@click.option("--layers", default=2, show_default=True, help="Layers of the student.")
@click.option(
    "--part", "parts", multiple=True, type=click.Choice(list(PARTS)), help="What to compare; default: the first four."
)
@click.option(
    "--arm", "names", multiple=True, metavar="NAME", help="Train only these students of a part; default: all."
)
@click.option("--show", is_flag=True, help="Train nothing; print the tables of the students that are there.")
@overrides_option("--set-capture", "capture.yaml and task.yaml")
@overrides_option("--set-teacher", "teacher.yaml")
@overrides_option("--set-student", "student.yaml")
def run(
    texts: Path,
    work: Path,
    pretrained: Path | None,
    further_steps: int,
    tokens: int,
    seeds: int,
    steps: tuple[int, int, int],
    tuning_steps: int,
    layers: int,
    parts: tuple[str, ...],
    names: tuple[str, ...],
    show: bool,
    set_capture: Overrides,
    set_teacher: Overrides,
    set_student: Overrides,
) -> None:
    """Train a teacher and students with TEXTS in WORK, and print the tables."""
    chosen = parts or DEFAULT_PARTS
    known = [name for part in chosen for name in PARTS[part][0]]
    if set(names) - set(known):
        raise click.UsageError(
            f"no such arm: {', '.join(sorted(set(names) - set(known)))}; there are {'; '.join(known)}"
        )
    as_it_is = None if further_steps else pretrained
    bench = Bench(
        texts, work, dict(zip(("P", "F1", "F2"), steps, strict=True)), layers, set_capture, set_student, as_it_is
    )
    if not show:
        source = Source(pretrained, further_steps, tokens)
        train_teachers(bench, source, tuning_steps, set_teacher)
    vocabulary = next(iter(PARTS[chosen[0]][0].values())).vocabulary
    labels = bench.cache("labels", vocabulary)
    teacher = measured(work / "tuned" / "final", labels.parent, None, distance=False)
    print_lines(bag_of_words(texts / "task.jsonl", labels, work), teacher)
    for part in chosen:
        arms, print_table, distance = PARTS[part]
        for seed in range(0 if show else seeds):
            for name, arm in arms.items():
                if not names or name in names:
                    bench.student(arm, seed)
        print_table(bench, results(bench, arms, distance))


def results(bench: Bench, arms: Mapping[str, Arm], distance: bool) -> dict[str, dict[int, Measured]]:
    """Measure all finished students of some arms; an arm without training has the same measure at each seed."""
    seeds = {name: bench.finished_seeds(arm) for name, arm in arms.items() if arm.stages}
    everywhere = sorted({seed for of_arm in seeds.values() for seed in of_arm})
    return {
        name: {seed: bench.measured(arm, seed, distance) for seed in seeds.get(name, everywhere)}
        for name, arm in arms.items()
    }


class Source(NamedTuple):
    """Where the teacher comes from.

    Attributes:
        pretrained: Folder of a pre-trained model; None trains one.
        further_steps: Steps of masked words that follow; 0 takes it as it is.
        tokens: Size of the vocabulary of a model that is trained.
    """

    pretrained: Path | None
    further_steps: int
    tokens: int


def train_teachers(bench: Bench, source: Source, tuning_steps: int, set_teacher: Overrides) -> None:
    """Train a teacher on masked text unless a pre-trained one is used, and fine-tune it on the task's gold labels.

    Args:
        bench: Where, and with which overrides of the capture files.
        source: Where the teacher comes from.
        tuning_steps: Steps of fine-tuning.
        set_teacher: Overrides of teacher.yaml.
    """
    texts, work, pretrained = bench.texts, bench.work, source.pretrained
    if pretrained is None:
        plain = untrained(words(texts / "teacher.jsonl"), source.tokens, work / "untrained")
    else:
        plain = with_tokenizer_of(pretrained, work / "untrained")
    unused_teacher = {"teachers": [{"name": "none", "model": plain, "dtype": "float32", "target": {"k": 1}}]}
    text = {"encoding.masking": {"probability": 0.15, "seed": 0}, "corpus.paths": [texts / "teacher.jsonl"]}
    unused = {**bench.set_capture, **unused_teacher}
    text_cache = capture_file(HERE / "capture.yaml", {**unused, **text, "cache": work / "text"})
    task = {"encoding.masking": {"probability": 0}, "corpus.paths": [texts / "task.jsonl"]}
    task_cache = capture_file(HERE / "task.yaml", {**unused, **task, "cache": work / "task"})
    kept = {key: value for key, value in set_teacher.items() if not key.startswith("student.")}
    if bench.pretrained is None:
        first = {"cache": text_cache, "training.output_dir": work / "teacher"}
        further = {"student": {"pretrained": pretrained}, "training.max_steps": source.further_steps}
        train_file(HERE / "teacher.yaml", {**(set_teacher if pretrained is None else {**kept, **further}), **first})
    start = {"student": {"pretrained": bench.teacher}, "training.max_steps": tuning_steps}
    tuned = {"cache": task_cache, "training.output_dir": work / "tuned"}
    train_file(HERE / "teacher.yaml", {"training.learning_rate": 1.0e-3, **kept, **start, **tuned})


def words(corpus: Path) -> Iterator[str]:
    """Yield the texts of a corpus, and the classes' words so often that each of them becomes a token."""
    with corpus.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]
    for _ in range(10_000):
        yield " ".join(CLASSES)


if __name__ == "__main__":
    run()
