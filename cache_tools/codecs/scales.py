"""How finely each row of ``delta-power`` is quantised, so that its error stays bounded at other temperatures.

Decoding renormalises every row, so a writer may store a row on any scale r: the level of probability p is
``round(r * p**a)``, and r cancels out. A larger r makes all steps of the row smaller. Nothing stores r.

The budget is a mean over rows at temperature 1, where the rare tokens of a peaked row hardly count and may
all fall on one level. Divided by T, their log-probabilities count as ``p ** (1 / T)`` does: of 64 tokens
that share 1e-6, a third of the mass at T = 4. So each row has a **least scale**, at which its expected
error is within a limit at temperature 1, 2, 4 and 8, and at those that a capture declares:

    KL at T  ~  sum over kept tokens of  q (1 - q) (step / T)**2 / 24,     q ~ p ** (1 / T),  step = 1 / (a r p**a)

The limit is the budget itself at declared temperatures, and UNDECLARED times it at the others. Ordinary rows
are finer than that already; only peaked ones grow. Rejected: a finer scale for all rows (all grow for the sake of a
few), an exponent near 0 (steps equal in log p, which wastes bits at T = 1), and another codec with float values
(an older reader could not read it; this one needs no change to the format).
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.levels import LOG_NOTHING, MAX_LEVELS
from cache_tools.codecs.rows import SortedRows, blocks

UNDECLARED = 16.0
"""By how much a row's error may exceed the budget at a temperature that was not declared. A row's own rounding
scatters around the expected error, so groups of rows stay within 20."""

HIGHEST = 8.0
"""Of the temperatures that count undeclared: 8, 4, 2 and 1. Between powers of 2 the error changes little, and above 8
it falls as 1 / T**2."""

LARGEST = np.float32(60)
"""Logarithm of the largest square of a step that is told apart; it asks for more than the most levels."""

NEGLIGIBLE = 0.1
"""Share of the limit that tokens may add together even if they came back as any other probability."""


def least_scales(
    rows: SortedRows, exponent: float, budget_nats: float, declared: tuple[float, ...]
) -> NDArray[np.float32]:
    """Return the scale that each row needs for its limits: (n,) float32, 0 without anything to round.

    Args:
        rows: Checked rows.
        exponent: a.
        budget_nats: What the error may be, on average at temperature 1.
        declared: Temperatures at which the budget counts as it does at 1.
    """
    needed = np.zeros(len(rows.mass), np.float32)
    for part in blocks(len(needed)):
        used = rows.log_probs[part] > -np.inf
        log_probs = np.where(used, np.maximum(rows.log_probs[part], LOG_NOTHING), np.float32(0))
        squared_steps = np.exp(np.minimum(-2 * exponent * log_probs, LARGEST))
        farthest = log_probs**2  # that a token may move: from its own probability to 1
        for temperature, weights in _tempered(log_probs, used, declared):
            limit = np.float32((1 if temperature in declared else UNDECLARED) * budget_nats * 24 * temperature**2)
            weights /= np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
            counts = weights * farthest > NEGLIGIBLE * limit / 12 / log_probs.shape[1]
            weights *= 1 - weights
            weights *= counts
            needed[part] = np.maximum(needed[part], np.einsum("nk,nk->n", weights, squared_steps) / limit)
    return np.minimum(np.sqrt(needed) / np.float32(exponent), np.float32(2 * MAX_LEVELS))


def _tempered(
    log_probs: NDArray[np.float32], used: NDArray[np.bool_], declared: tuple[float, ...]
) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """Yield temperatures, and the tokens' probabilities (b, k) raised to 1 / T; the caller may overwrite them."""
    weights, temperature = np.exp(log_probs / np.float32(HIGHEST)) * used, HIGHEST
    while temperature >= 1:
        if temperature not in declared:
            yield temperature, weights.copy()
        np.multiply(weights, weights, out=weights)
        temperature /= 2
    for temperature in declared:
        if temperature != 1:
            yield temperature, np.exp(log_probs / np.float32(temperature)) * used
