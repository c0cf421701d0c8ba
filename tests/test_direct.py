"""The direct reader against its oracle, zarr, and its refusal of damaged objects."""

import json

import numpy as np
import pytest
import zarr

from cache_tools.arrays import create_arrays, write_shard
from cache_tools.direct import read_plan, read_rows, read_rows_directly
from cache_tools.errors import DamageError

CHUNK, SHARD, SHARDS = 8, 32, 3
TYPES = {
    "bytes": ((5,), np.dtype(np.uint8)),
    "shorts": ((3,), np.dtype(np.uint16)),
    "scalars": ((), np.dtype(np.int32)),
    "states": ((4,), np.dtype(np.float32)),
}


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """Three shards: full, half used, without an object."""
    folder = tmp_path_factory.mktemp("arrays")
    create_arrays(folder, TYPES, SHARDS, SHARD, CHUNK)
    rng = np.random.default_rng(0)
    for name, (row, dtype) in TYPES.items():
        write_shard(folder, name, 0, rng.integers(0, 100, (SHARD, *row)).astype(dtype))
        write_shard(folder, name, 1, rng.integers(0, 100, (SHARD // 2 - 3, *row)).astype(dtype))
    return folder


@pytest.mark.parametrize("name", TYPES)
def test_every_window_equals_what_zarr_reads(arrays, name):
    oracle = zarr.open_array(arrays / name, mode="r")[:]
    plan = read_plan(arrays / name)
    assert plan is not None
    for start in range(0, SHARD * SHARDS, 3):
        for stop in range(start, SHARD * SHARDS + 1, 5):
            found = read_rows_directly(plan, start, stop)
            assert found.dtype == oracle.dtype
            assert np.array_equal(found, oracle[start:stop])


@pytest.mark.parametrize(("start", "stop"), [(-1, 4), (0, SHARD * SHARDS + 1), (9, 8)])
def test_refuses_rows_that_do_not_exist(arrays, start, stop):
    with pytest.raises(DamageError, match=r"scalars, rows"):
        read_rows(arrays, "scalars", start, stop)


@pytest.mark.parametrize("change", ["gzip", "big-endian", "fill value", "column chunks"])
def test_leaves_arrays_of_another_layout_to_zarr(tmp_path, change):
    options = {"shape": (64, 4), "shards": (32, 4), "chunks": (8, 4), "dtype": "uint16", "fill_value": 0}
    options |= {
        "gzip": {"compressors": [zarr.codecs.GzipCodec()]},
        "big-endian": {"serializer": zarr.codecs.BytesCodec(endian="big")},
        "fill value": {"fill_value": 7},
        "column chunks": {"chunks": (8, 2)},
    }[change]
    written = np.arange(256, dtype=np.uint16).reshape(64, 4)
    zarr.create_array(store=tmp_path / "other", **options)[:] = written
    assert read_plan(tmp_path / "other") is None
    assert np.array_equal(read_rows(tmp_path, "other", 3, 50), written[3:50])


def test_every_flipped_bit_of_an_object_is_refused_or_harmless(arrays):
    path = arrays / "shorts" / "c" / "0" / "0"
    original = path.read_bytes()
    expected = read_rows(arrays, "shorts", 0, SHARD)
    refused = 0
    try:
        for bit in range(len(original) * 8):
            damaged = bytearray(original)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bytes(damaged))
            try:
                assert np.array_equal(read_rows(arrays, "shorts", 0, SHARD), expected)
            except DamageError:
                refused += 1
    finally:
        path.write_bytes(original)
    assert refused == len(original) * 8  # crc32c covers every byte of chunks and index


@pytest.mark.parametrize("keep", [0, 3, 40, -1])
def test_a_truncated_object_is_refused(arrays, keep):
    path = arrays / "bytes" / "c" / "1" / "0"
    original = path.read_bytes()
    path.write_bytes(original[:keep])
    try:
        with pytest.raises(DamageError, match="stored bytes cannot be decoded"):
            read_rows(arrays, "bytes", SHARD, SHARD + 4)
    finally:
        path.write_bytes(original)


def test_a_changed_layout_is_noticed(arrays):
    plan = read_plan(arrays / "scalars")
    metadata = json.loads((arrays / "scalars" / "zarr.json").read_text())
    (arrays / "scalars" / "zarr.json").write_text(json.dumps(metadata | {"shape": [SHARD * 5]}))
    assert read_plan(arrays / "scalars").num_rows == SHARD * 5 != plan.num_rows
