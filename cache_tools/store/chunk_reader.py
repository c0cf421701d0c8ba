"""The fast path of reading: from a shard's object straight into the caller's arrays.

zarr-python spends about 2.4 ms a chunk on its own machinery; a shuffled student reads many
small windows. Here a window costs one batch of byte ranges for the indexes (kept from then
on) and one for the inner chunks, over all arrays together, so that a bucket is asked twice
at most. Each chunk's crc32c and header are checked and blosc decompresses it where it belongs.

What lies in an object is known from the receipt: an object that it lists must be there and
whole, one that it does not list holds fill values only.

An array with other codecs, order or fill value is left to zarr, which is also the oracle that this is tested
against; see ``other_layouts.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from cache_tools.errors import DamageError, LogitcaskError
from cache_tools.format import layout
from cache_tools.format.manifest import ObjectRecord
from cache_tools.format.zarr_arrays import (
    ABSENT,
    BLOSC_HEADER,
    CHECKSUM_BYTES,
    ArrayLayout,
    read_index,
    read_layout,
    refuse_header,
    without_checksum,
)
from cache_tools.storage import Span, StorePath, read_object, read_spans
from cache_tools.store.other_layouts import read_with_zarr

Index = NDArray[np.uint64]


@dataclass(frozen=True)
class StoredArray:
    """One array of a teacher, as its ``zarr.json`` describes it.

    Attributes:
        teacher: The teacher's folder.
        name: Name of the array, its folder below the teacher.
        layout: How it is cut; None if only zarr can read it.
        num_rows: Length of the first axis.
    """

    teacher: StorePath
    name: str
    layout: ArrayLayout | None
    num_rows: int


def open_array(teacher: StorePath, name: str, expected: ArrayLayout) -> StoredArray:
    """Read an array's metadata and compare it with what the manifests promise.

    Raises:
        DamageError: the metadata is missing, damaged or of another shape.
    """
    path = layout.array_metadata_file(teacher, name)
    try:
        stored = read_layout(read_object(path))
    except (OSError, ValueError) as error:
        raise DamageError(
            "the array's metadata is missing or damaged",
            where=path,
            found=f"{type(error).__name__}: {error}",
            fix="Run 'logitcask repair' on the cache",
        ) from error
    if stored is None:
        return StoredArray(teacher, name, None, 0)
    if stored[0] != expected:
        raise DamageError("the array has another shape than the manifests say", where=path, expected=expected)
    return StoredArray(teacher, name, *stored)


def read_shard_rows(
    arrays: list[StoredArray], shard: int, objects: Mapping[str, ObjectRecord], start: int, stop: int
) -> dict[str, NDArray[Any]]:
    """Read rows ``[start, stop)`` of one shard from several arrays.

    Args:
        arrays: What to read.
        shard: Index of the shard; its first row is row 0 here.
        objects: The objects of the shard, by key, as its receipt lists them.
        start: First row within the shard.
        stop: Row behind the last.

    Returns:
        New arrays (stop - start, *row) by name.

    Raises:
        DamageError: an object is missing, truncated or fails a checksum.
        StorageError: the disk or bucket refused.
    """
    direct = [_Object(array, shard, objects) for array in arrays if array.layout]
    where = f"{arrays[0].teacher}, shard {shard}, rows {start} to {stop}"
    try:
        indexes = _read_indexes(direct)
        places = [_chunk_spans(file, index, start, stop) for file, index in zip(direct, indexes, strict=True)]
        contents = iter(_read_whole([span for _, spans in places for span in spans]))
        result = {}
        for file, (numbers, spans) in zip(direct, places, strict=True):
            where = str(file.path)
            result[file.name] = np.empty((stop - start, *file.type.row), file.type.dtype)
            _decode_chunks(file.layout, numbers, [next(contents) for _ in spans], start, result[file.name])
        for array in arrays:
            if array.layout is None:
                result[array.name] = read_with_zarr(array.teacher, array.name, shard, objects, start, stop)
        return result
    except LogitcaskError:
        raise
    except Exception as error:  # damaged bytes make json, zarr and blosc raise many kinds
        raise DamageError(
            "stored bytes cannot be decoded",
            where=where,
            found=f"{type(error).__name__}: {error}",
            fix="Run 'logitcask verify --deep' to see which shards are damaged, 'logitcask repair' to have them redone",
        ) from error


class _Object:
    """One array's object of a shard; its record is None if the shard has only fill values there."""

    def __init__(self, array: StoredArray, shard: int, objects: Mapping[str, ObjectRecord]) -> None:
        assert array.layout is not None
        self.name, self.layout, self.type = array.name, array.layout, array.layout.type
        key = layout.shard_key(array.name, shard, 1 + len(self.type.row))
        self.path, self.record = array.teacher / key, objects.get(key)
        self.identity = (f"{array.teacher}/{key}", self.record.sha256 if self.record else "")


