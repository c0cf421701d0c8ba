"""Sequence files and the tables of an encoding's parts: what is written comes back, and damage is never read."""

from dataclasses import fields, replace

import numpy as np
import pytest

from cache_tools.errors import DamageError
from cache_tools.format import layout
from cache_tools.format.manifest import SplitTotals
from cache_tools.format.sequences import Sequence, read_sequences, write_sequences
from cache_tools.format.shards import ShardEntry, read_file_tables, read_shard_tables, totals, write_part
from store_fixtures import flip_bit

CAUSAL = Sequence(
    sequence_id=41,
    document_id="naïve/doc",
    group_id="a group",
    first_position=2**40,
    input_ids=np.array([0, 2**32 - 2, 5], dtype=np.uint32),
    position_mask=np.array([False, True, False]),
    original_ids=None,
    text="a€\n",
    byte_lengths=np.array([1, 3, 1], dtype=np.uint32),
)
MASKED = replace(CAUSAL, sequence_id=42, original_ids=np.array([0, 7, 5], dtype=np.uint32))
EMPTY = replace(
    CAUSAL,
    input_ids=CAUSAL.input_ids[:0],
    position_mask=CAUSAL.position_mask[:0],
    text="",
    byte_lengths=CAUSAL.byte_lengths[:0],
)

ENTRIES = [
    ShardEntry("train", 2, 5, 0, 100, 90, 1000, "a" * 64),
    ShardEntry("train", 1, 3, 5, 50, 40, 500, "b" * 64),
    ShardEntry("held_out", 1, 1, 8, 7, 6, 90, "c" * 64),
]


def equal(left, right):
    """Tell whether two sequences agree in every field, dtypes included."""
    pairs = [(getattr(left, field.name), getattr(right, field.name)) for field in fields(Sequence)]
    return all(type(a) is type(b) and np.array_equal(a, b) and dtype(a) == dtype(b) for a, b in pairs)


def dtype(value):
    return getattr(value, "dtype", None)


@pytest.mark.parametrize(
    "written", [[], [CAUSAL], [MASKED], [EMPTY], [CAUSAL, MASKED, EMPTY]], ids=["none", "causal", "masked", "0", "all"]
)
def test_sequences_come_back_as_written(tmp_path, written):
    _, sha256 = write_sequences(tmp_path / "00000.arrow", written)
    read = read_sequences(tmp_path / "00000.arrow", sha256)
    assert len(read) == len(written)
    assert all(equal(a, b) for a, b in zip(read, written, strict=True))


def test_the_same_sequences_give_the_same_bytes(tmp_path):
    first = write_sequences(tmp_path / "a.arrow", [CAUSAL, MASKED])
    assert write_sequences(tmp_path / "b.arrow", [CAUSAL, MASKED]) == first
    assert (tmp_path / "a.arrow").read_bytes() == (tmp_path / "b.arrow").read_bytes()
    assert write_sequences(tmp_path / "c.arrow", [MASKED, CAUSAL])[1] != first[1]


def test_the_recorded_size_is_that_of_the_file(tmp_path):
    size, _ = write_sequences(tmp_path / "00000.arrow", [CAUSAL])
    assert size == (tmp_path / "00000.arrow").stat().st_size


def test_a_causal_position_predicts_the_next_token():
    assert CAUSAL.gold_ids("causal").tolist() == [5]


def test_a_masked_position_predicts_the_original_token():
    assert MASKED.gold_ids("masked").tolist() == [7]


def test_rows_count_kept_positions_only():
    sequence = replace(CAUSAL, first_position=10, position_mask=np.array([True, False, True]))
    assert sequence.rows == (10, 12)
    assert sequence.positions().tolist() == [0, 2]


FILES = {"a.jsonl": "d" * 64, "naïve/b.txt": "e" * 64}


def test_the_tables_of_all_parts_come_back_in_order(tmp_path):
    first = write_part(tmp_path, 0, dict(list(FILES.items())[:1]), ENTRIES[:1])
    second = write_part(tmp_path, 1, dict(list(FILES.items())[1:]), ENTRIES[1:])
    assert read_shard_tables(tmp_path, (first, second)) == ENTRIES
    assert list(read_file_tables(tmp_path, (first, second)).items()) == list(FILES.items())
    assert read_shard_tables(tmp_path, (first,)) == ENTRIES[:1]


def test_a_part_records_the_totals_of_both_splits(tmp_path):
    part = write_part(tmp_path, 0, FILES, ENTRIES)
    assert part.splits == {split: totals(ENTRIES, split) for split in ("train", "held_out")}


def test_totals_add_up_one_split():
    assert totals(ENTRIES, "train") == SplitTotals(documents=3, sequences=8, tokens=150, positions=130, shards=2)


DAMAGE = {
    "flipped": lambda path: flip_bit(path, -20),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "deleted": lambda path: path.unlink(),
}


def sequence_file(folder):
    """Write a sequence file; return its path and how to read it."""
    path = folder / "00000.arrow"
    _, sha256 = write_sequences(path, [CAUSAL])
    return path, lambda: read_sequences(path, sha256)


def shard_table(folder):
    """Write the tables of a part; return the path of its shard table and how to read it."""
    part = write_part(folder, 0, FILES, ENTRIES)
    return layout.shard_table_file(folder, 0), lambda: read_shard_tables(folder, (part,))


def file_table(folder):
    """Write the tables of a part; return the path of its file table and how to read it."""
    part = write_part(folder, 0, FILES, ENTRIES)
    return layout.file_table_file(folder, 0), lambda: read_file_tables(folder, (part,))


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("write", [sequence_file, shard_table, file_table])
def test_refuses_a_damaged_file_by_its_path(tmp_path, write, damage):
    path, read = write(tmp_path)
    damage(path)
    with pytest.raises(DamageError) as refusal:
        read()
    assert str(refusal.value).startswith(f"{path}: ")
    assert "the same capture again" in str(refusal.value)
