"""The folder of a training run: its identity, its log, and its result.

::

    <output_dir>/run.json        resolved configuration, fingerprints, versions: before the first step
    <output_dir>/run.lock        the process that is training; removed at the end, see cache_tools/store/claims.py
    <output_dir>/metrics.jsonl   one JSON object per logging step
    <output_dir>/curves.png      the same as a picture, at the end, if matplotlib is installed
    <output_dir>/checkpoint-N/   the Trainer's own, for continuing; see checkpoints.py
    <output_dir>/final/          the student as an ordinary model folder; there when the run is done

A run is continued only by the same student file on the same cache and teacher, from the same initial weights.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerCallback

from cache_tools.alignments.stored import Alignment
from cache_tools.errors import DamageError, IdentityError
from cache_tools.format import layout
from cache_tools.format.fingerprint import differences
from cache_tools.format.manifest import SOFTWARE
from cache_tools.json_output import Json, json_object, json_text
from cache_tools.mappings import Arguments
from cache_tools.storage import write_object
from cache_tools.store.teacher import CachedTeacher
from cache_tools.vocabularies.union import UnionVocabulary
from trainer.config.student_file import StudentConfig
from trainer.run.checkpoints import numbered
from trainer.student.checkpoint import FINAL
from trainer.student.initial_weights import initial_weights
from trainer.verdicts.policy import learned_from

RECORD, METRICS = "run.json", "metrics.jsonl"
"""Files of a run folder."""

NOT_COMPARED = (
    "output_dir",
    "save_steps",
    "save_strategy",
    "save_total_limit",
    "logging_steps",
    "dataloader_num_workers",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "per_device_eval_batch_size",
    "fsdp",
    "fsdp_config",
    "report_to",
    "run_name",
    "project",
    "trackio_space_id",
    "trackio_bucket_id",
    "trackio_static_space_id",
)
"""Training arguments that may change between a run and its continuation; how a step's batch
is cut into ranks and micro-batches may too, as long as the whole batch stays the same size."""


@dataclass(frozen=True)
class RunIdentity:
    """What must be the same for a run to be continued.

    Attributes:
        config: The student file, without keys that only state a place, or how a step is divided into micro-batches.
        encoding: Fingerprint of the encoding's contents; a list for several caches or teachers.
        teacher: Fingerprint of the teacher; a list for several.
        vocabulary: Fingerprint of the student's vocabulary, or of its alignment, if it is not the caches' own.
        initial_weights: Weights that a pretrained student starts from, see ``student/initial_weights.py``.
    """

    config: dict[str, Json]
    encoding: str | list[str]
    teacher: str | list[str]
    vocabulary: str | None
    initial_weights: dict[str, str] | None


@dataclass(frozen=True)
class RunRecord:
    """The content of ``run.json``.

    Attributes:
        identity: What must be the same for the run to be continued.
        config: The whole student file, defaults included.
        caches: Where each teacher's cache was read; on the Hub at which commit.
        versions: Versions of logitcask, torch and transformers.
        text_by: Weights of the models that wrote the text; empty unless all writers are recorded.
        scored_by: Weights of the teachers; empty unless those of all are recorded.
    """

    identity: RunIdentity
    config: dict[str, Json]
    caches: list[str]
    versions: dict[str, str]
    text_by: list[str]
    scored_by: list[str]


@dataclass(frozen=True)
class TrainResult:
    """What a training run has made.

    Attributes:
        student: Folder of the finished student: an ordinary transformers model folder with its tokenizer.
        output_dir: Folder of the run: ``run.json``, ``metrics.jsonl``, checkpoints.
        steps: Optimizer steps of the whole run, earlier calls included.
        tokens: Tokens read in these steps; None if they were not counted.
        loss_nats: The training loss that was logged last, a mean over the steps since the log before; None if no step
            was logged. It is in nats unless ``loss.hidden`` adds terms without a unit.
        seconds: Wall-clock time of this call; two results are equal whatever time they took.
    """

    student: Path
    output_dir: Path
    steps: int
    tokens: int | None
    loss_nats: float | None
    seconds: float = field(compare=False)


def train_result(output: Path, seconds: float) -> TrainResult:
    """Return the result of a finished run, from its log.

    Args:
        output: The run folder.
        seconds: Wall-clock time of the call that finished it, or found it finished.

    Raises:
        DamageError: The log cannot be read.
    """
    log = read_log(output)
    tokens = next((entry["num_input_tokens_seen"] for entry in reversed(log) if "num_input_tokens_seen" in entry), None)
    return TrainResult(
        student=output / FINAL,
        output_dir=output,
        steps=max((int(entry["step"]) for entry in log), default=0),
        tokens=None if tokens is None else int(tokens),
        loss_nats=next((float(entry["loss"]) for entry in reversed(log) if "loss" in entry), None),
        seconds=seconds,
    )


def read_log(output: Path) -> list[dict[str, float]]:
    """Return the entries of ``metrics.jsonl``, the oldest first; none if there is no such file.

    Raises:
        DamageError: The file is not a log of training.
    """
    path = output / METRICS
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    except ValueError as error:
        raise DamageError("this file is not a log of training", where=path, found=error) from error


def run_record(
    config: StudentConfig,
    teachers: Sequence[CachedTeacher],
    batch_sequences: int,
    union: UnionVocabulary | None = None,
    alignment: Alignment | None = None,
) -> RunRecord:
    """Return what run.json says of a run.

    Args:
        config: The student file.
        teachers: The cached teachers that it names.
        batch_sequences: Sequences per optimizer step, over all ranks and micro-batches.
        union: The student's vocabulary, if it is not the caches' own.
        alignment: The alignment with the student's own tokenizer, if it has one.
    """
    resolved = config.model_dump(mode="json", exclude=_places(config))
    other = union if alignment is None else alignment.manifest
    training = {key: value for key, value in resolved["training"].items() if key not in NOT_COMPARED}
    identity = RunIdentity(
        config=resolved | {"training": training | {"batch_sequences": batch_sequences}},
        encoding=_one_or_all([teacher.encoding.manifest.contents_fingerprint for teacher in teachers]),
        teacher=_one_or_all([teacher.manifest.fingerprint for teacher in teachers]),
        vocabulary=None if other is None else other.fingerprint,
        initial_weights=None if config.student.pretrained is None else initial_weights(config.student),
    )
    versions = {"software": SOFTWARE, "torch": torch.__version__, "transformers": transformers.__version__}
    caches = [str(layout.cache_of(teacher.encoding.path)) for teacher in teachers]
    return RunRecord(identity, config.model_dump(mode="json"), caches, versions, *learned_from(teachers))


def final_record(output: Path, steps: int) -> bytes:
    """Return the content of ``final/logitcask.json``: that of run.json, and the optimizer steps that were made.

    Args:
        output: The run folder.
        steps: Optimizer steps of the whole run.
    """
    return (json.dumps(json.loads((output / RECORD).read_bytes()) | {"steps": steps}, indent=2) + "\n").encode()


def check_run(output: Path, record: RunRecord) -> None:
    """Refuse to continue a different run.

    Args:
        output: The run folder.
        record: The record of this run.

    Raises:
        IdentityError: The folder holds a run of another configuration, cache, teacher or initial weights.
        DamageError: Its run.json is missing or cannot be read.
    """
    path = output / RECORD
    if path.exists():
        changes = differences(_recorded_identity(path), json_object(record.identity))
        if changes:  # a key that an older version did not know counts as null
            raise IdentityError(
                "another run is in this folder",
                where=output,
                expected="the same student file, cache and initial weights",
                found="; ".join(changes),
                why="continuing it would mix two runs",
                fix="Choose another training.output_dir, or delete this one",
            )
    elif numbered(output):
        raise DamageError(
            "this folder has checkpoints and no run.json",
            where=output,
            why="the checkpoints cannot be matched to a run",
            fix="Restore run.json from a copy, or choose another training.output_dir",
        )


def _recorded_identity(path: Path) -> dict[str, Json]:
    try:
        identity = json.loads(path.read_bytes())["identity"]
        if not isinstance(identity, dict):
            raise TypeError("identity is not an object")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamageError(
            "this file does not describe the run",
            where=path,
            expected="what 'logitcask train' wrote before the first step",
            found=str(error),
            why="a run can only be continued with the same student file and cache",
            fix="Restore it from a copy, or choose another training.output_dir",
        ) from error
    return identity


def is_finished(output: Path) -> bool:
    """Say whether a run has its finished student.

    Raises:
        DamageError: what lies there is not what a run leaves when it is done.
    """
    final = output / FINAL
    if not os.path.lexists(final):
        return False
    missing = [name for name in ("logitcask.json", "config.json", "*.safetensors") if not any(final.glob(name))]
    if missing:
        raise DamageError(
            "this folder is not a finished student",
            where=final,
            expected=missing[0],
            found="no file or folder of that name" if final.is_dir() else "no folder",
            fix="Move it away, and run the same command again; it continues from the last checkpoint",
        )
    return True


def _places(config: StudentConfig) -> Arguments:
    """Return the keys that only state a place, whose content fingerprints identify, and the keys that are unused."""
    teachers = {"__all__": {"name"}} if config.teachers else True
    caches = {"__all__": {"cache", "encoding", "teacher"}} if config.caches else True
    single = dict.fromkeys(("cache", "encoding", "teacher", "vocabulary"), True)
    return single | {"teachers": teachers, "caches": caches} | ({} if config.teachers else {"mixture": True})


def _one_or_all(fingerprints: list[str]) -> str | list[str]:
    return fingerprints[0] if len(fingerprints) == 1 else fingerprints


class RunFile(TrainerCallback):
    """Writes run.json just before the first step: a run that was refused until then leaves nothing behind.

    Args:
        output: The run folder.
        record: What the file says.
    """

    def __init__(self, output: Path, record: RunRecord) -> None:
        self._output, self._record = output, record

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write it, unless it is there: of this run, or of another one that has begun since the first look."""
        path = self._output / RECORD
        if state.is_world_process_zero:
            check_run(self._output, self._record)
            if not path.exists():
                write_object(path, (json_text(self._record) + "\n").encode())


class MetricsFile(TrainerCallback):
    """Writes the log as JSON lines; rewritten whole, so a continued run never repeats a step.

    Args:
        output: The run folder.
    """

    def __init__(self, output: Path) -> None:
        self.path = output / METRICS

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write everything logged so far."""
        if state.is_world_process_zero:
            lines = (json.dumps(entry) + "\n" for entry in state.log_history)
            write_object(self.path, "".join(lines).encode())
