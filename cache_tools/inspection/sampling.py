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
    shards = set(range(min(len(teacher.encoding.shards) for teacher in teachers)))
    for teacher in teachers:
        shards -= set(teacher.missing_shards())
    if not shards:
        raise IncompleteError(
            "no shard is finished",
            where=teachers[0].path,
            expected=f"at least one that {' and '.join(repr(t.name) for t in teachers)} captured",
            fix="Run the same 'logitcask capture' again; it continues where it stopped",
        )
    return sorted(shards)


def drawn(shards: list[int], count: int | None, seed: int) -> list[int]:
    """Return ``count`` of the shards at random, ascending; all of them if there are no more, or for None."""
    if count is None or count >= len(shards):
        return shards
    return sorted(np.random.default_rng(seed).choice(shards, count, replace=False).tolist())


class Window(NamedTuple):
    """Rows ``[start, stop)`` of the arrays, all of them used rows of one shard."""

    shard: int
    start: int
    stop: int


def drawn_windows(teachers: AbstractSequence[CachedTeacher], positions: int, seed: int) -> list[Window]:
    """Return random inner chunks of the shards that all these teachers have committed, ascending.

    A chunk is the smallest piece that a reader decodes. Each has the same probability, whatever its shard.

    Args:
        teachers: Teachers of one encoding; chunks are those of the first teacher.
        positions: How many positions the chunks should hold together; rounded up to whole chunks.
        seed: Seed of the random draw.

    Raises:
        IncompleteError: there is no such shard.
    """
    encoding, chunk = teachers[0].encoding, teachers[0].manifest.chunk_positions
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
