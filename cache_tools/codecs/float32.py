"""The lossless codecs: float32 log-probabilities, bit for bit.

``delta-float32`` is what ``exact: true`` stores: sorted ids as differences (``codec_ids``), then
``log_probs`` (n, k) and ``left_out`` (n,) float32, -inf for nothing. Decoding does not
renormalise, so every bit comes back.

``dense-float32`` keeps all C classes of a classifier in one array ``log_probs`` (n, C), by class;
there are no ids to store. A class of probability zero comes back as an empty slot in its place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.base import Codec, Encoded, prepared
from cache_tools.codecs.ids import decode_ids, encode_ids, id_types
from cache_tools.codecs.levels import likeliest
from cache_tools.codecs.rows import BLOCK_ROWS, EMPTY_ID, Arrays, Targets, blocks, refuse_rows, sorted_rows
from cache_tools.errors import FormatError
from cache_tools.mappings import JsonObject, Parameters

FLOAT = np.dtype(np.float32)

HIGHEST = np.float32(1)
"""Far above the logarithm of any probability. A stranger's row of NaN or of 1e38 decodes to this, so that nothing that
is computed from it overflows, and its mass is still not 1, which is how ``verify`` finds it."""


def put_bounded(values: NDArray[np.float32], out: NDArray[np.float32], highest: np.float32 = HIGHEST) -> None:
    """Put values into ``out`` of the same shape, ``highest`` in place of larger ones and of NaN.

    ``np.fmin`` once is not enough: of a signalling NaN it makes a quiet one or ``highest``, depending on the place of
    the value in the array. The second time there are only quiet ones, of which it always makes ``highest``.
    """
    with np.errstate(invalid="ignore"):
        np.fmin(values, highest, out=out)
    np.fmin(out, highest, out=out)


@dataclass(frozen=True)
class DeltaFloat32(Codec):
    """Sorted ids and float32 log-probabilities."""

    name: ClassVar[str] = "delta-float32"
    can_narrow: ClassVar[bool] = True
    exact_scalars: ClassVar[bool] = True

    def rough_row_bytes(self, half_precision: bool) -> float:
        """Return about how many bytes a row takes."""
        return self.k * 3.9

    def array_types(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Return (shape of a row, dtype) of each stored array, by name."""
        return {**id_types(self.k, self.vocabulary_size), "log_probs": ((self.k,), FLOAT), "left_out": ((), FLOAT)}

    def encode(self, targets: Targets) -> Encoded:
        """Sort and check rows.

        Raises:
            ValueError: a row breaks a rule.
        """
        rows = sorted_rows(targets, self.k, self.vocabulary_size)
        arrays = encode_ids(rows.ids, rows.log_probs > -np.inf, self.vocabulary_size)
        arrays |= {"log_probs": rows.log_probs, "left_out": rows.log_left_out.astype(np.float32)}
        return Encoded(arrays, {}, np.zeros(len(rows.mass)))

    def decode(self, arrays: Mapping[str, NDArray[Any]], parameters: Parameters, out: Targets | None = None) -> Targets:
        """Return the rows with the bits they had."""
        n = len(arrays["left_out"])
        out = prepared(out, n, self.k)
        differences = np.empty((min(n, BLOCK_ROWS), self.k), np.uint32)
        for rows in blocks(n):
            decode_ids(arrays, rows, differences[: rows.stop - rows.start], out.ids[rows])
            out.ids[rows][arrays["log_probs"][rows] == -np.inf] = EMPTY_ID
        put_bounded(arrays["log_probs"], out.log_probs)
        put_bounded(arrays["left_out"], out.log_left_out)
        return out

    def narrow(
        self, arrays: Mapping[str, NDArray[Any]], parameters: Parameters, k: int
    ) -> tuple[Self, Arrays, Parameters]:
        """Keep the k most likely entries of each stored row (of equals: the lower id); the rest is left out."""
        rows = self.decode(arrays, parameters)
        columns = likeliest(rows.log_probs, k)
        ids = np.take_along_axis(rows.ids, columns, axis=1)
        kept = np.take_along_axis(rows.log_probs, columns, axis=1)
        dropped = rows.log_probs.astype(np.float64)
        np.put_along_axis(dropped, columns, -np.inf, axis=1)
        joined = np.logaddexp.reduce(np.column_stack([rows.log_left_out, dropped]), axis=1)
        left_out = np.where((dropped > -np.inf).any(axis=1), joined, rows.log_left_out).astype(np.float32)
        coded = encode_ids(ids, kept > -np.inf, self.vocabulary_size)
        return replace(self, k=k), {**coded, "log_probs": kept, "left_out": left_out}, dict(parameters)


@dataclass(frozen=True)
class DenseFloat32(Codec):
    """All classes of a classifier; k equals vocabulary_size."""

    name: ClassVar[str] = "dense-float32"
    exact_scalars: ClassVar[bool] = True
    ids_ascend: ClassVar[bool] = False  # the slot of a class stays at its index, empty or not
    encoding_slot_bytes: ClassVar[int] = 44  # the places of the classes are 64-bit numbers

    @classmethod
    def from_dict(cls, entry: JsonObject, k: int, vocabulary_size: int, temperatures: tuple[float, ...] = ()) -> Self:
        """Build the codec from its entry in a manifest."""
        if k != vocabulary_size:
            raise FormatError("dense targets hold all classes", expected=f"k = {vocabulary_size}", found=k)
        return cls(k, vocabulary_size)

    def rough_row_bytes(self, half_precision: bool) -> float:
        """Return about how many bytes a row takes."""
        return self.k * 3.6

    def __post_init__(self) -> None:
        if self.k != self.vocabulary_size:
            raise ValueError(f"dense targets hold all {self.vocabulary_size} classes, not {self.k}")

    def array_types(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Return (shape of a row, dtype) of the one stored array."""
        return {"log_probs": ((self.k,), FLOAT)}

    def encode(self, targets: Targets) -> Encoded:
        """Put each row into the order of its classes.

        Raises:
            ValueError: a row breaks a rule or leaves something out.
        """
        rows = sorted_rows(targets, self.k, self.vocabulary_size)
        refuse_rows(rows.log_left_out > -np.inf, "a row of all classes leaves nothing out")
        log_probs = np.full(rows.log_probs.shape, -np.inf, np.float32)
        row, slot = np.nonzero(rows.log_probs > -np.inf)
        log_probs[row, rows.ids[row, slot]] = rows.log_probs[row, slot]
        return Encoded({"log_probs": log_probs}, {}, np.zeros(len(log_probs)))

    def decode(self, arrays: Mapping[str, NDArray[Any]], parameters: Parameters, out: Targets | None = None) -> Targets:
        """Return ids 0 to C - 1, EMPTY_ID where the probability is zero, and nothing left out."""
        stored = arrays["log_probs"]
        out = prepared(out, len(stored), self.k)
        out.ids[...] = np.arange(self.k, dtype=np.uint32)
        out.ids[stored == -np.inf] = EMPTY_ID
        put_bounded(stored, out.log_probs)
        out.log_left_out[...] = -np.inf
        return out
