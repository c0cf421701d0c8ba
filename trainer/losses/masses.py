"""The mass that a student gives to the kept tokens and to all others, at the cost of a cross-entropy.

Two functions, each one pass over the vocabulary: ``log_masses`` for kept tokens and the rest, ``log_probs_at`` for a
few tokens alone. Of the latter, autograd would fill three [N, V] tensors in the backward pass, one for ``gather``, one
for ``logsumexp``, and their sum. Written by hand it fills one: with g the gradient that arrives at the k
log-probabilities, d logits = scatter(g) - softmax(logits) * sum(g).

The mass of the rest, 1 - sum q_i, is exact to 1e-7 only if it is subtracted in float32. Where the
student's tail is smaller than that its gradient vanishes, and a ghost loss can no longer pull
it up. So nothing is subtracted here: the exponentials are summed over the *other* tokens, and the
kept ones join that sum to make the normaliser. Both are then exact to float32's relative precision,
however small.

The backward pass is written by hand, because the exponentials of the forward pass are its
gradient up to a factor per row. Measured with ``python -m benchmarks.losses``: ghost KL with k = 64,
forward and backward, seconds on one core.

======================= ====== ================== ================= ===============
logits                  this   1 - sum, autograd  masked, autograd  cross-entropy
======================= ====== ================== ================= ===============
(2048, 32000) float32   0.38   1.19               1.18              0.47
(2048, 32000) bfloat16  0.46   1.07               1.34              0.67
(512, 151936) float32   0.42   0.97               1.33              0.54
(512, 151936) bfloat16  0.52   1.28               1.61              0.87
======================= ====== ================== ================= ===============

Also rejected: a masked logsumexp next to the ordinary one, which costs even more; subtracting only where the rest is
large, which is neither cheaper nor simpler. Memory: one float32 tensor of
the logits' shape is kept for the backward pass, as by any softmax.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# N: positions of a chunk, V: vocabulary, k: kept tokens, or tokens asked for


def log_masses(logits_NV: Tensor, ids_Nk: Tensor, used_Nk: Tensor, gold_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the student's log-probabilities of the used ids, of all other tokens together, and of the gold one.

    The same as ``logits.log_softmax(1)``, gathered at the ids, its ``logsumexp`` over the others, and
    gathered at the gold token, which may be among either.

    Args:
        logits_NV: (N, V), any floating type; differentiable, once.
        ids_Nk: (N, k) int64; used ids of a row are distinct.
        used_Nk: (N, k) bool, false in empty slots.
        gold_N: (N,) int64.

    Returns:
        (N, k) float32, -inf in empty slots; (N,) float32, -inf where there are no other tokens; (N,) float32.
    """
    masses: tuple[Tensor, Tensor, Tensor] = _LogMasses.apply(logits_NV, ids_Nk, used_Nk, gold_N)  # type: ignore[no-untyped-call]
    return masses


class _LogMasses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, ids_Nk: Tensor, used_Nk: Tensor, gold_N: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        kept_Nk = torch.where(used_Nk, logits_NV.gather(1, ids_Nk).float(), -torch.inf)
        others_NV = logits_NV.to(torch.float32, copy=True)
        # the smaller of both, so that an empty slot does not restore the logit of its id
        others_NV.scatter_reduce_(1, ids_Nk, torch.where(used_Nk, -torch.inf, torch.inf), "amin")
        highest_N1 = others_NV.amax(dim=1, keepdim=True)
        highest_N1 = torch.where(highest_N1 == -torch.inf, 0.0, highest_N1)
        weights_NV = others_NV.sub_(highest_N1).exp_()
        total_N = weights_NV.sum(dim=1)
        rest_N = highest_N1[:, 0] + total_N.log()
        normaliser_N = torch.logaddexp(rest_N, kept_Nk.logsumexp(dim=1))
        log_q_Nk, log_rest_N = kept_Nk - normaliser_N[:, None], rest_N - normaliser_N
        log_gold_N = logits_NV.gather(1, gold_N[:, None])[:, 0].float() - normaliser_N
        ctx.save_for_backward(weights_NV, total_N, ids_Nk, used_Nk, gold_N, log_q_Nk, log_rest_N)
        ctx.dtype = logits_NV.dtype
        return log_q_Nk, log_rest_N, log_gold_N

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_Nk: Tensor, grad_rest_N: Tensor, grad_gold_N: Tensor
    ) -> tuple[Tensor, None, None, None]:
        """With G the sum of all gradients: kept i gets g_i - G q_i, another v gets q_v (g_rest / rest - G).

        The gold token, wherever it is, gets its own on top.
        """
        weights_NV, total_N, ids_Nk, used_Nk, gold_N, log_q_Nk, log_rest_N = ctx.saved_tensors
        grad_Nk = torch.where(used_Nk, grad_Nk, 0.0)
        all_N = grad_Nk.sum(dim=1) + grad_rest_N + grad_gold_N
        others_N = (grad_rest_N - all_N * log_rest_N.exp()) / torch.where(total_N > 0, total_N, 1.0)
        grad_NV = weights_NV * others_N[:, None]  # 0 at used ids
        grad_NV.scatter_add_(1, ids_Nk, grad_Nk - all_N[:, None] * log_q_Nk.exp())
        grad_NV.scatter_add_(1, gold_N[:, None], grad_gold_N[:, None])
        return grad_NV.to(ctx.dtype), None, None, None


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
