"""From logits to what the cache keeps: top-k, left-out mass and scalars, in float32.

The left-out mass comes from the full-vocabulary log-normaliser, not from what was kept, so
it is known exactly even when k is small.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# N: positions of a chunk, V: vocabulary, k: kept tokens

LOWEST = -1e4
"""Logits are compared with the highest; below this the weight is zero in float32 anyway."""


@dataclass(frozen=True)
class SparseTargets:
    """Kept predictions of N positions, on the teacher's device.

    Attributes:
        ids: (N, k) int64, by falling probability.
        log_probs: (N, k) float32; -inf where the teacher gives a token no probability at all.
        log_left_out: (N,) float32, log of the mass outside the k tokens; -inf for none.
        scalars: (N,) float32 by name: logsumexp, entropy, gold_logprob.
    """

    ids: Tensor
    log_probs: Tensor
    log_left_out: Tensor
    scalars: dict[str, Tensor]


def sparse_targets(logits_NV: Tensor, gold_N: Tensor, k: int) -> SparseTargets:
    """Keep the k most likely tokens of each row.

    Args:
        logits_NV: (N, V) float32.
        gold_N: (N,) int64, the token that each position should predict.
        k: Tokens to keep; the whole vocabulary if it is smaller.
    """
    highest_N1, k = logits_NV.amax(dim=1, keepdim=True), min(k, logits_NV.shape[1])
    below_NV = (logits_NV - highest_N1).clamp_(min=LOWEST)  # finite, so that 0 * below is 0
    weights_NV = below_NV.exp()
    total_N = weights_NV.sum(dim=1)
    log_total_N1 = total_N.log()[:, None]
    top = logits_NV.topk(k, dim=1)
    log_probs_Nk = top.values - highest_N1 - log_total_N1  # in this order: exact for logits of any size
    left_out_N = (1 - log_probs_Nk.exp().sum(dim=1)).clamp(min=0)
    if k == logits_NV.shape[1]:
        left_out_N.zero_()
    scalars = {
        "logsumexp": (highest_N1 + log_total_N1)[:, 0],
        "entropy": log_total_N1[:, 0] - torch.linalg.vecdot(weights_NV, below_NV) / total_N,
        "gold_logprob": (logits_NV.gather(1, gold_N[:, None]) - highest_N1 - log_total_N1)[:, 0],
    }
    return SparseTargets(top.indices, log_probs_Nk, left_out_N.log(), scalars)
