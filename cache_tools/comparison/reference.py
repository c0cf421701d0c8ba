"""All teachers of an encoding against one of them: the table in which engines, types and models stand side by side.

The reference is what the others are measured by: the same weights in float32 show what bfloat16 and an engine round
off; a large teacher shows how far smaller ones are. Every teacher is compared over the same shards. A teacher that
keeps draws, or that has no shard in common with the reference, is left out and named.
"""

from dataclasses import dataclass, field

from cache_tools.comparison.floor import NoiseFloor, noise_floor
from cache_tools.comparison.pair import comparable_shards, totals_of
from cache_tools.comparison.rounding import Arithmetic
from cache_tools.comparison.sums import Means
from cache_tools.errors import ConfigError
from cache_tools.inspection.sampling import drawn
from cache_tools.json_output import FLAT
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.store.reader import Encoding
from cache_tools.store.teacher import CachedTeacher


@dataclass(frozen=True)
class AgainstReference:
    """One teacher compared with the reference, which is A.

    Attributes:
        teacher: Its name.
        means: Means over all positions that were read.
        floor: What storing and rounding alone make the two differ by.
        explained: Whether these explain the larger of both KL divergences; None if that is unknown.
    """

    teacher: str
    means: Means = field(metadata=FLAT)
    floor: NoiseFloor
    explained: bool | None


@dataclass(frozen=True)
class ReferenceComparison:
    """What ``logitcask diff --reference --json`` prints.

    Attributes:
        reference: Name of the teacher that the others are compared with.
        computed_by: What read its tokens, and the type that it computed in.
        shards: The shards that were read.
        shards_in_common: How many shards all compared teachers have committed.
        teachers: The other teachers, the nearest first.
        left_out: Names of teachers that keep draws or have no committed shard.
    """

    reference: str
    computed_by: str
    shards: list[int]
    shards_in_common: int
    teachers: tuple[AgainstReference, ...]
    left_out: tuple[str, ...]


def compare_with_reference(
    encoding: Encoding, name: str, *, shards: int | None, seed: int, advance: Advance = ignore
) -> ReferenceComparison:
    """Compare all teachers of an encoding with one of them.

    Args:
        encoding: The encoding.
        name: Name of the reference.
        shards: How many shards to read; None for all that the teachers have in common.
        seed: Seed of the random draw of shards.
        advance: Called after each shard of each teacher.

    Raises:
        ConfigError: there is no other teacher, or the reference keeps draws.
        IncompleteError: the teachers have no finished shard in common.
    """
    reference = encoding.teacher(name)
    others = [encoding.teacher(other) for other in encoding.teachers if other != name]
    compared = [teacher for teacher in others if _is_comparable(teacher)]
    if not compared:
        raise ConfigError(
            "there is no other teacher to compare with the reference",
            where=f"--reference {name}",
            expected="another captured teacher of the same encoding that keeps probabilities",
            found=", ".join(teacher.name for teacher in others) or "none",
        )
    common = comparable_shards([reference, *compared])
    selected_shards = drawn(common, shards, seed)
    results = []
    for number, teacher in enumerate(compared):
        progress = _progress_of(number, len(compared), advance)
        means = totals_of(reference, teacher, selected_shards, advance=progress).means()
        results.append(_against(reference, teacher, selected_shards, means))
    return ReferenceComparison(
        reference=name,
        computed_by=str(Arithmetic.of(reference.manifest.identity)),
        shards=selected_shards,
        shards_in_common=len(common),
        teachers=tuple(sorted(results, key=lambda result: result.means.larger_kl_nats or 0.0)),
        left_out=tuple(teacher.name for teacher in others if teacher not in compared),
    )


def _progress_of(number: int, count: int, advance: Advance) -> Advance:
    """Return what counts the shards of one of several comparisons as a share of all of them."""

    def progress(shards: int, share_done: float | None = None, /) -> None:
        advance(shards, (number + (share_done or 0.0)) / count)

    return progress


def _is_comparable(teacher: CachedTeacher) -> bool:
    committed = len(teacher.missing_shards()) < len(teacher.encoding.shards)
    return committed and not teacher.manifest.target.kind.is_drawn


def _against(reference: CachedTeacher, teacher: CachedTeacher, shards: list[int], means: Means) -> AgainstReference:
    floor = noise_floor(reference, teacher, shards)
    return AgainstReference(teacher.name, means, floor, floor.explains(means.larger_kl_nats))
