"""Two teachers over the same sequences: how far they are apart, where, and in which documents.

They may be two teachers of one encoding, two captures of one teacher, or teachers in two caches. Rows are compared
position by position, so both teachers must have read the same sequences: the hashes in the shard tables are compared
first. Shards that only one side has, because documents were appended to it, are left out. A random sample of shards
is read one at a time; memory is one shard of both targets.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import ConfigError, IdentityError
from cache_tools.format.sequences import Sequence
from cache_tools.inspection.decoding import TokenTexts, token_texts
from cache_tools.inspection.divergence import Divergence, divergence
from cache_tools.inspection.sampling import committed_shards, drawn
from cache_tools.inspection.views import PositionView, position_view
from cache_tools.json_output import FLAT, finite
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.requests.in_flight import in_parallel
from cache_tools.store.predictions import tokens_of_whole_row
from cache_tools.store.reader import Encoding
from cache_tools.store.teacher import CachedTeacher

PROBABILITY_EDGES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
"""Edges of the bins by A's largest probability, which separate the positions where A is confident from the others."""

TOP = 3
"""Alternatives that are listed at each of the worst positions."""


AT_ONCE = 2
"""Shards that are compared at a time in a bucket; both teachers' rows of each are in memory, decoded."""


@dataclass(frozen=True)
class Means:
    """Two teachers compared over some positions; a mean over no position is None.

    Attributes:
        positions: Positions at which both rows keep a token.
        skipped: Positions at which one row is empty.
        kl_ab_nats: Mean KL(A || B) over the positions where it is finite in both directions, see ``divergence``.
        kl_ba_nats: The same of KL(B || A).
        same_top1: Share of the positions at which both have the same likeliest token.
        infinite: Positions at which one teacher gives the probability 0 to a token that the other keeps.
    """

    positions: int
    skipped: int
    kl_ab_nats: float | None
    kl_ba_nats: float | None
    same_top1: float | None
    infinite: int


@dataclass(frozen=True)
class Bin:
    """The positions where A's largest probability lies between two bounds.

    Attributes:
        above: Lower bound, in [0, 1); not included.
        up_to: Upper bound, in (0, 1]; included.
        means: Means over these positions.
    """

    above: float
    up_to: float
    means: Means = field(metadata=FLAT)


@dataclass(frozen=True)
class Group:
    """The positions of one group of documents.

    Attributes:
        group: Name of the group.
        means: Means over these positions.
    """

    group: str
    means: Means = field(metadata=FLAT)


@dataclass(frozen=True)
class WorstPosition:
    """A position at which the teachers differ much.

    Attributes:
        document_id: Id of its document.
        kl_nats: Mean of the KL divergences of both directions, in nats; None if it is infinite.
        view: Both predictions, and the text around them.
    """

    document_id: str
    kl_nats: float | None
    view: PositionView = field(metadata=FLAT)


@dataclass(frozen=True)
class Comparison:
    """What ``logitcask diff --json`` prints.

    Attributes:
        a: Name of the teacher whose probabilities make the bins.
        b: Name of the other teacher.
        shards: The shards that were read.
        shards_in_common: How many shards both teachers have committed.
        all: Means over all positions that were read.
        bins: Means by A's largest probability; a position where a row is empty is in the first bin.
        groups: Means by document group, the group with the largest KL first.
        worst: The positions with the largest KL, the largest first.
    """

    a: str
    b: str
    shards: list[int]
    shards_in_common: int
    all: Means
    bins: tuple[Bin, ...]
    groups: tuple[Group, ...]
    worst: tuple[WorstPosition, ...]


