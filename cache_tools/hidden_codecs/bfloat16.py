"""bfloat16 in numpy, which has no such type: the upper 16 bits of a float32, rounded to nearest even."""

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 2048
"""Rows worked on at a time, so that scratch arrays stay near the core."""


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16, to nearest even; return the bits."""
    result = np.empty(values.shape, np.uint16)
    for start in range(0, len(values), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        bits = np.ascontiguousarray(values[rows]).view(np.uint32)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        quiet_nan = (bits >> 16) | 0x40
        result[rows] = np.where(np.isnan(values[rows]), quiet_nan, rounded >> 16)
    return result


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
