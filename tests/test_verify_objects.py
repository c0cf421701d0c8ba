"""Values and metadata are damaged on purpose: verify names the rule that broke, and readers refuse to guess."""

import numpy as np
import pytest
import zarr
from test_verify import only_problem, truncate

from cache_tools.errors import DamageError, FormatError
from cache_tools.format import layout
from cache_tools.format.receipts import read_receipt
from cache_tools.maintenance.verify import verify
from cache_tools.store import chunk_reader
from cache_tools.store.predictions import group_layouts
from store_fixtures import POSITIONS_PER_SHARD, edit_json, flip_bit, make_cache, read_everything


@pytest.fixture
def tiny(tmp_path):
    return make_cache(tmp_path)


@pytest.mark.parametrize(
    ("array", "value", "rule"),
    [
        ("ids_high", 255, "an id is not below the vocabulary size"),
        ("ids", 0, "ids do not ascend"),
        ("levels", 0, "the probabilities do not sum to 1"),
        ("hidden/1", np.nan, "hidden state 1 is not finite"),
        ("hidden/last", 0x7F80, "hidden state last is not finite"),
    ],
)
def test_deep_finds_values_that_break_the_rules(tiny, array, value, rule):
    """Row 4 of shard 1, which has no empty slot, is overwritten, and the receipt vouches for it."""
    first = POSITIONS_PER_SHARD
    together = {"ids": ["ids", "ids_high"], "levels": ["levels", "levels_high", "left_out"]}
    layouts = group_layouts(tiny.manifest, POSITIONS_PER_SHARD)
    cuts = {name: cut for group in layouts.values() for name, cut in group.items()}
    for name in together.get(array, [array]):
        stored = zarr.open_array(tiny.teacher / name, mode="r")[first : first + 12]
        stored[4] = value
        key = layout.shard_key(name, 1, stored.ndim)
        if content := cuts[name].encode(stored):
            (tiny.teacher / key).write_bytes(content)
            tiny.record_object(1, key, tiny.teacher / key)
    assert verify(tiny.path) == []
    assert [problem.message for problem in verify(tiny.path, deep=True)] == [f"shard 1, row {first + 4}: {rule}"]


@pytest.mark.parametrize("array", ["ids", "levels", "floor", "left_out", "entropy", "hidden/last"])
def test_readers_refuse_a_bit_flipped_anywhere(tmp_path, array):
    tiny = make_cache(tmp_path, shards=1)
    (path,) = (path for path in tiny.objects(0) if path.is_relative_to(tiny.teacher / array))
    read_everything(tiny.open())
    for byte in range(0, path.stat().st_size, 9):
        flip_bit(path, byte)
        chunk_reader._indexes.clear()  # else a damaged index is not read again, and harmless
        with pytest.raises(DamageError, match="stored bytes cannot be decoded"):
            read_everything(tiny.open())
        flip_bit(path, byte)
    read_everything(tiny.open())


def test_readers_refuse_a_truncated_object(tiny):
    for path in tiny.objects(0):
        content = path.read_bytes()
        truncate(path)
        chunk_reader._indexes.clear()
        with pytest.raises(DamageError, match="stored bytes cannot be decoded"):
            read_everything(tiny.open())
        path.write_bytes(content)


def missing(path):
    path.unlink()


def shorten(path):
    """Give an array as many rows as an encoding of one shard would have."""
    edit_json(path, f" {3 * POSITIONS_PER_SHARD}", f" {POSITIONS_PER_SHARD}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [(missing, "missing or damaged"), (flip_bit, "missing or damaged"), (shorten, "ends at row 16 of 48")],
)
@pytest.mark.parametrize("array", ["ids", "entropy", "hidden/last"])
def test_finds_an_array_without_its_metadata(tiny, array, damage, message):
    damage(tiny.teacher / array / "zarr.json")
    problem = only_problem(tiny)
    assert message in problem.message
    assert (problem.kind, problem.remedy, problem.teacher) == ("damage", "metadata", "toy")


@pytest.mark.parametrize("damage", [missing, flip_bit])
@pytest.mark.parametrize("group", ["encodings", "encodings/tiny/teachers", "encodings/tiny/teachers/toy/hidden"])
def test_finds_a_group_without_its_metadata(tiny, group, damage):
    damage(tiny.path / group / "zarr.json")
    problem = only_problem(tiny)
    assert "the group's metadata is missing or damaged" in problem.message
    assert (problem.where, problem.remedy) == (str(tiny.path / group / "zarr.json"), "metadata")


@pytest.mark.parametrize("damage", [missing, flip_bit, truncate])
def test_finds_a_damaged_file_of_the_tokenizer(tiny, damage):
    damage(tiny.encoding / "tokenizer" / "tokenizer.json")
    problem = only_problem(tiny)
    assert (problem.kind, problem.where) == ("damage", str(tiny.encoding / "tokenizer" / "tokenizer.json"))


def test_a_shard_that_lacks_a_layer_is_missing_and_only_that(tiny):
    receipt = read_receipt(tiny.teacher, 1)
    groups = {name: parameters for name, parameters in receipt.groups.items() if name != "hidden/last"}
    tiny.edit_receipt(1, groups=groups)
    problem = only_problem(tiny, deep=True)
    assert (problem.kind, problem.remedy, problem.shard) == ("missing", "capture", 1)
    assert "shard 1 has not been captured of hidden/last" in problem.message


def test_refuses_a_manifest_whose_decoding_was_edited(tiny):
    path = tiny.teacher / "zarr.json"
    text = path.read_text()
    path.write_text(text.replace('"scalar_step_nats": 0.0009765625', '"scalar_step_nats": 0.5', 1))
    with pytest.raises(FormatError, match="its seal is broken"):
        tiny.open()
    path.write_text(text)
    edit_json(path, '"scalar_step_nats": 0.0009765625,\n    "scalars": [', '"scalar_step_nats": 0.5,\n    "scalars": [')
    with pytest.raises(FormatError, match="must equal those of the identity"):
        tiny.open()
