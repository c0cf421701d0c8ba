"""The log-probabilities of a few tokens, at the cost of one pass over the vocabulary.

Of the student's [N, V] logits, cross-entropy and divergences against sparse targets need only the
log-normaliser and k logits. Written with ``gather`` and ``logsumexp``, autograd fills three
[N, V] tensors in the backward pass: one for each of the two, and their sum. Written by hand, it fills
one: with g the gradient that arrives at the k log-probabilities,

    d logits = scatter(g) - softmax(logits) * sum(g)
"""

from typing import Any

import torch
from torch import Tensor

# N: positions, V: vocabulary, k: tokens asked for


def log_probs_at(logits_NV: Tensor, ids_Nk: Tensor) -> Tensor:
    """Return ``logits_NV.log_softmax(1).gather(1, ids_Nk)``, differentiable once in the logits.

    Args:
        logits_NV: (N, V) float32, nats.
        ids_Nk: (N, k) int64; a token may occur more than once in a row.

    Returns:
        (N, k) float32.
    """
    result: Tensor = _LogProbsAt.apply(logits_NV, ids_Nk)  # type: ignore[no-untyped-call]
    return result


class _LogProbsAt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, ids_Nk: Tensor) -> Tensor:
        normaliser_N1 = logits_NV.logsumexp(dim=1, keepdim=True)
        ctx.save_for_backward(logits_NV, ids_Nk, normaliser_N1)
        return logits_NV.gather(1, ids_Nk) - normaliser_N1

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_Nk: Tensor) -> tuple[Tensor, None]:
        logits_NV, ids_Nk, normaliser_N1 = ctx.saved_tensors
        gradient_NV = (logits_NV - normaliser_N1).exp_().mul_(-gradient_Nk.sum(dim=1, keepdim=True))
        return gradient_NV.scatter_add_(1, ids_Nk, gradient_Nk), None
