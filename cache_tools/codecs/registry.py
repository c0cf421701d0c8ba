"""The target codecs by name: the one door through which the rest of logitcask reaches them.

=================  ==============================  ===========================================
name               for                             stores
=================  ==============================  ===========================================
``delta-power``    topk, topp, hybrid              small integers within a budget of KL
``delta-count``    sampled                         the draws themselves, lossless
``delta-float32``  any sparse kind, ``exact``      float32, bit for bit
``dense-float32``  all classes of a classifier     float32, bit for bit
=================  ==============================  ===========================================

A codec is built from the teacher's manifest (``codec_from_dict``); ``encode`` takes one shard's
rows and returns arrays, parameters and the error of every row; ``decode`` takes any run of those
rows back. Each codec's bytes are stated in its own module.
"""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from cache_tools.codecs.base import Codec, Encoded, Parameters, number
from cache_tools.codecs.delta_count import DeltaCount
from cache_tools.codecs.delta_power import DeltaPower
from cache_tools.codecs.float32 import DeltaFloat32, DenseFloat32
from cache_tools.codecs.rows import EMPTY_ID, MASS_TOLERANCE, Arrays, Targets, kl_nats
from cache_tools.errors import FormatError

__all__ = [
    "EMPTY_ID",
    "MASS_TOLERANCE",
    "Arrays",
    "Codec",
    "DeltaCount",
    "DeltaFloat32",
    "DeltaPower",
    "DenseFloat32",
    "Encoded",
    "Parameters",
    "Targets",
    "can_narrow",
    "codec_from_dict",
    "kl_nats",
    "narrow",
]


def codec_from_dict(
    codec: Mapping[str, Any], k: int, vocabulary_size: int, temperatures: tuple[float, ...] = ()
) -> Codec:
    """Build the codec that a manifest names.

    Args:
        codec: The manifest's entry, as ``Codec.to_dict`` returned it.
        k: Slots of a row.
        vocabulary_size: Ids are below this.
        temperatures: At which targets will be used besides 1; a codec with an error budget keeps it there too.

    Raises:
        FormatError: the name is unknown, or a parameter is missing, no number or out of range.
    """
    match codec.get("name"):
        case DeltaPower.name:
            return DeltaPower(k, vocabulary_size, float(number(codec, "max_kl_nats", 1e-12, 1)), temperatures)
        case DeltaCount.name:
            return DeltaCount(k, vocabulary_size, int(number(codec, "draws", 1, 65_535, whole=True)))
        case DeltaFloat32.name:
            return DeltaFloat32(k, vocabulary_size)
        case DenseFloat32.name if k == vocabulary_size:
            return DenseFloat32(k, vocabulary_size)
        case DenseFloat32.name:
            raise FormatError("dense targets hold all classes", expected=f"k = {vocabulary_size}", found=k)
    raise FormatError(
        "unknown target codec",
        expected="delta-power, delta-count, delta-float32 or dense-float32",
        found=repr(codec.get("name")),
        fix="Upgrade logitcask; the cache was written by a later version",
    )


def can_narrow(codec: Codec) -> bool:
    """Say whether rows of this codec have a place for the mass that fewer entries would leave out."""
    return isinstance(codec, DeltaPower | DeltaFloat32)


def narrow(
    codec: Codec, arrays: Mapping[str, NDArray[Any]], parameters: Mapping[str, float | int], k: int
) -> tuple[Codec, Arrays, Parameters]:
    """Keep the k most likely entries of each stored row (of equals: the lower id); the rest is left out.

    It works on what is stored, so the entries that stay do not change.

    Args:
        codec: delta-power or delta-float32.
        arrays: Stored rows.
        parameters: Their shard's parameters.
        k: Entries to keep, from 1 to ``codec.k``.

    Returns:
        The codec of k slots, its arrays, and its parameters.

    Raises:
        ValueError: the codec keeps no left-out mass, or k is out of range.
    """
    if not isinstance(codec, DeltaPower | DeltaFloat32):
        raise ValueError(
            f"rows of {codec.name} cannot be narrowed: they have no place for the mass they would leave out"
        )
    if not 1 <= k <= codec.k:
        raise ValueError(f"rows of {codec.k} entries cannot be narrowed to {k}")
    return codec.narrow(arrays, parameters, k)
