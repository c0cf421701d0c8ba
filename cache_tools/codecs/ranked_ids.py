"""Token ids as gaps between their ranks: what the ``ranked-`` codecs store instead of differences of ids.

The ranks of a row (``rank_tables.py``) ascend, and each is stored as its **gap**: the number of ranks between it and
the one before. Gaps grow along the row, in proportion to the rank: 0 to 3 at its beginning, hundreds at its end. Low
bits of large gaps are noise that no compressor shortens, and it shortens the others worse for having them among them.
So every eight columns share a **shift** t, chosen for each shard: the t lowest bits of their gaps go to
``id_bits``, as they are; what is left has nearly the same distribution in all columns, which suits zstd.

Arrays of n rows of k slots, with G = ceil(k / 8) groups of columns:

- ``table`` (n,) uint8: number of the row's rank table.
- ``ids`` (n, k) uint8, ``ids_high`` (n, k): low byte of gap >> t, and the bits above it.
- ``id_bits`` (n, 8 G) uint8: bit j of byte 8 g + b, that of value 2**j, is bit b of the gap in column 8 g + j; 0
  where b is not below the shift of group g. Eight gaps of 8 bits are thus a transposed matrix of bits.

Empty slots store zeros. The shifts are the shard's parameter ``shifts``, G numbers.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.ids import Types, id_types
from cache_tools.codecs.levels import Scratch
from cache_tools.codecs.rank_tables import RankTables
from cache_tools.codecs.rows import EMPTY_ID, Arrays, SortedRows, Targets, blocks, by_id
from cache_tools.errors import FormatError
from cache_tools.mappings import Parameters

GROUP = 8
"""Columns that share a shift: their bits of one place fill a byte."""

MOST_BITS = 8
SAMPLE_ROWS = 2048
"""Rows by which the shifts are chosen."""

OFFSETS = (-4.0, -3.5, -3.0, -2.5, -2.0, -1.5, -1.0)
"""What is tried to be added to the logarithm of a group's mean gap for its shift."""


