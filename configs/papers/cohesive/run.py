"""Masked-LM distillation from two experts, weighted at each position: from texts to tables.

    python -m configs.papers.cohesive.run runs/cohesive/texts runs/cohesive

TEXTS holds ``mixed.jsonl`` and one ``<domain>.jsonl`` for each expert; ``texts.py`` writes them. Every step continues
where it was stopped, and the tables are printed of the seeds that are through.
"""

from pathlib import Path

import click

from cache_tools.store.reader import Cache
from configs.papers.cohesive.convergence import Curve
from configs.papers.cohesive.tables import TEXT_ALONE, print_students, print_weights
from configs.papers.cohesive.texts import MIXED, read_texts
from configs.papers.cohesive.weights import RULES, held_out
from configs.papers.recipes import run_file
from configs.papers.wordpiece import untrained

HERE = Path(__file__).parent
STUDENTS = ("uniform", "entropy", "gold likelihood")
"""Rules that students are trained with; the table of weights has all."""
TEXT_MASKS = "encoding.masking.seed=0"
"""Masks that experts are trained with: others than those they are asked about."""


@click.command()
@click.argument("texts", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@click.option("--tokens", default=4096, show_default=True, help="Size of the vocabulary that all models share.")
@click.option("--seeds", type=click.IntRange(2), default=3, show_default=True, help="Of the students.")
@click.option("--set-capture", multiple=True, metavar="KEY=VALUE", help="Override capture.yaml.")
@click.option("--set-teacher", multiple=True, metavar="KEY=VALUE", help="Override teacher.yaml.")
@click.option("--set-student", multiple=True, metavar="KEY=VALUE", help="Override student.yaml.")
def run(
    texts: Path,
    work: Path,
    tokens: int,
    seeds: int,
    set_capture: tuple[str, ...],
    set_teacher: tuple[str, ...],
    set_student: tuple[str, ...],
) -> None:
    """Train an expert for each <domain>.jsonl in TEXTS, and students of both, in WORK; print what came out."""
    domains = sorted(path.stem for path in texts.glob("*.jsonl") if path.stem != MIXED)
    corpora = [texts / f"{domain}.jsonl" for domain in domains]
    plain = untrained(read_texts(*corpora), tokens, work / "untrained")
    for domain, corpus in zip(domains, corpora, strict=True):
        train_expert(plain, corpus, work / domain, set_capture, set_teacher)
    cache, mixed = work / "cache", f"corpus.paths=[{texts / MIXED}.jsonl]"
    run_file("capture", HERE / "capture.yaml", *set_capture, *experts(work, domains), mixed, f"cache={cache}")
    print_weights(held_out(Cache(cache).encoding(), domains), domains)
    curves: dict[str, list[Curve]] = {arm: [] for arm in arms(domains)}
    for seed in range(seeds):
        for arm, changes in arms(domains).items():
            output = work / "students" / f"{arm.replace(' ', '-')}-{seed}"
            places = (f"cache={cache}", f"training.seed={seed}", f"training.output_dir={output}")
            run_file("train", HERE / "student.yaml", *set_student, *changes, *places)
            curves[arm].append(Curve.read(output))
        if seed:
            print_students(curves, [f"{domain} alone" for domain in domains])


def arms(domains: list[str]) -> dict[str, list[str]]:
    """Return the students that are compared: by name, how their file is changed."""
    everybody = listed(domains)
    one = {f"{domain} alone": [listed([domain])] for domain in domains}
    mixed = {name: [everybody, f"mixture.weights={RULES[name]}"] for name in STUDENTS}
    return {TEXT_ALONE: [everybody, "loss.kd_weight=0"], **one, **mixed}


def listed(domains: list[str]) -> str:
    """Return what names the experts of a student."""
    return f"teachers=[{', '.join(f'{{name: {domain}}}' for domain in domains)}]"


def experts(work: Path, domains: list[str]) -> list[str]:
    """Return what names the experts of a capture, each in the place of one in the file."""
    folders = {domain: work / domain / "teacher" / "final" for domain in domains}
    named = enumerate(folders.items())
    return [word for i, (name, model) in named for word in (f"teachers.{i}.name={name}", f"teachers.{i}.model={model}")]


def train_expert(
    plain: Path, corpus: Path, folder: Path, set_capture: tuple[str, ...], set_teacher: tuple[str, ...]
) -> None:
    """Train the expert of one domain on its masked text alone, in ``folder / "teacher"``."""
    nobody = f"teachers=[{{name: none, model: {plain}, dtype: float32, target: {{k: 1}}}}]"
    cache, paths = f"cache={folder / 'text'}", f"corpus.paths=[{corpus}]"
    run_file("capture", HERE / "capture.yaml", *set_capture, nobody, TEXT_MASKS, paths, cache)
    run_file("train", HERE / "teacher.yaml", *set_teacher, cache, f"training.output_dir={folder / 'teacher'}")


if __name__ == "__main__":
    run()
