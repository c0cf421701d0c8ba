"""Rules by which rows must agree with the scalars stored beside them; checking them needs no teacher.

A row holds some probabilities of a distribution; ``gold_logprob`` and ``entropy`` were computed from the whole
distribution. So they contradict a row whose ids were moved, permuted or shifted by a position, or whose mass is wrong:

=============  ==========================================================================================
kind           what must hold of each row
=============  ==========================================================================================
all            ``gold_logprob`` is at most 0, ``entropy`` at least 0 and at most the log of the number of tokens
topk, topp     a gold token among the kept has its stored log-probability; one that is not is no likelier than the
               least likely kept token, nor than all that is left out; what is left out is no more than that many
               tokens no likelier than the least can have; and the entropy is one that such a rest allows
dense          every token is kept, so both scalars follow from the row
hybrid         a gold token likelier than the head's least likely is kept, with its log-probability
sampled        over all rows, gold tokens were drawn about as often as their probabilities say
=============  ==========================================================================================

Tolerances follow from the format: half a level of the codec (``Codec.bounds``), half a step of the scalars, and
float32's rounding of sums. Every row that a capture wrote is within them, so a row outside is wrong. The functions are
pure functions of numpy arrays and cost a few times as much as decoding.

If the teacher's distribution was restricted to a smaller vocabulary, a gold token outside it was replaced by a stand-in
that the cache does not name; then nothing is concluded from gold tokens that no row holds.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.base import Floats
from cache_tools.codecs.rows import EMPTY_ID, Targets
from cache_tools.format.manifest import Kind, TeacherManifest
from cache_tools.store.predictions import possible_tokens

Rules = dict[str, NDArray[np.bool_]]
"""The text of each rule mapped to (n,) bool, true for the rows that break it."""

EPSILON = float(np.finfo(np.float32).eps)

STANDARD_ERRORS = 8.0
"""Largest difference of the number of drawn gold tokens from its expectation, in standard errors: 1 in 10**15."""

ENOUGH_DRAWS = 25.0
"""Smallest variance of that number, in draws**2, at which it is checked; below, its distribution is too skewed."""


@dataclass(frozen=True)
class Claims:
    """What a teacher's manifest says of all its rows.

    Attributes:
        kind: Kind of the target.
        tokens: Number of tokens of the distribution.
        restricted: The distribution has fewer tokens than the vocabulary.
        head: Number of entries of a hybrid row that are no draws.
        draws: Number of draws of a row.
        step_nats: Step to which the scalars are rounded; 0 for float32.
    """

    kind: Kind
    tokens: int
    restricted: bool
    head: int
    draws: int
    step_nats: float

    @classmethod
    def of(cls, manifest: TeacherManifest) -> "Claims":
        """Read the claims from a manifest; its settings may have any values."""
        target, tokens = manifest.target, possible_tokens(manifest)
        head, draws = (target.settings.get(key) for key in ("head", "draws"))
        return cls(
            target.kind,
            tokens,
            tokens < manifest.vocabulary_size,
            head if type(head) is int and 0 < head <= target.k else target.k,
            draws if type(draws) is int and draws > 0 else target.k,
            manifest.scalar_step_nats,
        )


@dataclass(frozen=True)
class Evidence:
    """n rows and what was stored beside them.

    Attributes:
        targets: The decoded rows.
        low: (n, k + 1) float64, lower bounds of the log-probabilities before coding, see ``Codec.bounds``.
        high: (n, k + 1) float64, upper bounds.
        gold_ids: (n,) uint32, the token that each position should predict.
        gold: (n,) float64, stored log-probability of that token; None if the teacher does not keep it.
        entropy: (n,) float64, nats; None if the teacher does not keep it.
        logsumexp: (n,) float64, log-normaliser of the logits, which bounds float32's rounding; 0 if it is not kept.
    """

    targets: Targets
    low: Floats
    high: Floats
    gold_ids: NDArray[np.uint32]
    gold: Floats | None
    entropy: Floats | None
    logsumexp: Floats

    @property
    def used(self) -> NDArray[np.bool_]:
        """Which slots hold a token: (n, k)."""
        used: NDArray[np.bool_] = self.targets.ids != EMPTY_ID
        return used

    @property
    def rounding(self) -> Floats:
        """Largest error of float32 in a log-probability and in a sum of the row's probabilities: (n,)."""
        slots = self.targets.ids.shape[1]
        rounding: Floats = EPSILON * (slots + 8 + np.abs(np.where(np.isfinite(self.logsumexp), self.logsumexp, 0)))
        return rounding


def contradictions(claims: Claims, rows: Evidence) -> Rules:
    """Return which rows contradict the scalars stored beside them; empty rows are skipped."""
    kept = rows.used.any(axis=1)
    with np.errstate(all="ignore"):  # rows and scalars may have any values; NaN breaks every rule
        rules = _ranges(claims, rows)
        if not claims.kind.is_drawn:
            rules |= _rest(claims, rows)
        if not claims.kind.has_exact_part:
            rules |= _drawn_gold(claims, rows)
        elif rows.gold is not None:
            rules |= _gold(claims, rows)
    return {rule: broken & kept for rule, broken in rules.items()}


def broken(rules: Rules) -> NDArray[np.bool_]:
    """Return which rows break at least one rule: (n,) bool."""
    rows: NDArray[np.bool_] = np.logical_or.reduce(list(rules.values()))
    return rows


