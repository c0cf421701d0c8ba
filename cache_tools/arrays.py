"""A teacher's arrays: plain sharded Zarr v3, one object per shard and array.

Shard i owns rows ``[i * P, (i + 1) * P)``. Only whole shards are written, each by one
worker, so no two writers ever touch one object and none needs a lock; zarr's local store
writes an object under a temporary name and renames it. Rows that a shard does not use
hold the fill value 0, and a chunk of nothing else is not stored.

Core codecs only (blosc with zstd, crc32c, sharding): any Zarr v3 reader opens them. This is
the only module that imports zarr; ``direct.py`` reads without it.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.errors import ContainsArrayError

from cache_tools import layout
from cache_tools.files import remove_partial, storage_errors

Types = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Array name to (shape of one row, dtype)."""


def _blosc(dtype: np.dtype[Any]) -> BloscCodec:
    """Return the compressor: on real rows level 1 is smallest for single bytes, level 6 the knee for wider types."""
    level = 1 if dtype.itemsize == 1 else 6
    return BloscCodec(cname="zstd", clevel=level, shuffle="shuffle", typesize=dtype.itemsize)


def create_arrays(teacher: Path, types: Types, num_shards: int, shard_rows: int, chunk_rows: int) -> None:
    """Write the metadata of every array that does not exist yet; any worker may call this.

    Args:
        teacher: The teacher's folder.
        types: Row shape and dtype by array name.
        num_shards: Shards of the encoding; the axis is ``num_shards * shard_rows`` long.
        shard_rows: Positions per shard, a multiple of ``chunk_rows``.
        chunk_rows: Positions per inner chunk.
    """
    for name, (row, dtype) in types.items():
        with storage_errors(teacher / name), suppress(ContainsArrayError):
            zarr.create_array(
                store=teacher / name,
                shape=(num_shards * shard_rows, *row),
                shards=(shard_rows, *row),
                chunks=(chunk_rows, *row),
                dtype=dtype,
                fill_value=0,
                filters=None,
                compressors=[_blosc(dtype), Crc32cCodec()],
            )


def write_shard(teacher: Path, name: str, shard: int, rows: NDArray[Any]) -> str:
    """Write the rows of one shard and return the key of the object, relative to the teacher.

    Args:
        teacher: The teacher's folder.
        name: Array name.
        shard: Shard index.
        rows: The shard's first ``len(rows)`` rows, at most P of them.
    """
    array = zarr.open_array(teacher / name, mode="r+")
    shard_rows = _shard_rows(array)
    padded = np.zeros((shard_rows, *array.shape[1:]), dtype=array.dtype)
    padded[: len(rows)] = rows
    key = layout.shard_object(name, shard, array.ndim)
    remove_partial(teacher / key)
    with storage_errors(teacher / key):
        array[shard * shard_rows : (shard + 1) * shard_rows] = padded
    return key


def read_rows_with_zarr(array: Path, start: int, stop: int) -> NDArray[Any]:
    """Read rows ``[start, stop)`` of an array with any codecs that zarr knows."""
    rows: NDArray[Any] = np.asarray(zarr.open_array(array, mode="r")[start:stop])
    return rows


def _shard_rows(array: "zarr.Array[Any]") -> int:
    assert array.shards is not None
    return int(array.shards[0])
