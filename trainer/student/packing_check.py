"""Check on the model itself, before the first step, that it keeps the sequences of a packed row apart."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cache_tools.errors import ConfigError, ModelError
from trainer.data.packing import laid_out, model_inputs, row_layout
from trainer.student.fused_loss import product_dtype
from trainer.student.head import StudentHead

CHECKED_LENGTHS = ((24, 40), (40, 23))
"""Rows on which a model is checked, the second with a token of padding."""


def check_packing(student: PreTrainedModel, head: StudentHead | None, row_tokens: int | None) -> None:
    """Check that a student keeps sequences of a row apart, and restarts the positions of each.

    The last sequence of each row must have no gradient in any other token of its row: masked attention
    gives exactly zero in every precision. Comparing packed with padded rows would not suffice: in bfloat16 one sequence
    may change another by less than the rounding error. That comparison is made too, to check the positions.

    Args:
        student: The student, where it will be trained, in the precision in which it will be.
        head: Its head; without one, logits are compared instead of hidden states.
        row_tokens: As for ``packing.pack``.

    Raises:
        ConfigError: flash attention is to read several rows, which it would not keep apart.
        ModelError: sequences of a row see each other, or the student takes no positions.
    """
    attention = student.config._attn_implementation
    if row_tokens is not None and "flash" in attention:
        raise ConfigError(
            "flash attention keeps packed sequences apart only in a single row",
            where="packing.row_tokens",
            expected="null",
            found=row_tokens,
            fix="Set packing.row_tokens: null",
        )
    try:
        problem = _mixture(student, head, [list(row) for row in CHECKED_LENGTHS[: 1 if row_tokens is None else None]])
    except TypeError as refusal:  # a forward without position_ids
        problem = str(refusal)
    if problem:
        raise ModelError(
            "this student mixes packed sequences",
            where=f"{type(student).__name__}, attention {attention}",
            found=problem,
            why="predictions would depend on the preceding sequence in the row",
            fix="Remove packing from the student file",
        )


def _mixture(student: PreTrainedModel, head: StudentHead | None, rows: list[list[int]]) -> str | None:
    """Say what shows that the student mixes sequences of these lengths, or return None."""
    position_ids, mask = row_layout(rows)
    last_RW = torch.zeros_like(mask, dtype=torch.bool)
    for last, lengths in zip(last_RW, rows, strict=True):
        last[sum(lengths[:-1]) : sum(lengths)] = True
    packed_TD, embedded_RWD = _run(student, head, position_ids, mask, packed=True)
    weights_D = torch.arange(packed_TD.shape[1]).cos()  # a plain sum of normalised states may be constant
    (gradient_RWD,) = torch.autograd.grad((packed_TD[last_RW[mask.bool()]] @ weights_D).sum(), embedded_RWD)
    if gradient_RWD.cpu()[~last_RW].any():
        return "a gradient of one sequence in the tokens of another"
    padded_TD, _ = _run(student, head, *row_layout([[length] for row in rows for length in row]), packed=False)
    error = float((packed_TD - padded_TD).detach().abs().max() / padded_TD.detach().abs().max())
    return (
        None if error <= _tolerance(student) else f"states that differ from padded ones by {error:.2g} of the largest"
    )


def _run(
    student: PreTrainedModel, head: StudentHead | None, positions: Tensor, mask: Tensor, packed: bool
) -> tuple[Tensor, Tensor]:
    """Run the student on made-up tokens.

    Returns:
        Its last hidden states (T, D), or logits, float32, row by row; and the embeddings they were made of.
    """
    ids_T = torch.arange(1, int(mask.sum()) + 1) * 7919 % student.config.get_text_config().vocab_size
    input_ids, mask, positions = (x.to(student.device) for x in (laid_out(ids_T, mask, 0), mask, positions))
    inputs = model_inputs(input_ids, mask, positions if packed else None)
    embedded: list[Tensor] = []

    def watch(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    was_training = student.training
    student.eval()
    hook = student.get_input_embeddings().register_forward_hook(watch)
    try:
        outputs = student(**inputs).logits if head is None else head.run(student, inputs)[0]
    finally:
        hook.remove()
        student.train(was_training)
    return outputs[mask.bool()].float().cpu(), embedded[0]


def _tolerance(student: PreTrainedModel) -> float:
    """Return the largest relative difference that rounding explains."""
    weight = student.get_output_embeddings().weight
    assert isinstance(weight, Tensor)
    return 4e-4 if product_dtype(weight) == torch.float32 else 2**-5
