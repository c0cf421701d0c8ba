"""Arrow columns of nested lists as flat numpy arrays, with the row of the file where one cannot be used.

Strangers' files hold nulls, strings and lists of different lengths. Everything is read as values and lengths, so a file
of ragged rows costs no more than a regular one, and each refusal names the file and the row.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cache_tools.errors import FormatError


@dataclass(frozen=True)
class Place:
    """Where a batch of rows lies.

    Attributes:
        file: Name of the file.
        first_row: Number of the batch's first row in it, from 0.
    """

    file: str
    first_row: int

    def refuse(self, row: int, problem: str, **parts: Any) -> FormatError:
        """Return the error that a row of the batch, counted from its first, cannot be imported."""
        parts.setdefault("fix", "Correct or remove this row, and import again")
        return FormatError(problem, where=f"{self.file}, row {self.first_row + row}", **parts)


@dataclass(frozen=True)
class Nested:
    """A column of lists of lists.

    Attributes:
        counts: (s,) int64, inner lists of each row of the file.
        lengths: (n,) int64, values of each inner list; 0 for one that is null.
        values: (m,) the values, one inner list after another.
    """

    counts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    values: NDArray[Any]

    @property
    def row_of(self) -> NDArray[np.int64]:
        """Row of the batch that each inner list belongs to: (n,) int64."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def matrix(self, width: int, fill: float) -> NDArray[Any]:
        """Return the inner lists as rows (n, width) of a matrix; shorter ones are filled up."""
        if (self.lengths == width).all():
            return self.values.reshape(-1, width)
        rows = np.full((len(self.lengths), width), fill, self.values.dtype)
        rows[np.arange(width) < self.lengths[:, None]] = self.values
        return rows


def nested(column: pa.ChunkedArray | pa.Array, place: Place, name: str) -> Nested:
    """Return a column of lists of lists.

    Raises:
        FormatError: it has another type, a row is null, or a value is null.
    """
    outer = _combined(column)
    _require(_is_list(outer.type) and _is_list(outer.type.value_type), place, name, outer.type, "lists of lists")
    counts = _lengths(outer)
    _refuse_null(outer, place, name)
    inner = _combined(outer.flatten())
    values = numbers(_combined(inner.flatten()), place, name, lambda at: _row_of_value(at, counts, _lengths(inner)))
    return Nested(counts, _lengths(inner), values)


def flat_lists(column: pa.ChunkedArray | pa.Array, place: Place, name: str) -> list[NDArray[Any]]:
    """Return a column of lists of numbers, one array for each row; raises as ``nested``."""
    outer = _combined(column)
    _require(_is_list(outer.type), place, name, outer.type, "lists of numbers")
    _refuse_null(outer, place, name)
    lengths = _lengths(outer)
    ends = np.cumsum(lengths)
    values = numbers(_combined(outer.flatten()), place, name, lambda at: int(np.searchsorted(ends, at, side="right")))
    return np.split(values, ends[:-1]) if len(lengths) else []


def numbers(array: pa.Array, place: Place, name: str, row_of: Any) -> NDArray[Any]:
    """Return an array of numbers without nulls; ``row_of`` names the row of a value."""
    numeric = pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)
    _require(numeric or pa.types.is_null(array.type), place, name, array.type, "numbers")
    if array.null_count:
        first = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise place.refuse(row_of(first), f"the column {name!r} holds a value that is null")
    values: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return values.astype(np.float32) if pa.types.is_null(array.type) else values


def _row_of_value(at: int, counts: NDArray[np.int64], lengths: NDArray[np.int64]) -> int:
    inner = int(np.searchsorted(np.cumsum(lengths), at, side="right"))
    return int(np.searchsorted(np.cumsum(counts), inner, side="right"))


def _combined(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _lengths(array: pa.Array) -> NDArray[np.int64]:
    lengths: NDArray[np.int64] = pc.list_value_length(array).fill_null(0).to_numpy().astype(np.int64)
    return lengths


def _refuse_null(array: pa.Array, place: Place, name: str) -> None:
    if array.null_count:
        first = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise place.refuse(first, f"the column {name!r} is empty in this row")


def _require(fits: bool, place: Place, name: str, actual: object, expected: str) -> None:
    if not fits:
        raise FormatError(
            f"the column {name!r} holds something else than rows of predictions",
            where=place.file,
            expected=expected,
            found=actual,
            fix="Name the columns with --tokens-column, --ids-column and --logprobs-column",
        )
