"""A teacher's arrays: plain sharded Zarr v3, one object per shard and array.

Shard i owns rows ``[i * P, (i + 1) * P)``. Only whole shards are written, each by one
worker, so no two writers ever touch one object and none needs a lock. Rows that a shard
does not use hold the fill value 0, and a chunk of nothing else is not stored.

Core codecs only (blosc with zstd, crc32c, sharding): any Zarr v3 reader opens them. The
objects are put together here rather than by zarr-python, to the same bytes (but chunks of
columns lie in the order of the index, not in Morton order), because one shard is then one
buffer: hashed, written and uploaded without being read again, on any store, at twice the
speed. zarr-python is the oracle in the tests.

Layout of a shard's object: encoded inner chunks; then one (offset, bytes) pair of
little-endian uint64 per inner chunk, all ones for a chunk of fill values; then the
index's crc32c. An encoded chunk ends with its own crc32c.

A checksum proves only that somebody wrote these bytes. Blosc believes what a chunk's header states, and would read and
write beyond its buffers. So ``refuse_header`` and ``read_index`` compare headers with the layout first.
"""

import json
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.blosc import Blosc
from numpy.typing import NDArray

from cache_tools.format.manifest import KEY
from cache_tools.format.sealed import UNSEALED, read_sealed, sealed_bytes
from cache_tools.limits import TOTAL
from cache_tools.mappings import Arguments

CHECKSUM_BYTES = 4
ABSENT = 2**64 - 1
"""Offset and length of an inner chunk that holds nothing but fill values."""

BLOSC_HEADER = struct.Struct("<BBBBIII")
"""Format version, codec's version, flags, size of a value; then bytes unpacked, bytes of a block, bytes packed."""

BLOSC_FORMAT = 2
LARGEST_VALUE = 255
"""Bytes of a value that blosc's header can state."""

BLOSC_COPIED = 0x02
"""Flag of a chunk whose values follow the header uncompressed."""

THREADS = min(8, os.cpu_count() or 1)
"""Chunks compressed or decoded side by side; blosc and numpy leave the interpreter's lock meanwhile."""


