"""Masked-LM distillation from two experts, weighted at each position: from texts to tables.

    python -m configs.papers.cohesive.run runs/cohesive/texts runs/cohesive

TEXTS holds ``mixed.jsonl`` and one ``<domain>.jsonl`` for each expert; ``texts.py`` writes them. Every step continues
where it was stopped. The tables cover the seeds that have finished.
"""

from pathlib import Path

import click

from cache_tools.store.reader import Cache
from configs.papers.cohesive.convergence import Curve
from configs.papers.cohesive.tables import TEXT_ALONE, print_students, print_weights
from configs.papers.cohesive.texts import MIXED, read_texts
from configs.papers.cohesive.weights import RULES, held_out
from configs.papers.recipes import Overrides, capture_file, overrides_option, train_file
from configs.papers.wordpiece import untrained

HERE = Path(__file__).parent
STUDENTS = ("uniform", "entropy", "gold likelihood")
"""Rules that students are trained with; the table of weights has all."""
TEXT_MASKS = {"encoding.masking.seed": 0}
"""Masks that experts are trained with; other masks than those of the capture."""


@click.command()
@click.argument("texts", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@click.option("--tokens", default=4096, show_default=True, help="Size of the vocabulary that all models share.")
@click.option("--seeds", type=click.IntRange(2), default=3, show_default=True, help="Number of seeds of the students.")
@overrides_option("--set-capture", "capture.yaml")
@overrides_option("--set-teacher", "teacher.yaml")
@overrides_option("--set-student", "student.yaml")
def run(
    texts: Path,
    work: Path,
    tokens: int,
    seeds: int,
    set_capture: Overrides,
    set_teacher: Overrides,
    set_student: Overrides,
) -> None:
    """Train an expert for each <domain>.jsonl in TEXTS, and students of both, in WORK; print the tables."""
    domains = sorted(path.stem for path in texts.glob("*.jsonl") if path.stem != MIXED)
    corpora = [texts / f"{domain}.jsonl" for domain in domains]
    plain = untrained(read_texts(*corpora), tokens, work / "untrained")
    for domain, corpus in zip(domains, corpora, strict=True):
        train_expert(plain, corpus, work / domain, set_capture, set_teacher)
    places = {"corpus.paths": [texts / f"{MIXED}.jsonl"], "cache": work / "cache"}
    cache = capture_file(HERE / "capture.yaml", {**set_capture, **experts(work, domains), **places})
    print_weights(held_out(Cache(cache).encoding(), domains), domains)
    curves: dict[str, list[Curve]] = {arm: [] for arm in arms(domains)}
    for seed in range(seeds):
        for arm, changes in arms(domains).items():
            output = work / "students" / f"{arm.replace(' ', '-')}-{seed}"
            run = {"cache": cache, "training.seed": seed, "training.output_dir": output}
            train_file(HERE / "student.yaml", {**set_student, **changes, **run})
            curves[arm].append(Curve.read(output))
        if seed:
            print_students(curves, [f"{domain} alone" for domain in domains])


def arms(domains: list[str]) -> dict[str, Overrides]:
    """Return the overrides of each student that is compared, by its name."""
    all_experts = {"teachers": [{"name": domain} for domain in domains]}
    single = {f"{domain} alone": {"teachers": [{"name": domain}]} for domain in domains}
    mixed = {name: {**all_experts, "mixture.weights": RULES[name]} for name in STUDENTS}
    return {TEXT_ALONE: {**all_experts, "loss.kd_weight": 0}, **single, **mixed}


def experts(work: Path, domains: list[str]) -> Overrides:
    """Return the overrides that put the experts in the place of the teachers of the capture file."""
    names = {f"teachers.{i}.name": domain for i, domain in enumerate(domains)}
    models = {f"teachers.{i}.model": work / domain / "teacher" / "final" for i, domain in enumerate(domains)}
    return names | models


def train_expert(plain: Path, corpus: Path, folder: Path, set_capture: Overrides, set_teacher: Overrides) -> None:
    """Train the expert of one domain on its masked text alone, in ``folder / "teacher"``."""
    unused_teacher = {"teachers": [{"name": "none", "model": plain, "dtype": "float32", "target": {"k": 1}}]}
    places = {"corpus.paths": [corpus], "cache": folder / "text"}
    cache = capture_file(HERE / "capture.yaml", {**set_capture, **unused_teacher, **TEXT_MASKS, **places})
    run = {"cache": cache, "training.output_dir": folder / "teacher"}
    train_file(HERE / "teacher.yaml", {**set_teacher, **run})


if __name__ == "__main__":
    run()
