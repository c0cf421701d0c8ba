"""Which shards to look at, when looking at all of them would take hours."""

from collections.abc import Sequence as AbstractSequence

import numpy as np

from cache_tools.cached_teacher import CachedTeacher
from cache_tools.errors import IncompleteError


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
