"""The four divergences, as one number per outcome; sums over outcomes are taken by the caller.

With teacher p, student q and m = beta p + (1 - beta) q:

=================== ====================================================== ==============
name                summand                                                gradient at T
=================== ====================================================== ==============
``forward_kl``      p log(p / q)                                           ~ 1 / T²
``reverse_kl``      q log(q / p)                                           ~ 1 / T²
``jensen_shannon``  beta p log(p / m) + (1 - beta) q log(q / m)            ~ 1 / T²
``total_variation`` |p - q| / 2                                            ~ 1 / T
=================== ====================================================== ==============

All are f-divergences: summing p and q over groups of outcomes first can only make them smaller, which is why one
outcome for the whole tail gives a lower bound of each. Jensen-Shannon is the generalised one of GKD (arXiv
2306.13649); beta = 0.5 is the usual one, at most log 2.

Reverse KL takes LOG_SMALLEST_MASS for the log of a teacher's mass of 0: a mass that was a difference from 1 in
float32 is not known below it, and a student's least mass there would cost infinity.
"""

import math

import torch
from torch import Tensor

from cache_tools.codecs.rows import LOG_SMALLEST_MASS
from trainer.config.student_file import LossConfig

LOWEST = -1e4
"""Used in place of log 0: its exponential is 0 in float32, and 0 times it is 0 and not NaN."""


def summands(log_p: Tensor, log_q: Tensor, settings: LossConfig) -> Tensor:
    """Return each outcome's share of the divergence.

    Args:
        log_p: Any shape, float32, the teacher's; a constant. -inf for impossible outcomes.
        log_q: The same shape, float32, the student's. -inf for impossible outcomes, which have no gradient.
        settings: ``divergence`` and ``beta``.

    Returns:
        The same shape, nats (a mass for total variation); finite, and 0 where both are impossible.
    """
    impossible = log_p == -torch.inf
    log_p = torch.where(impossible, LOWEST, log_p)
    log_q = torch.where(log_q == -torch.inf, LOWEST, log_q)
    if settings.divergence == "forward_kl":
        return log_p.exp() * (log_p - log_q)
    if settings.divergence == "reverse_kl":
        return log_q.exp() * (log_q - torch.where(impossible, LOG_SMALLEST_MASS, log_p))
    if settings.divergence == "total_variation":
        return (log_p.exp() - log_q.exp()).abs() / 2
    beta = settings.beta
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return beta * log_p.exp() * (log_p - log_m) + (1 - beta) * log_q.exp() * (log_q - log_m)


def gradient_scale(settings: LossConfig) -> float:
    """Return the factor that keeps gradients as large at temperature T as at 1: T², or T for total variation.

    Hinton et al. (arXiv 1503.02531): logits enter divided by T, which costs one factor; where the
    divergence is quadratic near its minimum, the smaller differences at T cost another.
    """
    return settings.temperature ** (1 if settings.divergence == "total_variation" else 2)
