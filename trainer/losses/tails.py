"""Sparse targets as tensors, and how the left-out mass is treated.

A cache stores how much mass m is left out of a row, and not how it is distributed. A tail policy, chosen at training
time, says what is assumed:

===============  ================================================  =========================================
policy           the target becomes                                what that costs
===============  ================================================  =========================================
``ghost``        k tokens and one outcome *rest* of mass m         nothing is assumed; the tail has no shape
``renormalise``  the k tokens scaled up to sum to 1                the student's tail is pushed to zero
``gold``         the k tokens, m added to the gold token           the gold token is overrated
``uniform``      the k tokens, m spread evenly over all others     rare tokens are overrated
``minimum``      the k tokens, all others as the least likely one  rare tokens are underrated, m is ignored
``none``         the k tokens as they are, the rest is ignored     forward KL ends where renormalise does
===============  ================================================  =========================================

``verdicts/compatibility.py`` says which policies are exact or biased with which divergence.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cache_tools.format.layout import LOGSUMEXP, TAIL_MINIMUM
from trainer.config.student_file import TailPolicy

# N: positions of a chunk, k: slots of a row


@dataclass(frozen=True)
class SparseTargets:
    """A teacher's predictions at N positions, on the student's device.

    Attributes:
        ids: (N, k) int64; ids in empty slots are ignored but must be legal indices.
        log_probs: (N, k) float32, natural log; -inf in empty slots.
        log_left_out: (N,) float32, log of the mass outside the row; -inf for none.
    """

    ids: Tensor
    log_probs: Tensor
    log_left_out: Tensor

    @property
    def used(self) -> Tensor:
        """(N, k) bool, false in empty slots."""
        return self.log_probs > -torch.inf


def completed(targets: SparseTargets, gold_N: Tensor, tail: TailPolicy) -> SparseTargets:
    """Return targets in which ``log_left_out`` is the mass of one outcome, the rest.

    A row without entries has nothing to be scaled: with ``renormalise`` it stays as it is.

    Args:
        targets: As stored.
        gold_N: (N,) int64, the token that each position should predict.
        tail: ``uniform``, ``minimum`` and ``none`` change nothing here; they differ in how the rest is counted.
    """
    if tail == "renormalise":
        return _renormalised(targets)
    if tail == "gold":
        return _with_gold(targets, gold_N)
    return targets


def floored(targets: SparseTargets, tokens: int, temperature: float, scalars: Mapping[str, Tensor]) -> SparseTargets:
    """Return targets at a temperature in which every token that is not kept has the teacher's lowest logit.

    What is left out is then the mass of equal tokens, as ``uniform`` spreads it. Needs no normaliser at the
    temperature: a kept logit is ``log p + logsumexp``. Published as ``teacher_min`` (Tan et al., arXiv 2306.06625).

    Args:
        targets: At temperature 1.
        tokens: Of the vocabulary.
        temperature: T > 0.
        scalars: (N,) ``logsumexp`` and ``tail_minimum`` of the teacher.
    """
    others_N = tokens - targets.used.sum(dim=1)
    logits_Nk = (targets.log_probs + scalars[LOGSUMEXP][:, None]) / temperature
    rest_N = scalars[TAIL_MINIMUM] / temperature + others_N.log()  # -inf where there are no others
    total_N = torch.cat([logits_Nk, rest_N[:, None]], dim=1).logsumexp(dim=1)
    return SparseTargets(targets.ids, logits_Nk - total_N[:, None], rest_N - total_N)


def _renormalised(targets: SparseTargets) -> SparseTargets:
    total_N = targets.log_probs.logsumexp(dim=1)
    empty_N = total_N == -torch.inf
    log_probs_Nk = targets.log_probs - torch.where(empty_N, 0.0, total_N)[:, None]
    return SparseTargets(targets.ids, log_probs_Nk, torch.where(empty_N, targets.log_left_out, -torch.inf))


def _with_gold(targets: SparseTargets, gold_N: Tensor) -> SparseTargets:
    """Add the left-out mass to the gold token, in a slot of its own (the last) where it is not kept."""
    is_gold_Nk = (targets.ids == gold_N[:, None]) & targets.used
    left_out_N1 = targets.log_left_out[:, None]
    raised_Nk = torch.where(is_gold_Nk, torch.logaddexp(targets.log_probs, left_out_N1), targets.log_probs)
    extra_N1 = torch.where(is_gold_Nk.any(dim=1, keepdim=True), -torch.inf, left_out_N1)
    return SparseTargets(
        torch.cat([targets.ids, gold_N[:, None]], dim=1),
        torch.cat([raised_Nk, extra_N1], dim=1),
        torch.full_like(targets.log_left_out, -torch.inf),
    )
