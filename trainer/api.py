"""Stage two from Python: what ``logitcask train`` and ``logitcask evaluate`` do, as functions that return values.

``logitcask.train`` and ``logitcask.evaluate`` are these functions. They are thin on purpose: a configuration is read
here, and everything else happens in the rooms ``run`` and ``evaluation``, as for the commands.
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cache_tools.configuration import NO_OVERRIDES, configured
from cache_tools.errors import ConfigError, DamageError
from cache_tools.format.manifest import SPLITS, Split
from cache_tools.progress.lines import open_reporter
from cache_tools.storage import StorePath, store_path
from cache_tools.store.reader import Cache
from cache_tools.vocabularies.folder import read_vocabulary
from trainer.config.student_file import StudentConfig
from trainer.evaluation.evaluate import ROWS, Positions, evaluate_folder
from trainer.run.train import run_training


@dataclass(frozen=True)
class TrainResult:
    """What a training run has made.

    Attributes:
        student: Folder of the finished student: an ordinary transformers model folder with its tokenizer.
        output_dir: Folder of the run: ``run.json``, ``metrics.jsonl``, checkpoints.
        steps: Optimizer steps of the whole run, earlier calls included.
        loss_nats: The training loss that was logged last, a mean over the steps since the log before; None if no step
            was logged. It is in nats unless ``loss.hidden`` adds terms without a unit.
        seconds: Wall-clock time of this call.
    """

    student: Path
    output_dir: Path
    steps: int
    loss_nats: float | None
    seconds: float


def train(
    config: str | Path | Mapping[str, Any] | StudentConfig, *, overrides: Mapping[str, Any] = NO_OVERRIDES
) -> TrainResult:
    """Train the student of a student file from its cache; no teacher is loaded.

    After a stop, the same call continues from the last checkpoint; a finished run is not repeated. In a program that
    ``torchrun`` starts, every process makes the same call. Progress is shown on standard error.

    Args:
        config: Path of a student file, the mapping that such a file holds, or a checked configuration.
        overrides: New values by dotted key, such as ``{"training.learning_rate": 1e-4}``.

    Returns:
        Where the student is, and how the run ended.

    Raises:
        ConfigError: The configuration is wrong, or asks for a loss that the cache does not allow.
        ModelError: The student cannot be loaded or trained.
        IdentityError: The student's tokenizer is not the cache's, or the output folder holds another run.
        IncompleteError: Shards of the cache have not been captured yet.
        LogitcaskError: Any of these, damage to the cache, and what the disk refuses.

    Example:
        ::

            from logitcask import train

            places = {"cache": "runs/python/cache", "training.output_dir": "runs/python/student"}
            result = train("configs/demo/student.yaml", overrides={**places, "training.max_steps": 20})
            print(result.student, result.steps, result.loss_nats)
    """
    began = time.monotonic()
    student = run_training(configured(config, StudentConfig, overrides))
    log = _log(student.parent / "metrics.jsonl")
    return TrainResult(
        student=student,
        output_dir=student.parent,
        steps=max((entry["step"] for entry in log), default=0),
        loss_nats=next((float(entry["loss"]) for entry in reversed(log) if "loss" in entry), None),
        seconds=time.monotonic() - began,
    )


def _log(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    except ValueError as error:
        raise DamageError("this file is not a log of training", where=path, found=error) from error


@dataclass(frozen=True)
class ReliabilityBin:
    """The positions at which the student's highest probability lies in one of 15 bins of equal width.

    Attributes:
        confidence: Mean of that probability, in [0, 1].
        accuracy: Share of the positions at which the student's most likely token is the gold token, in [0, 1].
        positions: Number of positions.
    """

    confidence: float
    accuracy: float
    positions: int


@dataclass(frozen=True)
class EvaluateResult:
    """A student compared with the text and with the cached teacher, as means over positions.

    Attributes:
        split: ``held_out`` or ``train``.
        positions: Number of positions.
        cross_entropy_nats: Mean of -ln q(gold token) of the student.
        teacher_cross_entropy_nats: The same of the teacher.
        kl_to_teacher_nats: Mean of KL(teacher || student).
        kl_to_teacher_is: How exact that is: ``exact``, ``unbiased``, or a ``lower bound``.
        accuracy: Share of positions at which the student's most likely token is the gold token, in [0, 1].
        top1_agreement: Share of positions at which student and teacher have the same most likely token, in [0, 1].
        calibration_error: Expected calibration error, in [0, 1].
        acceptance: Share of the student's tokens that speculative decoding with this teacher would accept, in [0, 1];
            None if the cached targets are random draws.
        acceptance_is: How exact that is: ``exact`` or an ``upper bound``; None without ``acceptance``.
        reliability: The bins from which the calibration error is computed; empty bins are left out.
        seconds: Wall-clock time of this call.
    """

    split: Split
    positions: int
    cross_entropy_nats: float
    teacher_cross_entropy_nats: float
    kl_to_teacher_nats: float
    kl_to_teacher_is: str
    accuracy: float
    top1_agreement: float
    calibration_error: float
    acceptance: float | None
    acceptance_is: str | None
    reliability: tuple[ReliabilityBin, ...]
    seconds: float


def evaluate(
    student: str | Path,
    cache: str | StorePath,
    *,
    encoding: str | None = None,
    teacher: str | None = None,
    split: Split = "held_out",
    positions: Positions = "all",
    vocabulary: str | StorePath | None = None,
    batch_size: int = 8,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> EvaluateResult:
    """Compare a student with the text and with a cached teacher; no teacher is loaded.

    Progress is shown on standard error.

    Args:
        student: A transformers model folder with its tokenizer, such as ``TrainResult.student``.
        cache: Folder or URL of the cache.
        encoding: Name of the encoding; may be left out if the cache has one.
        teacher: Name of the teacher; may be left out if the encoding has one.
        split: ``held_out`` or ``train``.
        positions: In an encoding with labels: ``labels``, all other positions (``tokens``), or ``all``.
        vocabulary: Folder that ``logitcask vocabulary`` wrote, if the student was trained with one.
        batch_size: Sequences per forward pass, at least 1.
        device: A torch device; ``auto`` takes a GPU if there is one.
        trust_remote_code: Run Python code that comes with the student. Only for models you trust.

    Returns:
        The measures, in nats and shares.

    Raises:
        ConfigError: An argument has a value that it cannot have.
        ModelError: The folder holds no model that can be used.
        IdentityError: The student's tokenizer is not the cache's.
        IncompleteError: The split is empty, or has not been captured yet.
        FormatError: There is no such cache, encoding or teacher.
        LogitcaskError: Any of these, and damage to the cache.

    Example:
        ::

            from logitcask import evaluate

            result = evaluate("runs/python/student/final", "runs/python/cache")
            print(f"{result.cross_entropy_nats:.3f} nats on {result.positions:,} positions")
    """
    began = time.monotonic()
    _check_choice("split", split, SPLITS)
    _check_choice("positions", positions, ROWS)
    if batch_size < 1:
        raise ConfigError("a batch holds at least one sequence", where="batch_size", found=batch_size)
    cached = Cache(cache).encoding(encoding).teacher(teacher)
    union = None if vocabulary is None else read_vocabulary(store_path(vocabulary))
    place = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    with open_reporter() as reporter:
        reporter.stage(f"evaluating on the {split} split", cached.encoding.manifest.splits[split].tokens)
        measured = evaluate_folder(
            *(Path(student), cached, split, batch_size, place, reporter.advance, union, positions),
            trust_remote_code=trust_remote_code,
        )
    measured |= {"reliability": tuple(ReliabilityBin(**each) for each in measured["reliability"])}
    absent = {"acceptance": None, "acceptance_is": None}
    return EvaluateResult(**absent | measured, seconds=time.monotonic() - began)


def _check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ConfigError("this is not a choice", where=name, expected=f"one of {', '.join(choices)}", found=value)
