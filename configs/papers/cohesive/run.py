"""Masked-LM distillation from two experts, weighted at each position: from texts to tables.

    python -m configs.papers.cohesive.run runs/cohesive/texts runs/cohesive

TEXTS holds ``mixed.jsonl`` and one ``<domain>.jsonl`` for each expert; ``texts.py`` writes them. Every step continues
where it was stopped. The tables cover all students that have finished, those of an earlier command among them.
"""

from pathlib import Path
from typing import Any

import click

from cache_tools.store.reader import Cache
from configs.papers.cohesive.calibration import Calibration, calibrated
from configs.papers.cohesive.ngrams import counted
from configs.papers.cohesive.tables import OWN, TEXT_ALONE, print_domains, print_students, print_weights
from configs.papers.cohesive.texts import MIXED, read_texts
from configs.papers.cohesive.weights import GOLD, RULES, positions_of
from configs.papers.convergence import read_curves
from configs.papers.measures import folder_name
from configs.papers.recipes import Overrides, capture_file, overrides_option, train_file
from configs.papers.wordpiece import untrained

HERE = Path(__file__).parent
CONTROL = f"{GOLD}, other positions"
"""The best mixture by construction, of the predictions for other positions: a negative control."""
TEXT_MASKS = {"encoding.masking.seed": 0}
"""Masks that experts are trained with; other masks than those of the capture."""


@click.command()
@click.argument("texts", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@click.option("--tokens", default=4096, show_default=True, help="Size of the vocabulary that all models share.")
@click.option("--seeds", type=click.IntRange(2), default=3, show_default=True, help="Number of seeds of the students.")
@click.option("--arm", "chosen_arms", multiple=True, metavar="NAME", help="Only these students; default: all.")
@overrides_option("--set-capture", "capture.yaml")
@overrides_option("--set-teacher", "teacher.yaml")
@overrides_option("--set-student", "student.yaml")
def run(
    texts: Path,
    work: Path,
    tokens: int,
    seeds: int,
    chosen_arms: tuple[str, ...],
    set_capture: Overrides,
    set_teacher: Overrides,
    set_student: Overrides,
) -> None:
    """Train an expert for each <domain>.jsonl in TEXTS, and students of both, in WORK; print the tables."""
    domains = sorted(path.stem for path in texts.glob("*.jsonl") if path.stem != MIXED)
    names = list(arms(domains, Calibration((0.0,) * len(domains))))
    unknown_arms = set(chosen_arms) - set(names)
    if unknown_arms:
        raise click.UsageError(f"no such arm: {', '.join(sorted(unknown_arms))}; there are {', '.join(names)}")
    corpora = [texts / f"{domain}.jsonl" for domain in domains]
    plain = untrained(read_texts(*corpora), tokens, work / "untrained")
    for domain, corpus in zip(domains, corpora, strict=True):
        train_expert(plain, corpus, work / domain, set_capture, set_teacher)
    places = {"corpus.paths": [texts / f"{MIXED}.jsonl"], "cache": work / "cache"}
    cache = capture_file(HERE / "capture.yaml", {**set_capture, **experts(work, domains), **places})
    encoding = Cache(cache).encoding()
    calibration = calibrated(positions_of(encoding, domains, "train"))
    held_out = positions_of(encoding, domains)
    print_weights(held_out, domains, calibration, counted(encoding))
    print_domains(held_out, domains)
    students, all_arms = work / "students", arms(domains, calibration)
    for seed in range(seeds):
        for arm in chosen_arms or all_arms:
            run = {
                "cache": cache,
                "training.seed": seed,
                "training.output_dir": students / f"{folder_name(arm)}-{seed}",
            }
            train_file(HERE / "student.yaml", {**set_student, **all_arms[arm], **run})
        if seed:
            print_students(read_curves(students, all_arms), [f"{domain} alone" for domain in domains])


def arms(domains: list[str], calibration: Calibration) -> dict[str, Overrides]:
    """Return the overrides of each student that is compared, by its name."""
    all_experts = {"teachers": [{"name": domain} for domain in domains]}
    single = {f"{domain} alone": {"teachers": [{"name": domain}]} for domain in domains}
    mixed: dict[str, Overrides] = {
        name: {**all_experts, "mixture.weights": rule.weights, "mixture.per": rule.per} for name, rule in RULES.items()
    }
    own = {"teachers": [own_expert(domain, domains) for domain in domains], "mixture.weights": "fixed"}
    control = {**mixed[GOLD], "control": "other_positions"}
    return {
        TEXT_ALONE: {**all_experts, "loss.kd_weight": 0},
        **single,
        **mixed,
        **{name: calibration.changes(name, domains) for name in calibration.rules},
        OWN: own,
        CONTROL: control,
    }


def own_expert(domain: str, domains: list[str]) -> dict[str, Any]:
    """Return an expert that is listened to on documents of its own domain alone."""
    return {"name": domain, "groups": {f"{other}:*": 0 for other in domains if other != domain}}


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
