"""The demo: a teacher runs once, its predictions land in a cache, a student learns from them.

Each stage is a process of its own, started exactly as a user would type it, so the student's
process never holds a teacher. Stages that are already done are not repeated.

Two students are trained from the same weights, on the same batches, for the same number of
steps: one by cross-entropy alone, one from the cache. The held-out table compares them.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cache_tools.errors import LogitcaskError, ModelError
from cache_tools.progress.lines import open_reporter
from pipeline.demo.corpus import write_corpus

FILES = Path(__file__).resolve().parents[2] / "configs" / "demo"

Say = Callable[[str], None]
"""Called with a sentence about each stage."""


@dataclass(frozen=True)
class HeldOut:
    """A model on the held-out text.

    Attributes:
        cross_entropy_nats: Mean cross-entropy.
        kl_to_teacher_nats: Mean KL divergence from the teacher.
    """

    cross_entropy_nats: float
    kl_to_teacher_nats: float


@dataclass(frozen=True)
class DemoResult:
    """What the demo shows: the object that ``logitcask demo --json`` prints.

    Attributes:
        teacher: The toy teacher.
        student_ce: The student that learned from the text alone.
        student_cached: The student that learned from the cache.
        bytes_per_position: Bytes per position of targets and scalars in the cache.
        seconds: Duration of each stage, by name.
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
    if not FILES.is_dir():
        raise ModelError("the demo needs a clone of the repository", where=FILES, expected="the demo's files")
    seconds: dict[str, float] = {}
    cache, teacher = output / "cache", output / "teacher" if own_teacher else None
    if teacher and not (teacher / "model.safetensors").exists():
        say("Training the toy teacher itself (about half an hour on two cores).")
        _timed(seconds, "teacher", partial(_python, "-m", "pipeline.demo.teacher", str(teacher)))
    say("Corpus: the Python interpreter's own documentation, on every machine already.")
    with open_reporter() as reporter:
        reporter.stage("writing the corpus", None)
        _timed(seconds, "corpus", partial(_write_corpus_once, output / "corpus.jsonl"))
    say("Stage one: the toy teacher reads it once; what it predicts goes into a cache.")
    _timed(seconds, "capture", partial(_capture, output, cache, teacher))
    evaluations = {}
    for name, (kd_weight, source) in STUDENTS.items():
        say(f"Stage two: a student learns from {source}. No teacher is loaded.")
        _timed(seconds, f"train_{name}", partial(_train, cache, output / name, kd_weight))
        evaluations[name] = _timed(seconds, f"evaluate_{name}", partial(_evaluate, output / name / "final", cache))
    summary = json.loads(_logitcask("inspect", str(cache), "--json"))
    bytes_per_position = summary["encodings"][0]["teachers"][0]["bytes_per_position"]
    toy_teacher = HeldOut(evaluations["student_ce"]["teacher_cross_entropy_nats"], 0.0)
    students = {name: _held_out(evaluation) for name, evaluation in evaluations.items()}
    return DemoResult(toy_teacher, **students, bytes_per_position=bytes_per_position, seconds=seconds, cache=cache)


def _held_out(evaluation: dict[str, float]) -> HeldOut:
    return HeldOut(evaluation["cross_entropy_nats"], evaluation["kl_to_teacher_nats"])


def _write_corpus_once(path: Path) -> None:
    if not path.exists():
        write_corpus(path)


def _capture(output: Path, cache: Path, own_teacher: Path | None) -> None:
    _logitcask(
        "capture",
        str(FILES / "capture.yaml"),
        *("--set", f"cache={cache}"),
        *("--set", f"corpus.paths.0={output / 'corpus.jsonl'}"),
        *(("--set", f"teachers.0.model={own_teacher}") if own_teacher else ()),
    )


def _train(cache: Path, folder: Path, kd_weight: float) -> None:
    _logitcask(
        "train",
        str(FILES / "student.yaml"),
        *("--set", f"cache={cache}"),
        *("--set", f"training.output_dir={folder}"),
        *("--set", f"loss.kd_weight={kd_weight}"),
    )


def _evaluate(student: Path, cache: Path) -> dict[str, float]:
    measures: dict[str, float] = json.loads(_logitcask("evaluate", str(student), str(cache), "--json"))
    return measures


def _logitcask(*arguments: str) -> str:
    return _python("-m", "logitcask", *arguments)


def _python(*arguments: str) -> str:
    """Run a stage in its own process; its progress goes to our stderr, its result is returned."""
    process = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, cwd=FILES.parents[1])
    if process.returncode:
        raise LogitcaskError("a stage of the demo failed; its message stands above", where=" ".join(arguments[:3]))
    return process.stdout


def _timed(seconds: dict[str, float], stage: str, work: Callable[[], Any]) -> Any:
    started = time.monotonic()
    result = work()
    seconds[stage] = round(time.monotonic() - started, 1)
    return result
