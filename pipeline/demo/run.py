"""The demo: a teacher runs once, its predictions land in a cache, a student learns from them.

Two students are trained from the same weights, on the same batches, for the same number of
steps: one by cross-entropy alone, one from the cache. The held-out table compares them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cache_tools.errors import ModelError
from cache_tools.mappings import JsonObject
from cache_tools.progress.lines import open_reporter
from pipeline.demo.corpus import write_corpus
from pipeline.demo.stages import ROOT, Say, Stage, run_command, run_json, run_python, run_stages

FILES = ROOT / "configs" / "demo"


@dataclass(frozen=True)
class HeldOut:
    """A model on the held-out text.

    Attributes:
        cross_entropy_nats: Mean cross-entropy.
        kl_to_teacher_nats: Mean KL divergence from the teacher.
        top1_agreement: How often its most likely token is the teacher's.
    """

    cross_entropy_nats: float
    kl_to_teacher_nats: float
    top1_agreement: float


@dataclass(frozen=True)
class DemoResult:
    """What the demo shows: the object that ``logitcask demo --json`` prints.

    Attributes:
        teacher: The teacher.
        student_ce: The student that learned from the text alone.
        student_cached: The student that learned from the cache.
        bytes_per_position: Bytes per position of targets and scalars in the cache.
        seconds: Duration of each stage, by name; next to nothing for a stage that was finished by an earlier run.
        cache: The cache.
    """

    teacher: HeldOut
    student_ce: HeldOut
    student_cached: HeldOut
    bytes_per_position: float
    seconds: dict[str, float]
    cache: Path


STUDENTS = {"student_ce": (0.0, "the text alone"), "student_cached": (1.0, "the cache")}
"""Each student's ``loss.kd_weight``, and what it learns from."""


def run_demo(output: Path, own_teacher: bool, say: Say) -> DemoResult:
    """Run every stage and return the comparison.

    Args:
        output: Folder for corpus, cache and students.
        own_teacher: Train the toy teacher here instead of using the committed one.
        say: Called with a sentence about each stage.

    Raises:
        LogitcaskError: a stage failed.
    """
    require_clone(FILES)
    results, seconds = run_stages(_stages(output, own_teacher), say)
    return compared(results, seconds, output / "cache")


def require_clone(files: Path) -> None:
    """Refuse to run a demo from an installation that lacks its configuration files.

    Raises:
        ModelError: the folder is not there.
    """
    if not files.is_dir():
        raise ModelError("the demo needs a clone of the repository", where=files, expected="the demo's files")


def compared(results: JsonObject, seconds: dict[str, float], cache: Path) -> DemoResult:
    """Return the comparison from the results of the stages ``evaluate_*`` and ``inspect``."""
    evaluations = {name: results[f"evaluate_{name}"] for name in STUDENTS}
    teacher = HeldOut(evaluations["student_ce"]["teacher_cross_entropy_nats"], 0.0, 1.0)
    students = {name: _held_out(evaluation) for name, evaluation in evaluations.items()}
    bytes_per_position = results["inspect"]["encodings"][0]["teachers"][0]["bytes_per_position"]
    return DemoResult(teacher, **students, bytes_per_position=bytes_per_position, seconds=seconds, cache=cache)


def _held_out(evaluation: Mapping[str, float]) -> HeldOut:
    return HeldOut(*(evaluation[name] for name in ("cross_entropy_nats", "kl_to_teacher_nats", "top1_agreement")))


def _stages(output: Path, own_teacher: bool) -> list[Stage]:
    cache, teacher = output / "cache", output / "teacher" if own_teacher else None
    corpus = output / "corpus.jsonl"
    stages = [
        Stage("corpus", "Write the corpus: the Python interpreter's own documentation.", 1, partial(_corpus, corpus)),
        Stage(
            "capture",
            "The toy teacher reads the corpus once, and its predictions go into a cache.",
            40,
            partial(_capture, output, cache, teacher),
        ),
    ]
    if teacher is not None:
        stages.insert(0, Stage("teacher", "Train the toy teacher itself.", 1800, partial(_train_teacher, teacher)))
    for name, (kd_weight, source) in STUDENTS.items():
        train = partial(_train, cache, output / name, kd_weight)
        stages += student_stages(name, source, cache, output / name, train, 45, 8)
    return [*stages, inspection(cache)]


def inspection(cache: Path) -> Stage:
    """Return the stage that measures the space that the cache takes."""
    return Stage("inspect", "Measure the space that the cache takes.", 2, partial(run_json, "inspect", cache))


def student_stages(
    name: str,
    source: str,
    cache: Path,
    folder: Path,
    train: Callable[[], None],
    train_seconds: float,
    evaluate_seconds: float,
) -> list[Stage]:
    """Return the two stages of a student: train it, and measure it on held-out text."""
    sentence = f"A student learns from {source}. No teacher is loaded."
    measure = partial(run_json, "evaluate", folder / "final", cache)
    return [
        Stage(f"train_{name}", sentence, train_seconds, train),
        Stage(f"evaluate_{name}", "Measure this student on held-out text.", evaluate_seconds, measure),
    ]


def _corpus(path: Path) -> None:
    if not path.exists():
        with open_reporter() as reporter:
            reporter.stage("writing the corpus", None)
            write_corpus(path)


def _train_teacher(folder: Path) -> None:
    if not (folder / "model.safetensors").exists():
        run_python("-m", "pipeline.demo.teacher", folder)


def _capture(output: Path, cache: Path, own_teacher: Path | None) -> None:
    run_command(
        "capture",
        FILES / "capture.yaml",
        *("--set", f"cache={cache}"),
        *("--set", f"corpus.paths.0={output / 'corpus.jsonl'}"),
        *(("--set", f"teachers.0.model={own_teacher}") if own_teacher else ()),
    )


def _train(cache: Path, folder: Path, kd_weight: float) -> None:
    run_command(
        "train",
        FILES / "student.yaml",
        *("--set", f"cache={cache}"),
        *("--set", f"training.output_dir={folder}"),
        *("--set", f"loss.kd_weight={kd_weight}"),
    )