def _ranges(claims: Claims, rows: Evidence) -> Rules:
    slack, rules = claims.step_nats / 2 + rows.rounding, Rules()
    if rows.gold is not None:
        rules["gold_logprob is above 0"] = ~(rows.gold <= slack)
    if rows.entropy is not None:
        most = np.log(claims.tokens)
        rules["the entropy is negative, or above that of a uniform distribution"] = ~(
            (rows.entropy >= -slack) & (rows.entropy <= most + slack + EPSILON * most)
        )
    return rules


def _rest(claims: Claims, rows: Evidence) -> Rules:
    """Compare what is left out, and the entropy, with the kept tokens, which are the likeliest."""
    others = np.maximum(claims.tokens - rows.used.sum(axis=1), 0)
    least = np.minimum(_least(rows), 0)
    low_rest = np.maximum(np.exp(rows.low[:, -1]) - rows.rounding, 0)
    high_rest = np.exp(rows.high[:, -1]) + rows.rounding
    rules = {
        "the left-out mass is larger than the other tokens can have, as none is likelier than a kept token": low_rest
        > others * np.exp(least)
    }
    if rows.entropy is None:
        return rules
    lowest, highest = _entropy_bounds(rows.low[:, :-1], rows.high[:, :-1])
    lowest += low_rest * -least  # no token outside is likelier than the least likely kept one
    highest += _entropy(np.minimum(high_rest, 1 / np.e)) + high_rest * np.log(np.maximum(others, 1))  # or all are alike
    slack = claims.step_nats / 2 + rows.rounding * (1 + highest)
    follows = (rows.entropy >= lowest - slack) & (rows.entropy <= highest + slack)
    return rules | {"the entropy does not follow from the kept tokens": ~follows}


def _least(rows: Evidence) -> Floats:
    """Return the most that the least likely kept token's log-probability can be: (n,)."""
    least: Floats = np.where(rows.used, rows.high[:, :-1], np.inf).min(axis=1)
    return least


def _entropy_bounds(low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Return the least and the most that probabilities between two bounds (n, k) add to an entropy: (n,) each."""
    p_low, p_high = np.exp(low), np.minimum(np.exp(high), 1)
    at_low, at_high = _entropy(p_low), _entropy(p_high)
    peak = (p_low < 1 / np.e) & (p_high > 1 / np.e)
    highest = np.where(peak, 1 / np.e, np.maximum(at_low, at_high))
    return np.minimum(at_low, at_high).sum(axis=1), highest.sum(axis=1)


def _entropy(p: Floats) -> Floats:
    """Return -p ln p, 0 at 0."""
    entropy: Floats = -p * np.log(np.where(p > 0, p, 1))
    return entropy


def _gold(claims: Claims, rows: Evidence) -> Rules:
    """Compare the gold token's stored log-probability with its entry in the row, or with what the row leaves it."""
    assert rows.gold is not None
    is_gold = (rows.targets.ids == rows.gold_ids[:, None]) & rows.used
    kept = is_gold.any(axis=1)
    slack = claims.step_nats / 2 + rows.rounding * (1 + np.abs(np.where(np.isfinite(rows.gold), rows.gold, 0)))
    low, high = (np.where(is_gold, bound[:, :-1], -np.inf).max(axis=1) for bound in (rows.low, rows.high))
    unequal = kept & ~((rows.gold >= low - slack) & (rows.gold <= high + slack))
    absent = ~kept & _nameable(claims, rows)
    if claims.kind.is_drawn:  # and has a head: hybrid
        sure = rows.gold > _border(claims, rows) + slack
        unequal, too_likely = unequal & sure, absent & sure
    else:
        rest = np.log(np.exp(rows.high[:, -1]) + rows.rounding)
        too_likely = absent & (rows.gold > np.minimum(_least(rows), rest) + slack)
    return {
        "the gold token's probability differs from gold_logprob": unequal,
        "the gold token is missing although gold_logprob says that it is likelier than a kept one": too_likely,
    }


def _border(claims: Claims, rows: Evidence) -> Floats:
    """Return a log-probability (n,) above which a token of a hybrid row is in its head: the head's smallest weight."""
    highest = np.where(rows.used, rows.high[:, :-1], -np.inf)
    border: Floats = np.partition(highest, -claims.head, axis=1)[:, -claims.head]
    return border


def _nameable(claims: Claims, rows: Evidence) -> NDArray[np.bool_]:
    """Say which gold tokens (n,) are of the teacher's own vocabulary, as far as these rows show it."""
    if not claims.restricted:
        return np.ones(len(rows.gold_ids), np.bool_)
    seen: NDArray[np.bool_] = np.isin(rows.gold_ids, rows.targets.ids)
    return seen


def _drawn_gold(claims: Claims, rows: Evidence) -> Rules:
    """Compare how often gold tokens were drawn, over all rows, with what ``gold_logprob`` says."""
    if rows.gold is None:
        return {}
    judged = rows.used.any(axis=1) & _nameable(claims, rows)
    is_gold = (rows.targets.ids == rows.gold_ids[:, None]) & rows.used
    drawn = claims.draws * np.where(is_gold, np.exp(rows.targets.log_probs, dtype=np.float64), 0).sum(axis=1)
    p = np.exp(np.minimum(rows.gold, 0))
    variance = float((claims.draws * p * (1 - p))[judged].sum())
    expected, actual = (float(values[judged].sum()) for values in (claims.draws * p, drawn))
    # a stored log-probability is off by half a step at most
    error = STANDARD_ERRORS * np.sqrt(variance) + expected * np.expm1(claims.step_nats / 2 + EPSILON)
    off = variance >= ENOUGH_DRAWS and abs(actual - expected) > error
    return {"gold tokens were not drawn as often as gold_logprob says": judged & off}
