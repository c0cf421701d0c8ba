"""FORMAT.md, read as a stranger would: zarr, pyarrow, numpy and JSON, nothing of this project's code.

The reader below is written from that document alone; what it finds in a cache must be
what our own reader finds, and the document's examples must be true.
"""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.ipc
import pytest
import zarr
from safetensors.numpy import load

import kinds
from cache_tools.codecs.registry import EMPTY_ID, DeltaPower
from cache_tools.format.fingerprint import fingerprint
from cache_tools.format.layout import SCALARS
from cache_tools.hidden_codecs import transform as quantised
from cache_tools.store.predictions import group_layouts
from store_fixtures import HIDDEN, POSITIONS_PER_SHARD, by_id, close, make_cache

TARGET_ARRAYS = ("ids", "ids_high", "levels", "levels_high", "floor", "left_out")
FORMAT = (Path(__file__).parent.parent / "FORMAT.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=[1000, 70_000, 2**32 - 1], ids=["16-bit ids", "24-bit ids", "32-bit ids"])
def tiny(request, tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("tiny"), vocabulary=request.param)


def manifest_of(folder):
    return json.loads((folder / "zarr.json").read_bytes())["attributes"]["logitcask"]


def receipt_of(teacher, shard):
    return json.loads((teacher / f"receipts/{shard:05d}.json").read_bytes())


def stranger_decodes(arrays, parameters):
    """Return [({id: ln p}, ln p_rest)] of stored rows, by the formulas of FORMAT.md."""
    ids = np.cumsum(arrays["ids"].astype(np.uint64) + 256 * arrays["ids_high"].astype(np.uint64), axis=1)
    stored = arrays["levels"].astype(int) + 256 * arrays["levels_high"].astype(int)
    used, floor = stored > 0, np.maximum(arrays["floor"].astype(int), 1)[:, None]
    levels, exponent = parameters["levels"], parameters["exponent"]
    weights = np.where(used, (stored - 1 + floor) / levels, 0) ** (1 / exponent)
    rest = (arrays["left_out"] / levels) ** (1 / exponent)
    total = weights.sum(axis=1) + rest
    with np.errstate(divide="ignore"):
        log_p, log_rest = np.log(weights / total[:, None]), np.log(rest / total)
    rows = zip(ids, log_p, used, log_rest, strict=True)
    return [(dict(zip(i[u].tolist(), p[u].tolist(), strict=True)), float(r)) for i, p, u, r in rows]


def stranger_reads(teacher, rows):
    """Return the arrays of a teacher's rows by name, with nothing but zarr."""
    manifest = manifest_of(teacher)
    names = [*TARGET_ARRAYS, *manifest["scalars"], *(f"hidden/{layer}" for layer in manifest["hidden"])]
    return {name: zarr.open_array(teacher / name, mode="r")[rows] for name in names}


def ours_as_rows(targets):
    """Return decoded targets in the form of ``stranger_decodes``."""
    rows = zip(targets.ids.tolist(), targets.log_probs.tolist(), targets.log_left_out.tolist(), strict=True)
    return [({i: p for i, p in zip(ids, logs, strict=True) if i != EMPTY_ID}, rest) for ids, logs, rest in rows]


def assert_same_rows(found, expected):
    for (entries, rest), (expected_entries, expected_rest) in zip(found, expected, strict=True):
        assert list(entries) == list(expected_entries)
        assert entries == pytest.approx(expected_entries, abs=1e-5)
        assert rest == pytest.approx(expected_rest, abs=1e-5)


def test_a_stranger_reads_the_same_predictions(tiny):
    for shard in range(3):
        receipt = receipt_of(tiny.teacher, shard)
        assert receipt["shard"] == shard
        start, stop = tiny.open().shard_rows(shard)
        arrays = stranger_reads(tiny.teacher, slice(start, stop))
        found = stranger_decodes(arrays, receipt["groups"]["targets"])
        assert_same_rows(found, ours_as_rows(tiny.open().targets(start, stop)))


def stranger_ranks(arrays, shifts):
    """Return the ranks (n, k) of stored rows."""
    k = arrays["ids"].shape[1]
    t = np.repeat(shifts, 8)[:k]
    gaps = (arrays["ids"].astype(np.int64) + 256 * arrays["ids_high"].astype(np.int64)) * 2**t
    for j in range(k):
        for b in range(8):
            gaps[:, j] += 2**b * (arrays["id_bits"][:, 8 * (j // 8) + b] >> (j % 8) & 1)
    return np.cumsum(gaps + 1, axis=1) - 1


def stranger_tables(teacher):
    """Return each rank table as the list of all ids."""
    file, vocabulary = load((teacher / "ranks.safetensors").read_bytes()), manifest_of(teacher)["vocabulary_size"]
    return [
        list(dict.fromkeys([*own, *file["common"].tolist(), *range(vocabulary)])) for own in file["tables"].tolist()
    ]


def stranger_grid(arrays):
    """Return ln p (n, k) of rows of ``ranked-grid``, -inf in empty slots."""
    steps = arrays["steps"].astype(np.int64) + 256 * arrays["steps_high"].astype(np.int64)
    below = (steps - steps.max(axis=1, keepdims=True)) / 2.0 ** arrays["grid"].astype(float)[:, None]
    logs = below.astype(np.float32) - arrays["normaliser"][:, None]
    logs = np.where(arrays["grid"][:, None] == 255, arrays["off_grid"], logs)
    return np.where(steps > 0, logs, np.float32(-np.inf))


@pytest.mark.parametrize("name", ["ranked", "grid"])
def test_a_stranger_reads_the_same_rows_of_ranked_codecs(tmp_path, name):
    tiny = kinds.make(name, tmp_path)
    tables, teacher = stranger_tables(tiny.teacher), tiny.open()
    for shard in range(3):
        parameters = receipt_of(tiny.teacher, shard)["groups"]["targets"]
        start, stop = teacher.shard_rows(shard)
        names = [folder.parts[0] for folder in array_files(tiny)]
        arrays = {n: zarr.open_array(tiny.teacher / n, mode="r")[start:stop] for n in names}
        ranks = stranger_ranks(arrays, parameters["shifts"])
        ids = [
            [tables[table][min(r, len(tables[table]) - 1)] for r in row]
            for table, row in zip(arrays["table"], ranks, strict=True)
        ]
        if name == "grid":
            logs = stranger_grid(arrays)
            found = [
                (dict(sorted((i, p) for i, p in zip(*row, strict=True) if p > -np.inf)), rest)
                for *row, rest in zip(ids, logs.tolist(), arrays["left_out"].tolist(), strict=True)
            ]
            assert found == ours_as_rows(teacher.targets(start, stop))  # every bit
        else:
            arrays |= {"ids": np.diff(ids, axis=1, prepend=0), "ids_high": np.zeros_like(arrays["ids"])}
            found = [(dict(sorted(row.items())), rest) for row, rest in stranger_decodes(arrays, parameters)]
            assert_same_rows(found, ours_as_rows(teacher.targets(start, stop)))


def test_a_stranger_reads_the_same_scalars_and_hidden_states(tiny):
    arrays, manifest = stranger_reads(tiny.teacher, slice(0, 12)), manifest_of(tiny.teacher)
    for name in manifest["scalars"]:
        assert close(arrays[name] * manifest["scalar_step_nats"], tiny.open().scalar(name, 0, 12), 1e-6)
    last = (arrays["hidden/last"].astype(np.uint32) * 65536).view(np.float32)
    assert np.array_equal(last, tiny.predictions[0].hidden["last"])
    assert np.array_equal(arrays["hidden/1"], tiny.predictions[0].hidden["1"])


def test_a_stranger_reads_the_same_quantised_hidden_states():
    states = np.random.default_rng(0).normal(0, [1, 3, 0.1, 9], (50, 4)).astype(np.float32)
    transform, step = quantised.calibrate_relative(states), 0.01
    stored = quantised.encode(transform, states, step)
    kept, u = load(quantised.transform_bytes(transform)), stored.astype(int)
    q = np.where(u % 2 == 0, u / 2, -(u + 1) / 2)
    found = kept["mean"] + (step * q) @ kept["basis"]
    assert close(found, quantised.decode(transform, stored, step), 1e-4)
    assert close(found, states, 0.2)


def test_every_json_file_is_sealed_as_stated(tiny):
    files = [path for path in tiny.path.rglob("*.json") if path.parent.name != "tokenizer"]
    assert len(files) > 10
    for path in files:
        content = path.read_text()
        (seal,) = re.findall(r'"seal": "([0-9a-f]{64})"', content)
        assert hashlib.sha256(content.replace(seal, "0" * 64).encode()).hexdigest() == seal


def test_a_stranger_reads_the_same_sequences(tiny):
    (part,) = manifest_of(tiny.encoding)["parts"]
    for name in ("files", "shards"):
        content = (tiny.encoding / f"parts/00000/{name}.arrow").read_bytes()
        assert hashlib.sha256(content).hexdigest() == part[f"{name}_sha256"]
    shards = pyarrow.ipc.open_file(tiny.encoding / "parts/00000/shards.arrow").read_all().to_pylist()
    for shard, entry in enumerate(shards):
        path = tiny.encoding / f"sequences/{shard:05d}.arrow"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
        rows, next_row = pyarrow.ipc.open_file(path).read_all().to_pylist(), shard * POSITIONS_PER_SHARD
        for row, written in zip(rows, tiny.sequences[shard], strict=True):
            assert row["first_position"] == next_row
            assert row["input_ids"] == written.input_ids.tolist()
            assert sum(row["byte_lengths"]) == len(row["text"].encode())
            next_row += sum(row["position_mask"])


@pytest.mark.filterwarnings("ignore:Object at .* is not recognized as a component of a Zarr hierarchy")
def test_zarr_walks_from_the_root_to_every_array(tiny):
    root = zarr.open_group(tiny.path, mode="r")
    assert root.attrs["logitcask"]["format"] == 1
    members = dict(root.members(max_depth=None))
    arrays = {name for name, member in members.items() if isinstance(member, zarr.Array)}
    assert arrays == {f"encodings/tiny/teachers/toy/{name}" for name in array_names(tiny.manifest)}
    assert root["encodings/tiny/teachers/toy/ids"].shape == (3 * POSITIONS_PER_SHARD, 4)


def array_names(manifest):
    return {name for group in group_layouts(manifest, POSITIONS_PER_SHARD).values() for name in group}


def test_the_arrays_are_as_stated(tiny):
    inner = [{"name": "bytes"}, {"name": "blosc", "cname": "zstd", "shuffle": "shuffle"}, {"name": "crc32c"}]
    high = {1000: "uint8", 70_000: "uint16", 2**32 - 1: "uint32"}[tiny.manifest.vocabulary_size]
    dtypes = dict.fromkeys(("ids", "levels", "levels_high", "floor"), "uint8")
    dtypes |= {"ids_high": high, "left_out": "uint16"}
    dtypes |= dict.fromkeys(SCALARS, "int32") | {"hidden/last": "uint16", "hidden/1": "float32"}
    assert set(dtypes) == {"/".join(path.parts[:-1]) for path in array_files(tiny)}
    for name, dtype in dtypes.items():
        array = json.loads((tiny.teacher / name / "zarr.json").read_bytes())
        (sharding,) = array["codecs"]
        assert (array["data_type"], array["fill_value"]) == (dtype, 0)
        assert array["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
        assert array["chunk_grid"]["configuration"]["chunk_shape"] == [POSITIONS_PER_SHARD, *array["shape"][1:]]
        assert sharding["name"] == "sharding_indexed"
        assert sharding["configuration"]["index_location"] == "end"
        assert [codec["name"] for codec in sharding["configuration"]["index_codecs"]] == ["bytes", "crc32c"]
        codecs = [{"name": c["name"], **c.get("configuration", {})} for c in sharding["configuration"]["codecs"]]
        assert all(stated.items() <= codec.items() for stated, codec in zip(inner, codecs, strict=True))


def array_files(tiny):
    """Return the arrays' zarr.json files, relative to the teacher."""
    files = [path for path in tiny.teacher.rglob("zarr.json") if b'"array"' in path.read_bytes()]
    return [path.relative_to(tiny.teacher) for path in files]


def test_every_object_is_where_it_is_stated_to_be(tiny):
    for shard in range(3):
        stated = {f"{name}/c/{shard}" for name in ("floor", "left_out", *SCALARS)}
        rows = ("ids", "ids_high", "levels", *(f"hidden/{layer}" for layer in HIDDEN))
        stated |= {f"{name}/c/{shard}/0" for name in rows}
        if zarr.open_array(tiny.teacher / "levels_high", mode="r")[16 * shard : 16 * shard + 16].any():
            stated |= {f"levels_high/c/{shard}/0"}
        assert {path.relative_to(tiny.teacher).as_posix() for path in tiny.objects(shard)} == stated


def test_an_object_of_nothing_but_fill_values_is_absent(tmp_path):
    tiny = make_cache(tmp_path, vocabulary=70_000, committed=0)
    ids = tiny.predictions[0].targets.ids
    ids[:] = np.arange(ids.shape[1])
    arrays = {key.split("/c/")[0] for key in tiny.commit(0).objects}
    assert arrays == array_names(tiny.manifest) - {"ids_high", "levels_high"}
    assert not any((tiny.teacher / "ids_high").rglob("c/0/*"))
    assert [set(row) for row in by_id(tiny.predictions[0].targets)] == [
        set(row) for row in by_id(tiny.open().targets(0, 12))
    ]


def test_every_key_of_a_manifest_and_receipt_is_documented(tiny):
    manifests = [manifest_of(folder) for folder in (tiny.path, tiny.encoding, tiny.teacher)]
    receipt = json.loads(tiny.receipt_file(0).read_bytes())
    part = manifests[1]["parts"][0]
    blocks = [*manifests, receipt, part, part["splits"]["train"], manifests[2]["target"], manifests[2]["hidden"]["1"]]
    keys = {key for block in blocks for key in block}
    assert {key for key in keys if f"`{key}`" not in FORMAT} == set()


def example_rows():
    """Return the cells of the worked example's rows."""
    example = FORMAT.split("## Alignments")[0]  # which has a table with numbered rows, too
    lines = re.findall(r"^\| \d+ \|.*\|$", example, flags=re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def example_arrays():
    columns = list(zip(*example_rows(), strict=True))[1:7]
    dtypes = (np.uint8, np.uint16, np.uint8, np.uint8, np.uint8, np.uint16)
    arrays = {
        name: np.array([np.fromstring(cell, dtype=dtype, sep=" ") for cell in column])
        for name, dtype, column in zip(TARGET_ARRAYS, dtypes, columns, strict=True)
    }
    return arrays | {name: arrays[name][:, 0] for name in ("floor", "left_out")}


def test_the_worked_example_is_true():
    stated = [
        (dict(zip(map(int, ids.split()), map(float, logs.split()), strict=True)), float(rest))
        for *_, ids, logs, rest in example_rows()
    ]
    assert len(stated) == 10
    parameters = {"levels": 400, "exponent": 0.4}
    assert_same_rows(stranger_decodes(example_arrays(), parameters), stated)
    assert_same_rows(ours_as_rows(DeltaPower(3, 70_000).decode(example_arrays(), parameters)), stated)


def test_the_fingerprint_example_is_true():
    identity, canonical, digest = re.search(r"^(\{.*\})\n(\{.*\})\n([0-9a-f]{64})$", FORMAT, re.MULTILINE).groups()
    assert json.loads(identity) == json.loads(canonical)
    assert hashlib.sha256(canonical.encode()).hexdigest() == digest == fingerprint(json.loads(identity))
