"""Check that a cached teacher's rows agree with the scalars and sequences stored beside them; see ``gold_check``.

``verify --deep`` checks every row, ``inspect`` those of its sample, and ``train`` a few chunks of each teacher before
the first step, which costs less than a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import DamageError
from cache_tools.format.layout import ENTROPY, GOLD_LOGPROB, LOGSUMEXP
from cache_tools.inspection.gold_check import Claims, Evidence, Rules, broken, contradictions
from cache_tools.inspection.sampling import AT_ONCE, Window, drawn_windows
from cache_tools.requests.in_flight import in_parallel
from cache_tools.store.teacher import CachedTeacher

MADE_UP = "none"
"""The identity's ``weights`` for rows that no model predicted; such rows are not checked."""

CHECKED_POSITIONS = 8192
"""Positions that ``train`` checks, two chunks of the usual size, and that ``verify`` decodes at a time."""


@dataclass(frozen=True)
class Contradiction:
    """A rule that rows of a window break.

    Attributes:
        rule: Its text.
        count: Rows that break it.
        first: The first of them, counted as in the arrays.
    """

    rule: str
    count: int
    first: int


def window_rules(teacher: CachedTeacher, window: Window) -> Rules:
    """Return which rows of a window break which rule: (n,) bool by the rule's text; no rules without weights.

    Errors as for ``CachedTeacher.targets``.
    """
    if teacher.manifest.identity.get("weights") == MADE_UP:
        return {}
    first = window.shard * teacher.encoding.manifest.positions_per_shard
    stored = teacher.stored_targets(window.shard, window.start - first, window.stop - first)
    narrowed = "narrowed_from" in teacher.manifest.identity
    low, high = stored.codec.bounds(stored.arrays, stored.parameters, narrowed)
    scalars = {
        name: teacher.scalar(name, window.start, window.stop).astype(np.float64)
        for name in (GOLD_LOGPROB, ENTROPY, LOGSUMEXP)
        if name in teacher.manifest.scalars
    }
    rows = Evidence(
        stored.decode(0, window.stop - window.start),
        low,
        high,
        gold_ids(teacher, window),
        scalars.get(GOLD_LOGPROB),
        scalars.get(ENTROPY),
        scalars.get("logsumexp", np.zeros(window.stop - window.start)),
    )
    return contradictions(Claims.of(teacher.manifest), rows)


def gold_ids(teacher: CachedTeacher, window: Window) -> NDArray[np.uint32]:
    """Return the token that each row of a window should predict: (n,) uint32."""
    objective = teacher.encoding.manifest.objective
    ids = [sequence.gold_ids(objective) for sequence in teacher.encoding.sequences(window.shard)]
    first = window.shard * teacher.encoding.manifest.positions_per_shard
    return np.concatenate(ids)[window.start - first : window.stop - first]


def window_contradictions(teacher: CachedTeacher, window: Window) -> Iterator[Contradiction]:
    """Yield the rules that rows of a window break; errors as for ``CachedTeacher.targets``."""
    for rule, rows in window_rules(teacher, window).items():
        if rows.any():
            yield Contradiction(rule, int(rows.sum()), window.start + int(np.flatnonzero(rows)[0]))


def shard_contradictions(teacher: CachedTeacher, shard: int) -> list[Contradiction]:
    """Return the rules that rows of a whole shard break, each once; errors as for ``CachedTeacher.targets``."""
    start, stop = teacher.shard_rows(shard)
    windows = (Window(shard, row, min(row + CHECKED_POSITIONS, stop)) for row in range(start, stop, CHECKED_POSITIONS))
    broken_rules: dict[str, Contradiction] = {}
    for window in windows:
        for problem in window_contradictions(teacher, window):
            before = broken_rules.get(problem.rule, Contradiction(problem.rule, 0, problem.first))
            broken_rules[problem.rule] = replace(before, count=before.count + problem.count)
    return list(broken_rules.values())


def contradicting_rows(teacher: CachedTeacher, window: Window) -> NDArray[np.bool_]:
    """Return which rows of a window break any rule: (n,) bool; errors as for ``CachedTeacher.targets``."""
    rules = window_rules(teacher, window)
    return broken(rules) if rules else np.zeros(window.stop - window.start, np.bool_)


def contradicting_share(teacher: CachedTeacher, positions: int, seed: int) -> float | None:
    """Return the share of rows that contradict what is stored beside them, in a sample drawn by a seed.

    Args:
        teacher: At least one shard of it is finished.
        positions: How many positions to read, see ``sampling.drawn_windows``.
        seed: Seed of the draw.

    Returns:
        A share from 0 to 1; None for a teacher without weights, whose rows are not checked.
    """
    if teacher.manifest.identity.get("weights") == MADE_UP:
        return None
    windows = drawn_windows([teacher], positions, seed)
    rows = in_parallel(partial(contradicting_rows, teacher), windows, teacher.path, AT_ONCE)
    return float(np.concatenate(list(rows)).mean())


def require_consistent(teachers: Sequence[CachedTeacher], seed: int = 0) -> None:
    """Refuse teachers whose rows, in a sample, contradict what is stored beside them.

    Raises:
        DamageError: they do, or stored bytes are missing or damaged.
        IncompleteError: no shard is finished.
    """
    for teacher in teachers:
        for window in drawn_windows([teacher], CHECKED_POSITIONS, seed):
            for problem in window_contradictions(teacher, window):
                raise DamageError(
                    f"rows of teacher {teacher.name!r} contradict the scalars stored beside them",
                    where=teacher.path,
                    expected="rows that agree with gold_logprob and entropy",
                    found=f"row {problem.first}: {problem.rule} ({problem.count} of {window.stop - window.start} rows)",
                    why="the ids or probabilities are wrong, and a student would learn them",
                    fix="Run 'logitcask verify --deep' to list such shards, then 'logitcask repair', and capture again",
                )
