"""Two teachers over the same sequences: how far they are apart, where, and in which documents.

They may be two teachers of one encoding, two captures of one teacher, or teachers in two caches. Rows are compared
position by position, so both teachers must have read the same sequences: the hashes in the shard tables are compared
first. Shards that only one side has, because documents were appended to it, are left out. A random sample of shards
is read one at a time; memory is one shard of both targets.
"""

from collections.abc import Sequence as Several
from dataclasses import dataclass, field

import numpy as np

from cache_tools.comparison.floor import NoiseFloor, noise_floor
from cache_tools.comparison.sums import Bin, FarPosition, Group, Means, Totals
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

TOP = 3
"""Alternatives that are listed at each of the worst positions."""


AT_ONCE = 2
"""Shards that are compared at a time in a bucket; both teachers' rows of each are in memory, decoded."""


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
        floor: What storing and rounding alone make two teachers differ by.
        all: Means over all positions that were read.
        bins: Means by A's largest probability; a position where a row is empty is in the first bin.
        groups: Means by document group, the group with the largest KL first.
        worst: The positions with the largest KL, the largest first.
    """

    a: str
    b: str
    shards: list[int]
    shards_in_common: int
    floor: NoiseFloor
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
    common = comparable_shards([a, b])
    selected_shards = drawn(common, shards, seed)
    totals = totals_of(a, b, selected_shards, worst, advance)
    texts = token_texts(a.encoding)
    return Comparison(
        a=a.name,
        b=b.name,
        shards=selected_shards,
        shards_in_common=len(common),
        floor=noise_floor(a, b, selected_shards),
        all=totals.means(),
        bins=totals.means_by_bin(),
        groups=totals.means_by_group(),
        worst=tuple(_worst(a, b, far_position, texts) for far_position in totals.farthest),
    )


def comparable_shards(teachers: Several[CachedTeacher]) -> list[int]:
    """Return the shards at which the first teacher can be compared with each other one; errors as of ``compare``."""
    a, *others = teachers
    for b in others:
        _check_kinds(a, b)
        check_same_sequences(a.encoding, b.encoding)
    return committed_shards(teachers)


def totals_of(
    a: CachedTeacher, b: CachedTeacher, shards: list[int], worst: int = 0, advance: Advance = ignore
) -> Totals:
    """Compare two teachers at every position of some shards; arguments as of ``compare``."""

    def read(shard: int) -> tuple[Divergence, list[Sequence]]:
        return _shard_divergence(a, b, shard), a.encoding.sequences(shard)

    totals = Totals()
    for count, (shard, part) in enumerate(
        zip(shards, in_parallel(read, shards, a.encoding.path, AT_ONCE), strict=True), 1
    ):
        totals = totals.with_shard(shard, *part, worst)
        advance(1, count / len(shards))
    return totals


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


def _worst(a: CachedTeacher, b: CachedTeacher, far: FarPosition, texts: TokenTexts) -> WorstPosition:
    sequences = a.encoding.sequences(far.shard)
    starts = np.cumsum([0, *(sequence.num_positions for sequence in sequences)])
    number = int(np.searchsorted(starts, far.row, side="right")) - 1
    sequence = sequences[number]
    position = int(sequence.positions()[far.row - starts[number]])
    view = position_view(a.encoding, sequence, position, [a, b], texts, TOP)
    return WorstPosition(sequence.document_id, finite(far.kl_nats), view)
