"""Check, before the first step, that the student's gradient depends on the teacher's predictions.

Where it does not, because all parameters are frozen or the loss is computed on a copy, a student can train for weeks
with a loss that looks ordinary. So the first sequence is read twice, with the teacher's predictions and with others,
and the two losses must have different gradients.
"""

from collections.abc import Iterable

import numpy as np
import torch

from cache_tools.codecs.registry import Targets
from cache_tools.errors import ModelError
from trainer.data.cached_sequences import Batch, Example, collate, to_device
from trainer.student.cached_loss import vocabulary_size
from trainer.student.student import DistilledStudent

POSITIONS = 8
"""Kept positions that are used; the sequence is read up to the last of them."""

SMALLEST = 1e-6
"""Norm of a gradient, per unit of ``kd_weight``, up to which it is considered rounding; 0.01 to 100 are usual."""

NEGLIGIBLE_NATS = 30.0
"""A probability that is lower by this factor is 0 for any loss."""


def check_teacher_reaches_student(module: DistilledStudent, examples: Iterable[Example]) -> None:
    """Refuse a student whose gradient does not depend on the teacher's predictions.

    Nothing is changed, and no random number is drawn.

    Args:
        module: The student with its loss, on its device.
        examples: Cached sequences; the first with targets at its beginning is used.

    Raises:
        ModelError: it does not.
    """
    weight, training, match = module.loss.objective.loss.kd_weight, module.training, module.loss.match
    example = next((e for e in examples if (e.targets.log_probs[:POSITIONS] > -np.inf).any()), None)
    if weight == 0 or example is None:
        return
    learned = [parameter for parameter in module.student.parameters() if parameter.requires_grad]
    batch = to_device(collate([_beginning(example)]), module.student.device)
    module.eval()  # or dropout would make any two losses differ
    module.loss.match = None  # hidden states reach the student by another way
    try:
        difference = module(**batch)["loss"] - module(**_with_other_predictions(batch, module))["loss"]
    finally:
        module.loss.match = match
        module.train(training)
    gradients = torch.autograd.grad(difference, learned, allow_unused=True) if difference.requires_grad else ()
    if not sum(float(gradient.float().norm()) for gradient in gradients if gradient is not None) > SMALLEST * weight:
        raise ModelError(
            "the student's gradient does not depend on the teacher's predictions",
            where=type(module.student).__name__,
            expected="a gradient that changes with the predictions",
            found=f"no change in {len(learned)} trained tensors",
            why="the student would not learn from the teacher",
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
        example.source,
        None if example.unmapped is None else example.unmapped[:POSITIONS],
    )


def _with_other_predictions(batch: Batch, module: DistilledStudent) -> Batch:
    """Return a batch in which every probability belongs to the next token id, and every hidden state is negated.

    Where ranks are compared, whose tokens do not matter, the kept tokens lose their probability instead: the gradient
    of an absolute difference depends on its sign alone.
    """
    hidden = {layer: -states for layer, states in batch.get("hidden", {}).items()}
    if "unmapped_log_probs" in batch:
        lost = {name: batch[name] - NEGLIGIBLE_NATS for name in ("target_log_probs", "unmapped_log_probs")}
        return batch | lost | {"hidden": hidden}
    return batch | {"target_ids": (batch["target_ids"] + 1) % vocabulary_size(module.student), "hidden": hidden}
