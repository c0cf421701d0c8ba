"""The codec ``delta-count``: N draws with replacement, exactly.

A sampled target gives each drawn token the weight count / N and leaves nothing out. What is
stored is the draws themselves, sorted by id, N slots a row: a token drawn three times
stands three times, at difference 0 after the first. No counts and no empty slots are needed, and
runs of zeros compress to little, which is smaller than ids and counts in arrays of their own.
A row's first draw differs from 0 by its id, so every row has at least one token.

Arrays: the two of ``codec_ids``, with N slots.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.base import Codec, Encoded, number, prepared
from cache_tools.codecs.ids import decode_ids, encode_ids, id_types
from cache_tools.codecs.rows import BLOCK_ROWS, EMPTY_ID, Targets, blocks, refuse_rows, sorted_rows
from cache_tools.mappings import JsonObject, Parameters

COUNT_TOLERANCE = 0.01
"""By how much N * weight may miss a whole number; float32 rounding stays far below."""


@dataclass(frozen=True)
class DeltaCount(Codec):
    """Sorted draws.

    Attributes:
        draws: N, draws per row, in [1, 65535].
    """

    name: ClassVar[str] = "delta-count"
    encoding_slot_bytes: ClassVar[int] = 40  # counts are 64-bit numbers

    draws: int

    @classmethod
    def from_dict(cls, entry: JsonObject, k: int, vocabulary_size: int, temperatures: tuple[float, ...] = ()) -> Self:
        """Build the codec from its entry in a manifest."""
        return cls(k, vocabulary_size, int(number(entry, "draws", 1, 65_535, whole=True)))

    def rough_row_bytes(self, half_precision: bool) -> float:
        """Return about how many bytes a row takes."""
        return self.k * 0.6

    def to_dict(self) -> JsonObject:
        """Return the codec's entry in the manifest."""
        return {"name": self.name, "draws": self.draws}

    def array_types(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Return (shape of a row, dtype) of each stored array, by name."""
        return id_types(self.draws, self.vocabulary_size)

    def encode(self, targets: Targets) -> Encoded:
        """Store rows whose weights are counts out of N.

        Raises:
            ValueError: a row breaks a rule, leaves something out, or holds another weight than a multiple of 1 / N.
        """
        rows = sorted_rows(targets, self.k, self.vocabulary_size)
        refuse_rows(rows.log_left_out > -np.inf, "a sampled row leaves nothing out")
        weights = self.draws * np.exp(rows.log_probs, dtype=np.float64)
        counts = np.rint(weights).astype(np.int64)
        off = (np.abs(weights - counts) > COUNT_TOLERANCE) | ((counts == 0) & (rows.log_probs > -np.inf))
        wrong = off.any(axis=1) | (counts.sum(axis=1) != self.draws)
        refuse_rows(wrong, f"its weights are not counts out of {self.draws} draws")
        drawn = np.repeat(rows.ids.ravel(), counts.ravel()).reshape(-1, self.draws)
        arrays = encode_ids(drawn, np.ones(drawn.shape, np.bool_), self.vocabulary_size)
        return Encoded(arrays, {}, np.zeros(len(drawn)))

    def decode(self, arrays: Mapping[str, NDArray[Any]], parameters: Parameters, out: Targets | None = None) -> Targets:
        """Return the rows exactly: each distinct token with float32 log(count / N).

        Raises:
            ValueError: a stored row holds more than k distinct tokens.
        """
        n = len(arrays["ids"])
        out = prepared(out, n, self.k)
        shape = (min(n, BLOCK_ROWS), self.draws)
        differences, ids = np.empty(shape, np.uint32), np.empty(shape, np.uint32)
        with np.errstate(divide="ignore"):
            logs = np.log(np.arange(self.draws + 1) / self.draws).astype(np.float32)
        out.ids[...], out.log_probs[...], out.log_left_out[...] = EMPTY_ID, -np.inf, -np.inf
        for rows in blocks(n):
            size = rows.stop - rows.start
            decode_ids(arrays, rows, differences[:size], ids[:size])
            row, slot, places, counts = _runs(differences[:size])
            if slot.max() >= self.k:
                raise ValueError(f"a stored row holds more than {self.k} distinct tokens")
            out.ids[rows][row, slot] = ids[:size].ravel()[places]
            out.log_probs[rows][row, slot] = logs[counts]
        return out


def _runs(differences: NDArray[np.uint32]) -> tuple[NDArray[np.intp], ...]:
    """Return (row, number in the row, flat place, length) of each run of one token, of sorted draws (b, N)."""
    first = differences > 0
    first[:, 0] = True
    places = np.flatnonzero(first)
    counts = np.diff(places, append=first.size)
    per_row = first.sum(axis=1)
    row = np.repeat(np.arange(len(first)), per_row)
    slot = np.arange(len(places)) - np.repeat(np.cumsum(per_row) - per_row, per_row)
    return row, slot, places, counts
