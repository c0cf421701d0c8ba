"""What a capture will cost before anyone pays for it: bytes, objects, hours.

Bytes per position are rules of thumb from measured caches until a teacher is measured on part of the sample (see
``measure.py``). What the cache already holds is subtracted (``held.py``).
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from cache_tools.errors import StorageError
from cache_tools.hidden_codecs.registry import HIDDEN_CODECS
from cache_tools.json_output import FLAT
from cache_tools.storage import StorePath
from cache_tools.store.reader import Encoding
from pipeline.capture.target import ResolvedTeacher, SparseTarget
from pipeline.config.targets import HiddenConfig
from pipeline.planning.measure import Measurement
from pipeline.planning.survey import Extent, Survey

SCALAR_BYTES = 1.8
"""Bytes of one stored scalar, measured."""


@dataclass(frozen=True)
class Stored:
    """What lies in the store.

    Attributes:
        stored_bytes: Size of all objects.
        objects: Number of objects.
    """

    stored_bytes: int
    objects: int


@dataclass(frozen=True)
class EncodingPlan:
    """What the sequences take.

    Attributes:
        sequence_bytes_per_position: Bytes of the encoding's own files.
        whole: The whole encoding.
        remaining: What the cache lacks of it.
    """

    sequence_bytes_per_position: float
    whole: Stored = field(metadata=FLAT)
    remaining: Stored


@dataclass(frozen=True)
class Rates:
    """What one teacher costs per position, per token and per shard.

    Attributes:
        target_bytes_per_position: Bytes of targets and scalars.
        scalar_bytes_per_position: Bytes of the scalars among them.
        hidden_bytes_per_position: Bytes of hidden states.
        objects_per_shard: Objects that a shard is stored in.
        tokens_per_s: Speed of one worker; None if unknown.
    """

    target_bytes_per_position: float
    scalar_bytes_per_position: float
    hidden_bytes_per_position: float
    objects_per_shard: int
    tokens_per_s: float | None


@dataclass(frozen=True)
class Cost:
    """What it costs to capture some part of a corpus.

    Attributes:
        stored: What is written.
        hours: How long the workers take; None if no speed is known.
    """

    stored: Stored = field(metadata=FLAT)
    hours: float | None


@dataclass(frozen=True)
class Remaining:
    """What a cache lacks of a teacher.

    Attributes:
        extent: How much of the corpus that is.
        cost: What it costs.
    """

    extent: Extent = field(metadata=FLAT)
    cost: Cost = field(metadata=FLAT)


def plan_encoding(survey: Survey, encoding: Encoding | None) -> EncodingPlan:
    """Return what the sequences take, and what the cache lacks of them."""
    held = encoding.shards if encoding else []
    total = survey.total
    whole = Stored(round(survey.sequence_bytes * total.positions), total.shards)
    missing_bytes = max(0, whole.stored_bytes - sum(entry.bytes for entry in held))
    return EncodingPlan(survey.sequence_bytes, whole, Stored(missing_bytes, max(0, whole.objects - len(held))))


def rates_of(
    teacher: ResolvedTeacher,
    vocabulary_size: int,
    hidden_width: int,
    measurement: Measurement | None,
    tokens_per_s: float | None,
) -> Rates:
    """Return what a teacher costs per position and shard.

    Args:
        teacher: The planned teacher.
        vocabulary_size: Width of its logits.
        hidden_width: Width of its hidden states.
        measurement: What it showed on a sample, if it was measured.
        tokens_per_s: Speed to plan with; default: the measured one.
    """
    target, layers = teacher.target, len(teacher.config.hidden.layers)
    num_scalars = len(target.keep.scalar_names)
    arrays = len(target.codec(vocabulary_size).array_types()) + num_scalars
    return Rates(
        measurement.bytes_per_position if measurement else rough_target_bytes(target, vocabulary_size),
        measurement.scalar_bytes_per_position if measurement else SCALAR_BYTES * num_scalars,
        _hidden_bytes(teacher.config.hidden, hidden_width),
        arrays + layers + 1,  # and the receipt
        tokens_per_s or (measurement.tokens_per_s if measurement else None),
    )


def cost_of(extent: Extent, rates: Rates, workers: int) -> Cost:
    """Return what a part of the corpus costs so many workers of the same speed."""
    per_position = rates.target_bytes_per_position + rates.hidden_bytes_per_position
    stored = Stored(round(per_position * extent.positions), extent.shards * rates.objects_per_shard)
    hours = extent.tokens / rates.tokens_per_s / 3600 / workers if rates.tokens_per_s else None
    return Cost(stored, hours)


def rough_target_bytes(target: SparseTarget, vocabulary_size: int) -> float:
    """Return about how many bytes a position takes without hidden states, from caches of other teachers."""
    return SCALAR_BYTES * len(target.keep.scalar_names) + target.codec(vocabulary_size).rough_row_bytes(
        target.half_precision
    )


def require_space(cache: StorePath, needed_bytes: int) -> int | None:
    """Return the free bytes of the disk that the cache will lie on; None for a bucket.

    Raises:
        StorageError: they do not suffice.
    """
    if not isinstance(cache, Path):
        return None
    place = next(path for path in (cache.absolute(), *cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed_bytes > free:
        raise StorageError(
            "the cache would not fit",
            where=cache,
            expected=f"{needed_bytes / 1e9:,.1f} GB",
            found=f"{free / 1e9:,.1f} GB free",
            fix="Keep less (a smaller target.k, fewer hidden layers), or choose another 'cache:'",
        )
    return free


def _hidden_bytes(config: HiddenConfig, width: int) -> float:
    return len(config.layers) * width * HIDDEN_CODECS[config.stored_codec].rough_value_bytes