def ranked_types(k: int, vocabulary_size: int) -> Types:
    """Return (shape of a row, dtype) of the four arrays."""
    byte = np.dtype(np.uint8)
    return {**id_types(k, vocabulary_size), "id_bits": ((MOST_BITS * -(-k // GROUP),), byte), "table": ((), byte)}


@dataclass(frozen=True)
class RankedRows:
    """Checked rows in the order of their ranks.

    Attributes:
        rows: As ``sorted_rows`` returns them, but ascending by rank; ids are ranks, EMPTY_ID in empty slots.
        table: (n,) uint8.
    """

    rows: SortedRows
    table: NDArray[np.uint8]


def by_rank(rows: SortedRows, tables: RankTables) -> RankedRows:
    """Choose the table of each row and sort its entries by rank."""
    ranks, logs, table = np.empty_like(rows.ids), np.empty_like(rows.log_probs), np.empty(len(rows.ids), np.uint8)
    for part in blocks(len(ranks)):
        table[part], unsorted = ranks_of_ids(rows.ids[part], rows.log_probs[part] > -np.inf, tables)
        ranks[part], logs[part] = by_id(unsorted, rows.log_probs[part])
    return RankedRows(SortedRows(ranks, logs, rows.log_left_out, rows.mass), table)


def ranks_of_ids(
    ids: NDArray[np.uint32], used: NDArray[np.bool_], tables: RankTables
) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Return the table of each row (b,) and the ranks (b, k) of its ids, EMPTY_ID in empty slots."""
    table = tables.cheapest(ids, used)
    places = np.where(used, ids, 0).astype(np.intp)
    places *= len(tables.tables)
    places += table[:, None]
    ranks = np.take(tables.ranks.reshape(-1), places)
    ranks[~used] = EMPTY_ID
    return table, ranks


def ids_of_ranks(ranks: NDArray[np.uint32], table: NDArray[np.uint8], tables: RankTables) -> NDArray[np.uint32]:
    """Return the ids (b, k) at ranks; of a rank or a table that does not exist, some other id."""
    places = ranks.astype(np.intp)
    places += (table.astype(np.intp) * tables.vocabulary_size)[:, None]
    return np.take(tables.ids.reshape(-1), places, mode="clip")


def encode_ranks(
    ranks: NDArray[np.uint32], used: NDArray[np.bool_], table: NDArray[np.uint8], vocabulary_size: int
) -> tuple[Arrays, Parameters]:
    """Return the four arrays, and the shard's parameters, of ranks (n, k) that ascend; empty slots stand at the end."""
    gaps = ranks.copy()
    gaps[:, 1:] -= ranks[:, :-1]
    gaps[:, 1:] -= np.uint32(1)
    gaps[~used] = 0
    shifts = _shifts(gaps, used)
    arrays = {
        name: np.zeros((len(gaps), *row), t) for name, (row, t) in ranked_types(gaps.shape[1], vocabulary_size).items()
    }
    k, columns = gaps.shape[1], _columns(shifts, gaps.shape[1])
    masks = ((1 << columns) - 1).astype(np.uint8)
    for part in blocks(len(gaps)):
        low = arrays["id_bits"][part]
        np.bitwise_and(gaps[part].astype(np.uint8), masks, out=low[:, :k])
        low[...] = _transposed(low)
        rest = gaps[part] >> columns
        arrays["ids"][part] = rest
        rest >>= np.uint32(8)
        arrays["ids_high"][part] = rest
    return arrays | {"table": table}, {"shifts": shifts}


def shifts_of(parameters: Parameters, k: int) -> list[int]:
    """Return the shifts that a shard's parameters state.

    Raises:
        FormatError: they are not one number from 0 to 8 for each group of columns.
    """
    shifts, groups = parameters.get("shifts"), -(-k // GROUP)
    numbers = shifts if isinstance(shifts, list) else []
    if len(numbers) != groups or any(type(shift) is not int or not 0 <= shift <= MOST_BITS for shift in numbers):
        raise FormatError(
            "the codec's parameter 'shifts' cannot be used",
            expected=f"{groups} whole numbers from 0 to {MOST_BITS}",
            found=repr(shifts) if "shifts" in parameters else "nothing",
        )
    return numbers


def decode_ranks(arrays: Mapping[str, NDArray[Any]], shifts: list[int], rows: slice, ranks: NDArray[np.uint32]) -> None:
    """Put the ranks of some rows into ``ranks`` (b, k); the caller replaces the values of empty slots."""
    k, columns = ranks.shape[1], _columns(shifts, ranks.shape[1])
    np.left_shift(arrays["ids"][rows], columns, out=ranks, dtype=np.uint32)
    high = arrays["ids_high"][rows]
    if high.any():
        ranks += np.left_shift(high, columns + np.uint32(8), dtype=np.uint32)
    ranks += _transposed(arrays["id_bits"][rows])[:, :k]
    np.cumsum(ranks, axis=1, out=ranks)
    ranks += np.arange(k, dtype=np.uint32)


def broken_ranks(
    arrays: Mapping[str, NDArray[Any]], parameters: Parameters, used: NDArray[np.bool_], tables: RankTables
) -> dict[str, NDArray[np.bool_]]:
    """Tell which rows (n,) name a table that is not there, or a rank that no id has; ``used`` is (n, k)."""
    ranks = np.empty(used.shape, np.uint32)
    decode_ranks(arrays, shifts_of(parameters, used.shape[1]), slice(0, len(used)), ranks)
    beyond: NDArray[np.bool_] = np.any(used & (ranks >= tables.vocabulary_size), axis=1)
    return {
        "its rank table does not exist": arrays["table"] >= len(tables.tables),
        "a rank is not below the vocabulary size": beyond,
    }


def put_sorted(
    scratch: Scratch, table: NDArray[np.uint8], empty: NDArray[np.bool_] | None, tables: RankTables, out: Targets
) -> None:
    """Put rows into ``out`` (b, k) as ids that ascend, empty slots last.

    Id and value are sorted as one 64-bit number, id in front.

    Args:
        scratch: Ranks in ``words`` and log-probabilities in ``floats``; everything in it is overwritten.
        table: (b,) number of each row's table.
        empty: (b, k) true in empty slots; None if there are none.
        tables: The teacher's.
        out: Receives the rows.
    """
    b = len(table)
    ranks, places, pairs = scratch.words[:b], scratch.levels[:b], scratch.doubles[:b].view(np.uint64)
    np.add(ranks, (table.astype(np.intp) * tables.vocabulary_size)[:, None], out=places, dtype=np.intp)
    np.take(tables.ids.reshape(-1), places, out=ranks, mode="clip")
    low, high = (0, 1) if sys.byteorder == "little" else (1, 0)
    pairs.view(np.uint32)[:, low::2] = scratch.floats[:b].view(np.uint32)
    if empty is not None:
        ranks[empty] = EMPTY_ID
    pairs.view(np.uint32)[:, high::2] = ranks
    pairs.sort(axis=1)
    out.log_probs.view(np.uint32)[...] = pairs.view(np.uint32)[:, low::2]
    out.ids[...] = pairs.view(np.uint32)[:, high::2]


def _transposed(low: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return rows of 8 G bytes in which every eight bytes, a matrix of bits, are transposed.

    Bit j of byte b becomes bit b of byte j. Three rounds swap ever smaller squares beside the diagonal; doing it twice
    gives the same bytes again.
    """
    words = np.ascontiguousarray(low).view("<u8")
    for distance, squares in ((28, 0x00000000F0F0F0F0), (14, 0x0000CCCC0000CCCC), (7, 0x00AA00AA00AA00AA)):
        swapped = words >> np.uint64(distance)
        swapped ^= words
        swapped &= np.uint64(squares)
        words = words ^ swapped
        swapped <<= np.uint64(distance)
        words ^= swapped
    return words.view(np.uint8)


def _columns(shifts: list[int], k: int) -> NDArray[np.uint32]:
    """Return the shift of each column: (k,)."""
    return np.repeat(np.array(shifts, np.uint32), GROUP)[:k]


def _shifts(gaps: NDArray[np.uint32], used: NDArray[np.bool_]) -> list[int]:
    """Return the shift of each group of columns for which a sample of rows costs least."""
    step = max(1, len(gaps) // SAMPLE_ROWS)
    sample, filled, groups = gaps[::step], used[::step], range(0, gaps.shape[1], GROUP)
    means = []
    for start in groups:
        values = sample[:, start : start + GROUP][filled[:, start : start + GROUP]]
        usual = np.quantile(values, 0.95) if len(values) else 0
        means.append(float(np.log2(np.minimum(values, usual).mean() + 1)) if len(values) else 0.0)
    choices = [[int(np.clip(round(mean + offset), 0, MOST_BITS)) for mean in means] for offset in OFFSETS]
    return min(choices, key=lambda shifts: _bytes_of(sample, shifts))


def _bytes_of(gaps: NDArray[np.uint32], shifts: list[int]) -> float:
    """Return about how many bytes a row of gaps (n, k) takes: the entropy of what is left, and the bits."""
    counts = np.bincount(np.minimum(gaps >> _columns(shifts, gaps.shape[1]), 255).ravel())
    counts = counts[counts > 0]
    entropy = -float((counts * np.log2(counts / counts.sum())).sum()) if len(counts) else 0.0
    return entropy / 8 / max(len(gaps), 1) + sum(shifts)
