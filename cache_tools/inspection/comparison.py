"""Two teachers over the same sequences: how far apart they are, where, and in which documents.

The teachers may be two of one encoding, two captures of one teacher, or lie in two caches. Rows are
compared one by one, so both must have read the same sequences: the shard tables' hashes are compared
first, and shards that only one side has (documents appended since) are left out. A sample of shards,
drawn by a seed, is read one at a time; memory is one shard of both targets.
"""

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import ConfigError, IdentityError
from cache_tools.format.manifest import DRAWN_KINDS
from cache_tools.format.sequences import Sequence
from cache_tools.inspection.decoding import TokenTexts, token_texts
from cache_tools.inspection.divergence import Divergence, divergence
from cache_tools.inspection.sampling import committed_shards, drawn
from cache_tools.inspection.views import finite, position_view
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.store.predictions import tokens_of_whole_row
from cache_tools.store.reader import Encoding
from cache_tools.store.teacher import CachedTeacher

PROBABILITY_EDGES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
"""Bins of A's largest probability: where it is sure and where it is not."""

TOP = 3
"""Alternatives that are listed at the worst positions."""


def compare(
    a: CachedTeacher,
    b: CachedTeacher,
    *,
    shards: int | None,
    seed: int,
    worst: int,
    advance: Advance = ignore,
) -> dict[str, Any]:
    """Compare two teachers on a sample of shards.

    Args:
        a: The one whose probabilities make the bins.
        b: The other.
        shards: How many shards to draw; None for all that both have.
        seed: Of the draw.
        worst: Positions to list, the farthest apart first.
        advance: Told of each shard.

    Returns:
        ``a``, ``b`` (names), ``shards`` (read), ``shards_in_common``, ``all`` (see ``Sums``), ``bins`` and
        ``groups`` (lists of the same, with ``above`` and ``up_to``, and with ``group``, farthest apart first),
        ``worst`` (see ``views.position_view``, with ``document_id`` and ``kl_nats``, None if infinite). KL is in
        nats, the smallest that the kept rows allow, see ``divergence``.

    Raises:
        IdentityError: the two read different sequences.
        ConfigError: they are the same, or one of them keeps draws instead of probabilities.
        IncompleteError: they have no finished shard in common.
    """
    _check_kinds(a, b)
    check_same_sequences(a.encoding, b.encoding)
    common = committed_shards([a, b])
    chosen = drawn(common, shards, seed)
    bins = [Sums() for _ in PROBABILITY_EDGES[1:]]
    groups: dict[str, Sums] = defaultdict(Sums)
    farthest: list[tuple[float, int, int]] = []  # KL, shard, row of the shard
    tokens = (tokens_of_whole_row(a.manifest), tokens_of_whole_row(b.manifest))
    for count, shard in enumerate(chosen, 1):
        rows = a.shard_rows(shard)
        found = divergence(a.targets(*rows), b.targets(*rows), tokens)
        _add_bins(bins, found)
        _add_groups(groups, found, a.encoding.sequences(shard))
        farthest = sorted([*farthest, *_farthest(found, shard, worst)], key=lambda item: -item[0])[:worst]
        advance(1, count / len(chosen))
    texts = token_texts(a.encoding)
    return {
        "a": a.name,
        "b": b.name,
        "shards": chosen,
        "shards_in_common": len(common),
        "all": sum(bins, Sums()).means(),
        "bins": [
            {"above": low, "up_to": high} | sums.means()
            for low, high, sums in zip(PROBABILITY_EDGES[:-1], PROBABILITY_EDGES[1:], bins, strict=True)
        ],
        "groups": [
            {"group": name} | sums.means()
            for name, sums in sorted(groups.items(), key=lambda item: -item[1].mean_kl_nats)
        ],
        "worst": [_worst(a, b, kl, shard, row, texts) for kl, shard, row in farthest],
    }


