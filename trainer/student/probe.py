"""Run a student on real rows before its first step, and refuse one that learns from what it must not see.

A student that sees later tokens learns to copy them, with a loss that looks excellent; one that reads its padding
learns from which sequences share a batch. ``cache_tools/models/probe.py`` says what is compared and how rounding is
distinguished from a leak; here the student runs, in the precision in which it will be trained. Cost: six small batches.
"""

from collections.abc import Iterable
from itertools import islice

import torch
from transformers import PreTrainedModel

from cache_tools.format.manifest import Objective
from cache_tools.models.probe import Ids, Probe, States, check_model, step_of
from trainer.data.cached_sequences import Example
from trainer.student.head import StudentHead

EXAMPLES = 8
"""Number of sequences, of which the longest is used."""


def check_rows(
    student: PreTrainedModel,
    head: StudentHead | None,
    examples: Iterable[Example],
    objective: Objective,
    packed: bool,
) -> None:
    """Refuse a student whose predictions depend on later tokens, on padding, or on other sequences of a batch.

    Args:
        student: The student, where it will be trained, in the precision in which it will be.
        head: Its head; without one, logits are compared instead of hidden states.
        examples: Cached sequences with the student's ids.
        objective: Objective of the encoding.
        packed: Whether sequences are packed into rows, which ``packing.check_packing`` checks, and not padded.

    Raises:
        ModelError: they do.
    """
    rows = [example.input_ids for example in islice(examples, EXAMPLES)]
    probe = Probe(rows, causal=objective == "causal", batched=not packed, step=_step(student))

    def states_of(input_ids: Ids, attention_mask: Ids) -> States:
        ids, mask = (torch.from_numpy(array).to(student.device) for array in (input_ids, attention_mask))
        inputs = {"input_ids": ids, "attention_mask": mask}
        output = student(**inputs).logits if head is None else head.run(student, inputs)[0]
        states: States = output.float().cpu().numpy()
        return states

    was_training = student.training
    student.eval()
    try:
        with torch.no_grad():
            check_model(states_of, probe, "the student", type(student).__name__, objective)
    finally:
        student.train(was_training)


def _step(student: PreTrainedModel) -> float:
    """Return the step of the student's activations: of mixed precision, where that is on."""
    device = student.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else student.dtype
    return step_of(str(dtype).removeprefix("torch."), device, torch.get_float32_matmul_precision())