_indexes: dict[tuple[str, str], Index] = {}
"""Indexes read so far, by place and hash of their object: an untrusted cache may claim another's hash."""

INDEXES_IN_MEMORY = 1024

OVERHEAD_BYTES = BLOSC_HEADER.size + CHECKSUM_BYTES
"""What the largest encoded chunk has besides its values: blosc copies them if they do not shrink."""


def _read_indexes(objects: list[_Object]) -> list[Index | None]:
    """Return the index of each object, (inner chunks, 2) uint64, or None where there is no object."""
    stored = {file.identity: file for file in objects if file.record}
    indexes = {identity: index for identity in stored if (index := _indexes.get(identity)) is not None}
    unread = [file for identity, file in stored.items() if identity not in indexes]
    spans = [Span(file.path, _index_start(file), file.record.bytes) for file in unread if file.record]
    fresh = {
        file.identity: read_index(content, span.start)
        for file, span, content in zip(unread, spans, _read_whole(spans), strict=True)
    }
    if len(_indexes) + len(fresh) > INDEXES_IN_MEMORY:
        _indexes.clear()
    _indexes.update(fresh)
    indexes |= fresh
    return [indexes[file.identity] if file.record else None for file in objects]


def _read_whole(spans: list[Span]) -> list[bytes]:
    """Read spans of which every byte must be there; the checksum of no bytes at all would hold."""
    contents = read_spans(spans)
    if any(len(content) != span.stop - span.start for content, span in zip(contents, spans, strict=True)):
        raise ValueError("the object is shorter than its receipt says")
    return contents


def _index_start(file: _Object) -> int:
    assert file.record is not None
    start = file.record.bytes - file.layout.index_bytes
    if start < 0:
        raise ValueError("the object is too short for its index")
    return start


def _chunk_spans(file: _Object, index: Index | None, start: int, stop: int) -> tuple[list[int], list[Span]]:
    """Return the numbers of the stored inner chunks that hold rows [start, stop), and where their bytes lie."""
    if index is None or start == stop:
        return [], []
    first, last = start // file.layout.chunk_rows, (stop - 1) // file.layout.chunk_rows
    numbers = range(first * file.layout.column_chunks, (last + 1) * file.layout.column_chunks)
    stored = [number for number in numbers if index[number, 0] != ABSENT]
    spans = []
    for number in stored:
        offset, size = (int(value) for value in index[number])
        if size > file.layout.chunk_bytes + OVERHEAD_BYTES:
            raise ValueError("a chunk is larger than its values")
        spans.append(Span(file.path, offset, offset + size))
    return stored, spans


def _decode_chunks(cut: ArrayLayout, numbers: list[int], encoded: list[bytes], start: int, rows: NDArray[Any]) -> None:
    """Check and decompress inner chunks into ``rows``, whose first row is row ``start`` of the shard."""
    present = -(-(start + len(rows)) // cut.chunk_rows) - start // cut.chunk_rows
    if len(numbers) < present * cut.column_chunks:
        rows[...] = 0
    for number, content in zip(numbers, encoded, strict=True):
        chunk, column = divmod(number, cut.column_chunks)
        begin = max(chunk * cut.chunk_rows, start)
        end = min((chunk + 1) * cut.chunk_rows, start + len(rows))
        target = rows[(slice(begin - start, end - start), *cut.columns(column))]
        packed = without_checksum(content)
        refuse_header(packed, cut.typesizes, cut.chunk_bytes)
        if target.flags.c_contiguous and target.shape == (cut.chunk_rows, *cut.chunk_row):
            blosc.decompress(packed, dest=target)
        else:
            whole = np.empty((cut.chunk_rows, *cut.chunk_row), dtype=cut.type.dtype)
            blosc.decompress(packed, dest=whole)
            part = whole[begin - chunk * cut.chunk_rows : end - chunk * cut.chunk_rows]
            target[...] = part[(slice(None), *(slice(0, size) for size in target.shape[1:]))]