def compare(
    a: CachedTeacher,
    b: CachedTeacher,
    *,
    shards: int | None,
    seed: int,
    worst: int,
    advance: Advance = ignore,
) -> Comparison:
    """Compare two teachers on a random sample of shards.

    Args:
        a: The teacher whose probabilities make the bins.
        b: The other teacher.
        shards: How many shards to read; None for all that both have.
        seed: Seed of the random draw of shards.
        worst: How many positions to list, those with the largest KL.
        advance: Called after each shard.

    Raises:
        IdentityError: the two read different sequences.
        ConfigError: they are the same, or the targets of one of them are draws.
        IncompleteError: they have no finished shard in common.
    """
    _check_kinds(a, b)
    check_same_sequences(a.encoding, b.encoding)
    common = committed_shards([a, b])
    selected_shards = drawn(common, shards, seed)
    totals = Totals()

    def read(shard: int) -> tuple[Divergence, list[Sequence]]:
        return _shard_divergence(a, b, shard), a.encoding.sequences(shard)

    parts = in_parallel(read, selected_shards, a.encoding.path, AT_ONCE)
    for count, (shard, part) in enumerate(zip(selected_shards, parts, strict=True), 1):
        totals = totals.with_shard(shard, *part, worst)
        advance(1, count / len(selected_shards))
    texts = token_texts(a.encoding)
    return Comparison(
        a=a.name,
        b=b.name,
        shards=selected_shards,
        shards_in_common=len(common),
        all=sum(totals.bins, Sums()).means(),
        bins=totals.means_by_bin(),
        groups=totals.means_by_group(),
        worst=tuple(_worst(a, b, far_position, texts) for far_position in totals.farthest),
    )


@dataclass(frozen=True)
class Sums:
    """Sums over some positions, from which ``Means`` follow.

    Attributes:
        positions: Positions at which both rows keep a token.
        skipped: Positions at which one row is empty.
        finite: Positions at which the KL is finite in both directions.
        kl_ab_nats: Sum of KL(A || B) over the finite positions.
        kl_ba_nats: The same of KL(B || A).
        same_top1: Positions at which both have the same likeliest token.
    """

    positions: int = 0
    skipped: int = 0
    finite: int = 0
    kl_ab_nats: float = 0.0
    kl_ba_nats: float = 0.0
    same_top1: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            positions=self.positions + other.positions,
            skipped=self.skipped + other.skipped,
            finite=self.finite + other.finite,
            kl_ab_nats=self.kl_ab_nats + other.kl_ab_nats,
            kl_ba_nats=self.kl_ba_nats + other.kl_ba_nats,
            same_top1=self.same_top1 + other.same_top1,
        )

    @classmethod
    def of(cls, distance: Divergence, at: NDArray[Any]) -> "Sums":
        """Add up some positions; ``at`` is an array of their indices or a mask (n,)."""
        ab, ba, compared = distance.kl_ab_nats[at], distance.kl_ba_nats[at], distance.compared[at]
        finite_both = np.isfinite(ab + ba)
        return cls(
            positions=int(compared.sum()),
            skipped=int((~compared).sum()),
            finite=int(finite_both.sum()),
            kl_ab_nats=float(ab[finite_both].sum()),
            kl_ba_nats=float(ba[finite_both].sum()),
            same_top1=int(distance.same_top1[at].sum()),
        )

    @property
    def mean_kl_nats(self) -> float:
        """Mean of both directions over the finite positions; 0 if there are none."""
        return (self.kl_ab_nats + self.kl_ba_nats) / 2 / max(self.finite, 1)

    def means(self) -> Means:
        """Divide by the numbers of positions."""
        return Means(
            positions=self.positions,
            skipped=self.skipped,
            kl_ab_nats=self.kl_ab_nats / self.finite if self.finite else None,
            kl_ba_nats=self.kl_ba_nats / self.finite if self.finite else None,
            same_top1=self.same_top1 / self.positions if self.positions else None,
            infinite=self.positions - self.finite,
        )


class FarPosition(NamedTuple):
    """A position with a large KL: the mean of both directions, and the position's row among those of its shard."""

    kl_nats: float
    shard: int
    row: int


@dataclass(frozen=True)
class Totals:
    """What is known after some shards: sums by bin of PROBABILITY_EDGES and by group, and the farthest positions."""

    bins: tuple[Sums, ...] = (Sums(),) * (len(PROBABILITY_EDGES) - 1)
    groups: dict[str, Sums] = field(default_factory=dict)
    farthest: tuple[FarPosition, ...] = ()

    def with_shard(self, shard: int, distance: Divergence, sequences: list[Sequence], worst: int) -> "Totals":
        """Return the totals after one more shard, with at most ``worst`` of the farthest positions."""
        groups = dict(self.groups)
        for name, sums in _sums_by_group(distance, sequences).items():
            groups[name] = groups.get(name, Sums()) + sums
        candidates = [*self.farthest, *_farthest(distance, shard, worst)]
        return Totals(
            bins=tuple(before + sums for before, sums in zip(self.bins, _sums_by_bin(distance), strict=True)),
            groups=groups,
            farthest=tuple(sorted(candidates, key=lambda position: -position.kl_nats)[:worst]),
        )

    def means_by_bin(self) -> tuple[Bin, ...]:
        """Return the means of each bin, in the order of PROBABILITY_EDGES."""
        edges = zip(PROBABILITY_EDGES[:-1], PROBABILITY_EDGES[1:], self.bins, strict=True)
        return tuple(Bin(above, up_to, sums.means()) for above, up_to, sums in edges)

    def means_by_group(self) -> tuple[Group, ...]:
        """Return the means of each group, the group with the largest KL first."""
        ranked = sorted(self.groups.items(), key=lambda item: -item[1].mean_kl_nats)
        return tuple(Group(name, sums.means()) for name, sums in ranked)


