"""Several teachers' sparse targets against one student, for one pass over the student's vocabulary.

Teachers keep different tokens. Their kept tokens together are the *union*; the student's mass on each of them, and on
all others, is taken once (``masses.py``). Every teacher's own loss then follows without the vocabulary: its rest is
the rest of the union and what the others kept alone, which is added up, never subtracted.

``of: losses``, sum_t w_t D(p_t || q): each term equals that teacher's own loss, its tail policy included.
``of: distributions``, D(sum_t w_t p_t || q): a target whose tokens are the union and whose left-out mass is the
weighted mean of the teachers'. What follows (tail policy, divergence) is as for one teacher.

For forward KL both have the same gradient where no teacher leaves mass out; they differ by the weighted mean of
KL(p_t || mean), which the student cannot change. Where teachers leave mass out, they treat it
differently. A teacher's probability of a token that only others kept is unknown:

- ``losses`` never asks for it: what that teacher left out is matched by the student's mass on all that it did not
  keep, in the shape that the student gives it. Each term is a lower bound of its own full divergence, so the sum is
  one of the full sum. Its minimum is the teachers' mean only where all of them left out the same mass.
- ``distributions`` takes it as 0 and counts it as left-out mass. Of topk and topp it lies between 0 and the lesser of
  the left-out mass and the least kept probability, so an entry of the mean is too low by at most the weighted mean of
  these bounds, and in total variation the target is off by at most the weighted mean of the left-out masses.

Cost, beside one teacher: a sort of the K = sum of k_t slots of a row, and for ``losses`` a few (N, K) arrays for each
teacher, with K a few hundred where V is a hundred thousand. ``python -m benchmarks.mixing``, logits (2048, 32000),
k = 64, as multiples of one teacher: two teachers 1.05 and 1.04, three 1.15 and 1.09. Rejected: a pass over
the vocabulary for each teacher, 2.1 and 3.2; a dense (N, V) mean of the teachers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.config.student_file import LossConfig
from trainer.losses.sparse import compared, loss_terms, student_masses
from trainer.losses.tails import SparseTargets, completed

NOTHING = torch.iinfo(torch.int64).max
"""Sorts empty slots behind every token."""

# N: positions of a chunk, V: vocabulary, T: teachers, k: slots of one teacher, K: slots of all


@dataclass(frozen=True)
class Union:
    """The kept tokens of several teachers, each once, at the first of the slots that hold it.

    Attributes:
        ids: (N, K) int64, ascending; 0 behind the last token.
        used: (N, K) bool, true at the first slot of each token.
        slots: (N, K) int64, for each slot of the teachers, one teacher after another, where its token stands in
            ``ids``; for empty slots, a slot of ``ids`` that holds none.
    """

    ids: Tensor
    used: Tensor
    slots: Tensor


def union(targets: Sequence[SparseTargets]) -> Union:
    """Return the tokens that any of the teachers kept."""
    used_NK = torch.cat([sparse.used for sparse in targets], dim=1)
    key_NK = torch.where(used_NK, torch.cat([sparse.ids for sparse in targets], dim=1), NOTHING)
    sorted_NK, order_NK = key_NK.sort(dim=1, stable=True)
    first_NK = torch.ones_like(used_NK)
    first_NK[:, 1:] = sorted_NK[:, 1:] != sorted_NK[:, :-1]
    place_NK = torch.where(first_NK, torch.arange(first_NK.shape[1], device=first_NK.device), 0).cummax(dim=1).values
    some_NK = sorted_NK != NOTHING
    slots_NK = torch.empty_like(order_NK).scatter_(1, order_NK, place_NK)
    return Union(torch.where(some_NK, sorted_NK, 0), first_NK & some_NK, slots_NK)


def mixed_targets(targets: Sequence[SparseTargets], weights_NT: Tensor) -> SparseTargets:
    """Return the weighted mean of targets, on the union of their tokens.

    Args:
        targets: T of them, all at the same temperature.
        weights_NT: (N, T) float32, summing to 1 in each row.

    Returns:
        (N, K) slots. Of one teacher with weight 1 the same numbers, bit for bit.
    """
    together, log_w_NT = union(targets), weights_NT.log()
    log_p_NK = torch.cat([sparse.log_probs + log_w_NT[:, t, None] for t, sparse in enumerate(targets)], dim=1)
    highest_NK = torch.full_like(log_p_NK, -torch.inf).scatter_reduce_(1, together.slots, log_p_NK, "amax")
    base_NK = torch.where(highest_NK == -torch.inf, 0.0, highest_NK)
    shares_NK = (log_p_NK - base_NK.gather(1, together.slots)).exp()
    sums_NK = torch.zeros_like(log_p_NK).scatter_add_(1, together.slots, shares_NK)
    log_left_out_NT = torch.stack([sparse.log_left_out for sparse in targets], dim=1) + log_w_NT
    log_mean_NK = torch.where(together.used, base_NK + sums_NK.log(), -torch.inf)
    return SparseTargets(together.ids, log_mean_NK, log_left_out_NT.logsumexp(dim=1))


def mixed_loss_terms(
    logits_NV: Tensor, targets: Sequence[SparseTargets], weights_NT: Tensor, gold_N: Tensor, settings: LossConfig
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the teachers' losses, and the student's cross-entropy, per position.

    ``sum(w * losses.loss_terms(logits, t, gold, settings)[0] for w, t in zip(weights.T, targets))``, for one pass over
    the vocabulary; with ``tail: uniform`` or ``minimum``, which need the student's logits of all left-out tokens, for
    one each.

    Args:
        logits_NV: (N, V) float32, the student's.
        targets: T of them, already at ``settings.temperature``.
        weights_NT: (N, T) float32.
        gold_N: (N,) int64.
        settings: See ``losses.loss_terms``.

    Returns:
        (N,) float32 each, differentiable in the logits, once.
    """
    if settings.tail in ("uniform", "minimum"):
        terms = [loss_terms(logits_NV, sparse, gold_N, settings) for sparse in targets]
        return (torch.stack([value_N for value_N, _ in terms], dim=1) * weights_NT).sum(dim=1), terms[0][1]
    targets = [completed(sparse, gold_N, settings.tail) for sparse in targets]
    together = union(targets)
    log_q_NK, log_rest_N, cross_entropy_N = student_masses(
        logits_NV, together.ids, together.used, gold_N, settings.temperature
    )
    value_N = torch.zeros_like(cross_entropy_N)
    columns = torch.split(together.slots, [sparse.ids.shape[1] for sparse in targets], dim=1)
    for t, (sparse, slots_Nk) in enumerate(zip(targets, columns, strict=True)):
        log_q_Nk = torch.where(sparse.used, log_q_NK.gather(1, slots_Nk), -torch.inf)
        log_rest_t_N = _log_rest(log_q_NK, log_rest_N, slots_Nk)
        value_N = value_N + weights_NT[:, t] * compared(sparse, log_q_Nk, log_rest_t_N, settings)
    return value_N, cross_entropy_N


def _log_rest(log_q_NK: Tensor, log_rest_N: Tensor, slots_Nk: Tensor) -> Tensor:
    """Return the log of the student's mass on all that one teacher did not keep: (N,)."""
    kept_NK = torch.zeros_like(log_q_NK, dtype=torch.bool).scatter_(1, slots_Nk, True)
    parts_NM = torch.cat([torch.where(kept_NK, -torch.inf, log_q_NK), log_rest_N[:, None]], dim=1)  # M = K + 1
    some_N = (parts_NM > -torch.inf).any(dim=1)  # of nothing at all, autograd would return NaN
    return torch.where(some_N, torch.where(some_N[:, None], parts_NM, 0.0).logsumexp(dim=1), -torch.inf)
