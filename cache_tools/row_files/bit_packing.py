"""Integers of any number of bits, packed into bytes or into 64-bit words, as DistillKit packs them.

Two layouts. The packed format writes each integer with its highest bit first, one directly after the other, and fills
the last byte with zeros. The legacy format puts as many whole integers into a 64-bit word as fit, the first in the
lowest bits; the remaining high bits stay zero. numpy's ``packbits`` does the work: 8 bytes of scratch for each
integer of a row, so callers pass some thousand rows at a time.
"""

import numpy as np
from numpy.typing import NDArray

WORD_BITS = 64


def bits_of(vocabulary_size: int) -> int:
    """Return how many bits an id has in DistillKit: ceil(log2(size)), computed in float32 as it is there."""
    return int(np.ceil(np.log2(np.float32(vocabulary_size))))


def packed_bytes(count: int, bits: int) -> int:
    """Return how many bytes ``count`` integers of ``bits`` bits need."""
    return (count * bits + 7) // 8


def pack_bytes(values: NDArray[np.unsignedinteger], bits: int) -> NDArray[np.uint8]:
    """Pack each row of integers into bytes, highest bit first.

    Args:
        values: (n, k) integers below 2 ** bits.
        bits: Bits of an integer, 1 to 64.

    Returns:
        (n, ceil(k * bits / 8)) uint8.
    """
    n, k = values.shape
    big_endian = np.ascontiguousarray(values, dtype=">u8").view(np.uint8).reshape(n, k, 8)
    stream = np.unpackbits(big_endian, axis=2)[:, :, WORD_BITS - bits :]
    return np.packbits(stream.reshape(n, k * bits), axis=1)


def unpack_bytes(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint64]:
    """Return the integers that ``pack_bytes`` packed.

    Args:
        packed: (n, ceil(count * bits / 8)) uint8.
        bits: Bits of an integer, 1 to 64.
        count: Integers of a row.

    Returns:
        (n, count) uint64.
    """
    n, width = len(packed), (bits + 7) // 8
    stream = np.unpackbits(packed, axis=1, count=count * bits).reshape(n, count, bits)
    padded = np.zeros((n, count, 8 * width), np.uint8)
    padded[:, :, 8 * width - bits :] = stream
    octets = np.packbits(padded.reshape(n, count * 8 * width), axis=1).reshape(n, count, width)
    values = np.zeros((n, count), np.uint64)
    for place in range(width):
        values = (values << np.uint64(8)) | octets[:, :, place]
    return values


def words_of(count: int, bits: int) -> int:
    """Return how many 64-bit words the legacy format needs for ``count`` integers."""
    return -(-count // (WORD_BITS // bits))


def pack_words(values: NDArray[np.unsignedinteger], bits: int) -> NDArray[np.uint64]:
    """Pack each row (n, k) of integers into 64-bit words, the first in the lowest bits: (n, words) uint64."""
    n, k = values.shape
    per_word = WORD_BITS // bits
    padded = np.zeros((n, words_of(k, bits) * per_word), np.uint64)
    padded[:, :k] = values
    shifts = np.arange(per_word, dtype=np.uint64) * np.uint64(bits)
    words: NDArray[np.uint64] = np.bitwise_or.reduce(padded.reshape(n, -1, per_word) << shifts, axis=2)
    return words


def unpack_words(words: NDArray[np.uint64], bits: int, count: int) -> NDArray[np.uint64]:
    """Return the first ``count`` integers of each row (n, words) of packed words: (n, count) uint64."""
    per_word = WORD_BITS // bits
    shifts = np.arange(per_word, dtype=np.uint64) * np.uint64(bits)
    mask = np.uint64(2**bits - 1)
    return ((words[:, :, None] >> shifts) & mask).reshape(len(words), -1)[:, :count]
