"""The target codecs by name: the one door through which the rest of logitcask reaches them.

=================  ==============================  ===========================================
name               for                             stores
=================  ==============================  ===========================================
``delta-power``    topk, topp, hybrid              small integers within a budget of KL
``delta-count``    sampled                         the draws themselves, lossless
``delta-float32``  any sparse kind, ``exact``      float32, bit for bit
``dense-float32``  all classes of a classifier     float32, bit for bit
``ranked-power``   topk, topp, ``rank_ids``        ``delta-power`` with ids by rank tables
``ranked-grid``    topk, topp, ``exact``           steps of half-precision logits, bit for bit
=================  ==============================  ===========================================

A codec is built from the teacher's manifest (``codec_from_dict``); ``encode`` takes one shard's
rows and returns arrays, parameters and the error of every row; ``decode`` takes any run of those
rows back. Each codec's bytes are stated in its own module.
"""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from cache_tools.codecs.base import DEFAULT_MAX_KL_NATS, Codec, Encoded
from cache_tools.codecs.delta_count import DeltaCount
from cache_tools.codecs.delta_power import DeltaPower
from cache_tools.codecs.float32 import DeltaFloat32, DenseFloat32
from cache_tools.codecs.ranked_grid import RankedGrid
from cache_tools.codecs.ranked_power import RankedPower
from cache_tools.codecs.rows import EMPTY_ID, MASS_TOLERANCE, Arrays, Targets, kl_nats
from cache_tools.errors import FormatError
from cache_tools.mappings import JsonObject, Parameters

__all__ = [
    "CODECS",
    "DEFAULT_MAX_KL_NATS",
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
    "RankedGrid",
    "RankedPower",
    "Targets",
    "codec_for",
    "codec_from_dict",
    "kl_nats",
    "narrow",
]

CODECS: dict[str, type[Codec]] = {
    DeltaPower.name: DeltaPower,
    DeltaCount.name: DeltaCount,
    DeltaFloat32.name: DeltaFloat32,
    DenseFloat32.name: DenseFloat32,
    RankedPower.name: RankedPower,
    RankedGrid.name: RankedGrid,
}
"""Every codec by its name in a manifest."""


def codec_for(
    k: int,
    vocabulary_size: int,
    *,
    draws_only: bool = False,
    all_classes: bool = False,
    exact: bool = False,
    ranked: bool = False,
    max_kl_nats: float = DEFAULT_MAX_KL_NATS,
    temperatures: tuple[float, ...] = (),
) -> Codec:
    """Return the codec for a new capture's rows; draws and rows of all classes are lossless by nature.

    Args:
        k: Slots of a row.
        vocabulary_size: Ids are below this.
        draws_only: Rows hold k draws and nothing else.
        all_classes: Rows hold every class of a classifier.
        exact: Other rows keep every bit of their float32 log-probabilities, instead of a budget.
        ranked: Ids are stored by rank tables, which the caller learns and keeps (``Codec.learned_file``).
        max_kl_nats: Budget of the mean KL of a shard, nats.
        temperatures: Further temperatures at which the budget is kept.
    """
    if draws_only:
        return DeltaCount(k, vocabulary_size, k)
    if all_classes:
        return DenseFloat32(k, vocabulary_size)
    if exact:
        return RankedGrid(k, vocabulary_size) if ranked else DeltaFloat32(k, vocabulary_size)
    budgeted = RankedPower if ranked else DeltaPower
    return budgeted(k, vocabulary_size, max_kl_nats, temperatures)


def codec_from_dict(codec: JsonObject, k: int, vocabulary_size: int, temperatures: tuple[float, ...] = ()) -> Codec:
    """Build the codec that a manifest names.

    Args:
        codec: The manifest's entry, as ``Codec.to_dict`` returned it.
        k: Slots of a row.
        vocabulary_size: Ids are below this.
        temperatures: At which targets will be used besides 1; a codec with an error budget keeps it there too.

    Raises:
        FormatError: the name is unknown, or a parameter is missing, no number or out of range.
    """
    name = codec.get("name")
    if not isinstance(name, str) or name not in CODECS:
        raise FormatError(
            "unknown target codec",
            expected=" or ".join([", ".join(list(CODECS)[:-1]), list(CODECS)[-1]]),
            found=repr(name),
            fix="Upgrade logitcask; the cache was written by a later version",
        )
    return CODECS[name].from_dict(codec, k, vocabulary_size, temperatures)


def narrow(
    codec: Codec, arrays: Mapping[str, NDArray[Any]], parameters: Parameters, k: int
) -> tuple[Codec, Arrays, Parameters]:
    """Keep the k most likely entries of each stored row (of equals: the lower id); the rest is left out.

    It works on what is stored, so the entries that stay do not change.

    Args:
        codec: A codec that can be narrowed.
        arrays: Stored rows.
        parameters: Their shard's parameters.
        k: Entries to keep, from 1 to ``codec.k``.

    Returns:
        The codec of k slots, its arrays, and its parameters.

    Raises:
        ValueError: the codec keeps no left-out mass, or k is out of range.
    """
    if codec.can_narrow and not 1 <= k <= codec.k:
        raise ValueError(f"rows of {codec.k} entries cannot be narrowed to {k}")
    return codec.narrow(arrays, parameters, k)
