"""Objects and metadata of arrays against their oracle: the bytes that zarr-python writes for the same rows."""

import itertools

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from cache_tools.format.sealed import read_sealed
from cache_tools.format.zarr_arrays import ABSENT, CHECKSUM_BYTES, ArrayLayout, ArrayType, read_layout

CHUNK, SHARD, SHARDS = 8, 32, 3
TYPES = {
    "bytes": ArrayType((5,), np.dtype(np.uint8)),
    "shorts": ArrayType((3,), np.dtype(np.uint16)),
    "scalars": ArrayType((), np.dtype(np.int32)),
    "states": ArrayType((4,), np.dtype(np.float32)),
    "columns": ArrayType((10,), np.dtype(np.uint16), chunk_columns=4),
}
DTYPES = [np.uint8, np.uint16, np.int32, np.float32]
ROWS = [(), (5,), (40,)]
COLUMNS = [None, 4, 64]


def random_rows(kind, num_rows, seed=0):
    """Return rows that compress, without a chunk of zeros."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, 100, (num_rows, *kind.row)).astype(kind.dtype)


def written_by_zarr(folder, cut, rows, num_rows):
    """Write rows as the first of an array with zarr-python; return the first object, empty if there is none."""
    metadata = read_sealed(cut.metadata(num_rows))
    sharding = metadata["codecs"][0]["configuration"]
    blosc = sharding["codecs"][1]["configuration"]
    array = zarr.create_array(
        store=folder,
        shape=metadata["shape"],
        dtype=metadata["data_type"],
        shards=metadata["chunk_grid"]["configuration"]["chunk_shape"],
        chunks=sharding["chunk_shape"],
        compressors=[BloscCodec(**blosc), Crc32cCodec()],
        fill_value=0,
    )
    array[: len(rows)] = rows
    path = folder / "/".join(["c", *["0"] * rows.ndim])
    return path.read_bytes() if path.exists() else b""


LAYOUTS = [
    ArrayLayout(ArrayType(row, np.dtype(dtype), chunk_columns=columns), SHARD, CHUNK)
    for dtype, row, columns in itertools.product(DTYPES, ROWS, COLUMNS)
    if row or columns is None
]


def assert_as_zarr_writes(content, by_zarr, cut):
    """Check that two objects are the same bytes; zarr puts chunks of columns in Morton order, so they may be moved."""
    if cut.column_chunks == 1:
        assert content == by_zarr
    assert len(content) == len(by_zarr)
    assert stored_chunks(content, cut) == stored_chunks(by_zarr, cut)


def stored_chunks(content, cut):
    """Return the bytes of every inner chunk of an object, None for one that is left out."""
    if not content:
        return []
    index = np.frombuffer(content[-cut.index_bytes : -CHECKSUM_BYTES], dtype="<u8").reshape(-1, 2).tolist()
    return [None if offset == ABSENT else content[offset : offset + size] for offset, size in index]


def name_of(cut):
    return f"{cut.type.dtype}-{cut.type.row}-{cut.type.chunk_columns}"


@pytest.mark.parametrize("cut", LAYOUTS, ids=name_of)
@pytest.mark.parametrize("num_rows", [SHARD, SHARD - 3, CHUNK, 1])
def test_an_object_has_the_bytes_that_zarr_writes(tmp_path, cut, num_rows):
    rows = random_rows(cut.type, num_rows)
    assert_as_zarr_writes(cut.encode(rows), written_by_zarr(tmp_path, cut, rows, SHARD * SHARDS), cut)


@pytest.mark.parametrize("cut", LAYOUTS, ids=name_of)
@pytest.mark.parametrize("zero", [slice(0, CHUNK), slice(CHUNK, 2 * CHUNK), slice(CHUNK, SHARD), slice(0, SHARD)])
def test_chunks_of_fill_values_are_left_out_as_zarr_leaves_them_out(tmp_path, cut, zero):
    rows = random_rows(cut.type, SHARD)
    rows[zero] = 0
    content = cut.encode(rows)
    assert_as_zarr_writes(content, written_by_zarr(tmp_path, cut, rows, SHARD * SHARDS), cut)
    assert bool(content) == bool(rows.any())


@pytest.mark.parametrize("cut", LAYOUTS, ids=name_of)
def test_columns_of_fill_values_are_left_out_as_zarr_leaves_them_out(tmp_path, cut):
    rows = random_rows(cut.type, SHARD)
    rows.reshape(SHARD, -1)[:, :4] = 0
    assert_as_zarr_writes(cut.encode(rows), written_by_zarr(tmp_path, cut, rows, SHARD * SHARDS), cut)


def test_a_shard_without_rows_has_no_object():
    cut = ArrayLayout(TYPES["shorts"], SHARD, CHUNK)
    assert cut.encode(random_rows(cut.type, 0)) == b""


@pytest.mark.parametrize("cut", LAYOUTS, ids=name_of)
def test_zarr_reads_objects_and_metadata(tmp_path, cut):
    rows = random_rows(cut.type, SHARD - 3)
    (tmp_path / "zarr.json").write_bytes(cut.metadata(SHARD * SHARDS))
    path = tmp_path / "/".join(["c", "1", *["0"] * (rows.ndim - 1)])
    path.parent.mkdir(parents=True)
    path.write_bytes(cut.encode(rows))
    array = zarr.open_array(tmp_path, mode="r")
    assert (array.shape, array.dtype) == ((SHARD * SHARDS, *cut.type.row), cut.type.dtype)
    assert np.array_equal(array[SHARD : SHARD + len(rows)], rows)
    assert not array[:SHARD].any()
    assert not array[SHARD + len(rows) :].any()


@pytest.mark.parametrize("cut", LAYOUTS, ids=name_of)
def test_a_layout_comes_back_from_its_metadata(cut):
    found, num_rows = read_layout(cut.metadata(SHARD * SHARDS))
    assert num_rows == SHARD * SHARDS
    assert (found.chunk_row, found.shard_rows, found.chunk_rows) == (cut.chunk_row, SHARD, CHUNK)
    assert (found.type.row, found.type.dtype) == (cut.type.row, cut.type.dtype)


@pytest.mark.parametrize("keep", [0, -1])
def test_damaged_metadata_is_never_a_layout(keep):
    with pytest.raises(ValueError, match=r"."):
        read_layout(ArrayLayout(TYPES["shorts"], SHARD, CHUNK).metadata(SHARD)[:keep])
