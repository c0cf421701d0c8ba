"""Sums over positions at which two teachers are compared, from which means follow.

Shards are read one at a time, so only sums are kept of each: by A's largest probability, by group of documents, and the
farthest positions. Sums of parts add up to those of the whole.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_tools.format.sequences import Sequence
from cache_tools.inspection.divergence import Divergence
from cache_tools.json_output import FLAT

PROBABILITY_EDGES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
"""Edges of the bins by A's largest probability, which separate the positions where A is confident from the others."""


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

    @property
    def larger_kl_nats(self) -> float | None:
        """The larger of both directions' KL; None over no position."""
        return max((kl for kl in (self.kl_ab_nats, self.kl_ba_nats) if kl is not None), default=None)


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

    def means(self) -> Means:
        """Return the means of all positions."""
        return sum(self.bins, Sums()).means()

    def means_by_bin(self) -> tuple[Bin, ...]:
        """Return the means of each bin, in the order of PROBABILITY_EDGES."""
        edges = zip(PROBABILITY_EDGES[:-1], PROBABILITY_EDGES[1:], self.bins, strict=True)
        return tuple(Bin(above, up_to, sums.means()) for above, up_to, sums in edges)

    def means_by_group(self) -> tuple[Group, ...]:
        """Return the means of each group, the group with the largest KL first."""
        ranked = sorted(self.groups.items(), key=lambda item: -item[1].mean_kl_nats)
        return tuple(Group(name, sums.means()) for name, sums in ranked)


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
