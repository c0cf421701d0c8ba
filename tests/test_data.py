import pickle
import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import cache_tools.store.reader
import tiny
from cache_tools.codecs.registry import EMPTY_ID, Targets
from cache_tools.errors import IncompleteError
from cache_tools.format import layout
from cache_tools.store.reader import Cache
from processes import PROCESSES
from trainer.data.binding import IGNORED
from trainer.data.cached_sequences import CachedSequences, collate, fit_vocabulary
from trainer.data.sampler import ShardWindowSampler

VOCABULARY = 300


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return tiny.capture(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked")
    return tiny.capture(folder, tiny.save_teacher(folder / "teacher", masked=True), objective="masked")


@pytest.fixture(params=["causal", "masked"])
def teacher(request):
    return Cache(request.getfixturevalue(request.param).path).encoding().teacher()


def split_sequences(teacher, split="train"):
    return [s for shard in teacher.encoding.split_shards(split) for s in teacher.encoding.sequences(shard)]


def assert_same_targets(left, right):
    assert np.array_equal(left.ids, right.ids)
    assert np.array_equal(left.log_probs, right.log_probs)
    assert np.array_equal(left.log_left_out, right.log_left_out)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_an_item_is_what_the_reader_gives(teacher, split):
    dataset, sequences = CachedSequences(teacher, split, VOCABULARY, 1), split_sequences(teacher, split)
    assert len(dataset) == len(sequences) > 0
    for index in np.random.default_rng(0).permutation(len(dataset)):
        item, sequence = dataset[int(index)], sequences[index]
        assert np.array_equal(item.input_ids, sequence.input_ids)
        assert np.array_equal(item.positions, np.flatnonzero(sequence.position_mask))
        assert_same_targets(item.targets, teacher.targets(*sequence.rows))


def test_there_is_no_item_behind_the_last(teacher):
    dataset = CachedSequences(teacher, "train", VOCABULARY)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_the_ith_target_of_a_row_belongs_to_its_ith_kept_token(teacher):
    chosen = (7, 0, 3, 12, 5)
    sequences = [split_sequences(teacher)[i] for i in chosen]
    dataset = CachedSequences(teacher, "train", VOCABULARY)
    batch, first = collate([dataset[i] for i in chosen]), 0
    for row, sequence in enumerate(sequences):
        kept = np.flatnonzero(batch["gold_ids"][row] != IGNORED)
        assert np.array_equal(kept, np.flatnonzero(sequence.position_mask))
        gold = sequence.input_ids[kept + 1] if sequence.original_ids is None else sequence.original_ids[kept]
        assert batch["gold_ids"][row][kept].tolist() == gold.tolist()
        mine = slice(first, first + len(kept))
        stored = teacher.targets(*sequence.rows)
        assert np.array_equal(batch["target_ids"][mine], stored.ids)
        assert np.array_equal(batch["target_log_probs"][mine], stored.log_probs)
        assert np.array_equal(batch["target_log_left_out"][mine], stored.log_left_out)
        first += len(kept)
    assert first == len(batch["target_ids"])


def test_batches_are_padded_on_the_right(teacher):
    dataset = CachedSequences(teacher, "train", VOCABULARY)
    examples = [dataset[i] for i in range(9)]
    batch, lengths = collate(examples), [len(example.input_ids) for example in examples]
    assert len(set(lengths)) > 1
    for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        assert np.array_equal(batch["input_ids"][row, :length], example.input_ids)
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (max(lengths) - length)
        assert not batch["input_ids"][row, length:].any()
        assert (batch["gold_ids"][row, length:] == IGNORED).all()


def test_ids_of_a_batch_are_legal_even_in_empty_slots(teacher):
    student_vocabulary = 120
    batch = collate([CachedSequences(teacher, "train", student_vocabulary)[i] for i in range(4)])
    empty = batch["target_log_probs"] == -torch.inf
    assert empty.any()
    assert not empty.all()
    assert not batch["target_ids"][empty].any()
    assert 0 <= batch["target_ids"].min() <= batch["target_ids"].max() < student_vocabulary


def mass(targets):
    return np.exp(targets.log_probs.astype(np.float64)).sum(axis=1) + np.exp(targets.log_left_out.astype(np.float64))


@pytest.mark.parametrize("size", [1, 120, 299])
def test_ids_beyond_the_student_become_left_out_mass(causal, size):
    before = causal.encoding().teacher().targets(0, 400)
    after, stays = fit_vocabulary(before, size), before.ids < size
    assert (~stays).any()
    assert np.array_equal(after.ids, np.where(stays, before.ids, EMPTY_ID))
    assert np.array_equal(after.log_probs, np.where(stays, before.log_probs, -np.inf))
    assert mass(after) == pytest.approx(mass(before), abs=1e-6)


def test_a_student_with_room_for_every_id_changes_nothing():
    targets = Targets(
        np.array([[2, 5, EMPTY_ID]], np.uint32),
        np.log(np.array([[0.75, 0.25, 0]], np.float32), where=[[True, True, False]], out=np.full((1, 3), -np.inf)),
        np.array([-np.inf], np.float32),
    )
    assert fit_vocabulary(targets, 6) is targets


def batches(dataset, **options):
    return list(DataLoader(dataset, batch_size=8, collate_fn=collate, **options))


def test_a_dataset_may_travel_to_another_process(teacher):
    dataset = CachedSequences(teacher, "train", VOCABULARY, shards_in_memory=2)
    expected = batches(dataset)
    torch.testing.assert_close(batches(pickle.loads(pickle.dumps(dataset))), expected, rtol=0, atol=0)


def test_loader_workers_give_the_same_batches(causal):
    dataset = CachedSequences(causal.encoding().teacher(), "train", VOCABULARY)
    in_workers = batches(dataset, num_workers=2, multiprocessing_context=PROCESSES)
    torch.testing.assert_close(in_workers, batches(dataset), rtol=0, atol=0)


@pytest.mark.parametrize("window", [2, 4])
def test_each_shard_is_read_once_per_epoch_whatever_the_reader_remembers(causal, monkeypatch, window):
    read, read_sequences = [], cache_tools.store.reader.read_sequences
    monkeypatch.setattr(cache_tools.store.reader, "SEQUENCE_SHARDS_IN_MEMORY", 1)
    monkeypatch.setattr(cache_tools.store.reader, "read_sequences", lambda *a: read.append(a[0]) or read_sequences(*a))
    dataset = CachedSequences(Cache(causal.path).encoding().teacher(), "train", VOCABULARY, window)
    for index in ShardWindowSampler(dataset.shard_sizes, window, seed=0):
        dataset[index]
    assert len(read) == len(set(read)) == len(dataset.shards) > window


def test_a_split_with_a_missing_shard_is_refused_and_the_other_split_is_not(causal, tmp_path):
    shutil.copytree(causal.path, tmp_path / "cache")
    teacher = Cache(tmp_path / "cache").encoding().teacher()
    first, second = teacher.encoding.split_shards("train")[1:3]
    for shard in (first, second):
        layout.receipt_file(teacher.path, shard).unlink()
    with pytest.raises(IncompleteError, match=f"missing shards {first}, {second}"):
        CachedSequences(teacher, "train", VOCABULARY)
    assert len(CachedSequences(teacher, "held_out", VOCABULARY)) > 0
