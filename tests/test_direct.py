"""The direct reader against its oracle, zarr, and its refusal of damaged objects."""

import json

import numpy as np
import pytest
import zarr
from test_arrays import CHUNK, SHARD, TYPES, random_rows

from cache_tools.errors import DamageError
from cache_tools.format import layout
from cache_tools.format.manifest import KEY, ObjectRecord
from cache_tools.format.sealed import UNSEALED, sealed_bytes
from cache_tools.format.zarr_arrays import ArrayLayout
from cache_tools.storage import write_object
from cache_tools.store import chunk_reader
from cache_tools.store.chunk_reader import open_array, read_shard_rows
from store_fixtures import edit_json, sealed

SHARDS = 4


@pytest.fixture(autouse=True)
def forget_indexes():
    """Let every test read the indexes anew."""
    chunk_reader._indexes.clear()


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """Four shards of every type: full, partly filled, with a chunk of zeros, without an object."""
    folder, objects = tmp_path_factory.mktemp("arrays"), {}
    for name, kind in TYPES.items():
        cut = ArrayLayout(kind, SHARD, CHUNK)
        write_object(layout.array_metadata_file(folder, name), cut.metadata(SHARD * SHARDS))
        gap = random_rows(kind, SHARD)
        gap[CHUNK : 2 * CHUNK] = 0
        for shard, rows in enumerate([random_rows(kind, SHARD), random_rows(kind, SHARD // 2 - 3), gap]):
            key, content = layout.shard_key(name, shard, rows.ndim), cut.encode(rows)
            write_object(folder / key, content)
            objects[key] = ObjectRecord.of(content)
    return folder, objects


def opened(folder, name):
    return open_array(folder, name, ArrayLayout(TYPES[name], SHARD, CHUNK))


def read(arrays, name, shard, start, stop):
    """Return rows of one array as a reader without memory finds them."""
    chunk_reader._indexes.clear()
    return read_shard_rows([opened(arrays[0], name)], shard, arrays[1], start, stop)[name]


def object_of(arrays, name, shard):
    return arrays[0] / layout.shard_key(name, shard, 1 + len(TYPES[name].row))


@pytest.mark.parametrize("name", TYPES)
def test_every_window_equals_what_zarr_reads(arrays, name):
    oracle, array = zarr.open_array(arrays[0] / name, mode="r")[:], opened(arrays[0], name)
    for shard in range(SHARDS):
        for start in range(0, SHARD, 3):
            for stop in range(start, SHARD + 1, 5):
                found = read_shard_rows([array], shard, arrays[1], start, stop)[name]
                assert found.dtype == oracle.dtype
                assert np.array_equal(found, oracle[shard * SHARD + start : shard * SHARD + stop])


def test_several_arrays_are_read_at_once(arrays):
    names = list(TYPES)
    found = read_shard_rows([opened(arrays[0], name) for name in names], 1, arrays[1], 3, 20)
    assert list(found) == names
    for name in names:
        assert np.array_equal(found[name], zarr.open_array(arrays[0] / name, mode="r")[SHARD + 3 : SHARD + 20])


def test_an_object_that_is_not_recorded_holds_fill_values(arrays):
    unrecorded = {key: record for key, record in arrays[1].items() if not key.startswith("scalars")}
    assert not read_shard_rows([opened(arrays[0], "scalars")], 0, unrecorded, 0, SHARD)["scalars"].any()


def test_an_index_is_read_once(arrays, monkeypatch):
    asked = []
    monkeypatch.setattr(
        chunk_reader, "read_spans", lambda spans, real=chunk_reader.read_spans: asked.append(spans) or real(spans)
    )
    array = opened(arrays[0], "shorts")
    for _ in range(3):
        read_shard_rows([array], 0, arrays[1], 0, 4)
    assert [len(spans) for spans in asked] == [1, 1, 0, 1, 0, 1]


def test_a_full_memory_of_indexes_is_emptied_and_loses_nothing(arrays, monkeypatch):
    """One array's index is known and another's is not when the memory overflows."""
    monkeypatch.setattr(chunk_reader, "INDEXES_IN_MEMORY", 1)
    names = ["shorts", "bytes"]
    for name in [names[:1], names, names[::-1]]:
        found = read_shard_rows([opened(arrays[0], one) for one in name], 0, arrays[1], 0, SHARD)
        assert all(np.array_equal(found[one], zarr.open_array(arrays[0] / one, mode="r")[:SHARD]) for one in name)


OTHER_LAYOUTS = {
    "gzip": {"compressors": [zarr.codecs.GzipCodec()]},
    "big-endian": {"serializer": zarr.codecs.BytesCodec(endian="big")},
    "fill value": {"fill_value": 7},
}


def other_array(folder, change):
    """Write a sealed array of 64 rows with zarr; return what it holds and the records of its objects."""
    options = {"shape": (64, 4), "shards": (32, 4), "chunks": (8, 4), "dtype": "uint16", "fill_value": 0}
    written = np.arange(256, dtype=np.uint16).reshape(64, 4)
    zarr.create_array(store=folder / "other", **options | OTHER_LAYOUTS[change])[:] = written
    metadata = folder / "other" / "zarr.json"
    document = json.loads(metadata.read_bytes()) | {"attributes": {KEY: {"seal": UNSEALED}}}
    metadata.write_bytes(sealed_bytes(document))
    keys = ["other/c/0/0", "other/c/1/0"]
    return written, {key: ObjectRecord.of((folder / key).read_bytes()) for key in keys}


def expected_layout():
    return ArrayLayout(TYPES["shorts"], SHARD, CHUNK)


@pytest.mark.parametrize("change", OTHER_LAYOUTS)
def test_leaves_arrays_of_another_layout_to_zarr(tmp_path, change):
    written, objects = other_array(tmp_path, change)
    array = open_array(tmp_path, "other", expected_layout())
    assert array.layout is None
    for shard in (0, 1):
        found = read_shard_rows([array], shard, objects, 3, 30)["other"]
        assert np.array_equal(found, written[32 * shard + 3 : 32 * shard + 30])


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_missing_object_that_zarr_would_read_is_refused(tmp_path, damage):
    _, objects = other_array(tmp_path, "gzip")
    damage(tmp_path / "other/c/1/0")
    with pytest.raises(DamageError, match="stored bytes cannot be decoded"):
        read_shard_rows([open_array(tmp_path, "other", expected_layout())], 1, objects, 0, 4)


@pytest.mark.parametrize("name", ["shorts", "columns"])
def test_a_flipped_bit_of_any_byte_of_an_object_is_refused(arrays, name):
    path = object_of(arrays, name, 0)
    original = path.read_bytes()
    try:
        for bit in range(0, len(original) * 8, 7):  # a bit of every byte, each time another one
            damaged = bytearray(original)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bytes(damaged))
            with pytest.raises(DamageError, match="stored bytes cannot be decoded"):
                read(arrays, name, 0, 0, SHARD)  # crc32c covers every byte of chunks and index
    finally:
        path.write_bytes(original)


@pytest.mark.parametrize("keep", [0, 3, 40, -1, None])
def test_a_truncated_or_missing_object_is_refused(arrays, keep):
    path = object_of(arrays, "bytes", 1)
    original = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(original[:keep])
    try:
        with pytest.raises(DamageError, match="stored bytes cannot be decoded"):
            read(arrays, "bytes", 1, 0, 4)
    finally:
        path.write_bytes(original)


def test_a_record_shorter_than_an_index_is_refused(arrays):
    short = {"bytes/c/1/0": ObjectRecord(bytes=9, sha256="0" * 64)}
    with pytest.raises(DamageError, match="too short for its index"):
        read_shard_rows([opened(arrays[0], "bytes")], 1, short, 0, 4)


@pytest.mark.parametrize(("old", "new"), [("int32", "int16"), (" 96\n", " 48\n")])
def test_metadata_of_another_shape_is_refused(tmp_path, old, new):
    cut = ArrayLayout(TYPES["scalars"], 96, CHUNK)
    path = layout.array_metadata_file(tmp_path, "scalars")
    write_object(path, cut.metadata(96 * SHARDS))
    edit_json(path, old, new)
    with pytest.raises(DamageError, match="another shape than the manifests say"):
        open_array(tmp_path, "scalars", cut)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff", sealed({}), sealed({"codecs": []})])
def test_damaged_metadata_is_refused_by_its_path(tmp_path, content):
    path = layout.array_metadata_file(tmp_path, "scalars")
    if content is not None:
        write_object(path, content)
    with pytest.raises(DamageError, match="metadata is missing or damaged") as refusal:
        open_array(tmp_path, "scalars", ArrayLayout(TYPES["scalars"], SHARD, CHUNK))
    assert refusal.value.where == str(path)
