"""MergeDistill from texts to tables, by the public commands.

From the repository's root::

    python -m configs.papers.mergedistill.run runs/mergedistill/texts runs/mergedistill --seed 0 --seed 1 --seed 2

TEXTS holds one ``<language>.jsonl`` for each language. Every step is a command of ``logitcask`` that continues where it
was stopped, or writes its result under a temporary name first, so the recipe can be stopped at any time and run again.
The tables cover all students that have finished; another seed, k or arm adds students and trains no finished one again.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from cache_tools.configuration import configured
from cache_tools.storage import write_object
from configs.papers.convergence import read_curves
from configs.papers.markdown import show
from configs.papers.measures import finished_seeds, folder_name, once, predictions_of
from configs.papers.mergedistill import stage_one, zero_shot
from configs.papers.mergedistill.measures import evaluated, split_otherwise
from configs.papers.mergedistill.tables import curve_table, print_tables
from configs.papers.recipes import Overrides, overrides_option, train_file
from pipeline.config.capture_file import CaptureConfig

HERE = Path(__file__).parent
ARMS: dict[str, Overrides] = {
    "text only": {"loss.kd_weight": 0},
    "distilled": {},
    "control": {"control": "other_positions"},
    "multilingual": {"vocabulary": None},
    "renormalised": {"loss.tail": "renormalise", "loss.allow_biased": True},
}
"""Overrides of the student file. In the control, each position is given the prediction for another position; the caches
of the multilingual teacher are in the union's own ids. ``renormalised`` is the other likely reading of the paper: the
kept tokens alone, as if they had all of the probability."""
DEFAULT_ARMS = ("text only", "distilled", "control", "multilingual")
"""Arms that are trained unless others are asked for."""


@click.command()
@click.argument("texts", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@click.option("--left-out", metavar="LANGUAGE", help="Language that no teacher covers.")
@click.option("--tokens", default=2000, show_default=True, help="Size of each teacher's vocabulary.")
@click.option(
    "--seed",
    "seeds",
    multiple=True,
    type=int,
    default=[0],
    show_default=True,
    help="Seed of a student; may be repeated.",
)
@click.option("--arm", "arms", multiple=True, type=click.Choice(list(ARMS)), default=DEFAULT_ARMS, show_default=True)
@click.option("--k", default=8, show_default=True, help="Most likely tokens per position that students learn from.")
@click.option("--other-k", "other_ks", multiple=True, type=int, help="Another k to compare; may be repeated.")
@click.option(
    "--multilingual-steps",
    type=click.IntRange(1),
    help="Steps of the teacher of all languages; by default those of its file, as many as each other teacher has.",
)
@overrides_option("--set-capture", "capture.yaml")
@overrides_option("--set-teacher", "teacher.yaml and teacher_multilingual.yaml")
@overrides_option("--set-student", "student.yaml")
def run(
    texts: Path,
    work: Path,
    left_out: str | None,
    tokens: int,
    seeds: tuple[int, ...],
    arms: tuple[str, ...],
    k: int,
    other_ks: tuple[int, ...],
    multilingual_steps: int | None,
    set_capture: Overrides,
    set_teacher: Overrides,
    set_student: Overrides,
) -> None:
    """Train a teacher for each <language>.jsonl in TEXTS, and students of all of them, in WORK."""
    languages = sorted(path.stem for path in texts.glob("*.jsonl") if path.stem != left_out)
    make_caches(texts, work, languages, tokens, set_capture, set_teacher)
    together = {"training.max_steps": multilingual_steps} if multilingual_steps else {}
    make_multilingual_caches(texts, work, languages, left_out, set_capture, {**set_teacher, **together})
    whole = zero_shot_task(texts, languages, left_out, set_capture)
    task = None if whole is None else zero_shot.cut(whole, work / "vocabulary" / "tokenizer", longest(work))
    ask = Questions(work, tuple(languages), left_out, task, whole)
    changes = {arm: student_changes(work, languages, arm, k) for arm in arms}
    changes |= {f"k={other}": student_changes(work, languages, "distilled", other) for other in other_ks}
    for arm, seed in in_order(arms, other_ks, seeds):
        run = {"training.seed": seed, "training.output_dir": work / "students" / f"{folder_name(arm)}-{seed}"}
        train_file(HERE / "student.yaml", {**set_student, **changes[arm], **run})
    results = of_teachers(texts, ask) | {"students": of_students(ask)}
    write_object(work / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    print_tables(results, languages, left_out)
    show(curve_table(read_curves(work / "students", results["students"])))


class Questions(NamedTuple):
    """What is measured of every model.

    Attributes:
        work: Folder of the caches.
        languages: Languages that have a teacher.
        left_out: A language without a teacher.
        task: Zero-shot classification, if the texts have sections; as much of each text as a model reads.
        whole: The same with whole texts.
    """

    work: Path
    languages: tuple[str, ...]
    left_out: str | None
    task: zero_shot.Task | None
    whole: zero_shot.Task | None


def in_order(arms: Sequence[str], other_ks: Sequence[int], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """Return the students to train; those of the main table come first."""
    first = [(arm, seed) for seed in seeds for arm in arms]
    return first + [(f"k={k}", seed) for k in other_ks for seed in seeds]


def of_students(ask: Questions) -> dict[str, dict[str, Any]]:
    """Return the measures of all students that have finished, by arm and seed; those of another k come last."""
    folder = ask.work / "students"
    ks = {name.partition("-")[0] for name in (run.name for run in folder.glob("k=*-*")) if name[2:3].isdigit()}
    arms = [*ARMS, *sorted(ks, key=lambda name: int(name.removeprefix("k=")))]
    seeds = {arm: finished_seeds(folder, folder_name(arm)) for arm in arms}
    return {
        arm: {str(seed): of_student(folder / f"{folder_name(arm)}-{seed}", ask) for seed in of_arm}
        for arm, of_arm in seeds.items()
        if of_arm
    }


def make_caches(
    texts: Path,
    work: Path,
    languages: Sequence[str],
    tokens: int,
    set_capture: Overrides,
    set_teacher: Overrides,
) -> None:
    """Train the teachers, store their predictions in ``work / language / "cache"``, and unite their vocabularies."""
    stage_one.capture_texts(texts, work, languages, tokens, set_capture)
    for language in languages:
        stage_one.train_teacher(work / language, set_teacher)
        teacher = work / language / "teacher" / "final"
        stage_one.capture(work / language / "cache", texts / f"{language}.jsonl", teacher, set_capture)


def make_multilingual_caches(
    texts: Path,
    work: Path,
    languages: Sequence[str],
    left_out: str | None,
    set_capture: Overrides,
    set_teacher: Overrides,
) -> None:
    """Train one teacher of all languages; store its predictions of the same sequences and of the language left out."""
    teacher = stage_one.train_together(work, languages, work / "multilingual" / "teacher", set_teacher)
    for language in languages:
        stage_one.capture_same_text(work, language, teacher, set_capture)
    if left_out:
        stage_one.capture(work / left_out / "cache", texts / f"{left_out}.jsonl", teacher, set_capture)


def student_changes(work: Path, languages: Sequence[str], arm: str, k: int) -> Overrides:
    """Return the overrides of ``student.yaml`` for an arm: its caches, the vocabulary, and the arm's own keys."""
    folder = work / "multilingual" if arm == "multilingual" else work
    caches = [{"cache": stage_one.narrowed(folder / language / "cache", k)} for language in languages]
    return {"caches": caches, "vocabulary": work / "vocabulary", **ARMS[arm]}


