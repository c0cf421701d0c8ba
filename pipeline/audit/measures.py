"""Stored rows compared with a live teacher's predictions: the measures of an audit, in float64.

The live teacher is asked for its log-probabilities of exactly the tokens that a row holds, so
no full distribution is ever kept. What can be compared depends on the kind of target:

- rows of probabilities (``topk``, ``topp``, ``dense``): the KL divergence from the live teacher to
  the row, over its tokens and the rest;
- ``hybrid``: the same for its exact head (:func:`exact_part`); draws say nothing row by row;
- ``sampled`` and ``hybrid``: weights w that are unbiased for the distribution p give
  ``E[sum w (-ln p)] = H(p)`` exactly, so the mean *excess surprisal* ``sum w (-ln p) - H(p)`` of
  unbiased rows is zero within its standard error. Draws from a sharpened or truncated p are too likely,
  draws from another p too unlikely. Rejected: a chi-square of counts, because fifty draws expect less
  than one of nearly every token; equality of the draws, because rounding in a CDF moves some of them.

The live teacher stands on the left of the KL, as in the codec's budget, so both count the same thing.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.rows import EMPTY_ID, Targets

Floats = NDArray[np.float64]

LOWEST_NATS = -100.0
"""Log-probabilities are compared down to here: below it a token never occurs, on either side."""

SMALLEST_MASS = 1e-7
"""A stored mass counts as at least this much in a KL, so that a sum that float32 rounded to 1 is no infinite error."""

BORDER_NATS = 0.1
"""Tokens this near to the last of a hybrid head may have changed sides of it: one step of bfloat16 at a logit of 16."""


SHIFTED = 0.1
"""Share of the own excess surprisal below which the row beside is taken for the right one; it is 0 but for rounding and
the codec, and near 1 for rows of another model."""


@dataclass(frozen=True)
class Rows:
    """Stored rows and the live teacher's answer to each; n positions of k slots.

    Attributes:
        stored: As decoded.
        log_probs: (n, k) float64, live, of the stored tokens; -inf in empty slots.
        top_log_prob: (n,) live, of the likeliest token.
        head_log_prob: (n,) live, of the last token of a hybrid's head; -inf for other kinds.
        surprisal: (n, 3) mean surprisal, under this row's live distribution, of the stored row before, of this one and
            of the one behind; NaN at a sequence's ends.
        same_tokens: (n,) bool, whether the live teacher would keep the same tokens.
        entropy: (n,) live, of the whole distribution.
        scalars: (stored, live) per position, by name; those that the cache holds.
    """

    stored: Targets
    log_probs: Floats
    top_log_prob: Floats
    head_log_prob: Floats
    surprisal: Floats
    same_tokens: NDArray[np.bool_]
    entropy: Floats
    scalars: dict[str, tuple[Floats, Floats]] = field(default_factory=dict)

    @property
    def used(self) -> NDArray[np.bool_]:
        """Which slots hold a token: (n, k)."""
        used: NDArray[np.bool_] = self.stored.ids != EMPTY_ID
        return used


@dataclass(frozen=True)
class ExcessSurprisal:
    """Mean of ``sum w (-ln p) - H(p)`` over rows; 0 for unbiased weights.

    Attributes:
        mean: In nats.
        standard_error: In nats; infinite for one row.
    """

    mean: float
    standard_error: float


def joined_targets(parts: list[Targets]) -> Targets:
    """Return the rows of several targets of the same width, one after the other."""
    return Targets(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.log_probs for part in parts]),
        np.concatenate([part.log_left_out for part in parts]),
    )


def joined(parts: list[Rows]) -> Rows:
    """Return the rows of several parts, one after the other."""
    sides = {
        name: (np.concatenate([p.scalars[name][0] for p in parts]), np.concatenate([p.scalars[name][1] for p in parts]))
        for name in parts[0].scalars
    }
    return Rows(
        stored=joined_targets([part.stored for part in parts]),
        log_probs=np.concatenate([part.log_probs for part in parts]),
        top_log_prob=np.concatenate([part.top_log_prob for part in parts]),
        head_log_prob=np.concatenate([part.head_log_prob for part in parts]),
        surprisal=np.concatenate([part.surprisal for part in parts]),
        same_tokens=np.concatenate([part.same_tokens for part in parts]),
        entropy=np.concatenate([part.entropy for part in parts]),
        scalars=sides,
    )


def exact_part(rows: Rows) -> Rows:
    """Return rows without the tokens that were drawn, whose mass moves to what is left out.

    Draws of a hybrid come from outside its head, so what is likelier than the head's border by BORDER_NATS was not
    drawn. Rows of other kinds come back as they are.
    """
    if np.isneginf(rows.head_log_prob).all():
        return rows
    exact = rows.used & (rows.log_probs > rows.head_log_prob[:, None] + BORDER_NATS)
    log_probs = np.where(exact, rows.stored.log_probs, np.float32(-np.inf))
    with np.errstate(divide="ignore"):
        left_out = np.log(left_out_mass(log_probs.astype(np.float64))).astype(np.float32)
    ids = np.where(exact, rows.stored.ids, np.uint32(EMPTY_ID))
    return replace(rows, stored=Targets(ids, log_probs, left_out), log_probs=np.where(exact, rows.log_probs, -np.inf))


def left_out_mass(log_probs: Floats) -> Floats:
    """Return what rows (n, k) of log-probabilities leave of 1: (n,), not below 0."""
    rest: Floats = np.maximum(1 - np.exp(log_probs).sum(axis=1), 0)
    return rest


def kl_nats(rows: Rows) -> Floats:
    """Return KL(live || stored) of each row over its tokens and the rest: (n,), nats.

    Written as ``sum p ln(p / q) - p + q``, each of whose terms is positive, so that rounding does not drown small sums.
    """
    rest = _kl_terms(left_out_mass(rows.log_probs), np.exp(rows.stored.log_left_out.astype(np.float64)))
    total: Floats = _token_terms(rows).sum(axis=1) + rest
    return total


def worst_slots(rows: Rows) -> NDArray[np.intp]:
    """Return, for each row, the slot that its KL owes most to: (n,)."""
    slots: NDArray[np.intp] = np.where(rows.used, _token_terms(rows), -1).argmax(axis=1)
    return slots


def difference(stored: NDArray[np.floating], live: NDArray[np.floating]) -> Floats:
    """Return stored minus live in float64, both taken as at least LOWEST_NATS, so that two that never occur agree."""
    result: Floats = np.maximum(stored.astype(np.float64), LOWEST_NATS) - np.maximum(live, LOWEST_NATS)
    return result


def excess_surprisal(rows: Rows) -> ExcessSurprisal:
    """Return the mean excess surprisal of the rows.

    Positions are drawn independently, so the rows' own spread gives the standard error.
    """
    excess = excess_surprisals(rows)
    error = float(excess.std(ddof=1) / np.sqrt(len(excess))) if len(excess) > 1 else np.inf
    return ExcessSurprisal(float(excess.mean()), error)


def excess_surprisals(rows: Rows) -> Floats:
    """Return ``sum w (-ln p) - H(p)`` of each row: (n,), nats."""
    weights = np.exp(rows.stored.log_probs.astype(np.float64))
    surprisal = -np.where(rows.used, weights * np.maximum(rows.log_probs, LOWEST_NATS), 0).sum(axis=1)
    excess: Floats = surprisal - rows.entropy
    return excess


def proven_shift(rows: Rows, drawn: bool) -> int:
    """Return which stored row, -1 before, 1 behind, is the live distribution of each position; 0 where neither is.

    A row that belongs to a distribution has no more surprisal under it than itself: ``sum w (-ln p) = sum w (-ln w)``.
    What a row has beyond that is its excess. Rows of other weights or another text fit no position, and one of three
    bad fits is always the best; so a shift is claimed only if the excess beside falls below SHIFTED of the own one.
    Only positions that have both neighbours in their sequence count.

    Args:
        rows: The sample.
        drawn: Whether weights are counts of draws; their own surprisal would be too low, the live entropy is exact.
    """
    log_probs = np.maximum(rows.stored.log_probs.astype(np.float64), LOWEST_NATS)
    own = -np.where(rows.used, np.exp(log_probs) * log_probs, 0).sum(axis=1)
    beside = np.stack([rows.entropy] * 3 if drawn else [np.roll(own, 1), own, np.roll(own, -1)], axis=1)
    inner = np.isfinite(rows.surprisal).all(axis=1)
    if not inner.any():
        return 0
    excess = np.abs((rows.surprisal - beside)[inner].mean(axis=0))
    best = int(excess.argmin())
    return best - 1 if excess[best] < SHIFTED * excess[1] else 0


def fitted_temperature(rows: Rows) -> tuple[float, float]:
    """Fit ``ln q = ln p / T + a constant per row`` to stored q and live p; tokens weigh as much as p says.

    Returns:
        T, and the share of the difference between q and p that it leaves unexplained: near 0 if q is p tempered,
        near 1 if not. (1, 1) if there is nothing to fit.
    """
    used = rows.used & (rows.log_probs > LOWEST_NATS)
    weights = np.where(used, np.exp(rows.log_probs), 0)
    live = _centred(np.where(used, rows.log_probs, 0), weights)
    stored = _centred(np.where(used, rows.stored.log_probs, 0).astype(np.float64), weights)
    variance, difference_ = float((weights * live**2).sum()), float((weights * (stored - live) ** 2).sum())
    slope = float((weights * live * stored).sum()) / variance if variance else 0.0
    if slope <= 0 or not difference_:
        return 1.0, 1.0
    return 1 / slope, float((weights * (stored - slope * live) ** 2).sum()) / difference_


def _token_terms(rows: Rows) -> Floats:
    """Return what each stored token adds to its row's KL: (n, k)."""
    return _kl_terms(np.exp(rows.log_probs), np.exp(rows.stored.log_probs.astype(np.float64)))


def _kl_terms(p: Floats, q: Floats) -> Floats:
    """Return ``p ln(p / q) - p + q`` for masses of any shape, with q as SMALLEST_MASS where it is less than p."""
    q = np.maximum(q, np.minimum(p, SMALLEST_MASS))
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    terms: Floats = p * np.log(ratio) - p + q
    return terms


def _centred(values: Floats, weights: Floats) -> Floats:
    """Return values (n, k) minus each row's weighted mean."""
    totals = np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    centred: Floats = values - (weights * values).sum(axis=1, keepdims=True) / totals
    return centred
