"""Sequences worth looking at: of a document, with some text, with the highest loss, with the widest disagreement.

Each looks shard by shard and keeps only the best few, so memory is one shard. By loss, 4 bytes a position are
read, the stored log-probability of the gold token; by disagreement, the targets of both teachers.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from cache_tools.escaping import printable
from cache_tools.format.layout import GOLD_LOGPROB
from cache_tools.format.sequences import Sequence
from cache_tools.inspection.divergence import divergence
from cache_tools.inspection.views import scalar
from cache_tools.store.predictions import tokens_of_whole_row
from cache_tools.store.reader import Encoding
from cache_tools.store.teacher import CachedTeacher

EXCERPT_CHARACTERS = 60

Measure = Callable[[int], NDArray[np.float64]]
"""Of a shard: a number for each of its used rows, (n,); NaN where there is none."""


@dataclass(frozen=True)
class Found:
    """A sequence that was found.

    Attributes:
        sequence_id: Its id.
        document_id: Of the document that it is a piece of.
        shard: Where it lies.
        value: Its mean measure; None if it was found by its text or id.
        excerpt: Some of its text, escaped as by ``printable``.
    """

    sequence_id: int
    document_id: str
    shard: int
    value: float | None
    excerpt: str


def with_text(
    encoding: Encoding, shards: Iterable[int], document_id: str | None, text: str | None, limit: int
) -> list[Found]:
    """Return the first sequences of a document, or with a text in them, or both; at most ``limit``.

    Args:
        encoding: The encoding.
        shards: Shards to read, in order; no more of them are than it takes.
        document_id: Exact id; None for any.
        text: Part of the sequence's text, case and all; None for any.
        limit: Stop after so many.
    """
    return list(islice(_matching(encoding, shards, document_id, text), limit))


def highest(encoding: Encoding, shards: Iterable[int], measure: Measure, limit: int) -> list[Found]:
    """Return the sequences of some shards with the highest mean of a measure, highest first."""
    best: list[tuple[float, int, int]] = []
    for shard in shards:
        means = _means(encoding.sequences(shard), measure(shard))
        candidates = ((mean, -i, shard) for i, mean in enumerate(means.tolist()) if not np.isnan(mean))
        best = heapq.nlargest(limit, [*best, *candidates])
    return [_found(encoding.sequences(shard)[-i], shard, mean) for mean, i, shard in best]


def loss_of(teacher: CachedTeacher) -> Measure:
    """Return the teacher's loss on the gold token, in nats."""
    return lambda shard: -scalar(teacher, GOLD_LOGPROB, *teacher.shard_rows(shard)).astype(np.float64)


def disagreement_of(a: CachedTeacher, b: CachedTeacher, by: str) -> Measure:
    """Return how far two teachers are apart.

    Args:
        a: A teacher.
        b: Another of the same encoding.
        by: ``kl`` for the mean of both directions in nats, see ``divergence``; ``top1`` for 1 where the likeliest
            tokens differ.
    """
    tokens = (tokens_of_whole_row(a.manifest), tokens_of_whole_row(b.manifest))

    def measure(shard: int) -> NDArray[np.float64]:
        values = [np.zeros(0)]
        for rows in a.row_blocks(shard):
            found = divergence(a.targets(*rows), b.targets(*rows), tokens)
            values.append(found.mean_kl_nats if by == "kl" else np.where(found.said, ~found.same_top1, np.nan))
        return np.concatenate(values)

    return measure


def _matching(encoding: Encoding, shards: Iterable[int], document_id: str | None, text: str | None) -> Iterator[Found]:
    for shard in shards:
        for sequence in encoding.sequences(shard):
            if document_id in (None, sequence.document_id) and (text is None or text in sequence.text):
                yield _found(sequence, shard, None, sequence.text.find(text) if text else 0)


def _means(sequences: list[Sequence], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each sequence's mean over its rows, NaN for one without any: (s,) float64."""
    counted = ~np.isnan(values)
    owners = np.repeat(np.arange(len(sequences)), [sequence.num_positions for sequence in sequences])
    sums = np.bincount(owners[counted], values[counted], len(sequences))
    with np.errstate(invalid="ignore", divide="ignore"):
        means: NDArray[np.float64] = sums / np.bincount(owners[counted], minlength=len(sequences))
    return means


def _found(sequence: Sequence, shard: int, value: float | None, around: int = 0) -> Found:
    start = max(0, around - EXCERPT_CHARACTERS // 3)
    excerpt = sequence.text[start : start + EXCERPT_CHARACTERS]
    return Found(sequence.sequence_id, sequence.document_id, shard, value, printable(excerpt))
