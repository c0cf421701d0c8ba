"""Sparse targets in memory: what a teacher said at n positions, before and after a codec.

A target is a set of (token id, probability) and the mass outside the set. A row has k slots;
unused ones are *empty*: log-probability -inf, id EMPTY_ID. On the way in, slots may come in any
order and the ids of empty slots mean nothing; on the way out ids ascend.

Every codec begins with ``sorted_rows``, which is also where a row that is no distribution is
refused, by number and by rule, before anything is written.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

EMPTY_ID = 0xFFFFFFFF
"""Decoded id of an empty slot; no vocabulary reaches it."""

MASS_TOLERANCE = 1e-3
"""By how much a row's probabilities, left-out mass included, may miss 1 before the row is refused."""

BLOCK_ROWS = 2048
"""Rows worked on at a time: small enough that the scratch arrays stay in a core's cache."""

LOG_SMALLEST_MASS = -24 * math.log(2)
"""Log of the least mass that 1 less a sum of float32 probabilities can tell from 0, in nats."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Targets:
    """Sparse targets of n positions.

    Attributes:
        ids: (n, k) uint32, ascending in each row once decoded; EMPTY_ID in empty slots.
        log_probs: (n, k) float32, natural log; -inf in empty slots.
        log_left_out: (n,) float32, log of the mass outside the row; -inf where there is none.
    """

    ids: NDArray[np.uint32]
    log_probs: NDArray[np.float32]
    log_left_out: NDArray[np.float32]


@dataclass(frozen=True)
class SortedRows:
    """Rows that passed every check, each ascending by id with its empty slots last.

    Attributes:
        ids: (n, k) uint32; EMPTY_ID in empty slots.
        log_probs: (n, k) float32, the bits that came in; -inf in empty slots.
        log_left_out: (n,) float32.
        mass: (n,) float64, sum of all probabilities, within MASS_TOLERANCE of 1.
    """

    ids: NDArray[np.uint32]
    log_probs: NDArray[np.float32]
    log_left_out: NDArray[np.float32]
    mass: NDArray[np.float64]


def empty_targets(n: int, k: int) -> Targets:
    """Return uninitialised Targets of n rows and k slots, for ``decode`` to fill."""
    return Targets(np.empty((n, k), np.uint32), np.empty((n, k), np.float32), np.empty(n, np.float32))


def part_of(targets: Targets, rows: slice) -> Targets:
    """Return some rows of targets, as views of the same memory."""
    return Targets(targets.ids[rows], targets.log_probs[rows], targets.log_left_out[rows])


def blocks(n: int) -> list[slice]:
    """Return the slices of n rows that are worked on one at a time."""
    return [slice(start, min(start + BLOCK_ROWS, n)) for start in range(0, n, BLOCK_ROWS)]


def sorted_rows(targets: Targets, k: int, vocabulary_size: int) -> SortedRows:
    """Check rows and sort each by id; the input stays as it is.

    Args:
        targets: Rows of k slots, in any order.
        k: Slots that a row must have.
        vocabulary_size: Ids are below this.

    Raises:
        ValueError: wrong shapes, or a row breaks a rule: a value that is NaN or +inf, mass other
            than 1, an id twice or out of range.
    """
    n = len(targets.ids)
    if not targets.ids.shape == targets.log_probs.shape == (n, k) or targets.log_left_out.shape != (n,):
        raise ValueError(
            f"targets of {k} slots are expected, got shapes {targets.ids.shape}, {targets.log_probs.shape}"
        )
    out = SortedRows(np.empty((n, k), np.uint32), np.empty((n, k), np.float32), targets.log_left_out, np.empty(n))
    for rows in blocks(n):
        ids, log_probs = by_id(targets.ids[rows], targets.log_probs[rows])
        with np.errstate(over="ignore", invalid="ignore"):
            out.mass[rows] = _masses(log_probs, targets.log_left_out[rows])
        _refuse_mass(out.mass[rows], rows.start)
        used = log_probs > -np.inf
        twice = (ids[:, 1:] == ids[:, :-1]) & used[:, 1:]
        refuse_rows(twice.any(axis=1), "an id occurs twice", rows.start)
        beyond = (ids >= vocabulary_size) & used
        refuse_rows(beyond.any(axis=1), f"an id is not below the vocabulary size {vocabulary_size}", rows.start)
        out.ids[rows], out.log_probs[rows] = ids, log_probs
    return out


def by_id(ids: NDArray[np.uint32], log_probs: NDArray[np.float32]) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """Return (ids, log_probs) with each row ascending by id and its empty slots, as EMPTY_ID, at the end.

    Id and value are sorted as one 64-bit number, id in front, several times faster than an
    argsort and two gathers.
    """
    pairs = np.where(log_probs == -np.inf, EMPTY_ID, ids).astype(np.uint64)
    pairs <<= np.uint64(32)
    pairs |= np.ascontiguousarray(log_probs, dtype=np.float32).view(np.uint32)
    pairs.sort(axis=1)
    return (pairs >> np.uint64(32)).astype(np.uint32), pairs.astype(np.uint32).view(np.float32)


def with_possible_rest(targets: Targets, tokens: int) -> Targets:
    """Return rows of which none rules out tokens that it merely does not hold.

    Where a row holds fewer tokens than there are and leaves nothing out, the kept probabilities summed to 1 in float32,
    as captures once took the rest to be 1 less that sum. The rest then has the most that it can: LOG_SMALLEST_MASS, or
    what that many tokens have that are no likelier than the least likely kept one.

    Args:
        targets: Decoded rows (n, k) of the likeliest tokens; drawn rows leave nothing out by definition.
        tokens: That the distribution is over.
    """
    used = targets.log_probs > -np.inf
    others = tokens - used.sum(axis=1)
    closed = np.isneginf(targets.log_left_out) & (others > 0) & used.any(axis=1)
    if not closed.any():
        return targets
    least = np.where(used[closed], targets.log_probs[closed], np.float32(0)).min(axis=1)
    rest = targets.log_left_out.copy()
    rest[closed] = np.minimum(LOG_SMALLEST_MASS, least + np.log(others[closed]))
    return Targets(targets.ids, targets.log_probs, rest)


def refuse_rows(broken: Any, rule: str, first: int = 0) -> None:
    """Raise ValueError if any entry of ``broken`` (b,) is true, naming the row; the block begins at row ``first``."""
    if broken.any():
        raise ValueError(f"row {first + int(np.flatnonzero(broken)[0])} cannot be stored: {rule}")


def kl_nats(true: Targets, decoded: Targets) -> NDArray[np.float64]:
    """Return KL(true || decoded) over the k kept tokens and the rest, per row: (n,) float64, nats.

    Both sides must hold the same ids, in any order; each is renormalised over its k + 1 outcomes.

    Raises:
        ValueError: the ids differ.
    """
    ids, log_p = by_id(true.ids, true.log_probs)
    decoded_ids, log_q = by_id(decoded.ids, decoded.log_probs)
    if not np.array_equal(ids, decoded_ids):
        raise ValueError("the two sides hold different ids")
    log_p64 = np.concatenate([log_p, true.log_left_out[:, None]], axis=1, dtype=np.float64)
    log_q64 = np.concatenate([log_q, decoded.log_left_out[:, None]], axis=1, dtype=np.float64)
    p, q = np.exp(log_p64), np.exp(log_q64)
    ratio = np.subtract(log_p64, log_q64, where=log_p64 > -np.inf, out=np.zeros(p.shape))
    p_sum, q_sum = p.sum(axis=1), q.sum(axis=1)
    divergence: NDArray[np.float64] = np.einsum("nk,nk->n", p, ratio) / p_sum - np.log(p_sum) + np.log(q_sum)
    return divergence


def _masses(log_probs: NDArray[np.float32], log_left_out: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return each row's total probability, (b,) float64."""
    mass: NDArray[np.float64] = np.exp(log_probs, dtype=np.float64).sum(axis=1)
    return mass + np.exp(log_left_out, dtype=np.float64)


def _refuse_mass(mass: NDArray[np.float64], first: int) -> None:
    refuse_rows(np.isnan(mass), "a value is NaN", first)
    off = np.abs(mass - 1) > MASS_TOLERANCE
    refuse_rows(off, f"the mass differs from 1 by more than {MASS_TOLERANCE}", first)