def zero_shot_task(
    texts: Path, languages: Sequence[str], left_out: str | None, set_capture: Overrides
) -> zero_shot.Task | None:
    """Return the classification task, if there are English texts with sections."""
    if "en" not in languages or any("section" not in record for record in stage_one.records(texts / "en.jsonl")):
        return None
    fraction = configured(HERE / "capture.yaml", CaptureConfig, set_capture).corpus.held_out_fraction
    return zero_shot.read_task(texts, [*languages, *([left_out] if left_out else [])], fraction)


def longest(work: Path) -> int:
    """Return how many tokens the models read at most: the positions of the multilingual teacher."""
    config = json.loads((work / "multilingual" / "teacher" / "final" / "config.json").read_text())
    return int(config["max_position_embeddings"])


def of_teachers(texts: Path, ask: Questions) -> dict[str, Any]:
    """Return the results of the teachers, and of classifiers of words."""
    union, own, different = ask.work / "vocabulary" / "tokenizer", {}, {}
    for name in ask.languages:
        teacher, cache = ask.work / name / "teacher", ask.work / name / "cache"
        own[name] = measured_once(teacher, cache)
        corpus = [record["text"] for record in stage_one.records(texts / f"{name}.jsonl")]
        different[name] = split_otherwise(ask.work / name / "untrained", union, corpus)
    results: dict[str, Any] = {"teachers": own, "words_split_otherwise": different}
    results["multilingual_teacher"] = of_student(ask.work / "multilingual" / "teacher", ask)
    if ask.task is not None and ask.whole is not None:
        results |= {"tfidf": zero_shot.of_words(ask.task), "tfidf_of_whole_texts": zero_shot.of_words(ask.whole)}
        results["commonest_section"] = zero_shot.commonest_section(ask.task)
    return results


def of_student(folder: Path, ask: Questions) -> dict[str, Any]:
    """Return the measures of a model in the union's vocabulary by language: at masked tokens, and its right answers.

    The caches of the language left out are in the union's ids already.
    """
    work = ask.work
    masked = {name: measured_once(folder, work / name / "cache", work / "vocabulary") for name in ask.languages}
    if ask.left_out:
        masked[ask.left_out] = measured_once(folder, work / ask.left_out / "cache")
    if ask.task is None:
        return {"masked": masked, "right": {}}
    task, on = ask.task, [ask.task.train.texts, {name: test.texts for name, test in ask.task.test.items()}]
    right = once(
        folder, "sections", on, lambda: zero_shot.right_answers(task, zero_shot.model_features(folder / "final"))
    )
    return {"masked": masked, "right": right}


def measured_once(folder: Path, cache: Path, vocabulary: Path | None = None) -> dict[str, float]:
    """Return the measures of a run folder's model at a language's held-out masked positions."""
    on = predictions_of(cache)
    measures: dict[str, float] = once(
        folder, cache.parent.name, on, lambda: evaluated(folder / "final", cache, vocabulary)
    )
    return measures


if __name__ == "__main__":
    run()