class Sums:
    """Sums over some positions.

    ``means`` gives ``positions`` (where both said something), ``skipped`` (where one did not), ``kl_ab_nats``,
    ``kl_ba_nats`` and ``same_top1`` (means over those positions; of the KL over the finite ones), ``infinite``
    (positions where one teacher rules out what the other does not); None where there are no positions.
    """

    def __init__(self, values: NDArray[np.float64] | None = None) -> None:
        self._values = np.zeros(6) if values is None else values

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self._values + other._values)

    @classmethod
    def of(cls, found: Divergence, where: NDArray[Any]) -> "Sums":
        """Add up the positions ``where``: an index or a mask of those of ``found``."""
        ab, ba = found.kl_ab_nats[where], found.kl_ba_nats[where]
        said, both = found.said[where], np.isfinite(ab + ba)
        agreeing = found.same_top1[where]
        values = [said.sum(), (~said).sum(), both.sum(), ab[both].sum(), ba[both].sum(), agreeing.sum()]
        return cls(np.array(values, dtype=np.float64))

    @property
    def mean_kl_nats(self) -> float:
        """Mean of both directions over the finite positions; 0 without any."""
        return float((self._values[3] + self._values[4]) / 2 / max(self._values[2], 1))

    def means(self) -> dict[str, Any]:
        """Return the means as plain JSON."""
        said, skipped, both, ab, ba, agreeing = self._values.tolist()
        return {
            "positions": int(said),
            "skipped": int(skipped),
            "kl_ab_nats": ab / both if both else None,
            "kl_ba_nats": ba / both if both else None,
            "same_top1": agreeing / said if said else None,
            "infinite": int(said - both),
        }


def check_same_sequences(a: Encoding, b: Encoding) -> None:
    """Refuse two encodings whose common shards hold different sequences.

    Raises:
        IdentityError: objective, tokenizer or a shard's sequences differ.
    """
    mine, other = a.manifest, b.manifest
    same = {
        "objectives": mine.objective == other.objective,
        "tokenizers": mine.identity.get("tokenizer") == other.identity.get("tokenizer"),
        "shard sizes": mine.positions_per_shard == other.positions_per_shard,
        "sequences": all(x.sha256 == y.sha256 for x, y in zip(a.shards, b.shards, strict=False)),
    }
    if not all(same.values()):
        raise IdentityError(
            "the two encodings have different " + " and ".join(what for what, agree in same.items() if not agree),
            where=b.path,
            expected=f"sequences {mine.contents_fingerprint[:12]}… of {a.path}",
            found=f"{other.contents_fingerprint[:12]}…",
            why="position by position, two texts would be compared",
            fix="Compare teachers that read the same encoding of the same corpus",
        )


def _check_kinds(a: CachedTeacher, b: CachedTeacher) -> None:
    if a.path == b.path:
        raise ConfigError("both sides are the same teacher", where=a.path, fix="Name another one with --teacher-b")
    for teacher in (a, b):
        if teacher.manifest.target.kind in DRAWN_KINDS:
            raise ConfigError(
                f"teacher {teacher.name!r} keeps draws instead of probabilities",
                where=teacher.path,
                found=f"kind {teacher.manifest.target.kind}",
                why="a divergence from draws measures their noise",
                fix="Compare captures of kind topk, topp or dense",
            )


def _add_bins(bins: list[Sums], found: Divergence) -> None:
    """Bin by A's largest probability; a position that was skipped counts in the first bin."""
    numbers = np.digitize(np.nan_to_num(found.top1_a), PROBABILITY_EDGES[1:-1], right=True)
    for number in range(len(bins)):
        bins[number] += Sums.of(found, numbers == number)


def _add_groups(groups: dict[str, Sums], found: Divergence, sequences: list[Sequence]) -> None:
    row = 0
    for sequence in sequences:
        groups[sequence.group_id] += Sums.of(found, np.arange(row, row + sequence.num_positions))
        row += sequence.num_positions


def _farthest(found: Divergence, shard: int, count: int) -> list[tuple[float, int, int]]:
    kl = np.where(found.said, found.mean_kl_nats, -1.0)
    rows = np.argsort(-kl, kind="stable")[:count].tolist()
    return [(float(kl[row]), shard, row) for row in rows if kl[row] >= 0]


def _worst(a: CachedTeacher, b: CachedTeacher, kl: float, shard: int, row: int, texts: TokenTexts) -> dict[str, Any]:
    sequences = a.encoding.sequences(shard)
    starts = np.cumsum([0, *(sequence.num_positions for sequence in sequences)])
    number = int(np.searchsorted(starts, row, side="right")) - 1
    sequence = sequences[number]
    position = int(sequence.positions()[row - starts[number]])
    view = position_view(a.encoding, sequence, position, [a, b], texts, TOP)
    return {"document_id": sequence.document_id, "kl_nats": finite(kl)} | view