@dataclass(frozen=True)
class ArrayType:
    """What one array holds.

    Attributes:
        row: Shape of one row: () or (width,).
        dtype: Type of its values.
        level: Level of zstd inside blosc; a choice of the writer that no reader needs.
        chunk_columns: Columns per inner chunk; None for whole rows.
        by_column: Bytes are compressed column after column, for columns that are unlike one another; a choice of the
            writer, too. Blosc's shuffle does it when a row counts as one value, which takes rows of at most 255 bytes.
    """

    row: tuple[int, ...]
    dtype: np.dtype[Any]
    level: int = field(default=6, compare=False)
    chunk_columns: int | None = None
    by_column: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class ArrayLayout:
    """How one array is cut into objects and inner chunks.

    Attributes:
        type: Row shape and dtype.
        shard_rows: Rows per object, a multiple of ``chunk_rows``.
        chunk_rows: Rows per inner chunk.
    """

    type: ArrayType
    shard_rows: int
    chunk_rows: int

    @cached_property
    def chunk_row(self) -> tuple[int, ...]:
        """Shape of one row of an inner chunk."""
        return tuple(min(width, self.type.chunk_columns or width) for width in self.type.row)

    @cached_property
    def column_chunks(self) -> int:
        """Inner chunks side by side."""
        return prod(-(-width // part) for width, part in zip(self.type.row, self.chunk_row, strict=True))

    @cached_property
    def _blosc(self) -> Arguments:
        """Parameters of the compressor; a chunk of columns is one block, which is 1 % smaller than blosc's choice."""
        row_bytes = prod(self.chunk_row) * self.type.dtype.itemsize
        size = row_bytes if self.type.by_column and row_bytes <= LARGEST_VALUE else self.type.dtype.itemsize
        block = self.chunk_bytes if self.type.chunk_columns else 0
        return {"typesize": size, "cname": "zstd", "clevel": self.type.level, "shuffle": "shuffle", "blocksize": block}

    @cached_property
    def chunk_bytes(self) -> int:
        """Size of an inner chunk, unpacked."""
        return self.chunk_rows * prod(self.chunk_row) * self.type.dtype.itemsize

    @cached_property
    def typesizes(self) -> tuple[int, ...]:
        """What a chunk's header may state as the bytes of a value: those of a number, or of a row."""
        return self.type.dtype.itemsize, prod(self.chunk_row) * self.type.dtype.itemsize

    @property
    def num_chunks(self) -> int:
        """Inner chunks of an object."""
        return self.shard_rows // self.chunk_rows * self.column_chunks

    @property
    def index_bytes(self) -> int:
        """Size of the index at the end of an object, its checksum included."""
        return 16 * self.num_chunks + CHECKSUM_BYTES

    def columns(self, number: int) -> tuple[slice, ...]:
        """Return the columns that the ``number``-th inner chunk of a row of chunks holds."""
        return tuple(slice(number * part, (number + 1) * part) for part in self.chunk_row)

    def metadata(self, num_rows: int) -> bytes:
        """Return the array's ``zarr.json`` for a first axis of ``num_rows``."""
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        single = {"name": "bytes"} if self.type.dtype.itemsize == 1 else little
        codecs = [single, {"name": "blosc", "configuration": self._blosc}, {"name": "crc32c"}]
        sharding = {
            "chunk_shape": [self.chunk_rows, *self.chunk_row],
            "codecs": codecs,
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        }
        grid = {"chunk_shape": [self.shard_rows, *(part * n for part, n in self._grid())]}
        document = {
            "shape": [num_rows, *self.type.row],
            "data_type": self.type.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": grid},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0.0 if self.type.dtype.kind == "f" else 0,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {KEY: {"seal": UNSEALED}},
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }
        return sealed_bytes(document)

    def _grid(self) -> Iterator[tuple[int, int]]:
        """Yield (width of an inner chunk, how many) for each axis but the first."""
        for width, part in zip(self.type.row, self.chunk_row, strict=True):
            yield part, -(-width // part)

    def encode(self, rows: NDArray[Any]) -> bytes:
        """Return the object of one shard; empty if all is fill value, for then there is no object.

        Args:
            rows: The shard's first ``len(rows)`` rows, at most ``shard_rows`` of them.
        """
        with ThreadPoolExecutor(THREADS) as pool:
            chunks = list(pool.map(self._encode_chunk, self._chunks(rows)))
        if not any(chunks):
            return b""
        sizes = np.array([len(chunk) for chunk in chunks] + [0] * (self.num_chunks - len(chunks)), dtype="<u8")
        index = np.stack([np.cumsum(sizes) - sizes, sizes], axis=1)
        index[sizes == 0] = ABSENT
        return b"".join([*chunks, _with_checksum(index.tobytes())])

    def _chunks(self, rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """Yield inner chunks in the order of the index, up to the last row used."""
        for start in range(0, len(rows), self.chunk_rows):
            part = rows[start : start + self.chunk_rows]
            for number in range(self.column_chunks):
                columns = part[(slice(None), *self.columns(number))]
                if columns.shape == (self.chunk_rows, *self.chunk_row):
                    yield columns
                else:
                    padded = np.zeros((self.chunk_rows, *self.chunk_row), dtype=self.type.dtype)
                    padded[tuple(slice(0, size) for size in columns.shape)] = columns
                    yield padded

    def _encode_chunk(self, chunk: NDArray[Any]) -> bytes:
        """Compress one inner chunk; empty if it is all fill value."""
        if not chunk.any():
            return b""
        content = np.ascontiguousarray(chunk, dtype=self.type.dtype.newbyteorder("<"))
        parameters = self._blosc
        content = content.view(f"V{parameters['typesize']}") if self.type.by_column else content
        blosc = Blosc(parameters["cname"], parameters["clevel"], Blosc.SHUFFLE, parameters["blocksize"])
        return _with_checksum(bytes(blosc.encode(content)))


def read_layout(metadata: bytes) -> tuple[ArrayLayout, int] | None:
    """Return the layout and the number of rows that a ``zarr.json`` states, or None if only zarr can read it.

    Raises:
        ValueError: the metadata is damaged.
    """
    stated = read_sealed(metadata)
    try:
        return _layout_of(stated)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _layout_of(stated: Any) -> tuple[ArrayLayout, int] | None:
    sharding = stated["codecs"][0].get("configuration", {})
    shape, dtype = axis_sizes(stated["shape"]), np.dtype(str(stated["data_type"]))
    inner = axis_sizes(sharding.get("chunk_shape", [0]))
    row = tuple(shape[1:])
    if 0 in row:
        raise ValueError("a row of an array holds no value")
    columns = inner[1] if row and inner[1] < row[0] else None
    kind = ArrayType(row, dtype, chunk_columns=columns)
    layout = ArrayLayout(kind, axis_sizes(stated["chunk_grid"]["configuration"]["chunk_shape"])[0], inner[0])
    ours = json.loads(layout.metadata(shape[0])) if layout.chunk_rows else {}
    for document in (stated, ours):  # parameters of blosc stand in each chunk, too, and may vary
        document.pop("attributes", None)
        for codec in document["codecs"][0]["configuration"].get("codecs", []) if document else []:
            if codec["name"] == "blosc":
                codec.pop("configuration")
    return (layout, shape[0]) if stated == ours else None


def axis_sizes(stated: Any) -> list[int]:
    """Return the lengths of one or two axes.

    Raises:
        ValueError: they are something else.
    """
    axes = isinstance(stated, list) and 1 <= len(stated) <= 2
    if not axes or any(type(size) is not int or not 0 <= size <= TOTAL for size in stated):
        raise ValueError("an array has one or two axes, each of zero or more values")
    return list(stated)


def _with_checksum(content: bytes) -> bytes:
    return content + int(google_crc32c.value(content)).to_bytes(CHECKSUM_BYTES, "little")


def refuse_header(packed: bytes, typesizes: tuple[int, ...], unpacked_bytes: int) -> None:
    """Raise ValueError unless a chunk's blosc header states the sizes that its array has.

    Args:
        packed: The chunk without its crc32c.
        typesizes: What it may state as the bytes of a value: those of a number, or of a row.
        unpacked_bytes: Bytes of the inner chunk.
    """
    if len(packed) < BLOSC_HEADER.size:
        raise ValueError("a chunk is too short for its header")
    version, _, flags, size, unpacked, block, length = BLOSC_HEADER.unpack_from(packed)
    if version != BLOSC_FORMAT or size not in typesizes or unpacked != unpacked_bytes or length != len(packed):
        raise ValueError("a chunk's header states other sizes than the array has")
    if not 0 < block <= unpacked or (flags & BLOSC_COPIED and length != unpacked + BLOSC_HEADER.size):
        raise ValueError("a chunk's header contradicts itself")


def read_index(content: bytes, end: int) -> NDArray[np.uint64]:
    """Return the index of an object, (inner chunks, 2) uint64: offset and bytes of each, ABSENT in both or neither.

    Args:
        content: The index with its crc32c.
        end: Where the chunks end and the index begins.

    Raises:
        ValueError: the crc32c is wrong, or chunks overlap or lie outside the object.
    """
    index = np.frombuffer(without_checksum(content), dtype="<u8").reshape(-1, 2)
    absent = index == np.uint64(ABSENT)
    if (absent[:, 0] != absent[:, 1]).any():
        raise ValueError("a chunk has a place or a size, but not both")
    stored = index[~absent[:, 0]]
    offsets, sizes = stored[np.argsort(stored[:, 0], kind="stable")].T
    if (offsets > end).any() or (sizes > end).any() or (sizes <= CHECKSUM_BYTES).any():
        raise ValueError("a chunk lies outside its object")
    ends = offsets + sizes
    if (ends > end).any() or (ends[:-1] > offsets[1:]).any():
        raise ValueError("a chunk lies outside its object, or in another chunk")
    return index


def without_checksum(content: bytes) -> bytes:
    """Return the content without its trailing crc32c.

    Raises:
        ValueError: the crc32c is wrong.
    """
    body = content[:-CHECKSUM_BYTES]
    if google_crc32c.value(body) != int.from_bytes(content[-CHECKSUM_BYTES:], "little"):
        raise ValueError("crc32c does not match")
    return body
