"""How far two teachers are apart at a position, computed from the kept tokens of each.

Two rows rarely keep the same tokens, and how a row's left-out mass is distributed is unknown. So the measure is **the
smallest KL divergence that any two full distributions with these kept rows can have**: the tightest lower bound of
the true divergence that the rows allow, by the same rule in both directions. It is exact if both rows keep all tokens.

The tokens fall into four kinds of outcome, with these probabilities under A and B:

    each token that both keep            p_i, q_i         both are stored
    the tokens that only A keeps, as one   a, t           t <= M, B's left-out mass
    the tokens that only B keeps, as one   s, b           s <= L, A's left-out mass
    all others, as one                 L - s, M - t

Merging outcomes never raises a KL (data-processing inequality). The rest is convex in s and t, and its minimum is

    (a + L) ln((a + L) / (b + M))        if a b <= L M: the last three are merged into one outcome
    a ln(a / M) + L ln(L / b)            otherwise: the left-out masses are too small to be merged with them

The first line alone, which merges everything but the common tokens, was rejected: two confident teachers that keep
no token in common would be at distance 0. Spreading the left-out mass evenly over the vocabulary was rejected too: the
result is no bound. Rows of draws are noisy estimates, not distributions, and are not compared here.

A row without left-out mass gives every other token the probability 0, so its distance from a row that keeps such a
token is infinite. Only rows that hold all tokens are read in this way; see ``rows.with_possible_rest``.

The KL floor of a single row is beside it: the divergence from the teacher's whole distribution of a student that gives
the kept tokens their probabilities and spreads the rest evenly. It follows from the row and the stored entropy.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.rows import EMPTY_ID, Targets, blocks, with_possible_rest
from cache_tools.errors import DamageError


@dataclass(frozen=True)
class Divergence:
    """How far two teachers are apart at n positions; NaN and false where the row of one of them is empty.

    Attributes:
        kl_ab_nats: (n,) float64 in [0, inf], the smallest possible KL(A || B).
        kl_ba_nats: (n,) float64 in [0, inf], the same of KL(B || A).
        top1_a: (n,) float64, A's largest kept probability.
        same_top1: (n,) bool, the likeliest kept tokens are the same.
        compared: (n,) bool, both rows keep at least one token.
    """

    kl_ab_nats: NDArray[np.float64]
    kl_ba_nats: NDArray[np.float64]
    top1_a: NDArray[np.float64]
    same_top1: NDArray[np.bool_]
    compared: NDArray[np.bool_]

    @property
    def mean_kl_nats(self) -> NDArray[np.float64]:
        """The mean of both directions: (n,) float64."""
        return (self.kl_ab_nats + self.kl_ba_nats) / 2


def divergence(a: Targets, b: Targets, tokens: tuple[int, int] = (0, 0)) -> Divergence:
    """Compare two teachers' decoded rows of the same n positions.

    Args:
        a: (n, k) decoded, so ids ascend in a row.
        b: (n, m) decoded.
        tokens: How many tokens a row of A and a row of B must hold for its left-out mass of 0 to be exact, see
            ``predictions.tokens_of_whole_row``; by default it is exact in every row.

    Raises:
        ValueError: the numbers of rows differ.
        DamageError: a row holds a token twice.
    """
    if len(a.ids) != len(b.ids):
        raise ValueError(f"{len(a.ids)} rows cannot be compared with {len(b.ids)}")
    a, b = (with_possible_rest(*side) for side in zip((a, b), tokens, strict=True))
    parts = [_block(_rows(a, part), _rows(b, part)) for part in blocks(len(a.ids))]
    return _joined(parts)


def likeliest(targets: Targets) -> tuple[NDArray[np.uint32], NDArray[np.float64]]:
    """Return the likeliest kept token of each row and its probability: (n,) each; EMPTY_ID and 0 in an empty row."""
    best = targets.log_probs.argmax(axis=1)[:, None]
    ids = np.take_along_axis(targets.ids, best, axis=1)[:, 0]
    return ids, np.exp(np.take_along_axis(targets.log_probs, best, axis=1)[:, 0], dtype=np.float64)


def _joined(parts: list[Divergence]) -> Divergence:
    """Return the positions of all parts one after the other; no positions if there are no parts."""
    if not parts:
        nothing, never = np.zeros(0), np.zeros(0, np.bool_)
        return Divergence(nothing, nothing, nothing, never, never)
    return Divergence(
        kl_ab_nats=np.concatenate([part.kl_ab_nats for part in parts]),
        kl_ba_nats=np.concatenate([part.kl_ba_nats for part in parts]),
        top1_a=np.concatenate([part.top1_a for part in parts]),
        same_top1=np.concatenate([part.same_top1 for part in parts]),
        compared=np.concatenate([part.compared for part in parts]),
    )


def _rows(targets: Targets, rows: slice) -> Targets:
    return Targets(targets.ids[rows], targets.log_probs[rows], targets.log_left_out[rows])


def _block(a: Targets, b: Targets) -> Divergence:
    in_a, in_b = _common(a.ids, b.ids)  # (n, k) and (n, m), with as many true values in each row
    row, p, q = np.nonzero(in_a)[0], _outcomes(a, in_a), _outcomes(b, in_b)
    (top_a, probability), (top_b, _) = likeliest(a), likeliest(b)
    compared = (top_a != EMPTY_ID) & (top_b != EMPTY_ID)
    return Divergence(
        kl_ab_nats=np.where(compared, _kl(row, p, q), np.nan),
        kl_ba_nats=np.where(compared, _kl(row, q, p), np.nan),
        top1_a=np.where(compared, probability, np.nan),
        same_top1=(top_a == top_b) & compared,
        compared=compared,
    )


def _common(a_ids: NDArray[np.uint32], b_ids: NDArray[np.uint32]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Mark the slots (n, k) and (n, m) whose token the other side keeps too; empty slots are never common."""
    a, b = _keys(a_ids), _keys(b_ids)
    places = np.minimum(np.searchsorted(b, a), len(b) - 1)
    in_a = (b[places] == a) & (a_ids.ravel() != EMPTY_ID)
    in_b = np.zeros(len(b), np.bool_)
    in_b[places[in_a]] = True
    if np.count_nonzero(in_a) != np.count_nonzero(in_b):
        raise DamageError(
            "a stored row holds a token twice, or its ids do not ascend",
            fix="Run 'logitcask verify --deep' on both caches to see which shards are damaged",
        )
    return in_a.reshape(a_ids.shape), in_b.reshape(b_ids.shape)


