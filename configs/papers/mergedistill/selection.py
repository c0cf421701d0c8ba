"""Which teacher to choose for a language: candidates, a student of each, and what foretells the better student.

    python -m configs.papers.mergedistill.selection TEXTS WORK da --related de --unrelated it

All candidates read the very same masked sequences of the language, in the union's vocabulary, and have the same shape:

    own            trained on the language's text
    own, early     the same with a tenth of the steps
    related        trained on a related language's text
    unrelated      trained on an unrelated language's text
    multilingual   trained on all languages together, with as many steps as ``own``

So students differ in predictions alone. A candidate is judged before any student is trained, by its cross-entropy on
held-out masked words of the language. *Same order* is the share of pairs of candidates that this puts in the order of
their students' cross-entropy; a last line says in how many seeds it chooses the candidate with the best student.
Texts, work folder and continuing are those of ``run.py``, whose folders are used.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from cache_tools.configuration import configured
from configs.papers.intervals import differences, over_seeds
from configs.papers.markdown import markdown, show, spread
from configs.papers.measures import finished_seeds, folder_name
from configs.papers.mergedistill import stage_one
from configs.papers.mergedistill.run import HERE, measured_once
from configs.papers.mergedistill.tables import with_interval
from configs.papers.recipes import Overrides, make_once, overrides_option, train_file
from trainer.config.student_file import StudentConfig

ALONE = "text only"
EARLY = 10
"""How many times fewer steps ``own, early`` has."""

# S: seeds

Measures = Mapping[str, float]
"""What ``measures.evaluated`` returns."""


class Candidate(NamedTuple):
    """A teacher that could be chosen.

    Attributes:
        languages: What it is trained on.
        fewer_steps: Divides its number of steps.
    """

    languages: tuple[str, ...]
    fewer_steps: int = 1


def candidates_of(language: str, related: str, unrelated: str, every: Sequence[str]) -> dict[str, Candidate]:
    """Return the candidates for a language, by name."""
    return {
        "own": Candidate((language,)),
        "own, early": Candidate((language,), EARLY),
        f"related {related}": Candidate((related,)),
        f"unrelated {unrelated}": Candidate((unrelated,)),
        "multilingual": Candidate(tuple(every)),
    }


@click.command()
@click.argument("texts", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@click.argument("language")
@click.option("--related", required=True, metavar="LANGUAGE", help="A language like it.")
@click.option("--unrelated", required=True, metavar="LANGUAGE", help="A language unlike it.")
@click.option("--left-out", metavar="LANGUAGE", help="Language that no teacher covers.")
@click.option("--tokens", default=2000, show_default=True, help="Size of each language's vocabulary.")
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True, help="Number of seeds of the students.")
@click.option("--k", default=8, show_default=True, help="Most likely tokens per position that students learn from.")
@overrides_option("--set-capture", "capture.yaml")
@overrides_option("--set-teacher", "teacher_multilingual.yaml")
@overrides_option("--set-student", "student.yaml")
def run(
    texts: Path,
    work: Path,
    language: str,
    related: str,
    unrelated: str,
    left_out: str | None,
    tokens: int,
    seeds: int,
    k: int,
    set_capture: Overrides,
    set_teacher: Overrides,
    set_student: Overrides,
) -> None:
    """Train candidates for LANGUAGE from TEXTS and a student of each, in WORK; print which predicts the best."""
    every = sorted(path.stem for path in texts.glob("*.jsonl") if path.stem != left_out)
    unknown = [name for name in (language, related, unrelated) if name not in every]
    if unknown:
        raise click.UsageError(f"no text of {', '.join(unknown)} in {texts}; there are {', '.join(every)}")
    place, candidates = work / "selection" / language, candidates_of(language, related, unrelated, every)
    stage_one.capture_texts(texts, work, every, tokens, set_capture)
    masked = place / "masked"
    stage_one.capture(masked, texts / f"{language}.jsonl", work / language / "untrained", set_capture)
    make_once(place / "same", lambda folder: stage_one.write_sequences(masked, work / "vocabulary", folder))
    for name, candidate in candidates.items():
        make_candidate(work, place, name, candidate, set_teacher, set_capture)
    for seed in range(seeds):
        for arm in (ALONE, *candidates):
            train_student(place, arm, seed, k, set_student)
        if seed:
            report(work, place, candidates)


def make_candidate(
    work: Path, place: Path, name: str, candidate: Candidate, set_teacher: Overrides, set_capture: Overrides
) -> None:
    """Train a candidate and store its predictions for the language's sequences."""
    steps = configured(HERE / "teacher_multilingual.yaml", StudentConfig, set_teacher).training["max_steps"]
    folder, changes = place / folder_name(name), {**set_teacher, "training.max_steps": steps // candidate.fewer_steps}
    teacher = stage_one.train_together(work, candidate.languages, folder / "teacher", changes)
    stage_one.capture(
        folder / "cache", place / "same" / "sequences.jsonl", teacher, {**set_capture, **stage_one.AS_GIVEN}
    )


def train_student(place: Path, arm: str, seed: int, k: int, set_student: Overrides) -> None:
    """Train a student of a candidate, or of the text alone."""
    cache = place / folder_name("own" if arm == ALONE else arm) / "cache"
    changes = {"caches": [{"cache": stage_one.narrowed(cache, k)}], "vocabulary": None, "training.seed": seed}
    if arm == ALONE:
        changes["loss.kd_weight"] = 0
    output = place / "students" / f"{folder_name(arm)}-{seed}"
    train_file(HERE / "student.yaml", {**set_student, **changes, "training.output_dir": output})


def report(work: Path, place: Path, candidates: Mapping[str, Candidate]) -> None:
    """Measure candidates and finished students at the same held-out positions, and print the table."""
    masked, vocabulary, students = place / "masked", work / "vocabulary", place / "students"
    teachers = {name: measured_once(place / folder_name(name) / "teacher", masked, vocabulary) for name in candidates}
    made = {
        arm: {
            seed: measured_once(students / f"{folder_name(arm)}-{seed}", masked, vocabulary)
            for seed in finished_seeds(students, folder_name(arm))
        }
        for arm in (ALONE, *candidates)
    }
    print_table(teachers, made)


def print_table(teachers: Mapping[str, Measures], students: Mapping[str, Mapping[int, Measures]]) -> None:
    """Print each candidate beside its students, and how often the better candidate has the better student."""
    nats = {arm: {seed: m["cross_entropy_nats"] for seed, m in made.items()} for arm, made in students.items()}
    top1 = {arm: np.array([m["top1"] for m in made.values()]) for arm, made in students.items()}
    table = markdown("teacher", "its top-1", "its nats", "student's top-1", "student's nats", f"less {ALONE}")
    for arm, of_arm in nats.items():
        teacher = teachers.get(arm)
        mine = ["", ""] if teacher is None else [f"{teacher['top1']:.3f}", f"{teacher['cross_entropy_nats']:.3f}"]
        gap = "" if arm == ALONE else with_interval(differences(of_arm, nats[ALONE]))
        table.add_row(arm, *mine, spread(top1[arm]), spread(np.array([*of_arm.values()])), gap)
    show(table)
    judged = {name: teacher["cross_entropy_nats"] for name, teacher in teachers.items()}
    ranks, best = same_order(judged, nats), best_chosen(judged, nats)
    click.echo(f"\nSame order: {over_seeds(ranks) if len(ranks) > 1 else ranks[0]} of the pairs of candidates")
    click.echo(f"The candidate with the least nats has the best student in {best.sum()} of {best.size} seeds")


def same_order(teachers: Mapping[str, float], students: Mapping[str, Mapping[int, float]]) -> NDArray[np.float64]:
    """Return by seed the share of pairs of candidates whose students are in the candidates' own order: (S,).

    Args:
        teachers: Cross-entropy of each candidate.
        students: Cross-entropy of each candidate's student, by seed; seeds that not all candidates have are left out.
    """
    pairs = list(combinations(teachers, 2))
    return np.array(
        [
            np.mean([(teachers[a] < teachers[b]) == (students[a][seed] < students[b][seed]) for a, b in pairs])
            for seed in seeds_of_all(teachers, students)
        ]
    )


def best_chosen(teachers: Mapping[str, float], students: Mapping[str, Mapping[int, float]]) -> NDArray[np.bool_]:
    """Return by seed whether the candidate with the least cross-entropy has the student with the least: (S,).

    Arguments and seeds are those of ``same_order``.
    """
    best = min(teachers, key=teachers.__getitem__)
    return np.array(
        [students[best][seed] == min(students[a][seed] for a in teachers) for seed in seeds_of_all(teachers, students)]
    )


def seeds_of_all(names: Iterable[str], students: Mapping[str, Mapping[int, float]]) -> list[int]:
    """Return the seeds that the students of all names have, in order."""
    return sorted(set.intersection(*(set(students[name]) for name in names)))


if __name__ == "__main__":
    run()
