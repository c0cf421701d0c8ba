"""The codec ``ranked-grid``: the rows of a teacher that computes in bfloat16 or float16, bit for bit.

Such a teacher's logits lie on a coarse grid: a bfloat16 number between 16 and 32 is a multiple of 1/8. So the
difference d of a logit to the row's highest is a whole number of steps of 2**-s, and a log-probability that was
computed from it in float32 is ``d - L``, with L the log-normaliser relative to the highest logit. A row is stored as
the steps of its entries above its lowest, which take 5 bits each instead of 32, and L in float32.

Whether logits lie on a grid is never assumed. From the float32 log-probabilities alone, ``encode`` derives L, the
differences and the coarsest grid that holds them, decodes, and compares every bit. A row that does not come back is
**off the grid**: its float32 log-probabilities are stored as they are, which costs more and loses nothing, and such
rows are counted, with those whose grid is so fine that they cost nearly as much. A float32 teacher has no others.

Arrays of n rows, besides the four of ``ranked_ids``:

- ``steps`` (n, k) uint8, ``steps_high`` (n, k) uint16: low byte of the entry's steps above the lowest entry, plus 1,
  and the bits above it; 0 marks an empty slot.
- ``grid`` (n,) uint8: s, from 0 to 22; 255 for a row off the grid.
- ``normaliser`` (n,) float32: L; 0 for a row off the grid.
- ``left_out`` (n,) float32: log of the left-out mass, -inf if nothing is left out.
- ``off_grid`` (n, k) float32: log-probabilities of a row off the grid; 0 for the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.base import Codec, Encoded, prepared
from cache_tools.codecs.float32 import HIGHEST, put_bounded
from cache_tools.codecs.levels import Scratch, likeliest
from cache_tools.codecs.rank_tables import RankTables, learn_tables
from cache_tools.codecs.ranked_ids import (
    broken_ranks,
    by_rank,
    decode_ranks,
    encode_ranks,
    put_sorted,
    ranked_types,
    shifts_of,
)
from cache_tools.codecs.rows import Arrays, Targets, blocks, part_of, sorted_rows
from cache_tools.mappings import Parameters

FINEST = (16, 22)
"""s of the finest grid that is looked for, at first and in rows that are not on it; beyond, rounding of float32 is
hardly told from steps, which the comparison of bits decides."""

MOST_STEPS = 2**24 - 2
OFF_GRID = 255

LARGEST = np.float32(1e30)
"""A stranger's normaliser decodes to no more than this, nor to less than -HIGHEST, so that nothing overflows."""


