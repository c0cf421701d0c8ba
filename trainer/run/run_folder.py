"""The folder of a training run: what it is, how it went, where it stands.

::

    <output_dir>/run.json        resolved configuration, fingerprints, versions: before the first step
    <output_dir>/metrics.jsonl   one JSON object per logging step
    <output_dir>/curves.png      the same as a picture, at the end, if matplotlib is installed
    <output_dir>/checkpoint-N/   the Trainer's own, for continuing; see checkpoints.py
    <output_dir>/final/          the student as an ordinary model folder; there when the run is done

A run is continued only by the same student file on the same cache and teacher, from the same initial weights.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerCallback

from cache_tools.errors import DamageError, IdentityError
from cache_tools.format.fingerprint import differences
from cache_tools.format.manifest import SOFTWARE
from cache_tools.storage import write_object
from cache_tools.store.teacher import CachedTeacher
from cache_tools.vocabularies.union import UnionVocabulary
from trainer.config.student_file import StudentConfig
from trainer.run.checkpoints import numbered
from trainer.student.initial_weights import initial_weights

FINAL = "final"
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


def run_record(
    config: StudentConfig,
    teachers: Sequence[CachedTeacher],
    batch_sequences: int,
    union: UnionVocabulary | None = None,
) -> dict[str, Any]:
    """Return what run.json says of a run.

    Args:
        config: The student file.
        teachers: The cached teachers that it names.
        batch_sequences: Sequences per optimizer step, over all ranks and micro-batches.
        union: The student's vocabulary, if it is not the caches' own.
    """
    resolved = config.model_dump(mode="json", exclude=_places(config))
    training = {key: value for key, value in resolved["training"].items() if key not in NOT_COMPARED}
    identity: dict[str, Any] = {
        "config": resolved | {"training": training | {"batch_sequences": batch_sequences}},
        "encoding": _one_or_all([teacher.encoding.manifest.contents_fingerprint for teacher in teachers]),
        "teacher": _one_or_all([teacher.manifest.fingerprint for teacher in teachers]),
    }
    if union is not None:
        identity["vocabulary"] = union.fingerprint
    if config.student.pretrained is not None:
        identity["initial_weights"] = initial_weights(config.student)
    return {
        "identity": identity,
        "config": config.model_dump(mode="json"),
        "versions": {"software": SOFTWARE, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def check_run(output: Path, record: dict[str, Any]) -> None:
    """Refuse to continue a different run.

    Args:
        output: The run folder.
        record: Of this run.

    Raises:
        IdentityError: the folder holds a run of another configuration, cache, teacher or initial weights.
        DamageError: its run.json is missing or cannot be read.
    """
    path = output / "run.json"
    if path.exists():
        found = differences(_recorded_identity(path), record["identity"])
        if found:  # a key that an older version did not know counts as null
            raise IdentityError(
                "another run lies in this folder",
                where=output,
                expected="the same student file, cache and initial weights",
                found="; ".join(found),
                why="continuing it would mix two runs",
                fix="Choose another training.output_dir, or delete this one",
            )
    elif numbered(output):
        raise DamageError(
            "this folder has checkpoints and no run.json",
            where=output,
            why="it is unknown which run they belong to",
            fix="Restore run.json from a copy, or choose another training.output_dir",
        )


def _recorded_identity(path: Path) -> dict[str, Any]:
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
            why="a run is continued only by the same student file on the same cache",
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
            "this is not a finished student",
            where=final,
            expected=missing[0],
            found="no file or folder of that name" if final.is_dir() else "no folder",
            fix="Move it away, and run the same command again; it continues from the last checkpoint",
        )
    return True


def _places(config: StudentConfig) -> dict[str, Any]:
    """Return the keys that only say where something lies, for the fingerprints say what it is; and those not in use."""
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

    def __init__(self, output: Path, record: dict[str, Any]) -> None:
        self._output, self._record = output, record

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write it, unless it is there: of this run, or of another one that has begun since the first look."""
        path = self._output / "run.json"
        if state.is_world_process_zero:
            check_run(self._output, self._record)
            if not path.exists():
                write_object(path, (json.dumps(self._record, indent=2) + "\n").encode())


class MetricsFile(TrainerCallback):
    """Writes the log as JSON lines; rewritten whole, so a continued run never repeats a step.

    Args:
        output: The run folder.
    """

    def __init__(self, output: Path) -> None:
        self.path = output / "metrics.jsonl"

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write everything logged so far."""
        if state.is_world_process_zero:
            lines = (json.dumps(entry) + "\n" for entry in state.log_history)
            write_object(self.path, "".join(lines).encode())
