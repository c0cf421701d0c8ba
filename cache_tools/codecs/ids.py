"""Sorted token ids as differences, in two arrays of small unsigned integers.

No loss uses the order of a row's tokens, so ids are stored ascending, each as the difference to
the one before it (the first: to 0). The difference's low byte and the bits above it lie in
arrays of their own: ``ids`` (uint8) and ``ids_high`` (as wide as the vocabulary needs, mostly
zero). Rows of neighbouring positions share runs of tokens, and zstd finds those runs better
in two separate planes than in one array of 16-bit numbers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.rows import Arrays

Types = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


def id_types(slots: int, vocabulary_size: int) -> Types:
    """Return (shape of a row, dtype) of the two arrays; ``ids_high`` holds differences without their low byte."""
    high = np.uint8 if vocabulary_size <= 2**16 else np.uint16 if vocabulary_size <= 2**24 else np.uint32
    return {"ids": ((slots,), np.dtype(np.uint8)), "ids_high": ((slots,), np.dtype(high))}


def encode_ids(ids: NDArray[np.uint32], used: NDArray[np.bool_], vocabulary_size: int) -> Arrays:
    """Return the two arrays of ascending ids.

    Args:
        ids: (n, s) uint32, ascending in each row.
        used: (n, s) bool, false in empty slots, which store 0.
        vocabulary_size: Ids are below this.
    """
    differences = ids.copy()
    differences[:, 1:] -= ids[:, :-1]
    if not used.all():
        differences[~used] = 0
    high = id_types(ids.shape[1], vocabulary_size)["ids_high"][1]
    return {"ids": differences.astype(np.uint8), "ids_high": (differences >> np.uint32(8)).astype(high)}


def decode_ids(
    arrays: Mapping[str, NDArray[Any]], rows: slice, differences: NDArray[np.uint32], ids: NDArray[np.uint32]
) -> None:
    """Sum the differences of some rows up.

    Args:
        arrays: The stored arrays.
        rows: The rows to decode, b of them.
        differences: (b, s) uint32 scratch; holds the differences afterwards.
        ids: (b, s) uint32, the result; what stands in empty slots is for the caller to replace.
    """
    np.left_shift(arrays["ids_high"][rows], np.uint32(8), out=differences, casting="unsafe", dtype=np.uint32)
    differences |= arrays["ids"][rows]
    np.cumsum(differences, axis=1, dtype=np.uint32, out=ids)
