"""The arithmetic of ``delta-power``: probabilities to levels and back, in blocks of rows.

``Curve`` is (M, a): level l stands for the weight ``(l / M) ** (1 / a)``, and level 0 for none. A row is stored
on a scale of its own, at most M, which cancels out when it is read.
All scratch arrays are made once per call and used for every block, because fresh memory costs
more than the arithmetic done in it.

**Scales.** Decoding renormalises every row, so a writer may store a row on any scale r: the level of probability p is
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

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.rows import BLOCK_ROWS, Arrays, SortedRows, blocks

MAX_FLOOR = 255
MAX_LEVELS = 65_535

LOG_NOTHING = np.float32(-1e4)
"""Stands in for log 0, where an infinity would make 0 * inf; its exponential is 0."""

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


class Curve(NamedTuple):
    """How levels stand for weights.

    Attributes:
        levels: M, the highest level.
        exponent: a, in (0, 1].
    """

    levels: int
    exponent: float

    def log_weights(self) -> NDArray[np.float64]:
        """Return the log weight of every level: (M + 1,), -inf at level 0."""
        with np.errstate(divide="ignore"):
            return np.log(np.arange(self.levels + 1) / self.levels) / self.exponent


class Scratch:
    """Arrays of one block of rows that are written again for each block."""

    def __init__(self, num_rows: int, k: int) -> None:
        shape = (min(num_rows, BLOCK_ROWS), k)
        self.words = np.empty(shape, np.uint32)
        self.floats = np.empty(shape, np.float32)
        self.levels = np.empty(shape, np.intp)
        self.doubles = np.empty(shape, np.float64)


def quantise(
    rows: SortedRows, curve: Curve, scales: NDArray[np.float32]
) -> tuple[NDArray[np.uint16], NDArray[np.uint16], NDArray[np.float64]]:
    """Return (levels (n, k), left-out levels (n,), KL (n,) in nats) of checked rows, each on its scale (n,) up to M."""
    n, k = rows.log_probs.shape
    levels, kl, scratch = np.empty((n, k), np.uint16), np.empty(n), Scratch(n, k)
    log_weights = curve.log_weights()
    weights = np.exp(log_weights)
    log_weights[0] = LOG_NOTHING
    left_out = nearest_levels(rows.log_left_out, curve.exponent, scales)
    log_scales = np.log(scales / curve.levels, dtype=np.float64) / curve.exponent  # the log weight of probability 1
    for part in blocks(n):
        size = part.stop - part.start
        block = levels[part]
        block[...] = nearest_levels(rows.log_probs[part], curve.exponent, scales[part, None], scratch.floats[:size])
        index, values = scratch.levels[:size], scratch.doubles[:size]
        index[...] = block
        log_p = np.maximum(rows.log_probs[part], LOG_NOTHING)
        np.take(log_weights, index, out=values, mode="clip")
        values -= log_scales[part, None]
        np.subtract(log_p, values, out=values)
        np.exp(log_p, out=log_p)
        kl[part] = np.einsum("nk,nk->n", log_p, values)
        np.take(weights, index, out=values, mode="clip")
        kl[part] += _rest_share(rows.log_left_out[part], log_weights[left_out[part]] - log_scales[part])
        kl[part] /= rows.mass[part]
        total = _total(values, weights[left_out[part]]) / np.exp(log_scales[part])
        kl[part] += np.log(total / rows.mass[part])
    return levels, left_out, kl


def tempered_kl(rows: SortedRows, levels: NDArray[np.uint16], curve: Curve, temperature: float) -> NDArray[np.float64]:
    """Return the KL (n,), in nats, that reading the kept tokens back costs at a temperature.

    Both sides are the kept tokens alone, tempered and scaled to 1: what is outside them at a temperature does not
    come from the levels, but from the log-normaliser that is stored for it.

    Args:
        rows: Checked rows.
        levels: (n, k), what is stored of them.
        curve: What the levels mean.
        temperature: T > 0.
    """
    kl, log_weights = np.zeros(len(levels)), curve.log_weights()
    for part in blocks(len(levels)):
        empty = levels[part] == 0
        read = np.take(log_weights, levels[part]) / temperature
        true = rows.log_probs[part].astype(np.float64) / temperature
        for logs in (true, read):
            logs[empty] = LOG_NOTHING
            logs -= logs.max(axis=1, keepdims=True)
            logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
        kl[part] = np.einsum("nk,nk->n", np.exp(true), true - read)
    return kl


def nearest_levels(
    log_probs: NDArray[np.float32],
    exponent: float,
    scales: NDArray[np.float32],
    scratch: NDArray[np.float32] | None = None,
) -> NDArray[np.uint16]:
    """Return the level of each probability on its row's scale; 0 only for probability zero itself."""
    powers = np.minimum(log_probs, np.float32(0), out=scratch)
    powers *= np.float32(exponent)
    np.exp(powers, out=powers)
    powers *= scales
    np.rint(powers, out=powers)
    np.maximum(powers, log_probs > -np.inf, out=powers)
    return powers.astype(np.uint16)


def pack_levels(levels: NDArray[np.uint16]) -> Arrays:
    """Return ``levels``, ``levels_high`` and ``floor`` of absolute levels (n, k), 0 where empty."""
    floor = np.where(levels > 0, levels, np.uint16(MAX_FLOOR)).min(axis=1).clip(max=MAX_FLOOR)
    floor[~(levels > 0).any(axis=1)] = 0
    above = levels - np.maximum(floor, 1)[:, None] + np.uint16(1)
    above *= levels > 0
    return {
        "levels": above.astype(np.uint8),
        "levels_high": (above >> np.uint16(8)).astype(np.uint8),
        "floor": floor.astype(np.uint8),
    }


def unpack_levels(arrays: Mapping[str, NDArray[Any]], rows: slice, levels: NDArray[np.intp]) -> None:
    """Put the absolute levels of some rows into ``levels`` (b, k); 0 where empty."""
    low, high = arrays["levels"][rows], arrays["levels_high"][rows]
    offset = np.maximum(arrays["floor"][rows].astype(np.intp) - 1, 0)[:, None]
    np.add(low, offset, out=levels)
    if high.any():
        levels += high.astype(np.intp) << 8
        levels[(low == 0) & (high == 0)] = 0
    elif not low.all():
        levels *= low > 0


def likeliest(values: NDArray[Any], k: int) -> NDArray[np.intp]:
    """Return the columns (n, k) of each row's k largest values, ascending; of equals, those further left."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    order.sort(axis=1)
    return order


def normalise(
    log_probs: NDArray[np.float32], rest: NDArray[np.float32], scratch: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Make ``log_probs`` (b, k) and ``rest`` (b,) a distribution, the first in place; return the second."""
    np.exp(log_probs, out=scratch)
    total = scratch.sum(axis=1) + np.exp(rest)
    log_total = np.log(np.where(total > 0, total, 1)).astype(np.float32)
    log_probs -= log_total[:, None]
    return rest - log_total


def _rest_share(log_left_out: NDArray[np.float32], log_weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what the left-out outcome adds to the sum of p * (log p - log q)."""
    log_p: NDArray[np.float64] = np.maximum(log_left_out, LOG_NOTHING).astype(np.float64)
    return np.exp(log_p) * (log_p - log_weights)


def _total(weights: NDArray[np.float64], rest: NDArray[np.float64]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = weights.sum(axis=1) + rest
    return total


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