def check_same_sequences(a: Encoding, b: Encoding) -> None:
    """Refuse two encodings whose common shards hold different sequences.

    Raises:
        IdentityError: objective, tokenizer, shard size or the sequences of a shard differ.
    """
    ours, theirs = a.manifest, b.manifest
    equal = {
        "objectives": ours.objective == theirs.objective,
        "tokenizers": ours.identity.get("tokenizer") == theirs.identity.get("tokenizer"),
        "shard sizes": ours.positions_per_shard == theirs.positions_per_shard,
        "sequences": all(x.sha256 == y.sha256 for x, y in zip(a.shards, b.shards, strict=False)),
    }
    if not all(equal.values()):
        raise IdentityError(
            "the two encodings have different " + " and ".join(what for what, same in equal.items() if not same),
            where=b.path,
            expected=f"sequences {ours.contents_fingerprint[:12]}… of {a.path}",
            found=f"{theirs.contents_fingerprint[:12]}…",
            why="predictions about different texts would be compared",
            fix="Compare teachers that read the same encoding of the same corpus",
        )


def _check_kinds(a: CachedTeacher, b: CachedTeacher) -> None:
    if a.path == b.path:
        raise ConfigError("both sides are the same teacher", where=a.path, fix="Name another one with --teacher-b")
    for teacher in (a, b):
        if teacher.manifest.target.kind.is_drawn:
            raise ConfigError(
                f"teacher {teacher.name!r} keeps draws instead of probabilities",
                where=teacher.path,
                found=f"kind {teacher.manifest.target.kind}",
                why="a divergence computed from draws is mostly their sampling noise",
                fix="Compare captures of kind topk, topp or dense",
            )


def _shard_divergence(a: CachedTeacher, b: CachedTeacher, shard: int) -> Divergence:
    rows = a.shard_rows(shard)
    whole_row_tokens = (tokens_of_whole_row(a.manifest), tokens_of_whole_row(b.manifest))
    return divergence(a.targets(*rows), b.targets(*rows), whole_row_tokens)


def _sums_by_bin(distance: Divergence) -> list[Sums]:
    """Add up by A's largest probability; positions that are skipped are in the first bin."""
    numbers = np.digitize(np.nan_to_num(distance.top1_a), PROBABILITY_EDGES[1:-1], right=True)
    return [Sums.of(distance, numbers == number) for number in range(len(PROBABILITY_EDGES) - 1)]


def _sums_by_group(distance: Divergence, sequences: list[Sequence]) -> dict[str, Sums]:
    groups: dict[str, Sums] = defaultdict(Sums)
    row = 0
    for sequence in sequences:
        groups[sequence.group_id] += Sums.of(distance, np.arange(row, row + sequence.num_positions))
        row += sequence.num_positions
    return groups


def _farthest(distance: Divergence, shard: int, count: int) -> list[FarPosition]:
    kl = np.where(distance.compared, distance.mean_kl_nats, -1.0)
    rows = np.argsort(-kl, kind="stable")[:count].tolist()
    return [FarPosition(float(kl[row]), shard, row) for row in rows if kl[row] >= 0]


def _worst(a: CachedTeacher, b: CachedTeacher, far: FarPosition, texts: TokenTexts) -> WorstPosition:
    sequences = a.encoding.sequences(far.shard)
    starts = np.cumsum([0, *(sequence.num_positions for sequence in sequences)])
    number = int(np.searchsorted(starts, far.row, side="right")) - 1
    sequence = sequences[number]
    position = int(sequence.positions()[far.row - starts[number]])
    view = position_view(a.encoding, sequence, position, [a, b], texts, TOP)
    return WorstPosition(sequence.document_id, finite(far.kl_nats), view)
