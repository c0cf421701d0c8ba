"""A student that is not finite stops its run: weights, losses and gradients that are NaN or infinite are never saved.

A run whose student became NaN ends like any other, and transformers even reports a loss of 0 for it. Here the loss and
the gradient's norm are looked at once per optimizer step, after the gradient is complete and before the weights move:
one number goes from the device to the host, where transformers otherwise fetches one per micro-batch, and several
processes add up one number, so that all of them stop together. Weights are looked at where a run starts and before
anything is saved, since they can be NaN where the loss is not: in the rows of tokens that no batch holds.

With ``fp16`` a gradient that overflows is no error: the step is skipped and the scale of the loss halved. It is one
when it goes on for MAX_SKIPPED_STEPS, or for the whole run.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from cache_tools.errors import ModelError

MAX_SKIPPED_STEPS = 20
"""Scaling starts at 2**16, so after 20 steps in a row the gradient overflows at a sixteenth of the loss."""


class StepWatch:
    """Looks at each optimizer step of a run.

    Args:
        over_ranks: Adds up named numbers over all processes.
    """

    def __init__(self, over_ranks: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
        self._over_ranks = over_ranks
        self._loss: Tensor | None = None
        self._skipped_steps = 0

    def add(self, loss: Tensor) -> None:
        """Take the loss of a micro-batch; needs no synchronisation."""
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    def check(self, norm: Any, step: int, patience: int, learning_rate: float, student: nn.Module) -> None:
        """Refuse the step whose micro-batches were added, before the weights move.

        Args:
            norm: Norm of the gradient.
            step: Its number, from 1.
            patience: Up to this many steps in a row, less one, a gradient may overflow.
            learning_rate: Learning rate of this step.
            student: The student; its weights are checked only if the step is refused.

        Raises:
            ModelError: loss or gradient is not finite, on all processes if on one.
        """
        loss, self._loss = self._loss, None
        bad_loss, bad_gradient = self._over_ranks({"counts": not_finite(loss, norm)})["counts"].tolist()
        self._skipped_steps = self._skipped_steps + 1 if bad_gradient else 0
        if bad_loss or self._skipped_steps >= patience:
            raise step_error(step, loss, norm, learning_rate, first_not_finite(student))


def first_not_finite(module: nn.Module) -> str | None:
    """Return the name of the first parameter of which this process keeps NaN or infinity; None if there is none.

    Packed integers are finite, and torch cannot look at all 8-bit numbers.
    """
    named = [(name, _local(parameter)) for name, parameter in module.named_parameters()]
    named = [(name, values) for name, values in named if values.is_floating_point() and values.itemsize > 1]
    if not named:
        return None
    finite = torch.stack([torch.isfinite(values).all().to(named[0][1].device) for _, values in named])
    return None if bool(finite.all()) else named[int((~finite).nonzero()[0])][0]


def not_finite(*values: Tensor | float | None) -> Tensor:
    """Return 1 for each value that is NaN or infinite, else 0; None counts as finite. Needs no synchronisation.

    Args:
        values: Scalars.
    """
    tensors = [torch.as_tensor(0.0 if value is None else _local(value)).detach().float() for value in values]
    device = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), tensors[0].device)
    return torch.stack([(~torch.isfinite(tensor)).float().to(device) for tensor in tensors])


def _local(value: Any) -> Any:
    return value.to_local() if isinstance(value, DTensor) else value


def check_student(module: nn.Module, where: object, fix: str) -> None:
    """Refuse a student with weights that are not finite.

    Raises:
        ModelError: naming the first of them.
    """
    name = first_not_finite(module)
    if name is not None:
        raise weights_error(name, where, fix)


def weights_error(name: str, where: object, fix: str) -> ModelError:
    """Return the error about a weight that is not finite."""
    return ModelError(
        "the student's weights are not finite",
        where=where,
        found=f"NaN or infinity in {name}",
        why="its predictions would all be NaN",
        fix=fix,
    )


def step_error(step: int, loss: Any, norm: Any, learning_rate: float, weight: str | None) -> ModelError:
    """Return the error about a step whose loss or gradient is not finite.

    Args:
        step: Number of the step, from 1.
        loss: The loss of this process.
        norm: Norm of the gradient.
        learning_rate: Learning rate of this step.
        weight: A weight that is not finite before this step, if there is one.
    """
    weights = f"NaN or infinity in {weight}" if weight else "all weights finite"
    return ModelError(
        "the loss or its gradient is not finite",
        where=f"step {step}",
        found=f"loss {_number(loss)}, gradient norm {_number(norm)}, learning rate {learning_rate:g}, {weights}",
        why="all later steps would fail too; nothing from this step was saved",
        fix="Lower training.learning_rate or raise training.warmup_steps, in another training.output_dir",
    )


def _number(value: Any) -> str:
    return "unknown" if value is None else f"{float(_local(value)):g}"


def check_measures(measures: Mapping[str, object], where: object) -> None:
    """Refuse measures of a student that are NaN.

    Raises:
        ModelError: naming the first of them.
    """
    broken = next((name for name, value in measures.items() if isinstance(value, float) and math.isnan(value)), None)
    if broken is not None:
        raise ModelError(
            "the student's predictions are NaN",
            where=where,
            found=f"{broken} is NaN",
            why="no mean can be computed",
            fix="Evaluate an earlier checkpoint, or train again with a lower learning rate",
        )
