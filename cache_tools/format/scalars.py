"""Names of the numbers that a cache keeps for each position, in nats; FORMAT.md defines each of them.

The first three are kept for every teacher. The others are captured where the capture file asks for them, and losses,
mixtures and audits look them up by these names.
"""

import re
from collections.abc import Iterable

LOGSUMEXP = "logsumexp"
"""Log-normaliser of the logits."""
ENTROPY = "entropy"
"""Entropy of the whole distribution."""
GOLD_LOGPROB = "gold_logprob"
"""Log-probability of the gold token."""

SCALARS = (LOGSUMEXP, ENTROPY, GOLD_LOGPROB)
"""Kept at every position."""

GOLD_RANK = "gold_rank"
"""How many tokens are likelier than the gold token; a count."""

TAIL_MEAN, TAIL_VARIANCE, TAIL_MINIMUM = "tail_mean", "tail_variance", "tail_minimum"
TAIL_SCALARS = (TAIL_MEAN, TAIL_VARIANCE, TAIL_MINIMUM)
"""Of the logits outside the k most likely, for temperatures at which those matter; the variance in nats²."""

TEMPERED = "logsumexp_t"
"""Beginning of the names of scalars that hold log-normalisers at other temperatures; the temperature follows."""


def tempered_name(temperature: float) -> str:
    """Return the scalar that holds the log-normaliser of the logits divided by a temperature."""
    return f"{TEMPERED}{temperature:g}"


def temperature_of(scalar: str) -> float | None:
    """Return the temperature whose log-normaliser a scalar holds; None if it holds something else."""
    match = re.fullmatch(TEMPERED + r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", scalar)
    return float(match[1]) or None if match else None


def temperatures_of(scalars: Iterable[str]) -> tuple[float, ...]:
    """Return the temperatures that a capture declared, from the names of its scalars."""
    return tuple(temperature for name in scalars if (temperature := temperature_of(name)))
