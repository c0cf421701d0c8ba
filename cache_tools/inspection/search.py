"""Search for sequences: by document, by text, by the highest loss, or by the largest disagreement of two teachers.

Each search reads shard by shard and keeps only the best few sequences, so memory is one shard; in a bucket several are
read at a time. A search by loss reads the stored log-probability of the gold token, 4 bytes per position; one by
disagreement reads the targets of both teachers.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import ConfigError
from cache_tools.escaping import printable
from cache_tools.format.layout import GOLD_LOGPROB
from cache_tools.format.sequences import Sequence
from cache_tools.inspection.divergence import divergence
from cache_tools.inspection.sampling import AT_ONCE
from cache_tools.requests.in_flight import in_parallel
from cache_tools.store.predictions import tokens_of_whole_row
from cache_tools.store.reader import Encoding
from cache_tools.store.teacher import CachedTeacher

EXCERPT_CHARACTERS = 60

M = TypeVar("M")

Measure = Callable[[int], NDArray[np.float64]]
"""Maps a shard to a number for each of its used rows, (n,); NaN where there is none."""


@dataclass(frozen=True)
class Match:
    """A sequence that a search has found.

    Attributes:
        sequence_id: Its id.
        document_id: The document that it is, or is a piece of.
        shard: The shard that holds it.
        value: Mean of the measure over its positions; None for a search by text or document.
        excerpt: Some of its text, escaped as by ``printable``.
    """

    sequence_id: int
    document_id: str
    shard: int
    value: float | None
    excerpt: str


@dataclass(frozen=True)
class SearchResult:
    """What ``logitcask show --json`` prints for a search.

    Attributes:
        measure: What ``value`` of a match measures; None in a search for text.
        found: The matches, the best first.
    """

    measure: str | None
    found: tuple[Match, ...]


def with_text(
    encoding: Encoding, shards: Iterable[int], document_id: str | None, text: str | None, limit: int
) -> list[Match]:
    """Return the first sequences that belong to a document, contain a text, or both; at most ``limit``.

    Args:
        encoding: The encoding.
        shards: Shards to read, in this order; reading stops at ``limit`` matches.
        document_id: Exact id of the document; None for any document.
        text: Text that the sequence contains, case-sensitive; None for any text.
        limit: Largest number of matches.
    """
    matches = text_by_shard(encoding, shards, document_id, text, _text_match)
    return list(islice(chain.from_iterable(matches), limit))


def text_by_shard(
    encoding: Encoding,
    shards: Iterable[int],
    document_id: str | None,
    text: str | None,
    describe: Callable[[Sequence, int, int], M],
) -> Iterator[list[M]]:
    """Yield the matches of each shard, in the order of the shards.

    Args:
        encoding: The encoding.
        shards: Shards to read; further ones are taken before the first is yielded.
        document_id: As of ``with_text``.
        text: As of ``with_text``.
        describe: Called with a matching sequence, its shard, and where its text matches; makes what is listed.
    """

    def matches(shard: int) -> list[M]:
        return [
            describe(sequence, shard, sequence.text.find(text) if text else 0)
            for sequence in encoding.sequences(shard)
            if document_id in (None, sequence.document_id) and (text is None or text in sequence.text)
        ]

    return in_parallel(matches, shards, encoding.path, AT_ONCE)


def highest(encoding: Encoding, shards: Iterable[int], measure: Measure, limit: int) -> list[Match]:
    """Return the sequences of some shards with the highest mean of a measure, highest first."""
    best: list[tuple[float, Match]] = []
    for candidates in highest_by_shard(encoding, shards, measure, limit, _match):
        best = heapq.nlargest(limit, [*best, *candidates], key=_mean)
    return [match for _, match in best]


def highest_by_shard(
    encoding: Encoding,
    shards: Iterable[int],
    measure: Measure,
    limit: int,
    describe: Callable[[Sequence, int, float], M],
) -> Iterator[list[tuple[float, M]]]:
    """Yield the (mean, sequence) of each shard with the highest means, highest first, in the order of the shards.

    Args:
        encoding: The encoding.
        shards: Shards to read; further ones are taken before the first is yielded.
        measure: What the mean is taken of.
        limit: Largest number of sequences of a shard.
        describe: Called with a sequence, its shard and its mean; makes what is listed.
    """

    def candidates(shard: int) -> list[tuple[float, M]]:
        sequences = encoding.sequences(shard)
        means = _means(sequences, measure(shard)).tolist()
        ranked = ((mean, sequence) for mean, sequence in zip(means, sequences, strict=True) if not np.isnan(mean))
        return [(mean, describe(sequence, shard, mean)) for mean, sequence in heapq.nlargest(limit, ranked, key=_mean)]

    return in_parallel(candidates, shards, encoding.path, AT_ONCE)


def _mean(entry: tuple[float, object]) -> float:
    return entry[0]


def loss_of(teacher: CachedTeacher) -> Measure:
    """Return a measure: the teacher's loss on the gold token, in nats."""
    return lambda shard: -_scalar(teacher, GOLD_LOGPROB, *teacher.shard_rows(shard)).astype(np.float64)


def disagreement_of(a: CachedTeacher, b: CachedTeacher, by: str) -> Measure:
    """Return a measure: how far two teachers of one encoding are apart.

    Args:
        a: A teacher.
        b: Another teacher.
        by: ``kl`` for the KL divergence in nats, the mean of both directions (see ``divergence``); ``top1`` for 1
            where their likeliest tokens differ and 0 elsewhere.
    """
    tokens = (tokens_of_whole_row(a.manifest), tokens_of_whole_row(b.manifest))

    def measure(shard: int) -> NDArray[np.float64]:
        values = [np.zeros(0)]
        for rows in a.row_blocks(shard):
            distance = divergence(a.targets(*rows), b.targets(*rows), tokens)
            differ = np.where(distance.compared, ~distance.same_top1, np.nan)
            values.append(distance.mean_kl_nats if by == "kl" else differ)
        return np.concatenate(values)

    return measure


def _means(sequences: list[Sequence], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each sequence's mean over its rows, NaN for one without any: (s,) float64."""
    counted = ~np.isnan(values)
    owners = np.repeat(np.arange(len(sequences)), [sequence.num_positions for sequence in sequences])
    sums = np.bincount(owners[counted], values[counted], len(sequences))
    with np.errstate(invalid="ignore", divide="ignore"):
        means: NDArray[np.float64] = sums / np.bincount(owners[counted], minlength=len(sequences))
    return means


def _text_match(sequence: Sequence, shard: int, around: int) -> Match:
    return _match(sequence, shard, None, around)


def _match(sequence: Sequence, shard: int, value: float | None, around: int = 0) -> Match:
    start = max(0, around - EXCERPT_CHARACTERS // 3)
    excerpt = sequence.text[start : start + EXCERPT_CHARACTERS]
    return Match(sequence.sequence_id, sequence.document_id, shard, value, printable(excerpt))


def _scalar(teacher: CachedTeacher, name: str, start: int, stop: int) -> NDArray[np.float32]:
    """Return a scalar of rows ``[start, stop)``: (n,) float32.

    Raises:
        ConfigError: the teacher does not keep it.
    """
    if name not in teacher.manifest.scalars:
        raise ConfigError(
            f"teacher {teacher.name!r} keeps no {name}",
            where=teacher.path,
            expected=name,
            found=", ".join(teacher.manifest.scalars) or "no scalars",
        )
    return teacher.scalar(name, start, stop)
