"""Weights of several teachers at each position.

With b the weights that a student file gives (for the document's group, if it says so), l a teacher's
cross-entropy -log p(gold), H its entropy, both in nats and as its capture stored them:

=================== =================== ========== ==========================================================
rule                weight              summing to what it trusts
=================== =================== ========== ==========================================================
``fixed``           b                   1          the file
``inverse_loss``    b / l               1          who predicts the gold token; l is at least LEAST_LOSS_NATS
``gold_likelihood`` b p(gold)           1          the same, with larger differences: p(gold) = exp(-l)
``entropy``         b exp(-H)           1          the surest teacher, right or wrong; exp(H) is the number of tokens
                                                   that a teacher hesitates between; needs no gold token
``discounted``      b / (1 + l)         nothing    as in MT-BERT (Wu et al., Findings of ACL 2021), where a
                                                   sample is a text with one label; here, a position
=================== =================== ========== ==========================================================

With ``mixture.per: sequence``, l or H is its mean over the kept positions of the sequence, so p(gold) is a geometric
mean; with ``per: others`` over all of them but the one at hand. These means are taken where sequences are read
(``data/several_teachers.py``).

``inverse_loss`` and ``gold_likelihood`` use the gold token, which the student has to predict; with ``per: others``,
those of the other positions alone.

A temperature t raises the factor that b is multiplied with to 1 / t. With ``entropy`` and b = exp(m / t), for a
teacher's usual entropy m, that is exp(-(H - m) / t): who is surer than usual, and not who is surer.

A teacher without targets at a position (an empty row, where its capture skipped logits that were not numbers) has
weight 0 there, and the other weights are scaled up. Weights are constants: no gradient flows through them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.config.mixture import Weighting

LEAST_LOSS_NATS = 2.0**-10
"""Cross-entropies below the resolution of the stored scalars are replaced by this."""

LOG_FACTORS: dict[Weighting, Callable[[Tensor], Tensor]] = {
    "fixed": torch.zeros_like,
    "inverse_loss": lambda log_gold: -(-log_gold).clamp(min=LEAST_LOSS_NATS).log(),
    "gold_likelihood": lambda log_gold: log_gold,
    "entropy": lambda entropy: -entropy,
    "discounted": lambda log_gold: -torch.log1p(-log_gold.clamp(max=0)),
}
"""Log of the factor that a rule multiplies b with, as a function of the scalar that it reads."""

# N: positions, T: teachers


def teacher_weights(
    rule: Weighting,
    given_NT: Tensor,
    has_targets_NT: Tensor,
    scalar_NT: Tensor | None,
    temperature: float = 1.0,
) -> Tensor:
    """Return each teacher's weight at each position.

    Args:
        rule: See the table.
        given_NT: (N, T) float32, b >= 0, somewhere above 0 in each row.
        has_targets_NT: (N, T) bool, whether a teacher kept anything at a position.
        scalar_NT: (N, T) float32, nats, the scalar that the rule reads; None if it reads none.
        temperature: Above 0; 1 for ``fixed`` and ``discounted``.

    Returns:
        (N, T) float32, >= 0, on T = 1 exactly 1 for the rules that sum to 1. Where the rule
        leaves every teacher with weight 0 (all gave the gold token probability 0), the given weights are used.
    """
    available_NT = given_NT * has_targets_NT
    given_NT = torch.where((available_NT > 0).any(dim=1, keepdim=True), available_NT, given_NT)
    factor_NT = LOG_FACTORS[rule](given_NT if scalar_NT is None else scalar_NT) / temperature
    log_NT = torch.where(given_NT > 0, given_NT.log() + factor_NT, -torch.inf)
    if rule == "discounted":
        return log_NT.exp()
    lost_N1 = (log_NT == -torch.inf).all(dim=1, keepdim=True)
    return torch.where(lost_N1, given_NT.log(), log_NT).softmax(dim=1)
