"""Arrays that the direct reader does not know, through zarr: other codecs, another byte order or fill value.

zarr-python unpacks whatever bytes it is given, and its codecs believe what these state: a gzip of a megabyte may become
a gigabyte, a blosc header may lead beyond a buffer. So an object's chunks are found by its index and each is unpacked
here first, no further than the chunk's own size; only then zarr reads the object, from memory. An array that is not
sharded, or has a codec that is not listed here, is refused. Twice the work, for caches that nothing of ours writes.
"""

import zlib
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import FormatError
from cache_tools.format import layout
from cache_tools.format.manifest import ObjectRecord
from cache_tools.format.sealed import parse_json
from cache_tools.format.zarr_arrays import (
    ABSENT,
    CHECKSUM_BYTES,
    axis_sizes,
    read_index,
    refuse_header,
    without_checksum,
)
from cache_tools.limits import CHUNK_BYTES
from cache_tools.mappings import JsonObject
from cache_tools.storage import StorePath, read_object

Check = Callable[[bytes, tuple[int, ...], int], None]
"""Checks a chunk without its crc32c, given the bytes that a value may have and those of the chunk, to which it must
unpack; ValueError otherwise."""


def read_with_zarr(
    teacher: StorePath, name: str, shard: int, objects: Mapping[str, ObjectRecord], start: int, stop: int
) -> NDArray[Any]:
    """Read rows ``[start, stop)`` of one shard of an array, from its metadata and the shard's one object.

    Raises:
        FormatError: the array's codecs are not known here.
        ValueError, KeyError, TypeError: metadata or object are not what they should be.
        OSError: there is none.
    """
    import zarr
    from zarr.buffer.cpu import Buffer

    metadata = read_object(teacher / name / layout.MANIFEST)
    array = _Array(parse_json(metadata), teacher / name)
    if (stop - start) * array.row_bytes > 2 * CHUNK_BYTES:
        raise ValueError(f"rows of {array.row_bytes:,} bytes are too large")
    key = layout.shard_key(name, shard, len(array.shape))
    stored = {layout.MANIFEST: metadata}
    if key in objects:
        content = read_object(teacher / key, objects[key].bytes)
        if len(content) != objects[key].bytes:
            raise ValueError("the object is incomplete")
        array.check(content)
        stored[key.removeprefix(f"{name}/")] = content
    memory = zarr.storage.MemoryStore({key: Buffer.from_bytes(content) for key, content in stored.items()})
    opened = zarr.open_array(store=memory, mode="r")
    assert isinstance(opened, zarr.Array)
    first = shard * array.shard[0]
    rows: NDArray[Any] = np.asarray(opened[first + start : first + stop])
    return rows


class _Array:
    """What an array's metadata states of its chunks, as far as these can be checked."""

    def __init__(self, stated: JsonObject, where: StorePath) -> None:
        self.shape, self.dtype = axis_sizes(stated["shape"]), np.dtype(str(stated["data_type"]))
        self.shard = axis_sizes(stated["chunk_grid"]["configuration"]["chunk_shape"])
        self.row_bytes = prod(self.shape[1:]) * self.dtype.itemsize
        sharding = stated["codecs"][0].get("configuration", {})
        outer, chain = _names(stated["codecs"]), _names(sharding.get("codecs", []))
        end = (sharding.get("index_location", "end"), _names(sharding.get("index_codecs", [])))
        compressors = chain[1:-1] if chain[-1:] == ["crc32c"] else chain[1:]
        is_sharded = outer == ["sharding_indexed"] and end == ("end", ["bytes", "crc32c"]) and self.dtype.kind in "iuf"
        if not is_sharded or chain[:1] != ["bytes"] or len(compressors) > 1 or not set(compressors) <= CHECKS.keys():
            raise FormatError(
                "the array has codecs that this reader does not know",
                where=where,
                expected=f"sharding_indexed of numbers: bytes, at most one of {', '.join(CHECKS)}, crc32c or nothing",
                found=", ".join([*outer, *chain]),
                why="the size of what they unpack to is unknown",
            )
        self._checksummed, self._check = chain[-1] == "crc32c", CHECKS[compressors[0]] if compressors else _check_plain
        chunk = axis_sizes(sharding["chunk_shape"])
        self._row_bytes = prod(chunk[1:]) * self.dtype.itemsize
        self._chunk_bytes = prod(chunk) * self.dtype.itemsize
        self._num_chunks = prod(size // part for size, part in zip(self.shard, chunk, strict=True))
        if self._chunk_bytes > CHUNK_BYTES:
            raise ValueError(f"chunks of {self._chunk_bytes:,} bytes are too large")

    def check(self, content: bytes) -> None:
        """Unpack every chunk of an object, one at a time and none beyond its size.

        Raises:
            ValueError: a chunk is damaged, or is another size than it should be.
        """
        end = len(content) - 16 * self._num_chunks - CHECKSUM_BYTES
        if end < 0:
            raise ValueError("the object is too short for its index")
        index = read_index(content[end:], end)
        for offset, size in index[index[:, 0] != np.uint64(ABSENT)].tolist():
            chunk = content[offset : offset + size]
            packed = without_checksum(chunk) if self._checksummed else chunk
            self._check(packed, (self.dtype.itemsize, self._row_bytes), self._chunk_bytes)


def _names(codecs: Any) -> list[str]:
    return [str(codec["name"]) for codec in codecs]


def _check_plain(packed: bytes, typesizes: tuple[int, ...], chunk_bytes: int) -> None:
    if len(packed) != chunk_bytes:
        raise ValueError("a chunk has another size than its values")


def _check_gzip(packed: bytes, typesizes: tuple[int, ...], chunk_bytes: int) -> None:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        _check_plain(unpacker.decompress(packed, chunk_bytes + 1), typesizes, chunk_bytes)
    except zlib.error as error:
        raise ValueError(f"a chunk cannot be unpacked: {error}") from error
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("a chunk has bytes after its values")


def _check_zstd(packed: bytes, typesizes: tuple[int, ...], chunk_bytes: int) -> None:
    import pyarrow as pa

    try:
        pa.Codec("zstd").decompress(packed, chunk_bytes)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"a chunk cannot be unpacked: {error}") from error


CHECKS: dict[str, Check] = {"blosc": refuse_header, "gzip": _check_gzip, "zstd": _check_zstd}
