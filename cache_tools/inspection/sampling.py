"""A random choice of shards, or of chunks of rows, for when reading all of them would take hours."""

from collections.abc import Sequence as AbstractSequence
from typing import NamedTuple

import numpy as np

from cache_tools.errors import IncompleteError
from cache_tools.store.teacher import CachedTeacher


def committed_shards(teachers: AbstractSequence[CachedTeacher]) -> list[int]:
    """Return the shards that all these teachers have committed, ascending.

    Raises:
        IncompleteError: there is none.
    """
    by_all = np.ones(min(len(teacher.encoding.shards) for teacher in teachers), bool)
    for teacher in teachers:
        by_all[[shard for shard in teacher.missing_shards() if shard < len(by_all)]] = False
    shards: list[int] = np.flatnonzero(by_all).tolist()
    if not shards:
        raise IncompleteError(
            "no shard is finished",
            where=teachers[0].path,
            expected=f"at least one that {' and '.join(repr(t.name) for t in teachers)} captured",
            fix="Run the same 'logitcask capture' again; it continues where it stopped",
        )
    return shards


def drawn(shards: list[int], count: int | None, seed: int) -> list[int]:
    """Return ``count`` of the shards at random, ascending; all of them if there are no more, or for None."""
    if count is None or count >= len(shards):
        return shards
    return sorted(np.random.default_rng(seed).choice(shards, count, replace=False).tolist())


AT_ONCE = 8
"""Windows that are read from a bucket at a time: each takes some ten requests, and the memory of a decoded chunk."""

WINDOW_POSITIONS = 1024
"""Positions that a sample reads at one place, if a shard has so many."""


class Window(NamedTuple):
    """Rows ``[start, stop)`` of the arrays, all of them used rows of one shard."""

    shard: int
    start: int
    stop: int


def drawn_windows(teachers: AbstractSequence[CachedTeacher], positions: int, seed: int) -> list[Window]:
    """Return random inner chunks of the shards that all these teachers have committed, ascending.

    A chunk is the smallest piece that a reader decodes. Each has the same probability, whatever its shard. Chunks of
    fewer than WINDOW_POSITIONS positions are drawn in runs of as many: neighbouring positions resemble each other, but
    each run costs a round of requests, however short it is.

    Args:
        teachers: Teachers of one encoding; chunks are those of the first teacher.
        positions: How many positions the chunks should hold together; rounded up to whole chunks.
        seed: Seed of the random draw.

    Raises:
        IncompleteError: there is no such shard.
    """
    encoding, chunk = teachers[0].encoding, teachers[0].manifest.chunk_positions
    chunk *= max(1, min(WINDOW_POSITIONS, positions) // chunk)
    shards = committed_shards(teachers)
    ends = np.cumsum([-(-encoding.shards[shard].positions // chunk) for shard in shards])
    count = min(-(-positions // chunk), int(ends[-1]))
    windows = []
    for number in np.sort(np.random.default_rng(seed).choice(ends[-1], count, replace=False)).tolist():
        place = int(np.searchsorted(ends, number, side="right"))
        first, stop = teachers[0].shard_rows(shards[place])
        start = first + (number - (int(ends[place - 1]) if place else 0)) * chunk
        windows.append(Window(shards[place], start, min(start + chunk, stop)))
    return windows
