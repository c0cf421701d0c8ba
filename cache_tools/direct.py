"""A direct reader of the sharded arrays that ``arrays.py`` writes: the fast path of reading.

zarr-python spends about 2.4 ms a chunk on its own machinery; a shuffled student reads many
small windows. This module knows one chain of codecs, the one of FORMAT.md: it maps the
shard's object into memory, looks up the inner chunks in the index at its end, checks each
chunk's crc32c and lets blosc decompress straight into the result.

An array with any other codecs, order or data type is left to zarr, which is also the
oracle that this is tested against.

Layout of a shard's object: encoded inner chunks in any order; then one (offset, bytes) pair
of little-endian uint64 per inner chunk, all ones for a chunk of fill values; then the
index's crc32c, 4 bytes. An encoded chunk ends with its own crc32c.
"""

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from cache_tools.errors import DamageError

CHECKSUM_BYTES = 4
ABSENT = 2**64 - 1
"""Offset and length of an inner chunk that holds nothing but fill values."""


@dataclass(frozen=True)
class ReadPlan:
    """What must be known of an array to read it directly.

    Attributes:
        folder: The array's folder.
        row_shape: Shape of one row.
        dtype: Little-endian type of the values.
        shard_rows: Rows per object.
        chunk_rows: Rows per inner chunk.
        num_rows: Length of the first axis.
    """

    folder: Path
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    shard_rows: int
    chunk_rows: int
    num_rows: int

    def object_path(self, shard: int) -> Path:
        """Return the path of a shard's object."""
        return self.folder.joinpath("c", str(shard), *["0"] * len(self.row_shape))


@lru_cache(maxsize=256)
def _cached_plan(folder: Path, _changed_ns: int) -> ReadPlan | None:
    metadata = json.loads((folder / "zarr.json").read_bytes())
    codecs = metadata.get("codecs", [])
    if len(codecs) != 1 or codecs[0].get("name") != "sharding_indexed" or metadata.get("fill_value") != 0:
        return None
    sharding = codecs[0]["configuration"]
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    inner = [codec["name"] for codec in sharding["codecs"]]
    known = (
        inner == ["bytes", "blosc", "crc32c"]
        and sharding["codecs"][0].get("configuration") in (None, little["configuration"])
        and sharding["index_codecs"] == [little, {"name": "crc32c"}]
        and sharding.get("index_location", "end") == "end"
        and metadata["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
        and metadata["data_type"] in ("uint8", "uint16", "int32", "float32")
    )
    if not known:
        return None
    shard_shape = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    shape = metadata["shape"]
    if shard_shape[1:] != shape[1:] or sharding["chunk_shape"][1:] != shape[1:]:
        return None
    dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
    return ReadPlan(folder, tuple(shape[1:]), dtype, shard_shape[0], sharding["chunk_shape"][0], shape[0])


def read_rows(teacher: Path, name: str, start: int, stop: int) -> NDArray[Any]:
    """Read rows ``[start, stop)`` of a teacher's array, directly if possible, else with zarr.

    Raises:
        DamageError: an object is truncated or fails its checksum.
    """
    try:
        plan = read_plan(teacher / name)
        if plan is not None:
            return read_rows_directly(plan, start, stop)
        from cache_tools.arrays import read_rows_with_zarr

        return read_rows_with_zarr(teacher / name, start, stop)
    except Exception as error:  # damaged bytes make json, zarr and blosc raise many kinds
        raise DamageError(
            "stored bytes cannot be decoded",
            where=f"{teacher / name}, rows {start} to {stop}",
            found=f"{type(error).__name__}: {error}",
            fix="Run 'logitcask verify --deep' on the cache to see which shards are damaged",
        ) from error


def read_plan(folder: Path) -> ReadPlan | None:
    """Return how to read an array directly, or None if only zarr can.

    Raises:
        OSError: the array has no metadata.
        ValueError, KeyError: its metadata is damaged.
    """
    return _cached_plan(folder, (folder / "zarr.json").stat().st_mtime_ns)


def read_rows_directly(plan: ReadPlan, start: int, stop: int) -> NDArray[Any]:
    """Read rows ``[start, stop)``; those of a shard without an object are the fill value, 0.

    Returns:
        A new array (stop - start, *row_shape).

    Raises:
        OSError: an object cannot be read.
        ValueError: a checksum, size or bound is wrong.
    """
    if not 0 <= start <= stop <= plan.num_rows:
        raise ValueError(f"rows {start} to {stop} of {plan.num_rows}")
    result = np.empty((stop - start, *plan.row_shape), dtype=plan.dtype)
    for shard in range(start // plan.shard_rows, -(-stop // plan.shard_rows)):
        first, path = shard * plan.shard_rows, plan.object_path(shard)
        begin, end = max(start, first), min(stop, first + plan.shard_rows)
        if not path.exists():
            result[begin - start : end - start] = 0
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _read_shard(plan, memoryview(content), first, begin, end, result[begin - start : end - start])
    return result


def _read_shard(plan: ReadPlan, content: memoryview, first: int, start: int, stop: int, result: NDArray[Any]) -> None:
    """Decode rows [start, stop) of one shard, whose rows begin at ``first``, into ``result``."""
    with content:
        index = _index(plan, content)
        for chunk, begin, end in _overlaps(plan, first, start, stop):
            target = result[begin - start : end - start]
            chunk_start = first + chunk * plan.chunk_rows
            if index[chunk, 0] == ABSENT:
                target[...] = 0
            elif end - begin == plan.chunk_rows:
                _decompress(content, index[chunk], target)
            else:
                whole = np.empty((plan.chunk_rows, *plan.row_shape), dtype=plan.dtype)
                _decompress(content, index[chunk], whole)
                target[...] = whole[begin - chunk_start : end - chunk_start]


def _overlaps(plan: ReadPlan, first: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield (chunk, begin, end): the rows of each inner chunk that lie in [start, stop)."""
    for chunk in range((start - first) // plan.chunk_rows, -(-(stop - first) // plan.chunk_rows)):
        begin = first + chunk * plan.chunk_rows
        yield chunk, max(start, begin), min(stop, begin + plan.chunk_rows)


def _index(plan: ReadPlan, content: memoryview) -> NDArray[np.uint64]:
    """Return the checked index of a shard's object: (chunks, 2) uint64."""
    num_chunks = plan.shard_rows // plan.chunk_rows
    size = num_chunks * 16
    if len(content) < size + CHECKSUM_BYTES:
        raise ValueError("the object is too short for its index")
    with content[-size - CHECKSUM_BYTES :] as tail:
        stored = _checked(tail)
    return np.frombuffer(stored, dtype="<u8").reshape(num_chunks, 2)


def _decompress(content: memoryview, place: NDArray[np.uint64], target: NDArray[Any]) -> None:
    """Check and decompress one encoded chunk into a C-contiguous array of exactly its size."""
    offset, size = (int(value) for value in place)
    if offset + size > len(content) or size <= CHECKSUM_BYTES:
        raise ValueError("a chunk lies outside its object")
    with content[offset : offset + size] as encoded:
        blosc.decompress(_checked(encoded), dest=target)


def _checked(content: memoryview) -> bytes:
    """Return the content without its trailing crc32c, which must be right."""
    stored = bytes(content[:-CHECKSUM_BYTES])
    if google_crc32c.value(stored) != int.from_bytes(content[-CHECKSUM_BYTES:], "little"):
        raise ValueError("crc32c does not match")
    return stored
