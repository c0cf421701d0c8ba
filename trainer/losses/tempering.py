"""The teacher at another temperature, from what was kept at temperature 1.

Divided by T, a logit z gives ``log p_T = z / T - logsumexp(z / T)``. The cache keeps log p and two
normalisers, so for each kept token, exactly and whatever was left out,

    log p_T = (log p + logsumexp) / T - logsumexp_t<T>

and the left-out mass at T is what is missing to 1. For T > 1 it is larger than at 1: this is what
tempering the kept tokens among themselves ignores (at T = 2 a student that equals its teacher
would still pay for it).

Error: scalars are stored in steps of s = 2**-10 nats (``predictions.SCALAR_STEP_NATS``; in a cache with ``exact: true``
they are float32). Each is off by s / 2 at most, so all kept log-probabilities of a row are off by the same
(1 + 1/T) s / 2, 7.3e-4 nats at T = 2, and the left-out mass by as much in absolute terms. Where the kept
tokens would then exceed 1 they are scaled to 1.

The log p of a kept token is itself rounded, by the codec of the targets. Its budget ``max_kl_nats`` bounds the mean KL
between the kept tokens at temperature 1 and at every temperature that the capture declared, which are those with
a normaliser; the receipts state it. Rows tempered without one (of the whole vocabulary) cost at most about 20 times
that budget.

Draws cannot be tempered: a count says how often a token was drawn at temperature 1.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from cache_tools.format.layout import TAIL_MINIMUM
from trainer.config.student_file import LossConfig
from trainer.losses.tails import SparseTargets, floored
from trainer.verdicts.compatibility import normaliser_names


def at_temperature(
    targets: SparseTargets, tokens: int, loss: LossConfig, scalars: Mapping[str, Tensor] | None
) -> SparseTargets:
    """Return the targets at a loss's temperature, as its tail policy needs them.

    Args:
        targets: At temperature 1.
        tokens: Of the student's vocabulary.
        loss: Its ``temperature`` and ``tail``.
        scalars: (N,) float32 by name, those of ``compatibility.TargetSummary.scalars_for``; None if it needs none.
    """
    if scalars and TAIL_MINIMUM in scalars:
        return floored(targets, tokens, loss.temperature, scalars)
    return tempered(targets, loss.temperature, scalars)


def tempered(targets: SparseTargets, temperature: float, scalars: Mapping[str, Tensor] | None) -> SparseTargets:
    """Return the targets at a temperature.

    Args:
        targets: At temperature 1, kinds that draw excepted.
        temperature: T > 0; 1 gives the targets back.
        scalars: (N,) float32 by name, those of ``compatibility.TargetSummary.scalars_for``. None tempers the kept
            tokens among themselves: exact for rows that hold the whole vocabulary, biased for others.
    """
    if temperature == 1:
        return targets
    log_probs_Nk = targets.log_probs / temperature
    if scalars is None:
        total_N = log_probs_Nk.logsumexp(dim=1)
        empty_N = total_N == -torch.inf
        log_probs_Nk = log_probs_Nk - torch.where(empty_N, 0.0, total_N)[:, None]
        return SparseTargets(targets.ids, log_probs_Nk, torch.where(empty_N, 0.0, -torch.inf))
    ordinary, divided = (scalars[name] for name in normaliser_names(temperature))
    log_probs_Nk = log_probs_Nk + (ordinary / temperature - divided)[:, None]
    kept_N = log_probs_Nk.exp().sum(dim=1)
    log_probs_Nk = log_probs_Nk - kept_N.clamp(min=1).log()[:, None]
    return SparseTargets(targets.ids, log_probs_Nk, torch.log1p(-kept_N.clamp(max=1)))
