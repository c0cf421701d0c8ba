"""The codec ``ranked-power``: ``delta-power`` with ids stored as gaps of ranks.

Levels, budget and parameters are those of ``delta_power.py``, the entries of a row stand in the order of their ranks
(``ranked_ids.py``), and decoding sorts them by id. On rows of a real language model the ids take a third fewer bytes.

Arrays of n rows: the four of ``ranked_ids``, then ``levels``, ``levels_high``, ``floor`` and ``left_out`` of
``delta-power``; parameters ``shifts``, ``levels`` and ``exponent``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.base import Encoded, Floats, prepared
from cache_tools.codecs.delta_power import DeltaPower, narrowed_levels, stored_curve
from cache_tools.codecs.levels import Scratch, normalise, pack_levels, unpack_levels
from cache_tools.codecs.rank_tables import RankTables, learn_tables
from cache_tools.codecs.ranked_ids import (
    broken_ranks,
    by_rank,
    decode_ranks,
    encode_ranks,
    ids_of_ranks,
    put_sorted,
    ranked_types,
    ranks_of_ids,
    shifts_of,
)
from cache_tools.codecs.rows import EMPTY_ID, Arrays, Targets, blocks, part_of, sorted_rows
from cache_tools.mappings import Parameters


@dataclass(frozen=True)
class RankedPower(DeltaPower):
    """Gaps of ranks, and quantised probabilities.

    Attributes:
        tables: The teacher's rank tables; None until ``with_file``, for questions about arrays only.
    """

    name: ClassVar[str] = "ranked-power"
    file: ClassVar[str | None] = "ranks.safetensors"
    repeating_arrays: ClassVar[tuple[str, ...]] = ("ids_high",)
    encoding_slot_bytes: ClassVar[int] = 40  # pairs of ids and values are sorted twice as 64-bit numbers

    tables: RankTables | None = field(default=None, compare=False, repr=False)

    def rough_row_bytes(self, half_precision: bool) -> float:
        """Return about how many bytes a row takes."""
        return super().rough_row_bytes(half_precision) * 0.85

    def with_file(self, content: bytes) -> Self:
        """Return the codec with the rank tables of the teacher's file."""
        return replace(self, tables=RankTables.from_bytes(content, self.vocabulary_size))

    def array_types(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Return (shape of a row, dtype) of each stored array, by name."""
        return {**ranked_types(self.k, self.vocabulary_size), **super().array_types()}

    def encode(self, targets: Targets) -> Encoded:
        """Quantise one shard's rows as coarsely as the budget allows.

        Raises:
            ValueError: a row breaks a rule, or no number of levels meets the budget.
        """
        assert self.tables is not None
        ranked = by_rank(sorted_rows(targets, self.k, self.vocabulary_size), self.tables)
        used = ranked.rows.log_probs > -np.inf
        values = self.quantise_rows(ranked.rows)
        ids, shifts = encode_ranks(ranked.rows.ids, used, ranked.table, self.vocabulary_size)
        return replace(values, arrays=ids | values.arrays, parameters=shifts | values.parameters)

    def decode(self, arrays: Mapping[str, NDArray[Any]], parameters: Parameters, out: Targets | None = None) -> Targets:
        """Return the distributions that stored arrays stand for, renormalised over k + 1 outcomes."""
        assert self.tables is not None
        log_weights = stored_curve(parameters).log_weights().astype(np.float32)
        n, shifts = len(arrays["floor"]), shifts_of(parameters, self.k)
        out, scratch = prepared(out, n, self.k), Scratch(n, self.k)
        floats = np.empty_like(scratch.floats)
        for rows in blocks(n):
            block = slice(0, rows.stop - rows.start)
            decode_ranks(arrays, shifts, rows, scratch.words[block])
            unpack_levels(arrays, rows, scratch.levels[block])
            empty = None if arrays["levels"][rows].all() else scratch.levels[block] == 0
            np.take(log_weights, scratch.levels[block], out=scratch.floats[block], mode="clip")
            rest = np.take(log_weights, arrays["left_out"][rows], mode="clip")
            out.log_left_out[rows] = normalise(scratch.floats[block], rest, floats[block])
            put_sorted(scratch, arrays["table"][rows], empty, self.tables, part_of(out, rows))
        return out

    def bounds(
        self, arrays: Mapping[str, NDArray[Any]], parameters: Parameters, narrowed: bool = False
    ) -> tuple[Floats, Floats]:
        """Return between which log-probabilities the written ones lie, by ascending id; see the base."""
        order = np.argsort(self._ids(arrays, parameters), axis=1, kind="stable")
        columns = np.column_stack([order, np.full(len(order), self.k)])  # the left-out mass stays last
        low, high = super().bounds(arrays, parameters, narrowed)
        return np.take_along_axis(low, columns, axis=1), np.take_along_axis(high, columns, axis=1)

    def broken_rows(self, arrays: Mapping[str, NDArray[Any]], parameters: Parameters) -> dict[str, NDArray[np.bool_]]:
        """Tell which rows have a level, a rank or a table that does not exist."""
        assert self.tables is not None
        used = self._levels(arrays) > 0
        return super().broken_rows(arrays, parameters) | broken_ranks(arrays, parameters, used, self.tables)

    def narrow(
        self, arrays: Mapping[str, NDArray[Any]], parameters: Parameters, k: int
    ) -> tuple[Self, Arrays, Parameters]:
        """Keep the k most likely entries of each stored row, with their levels; as for ``delta-power``."""
        assert self.tables is not None
        ids, levels = self._ids(arrays, parameters), self._levels(arrays)
        order = np.argsort(ids, axis=1, kind="stable")
        ids, levels = np.take_along_axis(ids, order, axis=1), np.take_along_axis(levels, order, axis=1)
        curve = stored_curve(parameters)
        kept_ids, kept, left_out, highest = narrowed_levels(ids, levels, arrays["left_out"], curve, k)
        table, ranks = ranks_of_ids(kept_ids, kept > 0, self.tables)
        order = np.argsort(ranks, axis=1, kind="stable")
        ranks, kept = np.take_along_axis(ranks, order, axis=1), np.take_along_axis(kept, order, axis=1)
        coded, shifts = encode_ranks(ranks, kept > 0, table, self.vocabulary_size)
        values = {**pack_levels(kept), "left_out": left_out}
        return replace(self, k=k), coded | values, {**parameters, **shifts, "levels": highest}

    def learned_file(self, targets: Targets) -> bytes:
        """Return the rank tables of a sample of rows."""
        return learn_tables(targets, self.vocabulary_size).to_bytes()

    def _levels(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.intp]:
        """Return the levels (n, k) in the order of the ranks, 0 in empty slots."""
        levels = np.empty((len(arrays["floor"]), self.k), np.intp)
        unpack_levels(arrays, slice(0, len(levels)), levels)
        return levels

    def _ids(self, arrays: Mapping[str, NDArray[Any]], parameters: Parameters) -> NDArray[np.uint32]:
        """Return the ids (n, k) in the order of the ranks, EMPTY_ID in empty slots."""
        assert self.tables is not None
        ranks = np.empty((len(arrays["floor"]), self.k), np.uint32)
        decode_ranks(arrays, shifts_of(parameters, self.k), slice(0, len(ranks)), ranks)
        ids = ids_of_ranks(ranks, arrays["table"], self.tables)
        return np.where(self._levels(arrays) > 0, ids, np.uint32(EMPTY_ID))