@dataclass(frozen=True)
class RankedGrid(Codec):
    """Gaps of ranks, and steps of logits.

    Attributes:
        tables: The teacher's rank tables; None until ``with_file``, for questions about arrays only.
    """

    name: ClassVar[str] = "ranked-grid"
    can_narrow: ClassVar[bool] = True
    file: ClassVar[str | None] = "ranks.safetensors"
    repeating_arrays: ClassVar[tuple[str, ...]] = ("ids_high",)
    encoding_slot_bytes: ClassVar[int] = 40  # pairs of ids and values are sorted twice as 64-bit numbers

    tables: RankTables | None = field(default=None, compare=False, repr=False)

    def rough_row_bytes(self, half_precision: bool) -> float:
        """Return about how many bytes a row takes."""
        return self.k * (1.5 if half_precision else 3.6) + 8

    def with_file(self, content: bytes) -> Self:
        """Return the codec with the rank tables of the teacher's file."""
        return replace(self, tables=RankTables.from_bytes(content, self.vocabulary_size))

    def learned_file(self, targets: Targets) -> bytes:
        """Return the rank tables of a sample of rows."""
        return learn_tables(targets, self.vocabulary_size).to_bytes()

    def array_types(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Return (shape of a row, dtype) of each stored array, by name."""
        byte, float32, row = np.dtype(np.uint8), np.dtype(np.float32), (self.k,)
        return {
            **ranked_types(self.k, self.vocabulary_size),
            "steps": (row, byte),
            "steps_high": (row, np.dtype(np.uint16)),
            "grid": ((), byte),
            "normaliser": ((), float32),
            "left_out": ((), float32),
            "off_grid": (row, float32),
        }

    def encode(self, targets: Targets) -> Encoded:
        """Store rows on their grids, and as they are where they have none.

        Raises:
            ValueError: a row breaks a rule.
        """
        assert self.tables is not None
        ranked = by_rank(sorted_rows(targets, self.k, self.vocabulary_size), self.tables)
        rows, used = ranked.rows, ranked.rows.log_probs > -np.inf
        arrays, parameters = encode_ranks(rows.ids, used, ranked.table, self.vocabulary_size)
        arrays |= _values(rows.log_probs)
        arrays["left_out"] = rows.log_left_out.astype(np.float32)
        n = len(rows.ids)
        statistics = {"off_grid_positions": float((arrays["grid"] > FINEST[0]).sum())}
        return Encoded(arrays, parameters, np.zeros(n), statistics=statistics)

    def decode(self, arrays: Mapping[str, NDArray[Any]], parameters: Parameters, out: Targets | None = None) -> Targets:
        """Return the rows with the bits they had."""
        assert self.tables is not None
        n, shifts = len(arrays["grid"]), shifts_of(parameters, self.k)
        out = prepared(out, n, self.k)
        scratch = Scratch(n, self.k)
        for rows in blocks(n):
            block = slice(0, rows.stop - rows.start)
            decode_ranks(arrays, shifts, rows, scratch.words[block])
            empty = _log_probs({name: arrays[name][rows] for name in VALUES}, scratch.floats[block])
            put_sorted(scratch, arrays["table"][rows], empty, self.tables, part_of(out, rows))
        put_bounded(arrays["left_out"], out.log_left_out)
        return out

    def broken_rows(self, arrays: Mapping[str, NDArray[Any]], parameters: Parameters) -> dict[str, NDArray[np.bool_]]:
        """Tell which rows have a rank, a table or a grid that does not exist."""
        assert self.tables is not None
        logs = np.empty(arrays["steps"].shape, np.float32)
        _log_probs({name: arrays[name] for name in VALUES}, logs)
        grid = arrays["grid"]
        return broken_ranks(arrays, parameters, logs > -np.inf, self.tables) | {
            "its grid does not exist": (grid > FINEST[-1]) & (grid != OFF_GRID)
        }

    def narrow(
        self, arrays: Mapping[str, NDArray[Any]], parameters: Parameters, k: int
    ) -> tuple[Self, Arrays, Parameters]:
        """Keep the k most likely entries of each stored row (of equals: the lower id); the rest is left out."""
        rows = self.decode(arrays, parameters)
        columns = likeliest(rows.log_probs, k)
        kept = np.take_along_axis(rows.log_probs, columns, axis=1)
        dropped = rows.log_probs.astype(np.float64)
        np.put_along_axis(dropped, columns, -np.inf, axis=1)
        joined = np.logaddexp.reduce(np.column_stack([rows.log_left_out, dropped]), axis=1)
        left_out = np.where((dropped > -np.inf).any(axis=1), joined, rows.log_left_out).astype(np.float32)
        codec = replace(self, k=k)
        encoded = codec.encode(Targets(np.take_along_axis(rows.ids, columns, axis=1), kept, left_out))
        return codec, encoded.arrays, encoded.parameters


VALUES = ("steps", "steps_high", "grid", "normaliser", "off_grid")


def _values(log_probs: NDArray[np.float32]) -> Arrays:
    """Return the arrays VALUES of rows (n, k), each proved to come back with every bit."""
    parts = [_block_values(log_probs[part]) for part in blocks(len(log_probs))]
    parts = parts or [_block_values(log_probs)]
    return {name: np.concatenate([part[name] for part in parts]) for name in VALUES}


def _block_values(logs: NDArray[np.float32]) -> Arrays:
    """Return the arrays VALUES of rows (b, k): on the first grid that holds a row, or as they are."""
    used = logs > -np.inf
    values, off = _on_grid(logs, used, FINEST[0])
    for finest in FINEST[1:]:
        if off.any():
            finer, still_off = _on_grid(logs[off], used[off], finest)
            for name, stored in finer.items():
                values[name][off] = stored
            off[off] = still_off
    if off.any():
        values["steps"][off], values["steps_high"][off] = used[off], 0
        values["grid"][off], values["normaliser"][off] = OFF_GRID, 0
        values["off_grid"][off] = np.where(used[off], logs[off], 0)
    return values


def _on_grid(logs: NDArray[np.float32], used: NDArray[np.bool_], finest: int) -> tuple[Arrays, NDArray[np.bool_]]:
    """Return rows (b, k) as steps of grids not finer than 2**-finest, and which of them do not come back."""
    highest = np.where(used.any(axis=1), logs.max(axis=1, initial=-np.inf), np.float32(0))
    steps = _finest_steps(logs, highest, used, finest)
    together = np.bitwise_or.reduce(steps, axis=1) | (1 << finest)
    spare = np.log2(together & -together).astype(np.int32)  # how much coarser the grid may be
    steps -= steps.min(axis=1, initial=0)[:, None]
    steps >>= spare[:, None]
    np.minimum(steps, MOST_STEPS, out=steps)  # a row of more does not come back
    steps += 1
    steps *= used
    values = {
        "steps": steps.astype(np.uint8),
        "steps_high": (steps >> 8).astype(np.uint16),
        "grid": (finest - spare).astype(np.uint8),
        "normaliser": -highest,
        "off_grid": np.zeros_like(logs),
    }
    decoded = np.empty_like(logs)
    _log_probs(values, decoded)
    return values, (decoded.view(np.uint32) != logs.view(np.uint32)).any(axis=1)


def _finest_steps(
    logs: NDArray[np.float32], highest: NDArray[np.float32], used: NDArray[np.bool_], finest: int
) -> NDArray[np.int32]:
    """Return how many steps of 2**-finest entries (b, k) lie from their row's highest (b,), 0 in empty slots."""
    steps = logs - highest[:, None]
    if not used.all():
        steps[~used] = 0
    with np.errstate(over="ignore"):
        steps *= np.float32(2**finest)
    np.rint(steps, out=steps)
    np.maximum(steps, np.float32(-(2**30)), out=steps)
    return steps.astype(np.int32)


def _log_probs(arrays: Mapping[str, NDArray[Any]], logs: NDArray[np.float32]) -> NDArray[np.bool_] | None:
    """Put the log-probabilities of stored rows into ``logs`` (b, k), -inf in empty slots.

    Returns:
        (b, k) true in empty slots; None if there are none.
    """
    steps = arrays["steps"]
    np.copyto(logs, steps)
    if arrays["steps_high"].any():
        logs += arrays["steps_high"] * np.float32(256)
    empty = None if steps.all() else logs == 0
    logs *= np.ldexp(np.float32(1), -np.minimum(arrays["grid"], FINEST[-1]).astype(np.int32))[:, None]  # exact, as is:
    logs -= logs.max(axis=1, keepdims=True)
    normaliser = np.empty_like(arrays["normaliser"])
    put_bounded(arrays["normaliser"], normaliser, LARGEST)
    logs -= np.maximum(normaliser, -HIGHEST)[:, None]
    off = arrays["grid"] == OFF_GRID
    if off.any():
        as_stored = arrays["off_grid"][off]
        put_bounded(as_stored, as_stored)
        logs[off] = as_stored
    if empty is not None:
        logs[empty] = -np.inf
    return empty
