"""A proof, before the first step, that what the teacher said reaches the student's gradient.

A student can train for weeks without: everything it could learn with is frozen, or the loss is
computed on a copy. The loss looks ordinary then. So the first sequence is shown twice, with the
teacher's predictions and with others, and the two losses must pull at the student differently.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from cache_tools.codecs.registry import Targets
from cache_tools.errors import ModelError
from trainer.data.cached_sequences import Example, collate, to_device
from trainer.student.student import DistilledStudent, vocabulary_size

POSITIONS = 8
"""Kept positions that are looked at; the sequence is read up to the last of them."""

SMALLEST = 1e-6
"""Norm of a gradient, per unit of ``kd_weight``, that is taken for rounding; 0.01 to 100 are usual."""


def check_teacher_reaches_student(module: DistilledStudent, examples: Iterable[Example]) -> None:
    """Refuse a student whose gradient does not depend on the teacher's predictions.

    Nothing is changed, and no random number is drawn.

    Args:
        module: The student with its loss, on its device.
        examples: Cached sequences; the first at whose beginning the teacher said anything is taken.

    Raises:
        ModelError: it does not.
    """
    weight, training, match = module.objective.loss.kd_weight, module.training, module.match
    example = next((e for e in examples if (e.targets.log_probs[:POSITIONS] > -np.inf).any()), None)
    if weight == 0 or example is None:
        return
    learned = [parameter for parameter in module.student.parameters() if parameter.requires_grad]
    batch = to_device(collate([_beginning(example)]), module.student.device)
    module.eval()  # or dropout would make any two losses differ
    module.match = None  # hidden states reach the student by another way
    try:
        difference = module(**batch)["loss"] - module(**_said_otherwise(batch, module))["loss"]
    finally:
        module.match = match
        module.train(training)
    gradients = torch.autograd.grad(difference, learned, allow_unused=True) if difference.requires_grad else ()
    if not sum(float(gradient.float().norm()) for gradient in gradients if gradient is not None) > SMALLEST * weight:
        raise ModelError(
            "what the teacher said does not reach the student's gradient",
            where=type(module.student).__name__,
            expected="another gradient for other predictions",
            found=f"the same one in {len(learned)} tensors that are trained",
            why="it would train as if it had no teacher",
            fix="Check which of the student's parameters are frozen",
        )


def _beginning(example: Example) -> Example:
    positions, targets = example.positions[:POSITIONS], example.targets
    return Example(
        example.input_ids[: positions[-1] + 1],
        positions,
        example.gold_ids[:POSITIONS],
        Targets(targets.ids[:POSITIONS], targets.log_probs[:POSITIONS], targets.log_left_out[:POSITIONS]),
        {name: values[:POSITIONS] for name, values in example.scalars.items()},
        {layer: states[:POSITIONS] for layer, states in example.hidden.items()},
        None if example.weights is None else example.weights[:POSITIONS],
    )


def _said_otherwise(batch: dict[str, Any], module: DistilledStudent) -> dict[str, Any]:
    """Return a batch in which every probability belongs to the next token, and every hidden state is turned round."""
    hidden = {layer: -states for layer, states in batch.get("hidden", {}).items()}
    return batch | {"target_ids": (batch["target_ids"] + 1) % vocabulary_size(module.student), "hidden": hidden}
