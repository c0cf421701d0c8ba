"""Searching from the viewer: a little at a time, so that a search over a thousand shards answers at once.

A request looks at shards until its seconds are over or its page is full, and says how far it came: ``next`` is
where the next request goes on. So no search runs on after the reader has lost interest, and memory is one
shard. Text is looked for in order; the highest means are looked for in shards in a random order that is always
the same, so that what was seen so far is a fair sample of the whole.
"""

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from cache_tools.errors import ConfigError
from cache_tools.inspection.sampling import committed_shards
from cache_tools.inspection.search import Found, Measure, disagreement_of, highest, loss_of, with_text
from cache_tools.inspection.views import finite
from cache_tools.store.reader import Encoding
from cache_tools.store.teacher import CachedTeacher
from cache_tools.viewer.pages import pictured

SECONDS = 2.0
"""How long one request looks, if it does not find enough before; a shard that was begun is finished."""

RESULTS = 25
"""Sequences that one request lists."""

EXCERPT_CHARACTERS = 80

MEASURES = ("loss", "kl", "top1")


def look_for_text(
    encoding: Encoding, document_id: str | None, text: str | None, after: int, seconds: float = SECONDS
) -> dict[str, Any]:
    """List sequences in order: of a document, with a text in them, or, without either, all.

    Args:
        encoding: The encoding.
        document_id: Exact id; None for any.
        text: Part of a sequence's text, case and all; None for any.
        after: Sequence to begin with.
        seconds: How long to look.

    Returns:
        ``found``: for each its ``sequence_id``, ``document_id``, ``value`` (None here) and ``excerpt``. ``next``: the
        sequence to go on with; None at the end. ``looked``: shards up to here, and ``shards``, of all.

    Raises:
        ConfigError: there is no sequence ``after``.
    """
    num_shards = len(encoding.shards)
    if not num_shards:
        return _answer([], None, 0, 0)
    try:
        shard = first = encoding.shard_of(after)
    except IndexError as error:
        raise ConfigError(f"there is no sequence {after}", where=encoding.path) from error
    found: list[dict[str, Any]] = []
    for shard in _within(seconds, range(first, num_shards)):
        here = with_text(encoding, [shard], document_id, text, encoding.shards[shard].sequences)
        found += [_plain(encoding, item, text or "") for item in here if item.sequence_id >= after]
        if len(found) > RESULTS:
            return _answer(found[:RESULTS], found[RESULTS]["sequence_id"], shard + 1, num_shards)
    following = encoding.shards[shard + 1].first_sequence if shard + 1 < num_shards else None
    return _answer(found, following, shard + 1, num_shards)


def look_for_highest(
    encoding: Encoding, teachers: list[CachedTeacher], by: str, after: int, seconds: float = SECONDS
) -> dict[str, Any]:
    """List the sequences with the highest mean of a measure in the shards that this request looks at.

    Args:
        encoding: The encoding.
        teachers: One for ``loss``, two for ``kl`` and ``top1``.
        by: One of MEASURES, see ``finding``.
        after: How many shards earlier requests have looked at.
        seconds: How long to look.

    Returns:
        As ``look_for_text``; ``next`` is the number of shards looked at.

    Raises:
        ConfigError: another number of teachers is needed.
    """
    needed = 1 if by == "loss" else 2
    if len({teacher.name for teacher in teachers}) != needed:
        raise ConfigError(
            f"this search needs {needed} teacher{'s' * (needed > 1)}",
            where=encoding.path,
            found=", ".join(teacher.name for teacher in teachers) or "none",
        )
    measure: Measure = loss_of(teachers[0]) if by == "loss" else disagreement_of(teachers[0], teachers[1], by)
    committed = committed_shards(teachers)
    order = np.random.default_rng(0).permutation(committed)[after:].tolist()
    best: list[dict[str, Any]] = []
    looked = after
    for shard in _within(seconds, order):
        found = [_plain(encoding, item) for item in highest(encoding, [shard], measure, RESULTS)]
        best = sorted([*best, *found], key=_rank, reverse=True)[:RESULTS]
        looked += 1
    return _answer(best, looked if looked < len(committed) else None, looked, len(committed))


def _within(seconds: float, shards: Iterable[int]) -> Iterator[int]:
    """Yield shards until the time is over, one at least."""
    end = time.monotonic() + seconds
    for shard in shards:
        yield shard
        if time.monotonic() > end:
            return


def _answer(found: list[dict[str, Any]], following: int | None, looked: int, shards: int) -> dict[str, Any]:
    return {"found": found, "next": following, "looked": looked, "shards": shards}


def _plain(encoding: Encoding, item: Found, sought: str = "") -> dict[str, Any]:
    """Return an item of the list, while its shard is in memory."""
    text = encoding.sequence(item.sequence_id).text
    start = max(0, text.find(sought) - EXCERPT_CHARACTERS // 4)
    return {
        "sequence_id": item.sequence_id,
        "document_id": pictured(item.document_id),
        "value": None if item.value is None else finite(item.value),
        "excerpt": pictured(text[start : start + EXCERPT_CHARACTERS]),
    }


def _rank(item: dict[str, Any]) -> float:
    return math.inf if item["value"] is None else float(item["value"])
