"""The distance between sorted probabilities: for tokens of two vocabularies that no map connects.

Universal Logit Distillation (Boizard et al., arXiv 2402.12030) sorts the probabilities of teacher and student, each
over its own vocabulary, and adds up the absolute differences rank by rank. With t and s the sorted probabilities at a
position at which both have read the same text, the distance is sum |t_i - s_i|, the shorter one padded with zeros.

A stored row holds the teacher's c likeliest tokens, so t_1 … t_c are known, and of the others only their mass m. With r
the student's mass behind its own c likeliest, the distance over the whole vocabulary lies between

    sum over i <= c of |t_i - s_i|  +  |m - r|      and the same sum  +  m + r,

by the triangle inequality. This is the lower one: exact where no mass is left out, or where the differences of the
tail have one sign; 0, without a gradient, at a student with the teacher's sorted probabilities. If only tokens without
a counterpart are compared, m may belong to any tokens, and the student's tail costs only what exceeds m: max(r - m, 0).

Rejected: spreading m evenly over the teacher's other tokens, which no teacher does and which rewards a flat tail; the
upper bound, which pushes the student's tail to zero; a tighter lower bound from t_c, the most that any other token can
have, which needs the whole vocabulary sorted and gains at most 2 min(m, r).

Cost: one softmax and the c largest of each row, no sort of the vocabulary; three float32 tensors of the logits' shape
during the backward pass. On logits (256, 32000), k = 64, that is 1.8 times the time of ghost KL in float32, and 2.6
times in bfloat16 (``python -m benchmarks.losses``).
Rejected: ``masses.log_masses``. It keeps the relative precision of small masses, which a logarithm needs; a sum of
differences does not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# N: positions of a chunk, V: the student's vocabulary, k: slots of a row


def rank_distance(logits_NV: Tensor, log_p_Nk: Tensor, left_out_N: Tensor, mapped_NV: Tensor | None = None) -> Tensor:
    """Return a lower bound of the distance between sorted probabilities, per position.

    The same as ``(p.sort - q.sort)[:c].abs().sum() + abs(left_out - q.sort[c:].sum())`` on each row.

    Args:
        logits_NV: (N, V) the student's, any floating type; differentiable.
        log_p_Nk: (N, k) float32, the teacher's likeliest tokens in any order; -inf in empty slots. A row without any
            has the distance 0.
        left_out_N: (N,) float32, the teacher's mass on all other tokens.
        mapped_NV: (N, V) bool, the student's tokens that are compared in another way and have no rank here;
            ``left_out_N`` may then belong to these.

    Returns:
        (N,) float32, a sum of differences of probabilities, in [0, 2].
    """
    q_NV = logits_NV.float().softmax(dim=1)
    if mapped_NV is not None:
        q_NV = q_NV.masked_fill(mapped_NV, 0.0)
    kept_N1 = (log_p_Nk > -torch.inf).sum(dim=1, keepdim=True)
    k, slots = min(log_p_Nk.shape[1], q_NV.shape[1]), log_p_Nk.shape[1]
    p_Nk = log_p_Nk.exp().sort(dim=1, descending=True).values
    q_Nk = F.pad(q_NV.topk(k, dim=1).values, (0, slots - k))
    q_Nk = torch.where(torch.arange(slots, device=q_Nk.device) < kept_N1, q_Nk, 0.0)
    rest_N = q_NV.sum(dim=1) - q_Nk.sum(dim=1)
    tail_N = (left_out_N - rest_N).abs() if mapped_NV is None else (rest_N - left_out_N).relu()
    return (p_Nk - q_Nk).abs().sum(dim=1) + tail_N
