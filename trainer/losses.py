"""Distillation losses on sparse targets, in float32, in nats per position.

A sparse target holds k tokens with their log-probabilities and the mass m of all others.
Forward KL needs of the student only its log-normaliser and k gathered logits, so it costs
what cross-entropy costs:

    KL(t || q) = sum_i t_i (log t_i - log q_i)  [+ m (log m - log(1 - sum_i q_i)) with ghost]

Tail policies: ``ghost`` treats the rest as one outcome (a lower bound of the full KL, exact
when the rest is distributed alike on both sides); ``renormalise`` scales t to sum to 1,
which is biased: its minimum gives the tail no probability at all.

Limit of ``ghost`` in float32: the student's rest, 1 - sum_i q_i, is exact to about 1e-7. Where a
student gives the rest less than that, its gradient towards the tail vanishes.
"""

import torch
from torch import Tensor

from trainer.config import TailPolicy

# P: positions, V: vocabulary, k: kept tokens


def sparse_forward_kl(
    logits_PV: Tensor, ids_Pk: Tensor, log_probs_Pk: Tensor, log_left_out_P: Tensor, tail: TailPolicy
) -> Tensor:
    """Return KL(teacher || student) per position.

    Args:
        logits_PV: (P, V), the student's, any floating type.
        ids_Pk: (P, k) int64; what stands in empty slots is ignored but must be a legal index.
        log_probs_Pk: (P, k) float32, the teacher's; -inf in empty slots.
        log_left_out_P: (P,) float32, log of the teacher's mass outside the k tokens; -inf for none.
        tail: Tail policy.

    Returns:
        (P,) float32, nats; differentiable in the logits.
    """
    logits_PV = logits_PV.float()
    log_q_Pk = logits_PV.gather(1, ids_Pk) - logits_PV.logsumexp(dim=1, keepdim=True)
    if tail == "renormalise":
        lowest = torch.finfo(torch.float32).min  # a row without entries stays empty instead of NaN
        log_probs_Pk = log_probs_Pk - log_probs_Pk.logsumexp(dim=1, keepdim=True).clamp(min=lowest)
        return _kl_terms(log_probs_Pk, log_q_Pk).sum(dim=1)
    used_Pk = log_probs_Pk > -torch.inf
    kept_P = torch.where(used_Pk, log_q_Pk.exp(), 0.0).sum(dim=1)
    smallest = torch.finfo(torch.float32).eps
    log_rest_P = torch.log((1 - kept_P).clamp(min=smallest))
    return _kl_terms(log_probs_Pk, log_q_Pk).sum(dim=1) + _kl_terms(log_left_out_P, log_rest_P)


def _kl_terms(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return p (log p - log q), and 0 where p is 0."""
    used = log_p > -torch.inf
    difference = torch.where(used, log_p, 0.0) - torch.where(used, log_q, 0.0)
    return log_p.exp() * difference