def _keys(ids: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Return row and id as one number, ascending over all rows: (n * k,) uint64."""
    return ((np.arange(len(ids), dtype=np.uint64)[:, None] << np.uint64(32)) | ids).ravel()


def _outcomes(targets: Targets, common: NDArray[np.bool_]) -> tuple[NDArray[np.float64], ...]:
    """Return one side's probabilities; those of a row sum to 1.

    Returns:
        Probabilities of the common tokens, row after row (c,); of all tokens that only this side keeps (n,); the
        left-out mass (n,).
    """
    probabilities = np.exp(targets.log_probs, dtype=np.float64)
    left_out = np.exp(targets.log_left_out, dtype=np.float64)
    alone = np.where(common, 0, probabilities).sum(axis=1)
    mass = np.where(common, probabilities, 0).sum(axis=1) + alone + left_out
    with np.errstate(invalid="ignore"):  # a row of no mass at all
        return (probabilities / mass[:, None])[common], alone / mass, left_out / mass


def _kl(
    row: NDArray[np.intp], p: tuple[NDArray[np.float64], ...], q: tuple[NDArray[np.float64], ...]
) -> NDArray[np.float64]:
    """Return the smallest KL(p || q) per row, (n,) float64, from both sides' outcomes; ``row``: of each common one."""
    (p_common, only_p, p_left), (q_common, only_q, q_left) = p, q
    merged = _terms(only_p + p_left, only_q + q_left)
    apart = _terms(only_p, q_left) + _terms(p_left, only_q)
    rest = np.where(only_p * only_q <= p_left * q_left, merged, apart)
    return np.maximum(np.bincount(row, _terms(p_common, q_common), len(rest)) + rest, 0.0)


def _terms(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p ln(p / q): 0 where p is 0, infinite where only q is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms: NDArray[np.float64] = np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0)
    return terms


def kl_floor(targets: Targets, entropy: Any, vocabulary: int) -> float:
    """Return the mean over rows of ``kl_floor_rows``."""
    return float(kl_floor_rows(targets, entropy, vocabulary).mean())


def kl_floor_rows(targets: Targets, entropy: Any, vocabulary: int) -> NDArray[np.float64]:
    """Return the KL from the teacher to each row with the rest spread evenly, in nats: (N,).

    With r the left-out mass over V - k tokens, ``KL = sum over the tail of p ln p - r ln (r / (V - k))``,
    and the tail's sum is minus the whole entropy less the kept tokens' part of it.
    """
    logs = targets.log_probs.astype(np.float64)
    kept = np.where(logs > -np.inf, np.exp(logs) * np.where(logs > -np.inf, logs, 0), 0).sum(axis=1)
    log_rest = targets.log_left_out.astype(np.float64)
    rest = np.exp(log_rest)
    others = max(1, vocabulary - logs.shape[1])
    spread = np.where(rest > 0, rest * (np.where(rest > 0, log_rest, 0) - np.log(others)), 0)
    floor: NDArray[np.float64] = np.maximum(-np.asarray(entropy, dtype=np.float64) - kept - spread, 0)
    return floor
