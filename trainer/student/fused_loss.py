"""A loss computed in chunks, so that the logits of a batch never exist all at once.

The logits of a batch, [P, V] in float32, are its largest tensor by far: 5 GB for 8,192 positions of a vocabulary of
152,000, and the loss wants two or three of that size. Here a chunk of positions is multiplied with the output matrix,
its loss taken, and its gradient propagated at once to the hidden states and the matrix; then the chunk is discarded.
The backward pass only scales these gradients, so the matrix is multiplied three times, as without chunks.

Cost in memory: one gradient of the matrix (V, D), one of the hidden states (P, D), and one chunk.
Rejected: recomputing each chunk in the backward pass (``torch.utils.checkpoint``) multiplies the
matrix a fourth time, and needs the gradient of the matrix anyway; kernels written for one loss.

Precision: losses see float32 logits whatever the matrix is. The matrix' gradient is added up over
chunks in float32 and rounded to the matrix' own type once. Gradients are taken of a sum over
positions, so they are of order 1 and do not vanish in float16 before a loss scale reaches them.

Limit: gradients are used up by the first backward pass; a second one, or one through them, is refused.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from cache_tools.mappings import ModelInputs
from trainer.student.head import StudentHead

LossOf = Callable[[Tensor, slice], dict[str, Tensor]]
"""Takes the logits (N, V) float32 of some rows of a batch and which rows they are; returns named sums
over them. ``loss`` is the one to be minimised."""

CHUNK_POSITIONS = 256
"""Each chunk reads and writes the gradient of the matrix once: enough positions that this is little beside the
products, few enough that a chunk of a vocabulary of 152,000 takes 156 MB."""

# P: positions, N: positions of a chunk, D: width, V: vocabulary


@torch.compiler.disable  # type: ignore[untyped-decorator]  # a graph break: autograd runs inside
def chunked_loss(
    hidden_PD: Tensor, head: StudentHead, loss_of: LossOf, chunk_positions: int = CHUNK_POSITIONS
) -> dict[str, Tensor]:
    """Return ``loss_of(head(hidden_PD), slice(0, P))`` without ever making its first argument.

    Args:
        hidden_PD: (P, D), inputs of the output matrix; P may be 0.
        head: The student's head.
        loss_of: The loss; must be a sum over rows.
        chunk_positions: Positions whose logits exist at the same time.

    Returns:
        The sums over all P positions, float32 scalars. ``loss`` is differentiable, once, in
        ``hidden_PD`` and the parameters of the head that require a gradient.
    """
    inputs = (hidden_PD, head.matrix.weight, head.matrix.bias)
    gradients = [_zeros(x) if x is not None and x.requires_grad and torch.is_grad_enabled() else None for x in inputs]
    totals: dict[str, Tensor] = {}
    dtype = product_dtype(head.matrix.weight)
    with torch.autocast(hidden_PD.device.type, enabled=False), torch.no_grad():
        weight_VD, bias_V = (None if x is None else x.to(dtype) for x in inputs[1:])
        assert weight_VD is not None
        for rows in _slices(len(hidden_PD), chunk_positions):
            hidden_ND = hidden_PD[rows].to(dtype)
            products_NV = F.linear(hidden_ND, weight_VD, bias_V).float()
            sums, gradient_NV = _sums_and_gradient(
                products_NV, head, loss_of, rows, any(x is not None for x in gradients)
            )
            for name, value in sums.items():
                totals[name] = totals.get(name, 0) + value.detach()
            if gradient_NV is not None:
                _add_gradients(gradients, gradient_NV.to(dtype), hidden_ND, weight_VD, rows)
    loss: Tensor = _PrecomputedGradient.apply(totals["loss"], gradients, *inputs)  # type: ignore[no-untyped-call]
    return totals | {"loss": loss}


def over_positions(
    student: PreTrainedModel, head: StudentHead | None, inputs: ModelInputs, kept_BL: Tensor, loss_of: LossOf
) -> dict[str, Tensor]:
    """Run a student and return the sums of a loss over its kept positions: in chunks if its head is known.

    Args:
        student: Causal or masked language model.
        head: Its head; None keeps the whole batch's logits.
        inputs: Arguments of the student's forward, by name.
        kept_BL: (B, L) bool, true at the P kept positions.
        loss_of: The loss; must be a sum over rows.

    Returns:
        The sums, as of :func:`chunked_loss`.
    """
    states, _ = run_student(student, head, inputs)
    return summed(states, head, kept_BL, loss_of)


def run_student(student: PreTrainedModel, head: StudentHead | None, inputs: ModelInputs) -> tuple[Tensor, Any]:
    """Run a student; return the inputs of its output matrix (B, L, D), or its logits without a head, and its output."""
    if head is not None:
        return head.run(student, inputs)
    output = student(**inputs)
    return output.logits, output


def summed(states: Tensor, head: StudentHead | None, kept_BL: Tensor, loss_of: LossOf) -> dict[str, Tensor]:
    """Return the sums of a loss over kept positions.

    Args:
        states: (B, L, D), inputs of the output matrix; or (B, L, V), logits, if there is no head.
        head: The head.
        kept_BL: (B, L) bool, true at the P kept positions.
        loss_of: The loss; must be a sum over rows.
    """
    if head is None:
        logits_PV: Tensor = states[kept_BL].float()
        return loss_of(logits_PV, slice(None))
    sums: dict[str, Tensor] = chunked_loss(states[kept_BL], head, loss_of, CHUNK_POSITIONS)
    return sums


def _sums_and_gradient(
    products_NV: Tensor, head: StudentHead, loss_of: LossOf, rows: slice, with_gradient: bool
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return a chunk's sums and the gradient (N, V) of its loss in the matrix' products."""
    if not with_gradient:
        return loss_of(head.logits(products_NV), rows), None
    with torch.enable_grad():
        products_NV.requires_grad_()
        sums = loss_of(head.logits(products_NV), rows)
        return sums, torch.autograd.grad(sums["loss"], products_NV)[0]


def _add_gradients(
    gradients: list[Tensor | None], gradient_NV: Tensor, hidden_ND: Tensor, weight_VD: Tensor, rows: slice
) -> None:
    """Add a chunk to the gradients of hidden states, matrix and bias, in place."""
    of_hidden, of_weight, of_bias = gradients
    if of_hidden is not None:
        of_hidden[rows] = gradient_NV @ weight_VD
    if of_weight is not None and of_weight.dtype == hidden_ND.dtype:
        of_weight.addmm_(gradient_NV.T, hidden_ND)
    elif of_weight is not None:
        of_weight += gradient_NV.T @ hidden_ND
    if of_bias is not None:
        of_bias += gradient_NV.sum(dim=0)


class _PrecomputedGradient(torch.autograd.Function):
    """A value whose gradients have been computed in advance."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *inputs: Tensor | None) -> Tensor:
        ctx.gradients, ctx.dtypes = gradients, [None if x is None else x.dtype for x in inputs]
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of a chunked loss are used up by its first backward pass")
        scaled = (
            None if x is None else x.mul_(factor).to(dtype) for x, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return None, None, *scaled


def product_dtype(weight: Tensor) -> torch.dtype:
    """Return the type in which an output matrix is multiplied here: autocast's where that is on."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.float32)


def _slices(length: int, size: int) -> Iterator[slice]:
    """Cut [0, length) into slices; one empty slice for nothing, so that every sum exists."""
    for start in range(0, max(length, 1), size):
        yield slice(start, min(start + size, length))
