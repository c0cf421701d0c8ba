"""Searches of the viewer, a few shards per request, so that a search over a thousand shards answers at once.

A request searches shards until its time is over or its page is full, and returns where the next request continues.
So no search runs on after its reader has left, and memory is one shard, or the few that are read at a time in a
bucket. Text is searched in the order of the sequences. Measures are searched in a random order of shards that is
always the same, so that the shards searched so far are a random sample of all.
"""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from cache_tools.errors import ConfigError
from cache_tools.format.sequences import Sequence
from cache_tools.inspection.sampling import committed_shards
from cache_tools.inspection.search import Measure, disagreement_of, highest_by_shard, loss_of, text_by_shard
from cache_tools.json_output import finite
from cache_tools.quantities import counted
from cache_tools.store.reader import Encoding
from cache_tools.store.teacher import CachedTeacher
from cache_tools.viewer.pages import pictured

SECONDS = 2.0
"""How long one request searches unless its page is full before; it finishes the shard that it is reading."""

RESULTS = 25
"""How many sequences one request lists."""

EXCERPT_CHARACTERS = 80

MEASURES = ("loss", "kl", "top1")


@dataclass(frozen=True)
class ListedSequence:
    """A sequence in the viewer's list: ``value`` as in ``search.Match``, and text made harmless by ``pictured``."""

    sequence_id: int
    document_id: str
    value: float | None
    excerpt: str


@dataclass(frozen=True)
class SearchPage:
    """What one request has found.

    Attributes:
        found: The sequences to list.
        next: Where the next request continues: a sequence for text, a number of shards for measures; None at the end.
        looked: How many shards were searched so far, by this request and earlier ones.
        shards: How many shards there are.
    """

    found: tuple[ListedSequence, ...]
    next: int | None
    looked: int
    shards: int


def look_for_text(
    encoding: Encoding, document_id: str | None, text: str | None, after: int, seconds: float = SECONDS
) -> SearchPage:
    """List sequences in order: those of a document, those that contain a text, or, without either, all.

    Args:
        encoding: The encoding.
        document_id: Exact id of the document; None for any document.
        text: Text that the sequence contains, case-sensitive; None for any text.
        after: The first sequence to look at.
        seconds: How long to search.

    Raises:
        ConfigError: there is no sequence ``after``.
    """
    num_shards = len(encoding.shards)
    if not num_shards:
        return SearchPage((), None, 0, 0)
    try:
        shard = first = encoding.shard_of(after)
    except IndexError as error:
        raise ConfigError(f"there is no sequence {after}", where=encoding.path) from error
    listed: list[ListedSequence] = []
    shards = within(seconds, range(first, num_shards))
    for shard, matches in enumerate(text_by_shard(encoding, shards, document_id, text, _text_entry), first):
        listed += [entry for entry in matches if entry.sequence_id >= after]
        if len(listed) > RESULTS:
            return SearchPage(tuple(listed[:RESULTS]), listed[RESULTS].sequence_id, shard + 1, num_shards)
    following = encoding.shards[shard + 1].first_sequence if shard + 1 < num_shards else None
    return SearchPage(tuple(listed), following, shard + 1, num_shards)


def look_for_highest(
    encoding: Encoding, teachers: list[CachedTeacher], by: str, after: int, seconds: float = SECONDS
) -> SearchPage:
    """List the sequences with the highest mean of a measure in the shards that this request searches.

    Args:
        encoding: The encoding.
        teachers: One teacher for ``loss``, two for ``kl`` and ``top1``.
        by: One of MEASURES, see ``inspection/search.py``.
        after: How many shards earlier requests have searched.
        seconds: How long to search.

    Raises:
        ConfigError: another number of teachers is needed.
    """
    needed = 1 if by == "loss" else 2
    if len({teacher.name for teacher in teachers}) != needed:
        raise ConfigError(
            f"this search needs {counted(needed, 'teacher')}",
            where=encoding.path,
            found=", ".join(teacher.name for teacher in teachers) or "none",
        )
    measure: Measure = loss_of(teachers[0]) if by == "loss" else disagreement_of(teachers[0], teachers[1], by)
    committed = committed_shards(teachers)
    order = np.random.default_rng(0).permutation(committed)[after:].tolist()
    best: list[ListedSequence] = []
    looked = after
    for ranked in highest_by_shard(encoding, within(seconds, order), measure, RESULTS, _measured_entry):
        best = sorted([*best, *(entry for _, entry in ranked)], key=_rank, reverse=True)[:RESULTS]
        looked += 1
    return SearchPage(tuple(best), looked if looked < len(committed) else None, looked, len(committed))


def within(seconds: float, shards: Iterable[int]) -> Iterator[int]:
    """Yield shards until the time is over, but at least one."""
    end = time.monotonic() + seconds
    for shard in shards:
        yield shard
        if time.monotonic() > end:
            return


def _measured_entry(sequence: Sequence, _: int, mean: float) -> ListedSequence:
    return _entry(sequence, 0, finite(mean))


def _text_entry(sequence: Sequence, _: int, around: int) -> ListedSequence:
    return _entry(sequence, around, None)


def _entry(sequence: Sequence, around: int, value: float | None) -> ListedSequence:
    start = max(0, around - EXCERPT_CHARACTERS // 4)
    excerpt = pictured(sequence.text[start : start + EXCERPT_CHARACTERS])
    return ListedSequence(sequence.sequence_id, pictured(sequence.document_id), value, excerpt)


def _rank(entry: ListedSequence) -> float:
    """Return what entries are ranked by; a value of None is an infinite one."""
    return math.inf if entry.value is None else entry.value
