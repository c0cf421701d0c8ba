"""Student files, runs and the naive losses that the tests of stage two compare with.

Students are as tiny as the teachers of ``tiny.py`` and untrained: a test here compares two
computations, or two runs, that must agree; none asks whether the student became any good.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tiny
from tolerances import adam_rounding, gradient_rounding, loss_rounding, training_rounding
from trainer.config.student_file import StudentConfig
from trainer.run.progress import StepProgress
from trainer.run.train import run_training

LLAMA: dict[str, Any] = {"model_type": "llama", **tiny.SHAPE, "bos_token_id": None, "eos_token_id": 0}
BERT: dict[str, Any] = {"model_type": "bert", **tiny.SHAPE, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}


TINY = SimpleNamespace(**tiny.SHAPE, vocab_size=300)
GRADIENT_ROUNDING = gradient_rounding(TINY, tokens=48, positions=16 * 48, vocabulary=300)
"""Relative tolerance of a gradient of such a student, over at most 16 sequences of 48 tokens."""
LOSS_ROUNDING = loss_rounding(TINY, tokens=48, logits=1)
"""Tolerance in nats of the loss of such a student; untrained, its logits are below 1."""

CLOCK = ("runtime", "per_second", "stall")
"""Parts of names of what depends on the clock."""

REPOSITORY = Path(__file__).parents[2]


class StoppedError(Exception):
    """Stands for whatever ends a process in the middle of a run."""


def student_values(cache: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Return the student file, as a dictionary, of a short run on the CPU.

    Args:
        cache: Folder of the cache; not used if there are ``caches``.
        output: Run folder.
        changes: Keys of the student file, or else of its training block.
    """
    training: dict[str, Any] = {"output_dir": str(output), "use_cpu": True, "logging_steps": 1, "save_steps": 100}
    training |= {"max_steps": 3, "per_device_train_batch_size": 8, "learning_rate": 0.01}
    values: dict[str, Any] = {"cache": str(cache), "student": {"config": LLAMA}, "training": training}
    for key, value in changes.items():
        (values if key in StudentConfig.model_fields else training)[key] = value
    if "caches" in changes:
        del values["cache"]
    return values


@contextmanager
def without_pictures() -> Iterator[None]:
    """Train as if matplotlib were not installed: to draw the curves takes longer than to train."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.run.train.can_plot", lambda: False)
        yield


def train(cache: Path, output: Path, picture: bool = False, **changes: Any) -> Path:
    """Train a student, without a picture of its curves unless told to; return its folder.

    Arguments as for ``student_values``.
    """
    with nullcontext() if picture else without_pictures():
        return run_training(StudentConfig.model_validate(student_values(cache, output, **changes))).student


def train_and_stop(step: int, cache: Path, output: Path, **changes: Any) -> None:
    """Train until the optimizer has made ``step`` steps, then fail before that step is logged or saved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.run.train.StepProgress", type("Stopping", (StoppingProgress,), {"last_step": step}))
        with pytest.raises(StoppedError):
            train(cache, output, **changes)


class StoppingProgress(StepProgress):
    """A progress bar that ends the run."""

    last_step = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        super().on_step_end(args, state, control, **named)
        if state.global_step == self.last_step:
            self.on_train_end(args, state, control)
            raise StoppedError


def curve(output: Path) -> list[dict[str, float]]:
    """Return what a run logged, without what depends on the clock."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not any(word in name for word in CLOCK)}
        for line in lines
        if "loss" in line
    ]


def weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a model folder."""
    return load_file(folder / "model.safetensors")


def largest_difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Return the largest absolute difference between two sets of weights."""
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def assert_same_run(left: Path, right: Path, steps: int = 3, learning_rate: float = 0.01, optim: str = "adam") -> None:
    """Assert that two runs ended with the same weights, though they cut their batches in different ways.

    Args:
        left: Folder of one finished student.
        right: Folder of the other.
        steps: Steps of each.
        learning_rate: The largest on the way.
        optim: ``sgd``, where the largest difference has a bound, or ``adam``, where the mean difference has one.
    """
    one, other = weights(left), weights(right)
    assert one.keys() == other.keys()
    differences = torch.cat([(one[name] - other[name]).abs().flatten() for name in one])
    if optim == "sgd":
        assert differences.max() <= training_rounding(GRADIENT_ROUNDING, steps, learning_rate)
    else:
        assert differences.mean() <= adam_rounding(GRADIENT_ROUNDING, steps, learning_rate)


def python(script, *arguments, **environment):
    """Start a Python process that finds the packages and the tests' helpers."""
    path = os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "tests", REPOSITORY / "tests" / "support")))
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    command = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def naive_kl_nats(logits_PV: Tensor, ids_Pk: Tensor, log_probs_Pk: Tensor, log_left_out_P: Tensor, tail: str) -> Tensor:
    """Return KL(teacher || student) per position in float64, one position after the other; differentiable."""
    rows = []
    for logits, ids, log_probs, log_left_out in zip(logits_PV, ids_Pk, log_probs_Pk, log_left_out_P, strict=True):
        log_q, real = logits.double().log_softmax(dim=0), log_probs > -torch.inf
        kept, p, left_out = ids[real].long(), log_probs[real].double().exp(), math.exp(log_left_out)
        p = p / p.sum() if tail == "renormalise" else p
        total = (p * (p.log() - log_q[kept])).sum()
        if tail == "ghost" and left_out > 0:
            others = torch.ones_like(log_q, dtype=torch.bool)
            others[kept] = False
            total = total + left_out * (math.log(left_out) - log_q[others].logsumexp(dim=0))
        rows.append(total)
    return torch.stack(rows)
