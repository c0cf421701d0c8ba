"""Declaring teachers and committing shards: twice, killed half-way, on a full disk, with layers added later."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from cache_tools.errors import CorpusError, FormatError, IdentityError, IncompleteError, StorageError
from cache_tools.format.receipts import TARGETS, read_receipt
from cache_tools.storage import remove_tree, write_object
from cache_tools.store import writer
from cache_tools.store.predictions import Predictions
from cache_tools.store.reader import Cache
from cache_tools.store.root import create_cache, new_cache
from cache_tools.store.writer import commit_shard, declare_teacher
from store_fixtures import HIDDEN, POSITIONS_PER_SHARD, TinyCache, assert_rows, make_cache, snapshot, teacher_manifest


def encoding_of(tiny: TinyCache):
    """Open the encoding as a new reader."""
    return Cache(tiny.path).encoding()


def test_refuses_another_teacher_under_the_same_name(tmp_path):
    tiny = make_cache(tmp_path)
    before = snapshot(tiny.path)
    identity = {**tiny.manifest.identity, "weights": "others"}
    with pytest.raises(IdentityError, match='weights: "thrown" -> "others"'):
        declare_teacher(encoding_of(tiny), "toy", tiny.manifest.model_copy(update={"identity": identity}))
    assert snapshot(tiny.path) == before


def test_declaring_the_same_teacher_again_changes_nothing(tmp_path):
    tiny = make_cache(tmp_path)
    before = snapshot(tiny.path)
    assert declare_teacher(encoding_of(tiny), "toy", tiny.manifest).path == tiny.teacher
    assert snapshot(tiny.path) == before


def kill(*_):
    raise KeyboardInterrupt


def test_a_declaration_that_was_killed_still_belongs_to_its_teacher(tmp_path, monkeypatch):
    tiny = make_cache(tmp_path)
    wide, narrow = (teacher_manifest({"corpus": "random"}, 1000, k) for k in (5, 2))
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_array_metadata", kill)
        with pytest.raises(KeyboardInterrupt):
            declare_teacher(encoding_of(tiny), "late", wide)
    with pytest.raises(IdentityError, match="k: 5 -> 2"):
        declare_teacher(encoding_of(tiny), "late", narrow)
    folder = declare_teacher(encoding_of(tiny), "late", wide).path
    assert json.loads((folder / "ids" / "zarr.json").read_bytes())["shape"] == [3 * POSITIONS_PER_SHARD, 5]


def test_creating_a_cache_twice_keeps_what_is_there(tmp_path):
    tiny = make_cache(tmp_path)
    before = snapshot(tiny.path)
    create_cache(tiny.path)
    assert snapshot(tiny.path) == before


def refuse_inside(path, *writings):
    """Enter a new cache, write something there, and be refused."""
    with new_cache(path):
        for write in writings:
            write()
        raise CorpusError("a line is broken", where="corpus", fix="Repair it")


def test_a_refusal_takes_away_the_empty_cache_that_it_would_leave(tmp_path):
    with pytest.raises(CorpusError):
        refuse_inside(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_refusal_takes_away_no_cache_that_was_there_and_none_that_another_capture_writes(tmp_path):
    for path in (tmp_path / "old", tmp_path / "shared"):
        other = path / "encodings" / "other" / "claim.json"
        writings = [lambda other=other: write_object(other, b"{}")] if path.name == "shared" else []
        if not writings:
            create_cache(path)
        with pytest.raises(CorpusError):
            refuse_inside(path, *writings)
        assert Cache(path).encodings == []
        assert other.exists() == bool(writings)


def test_a_new_cache_that_another_capture_took_away_is_there_at_the_end(tmp_path):
    with new_cache(tmp_path / "cache"):
        remove_tree(tmp_path / "cache")
    assert Cache(tmp_path / "cache").encodings == []


def test_refuses_to_create_a_cache_among_other_files(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(FormatError, match="holds something that is not a cache"):
            create_cache(path)
    assert snapshot(tmp_path) == {"thesis.tex": b"years of work"}


def fill_disk(monkeypatch, part):
    """Make every write to a path containing ``part`` leave an empty file and fail as on a full disk."""
    real_open = Path.open

    def open_(path, mode="r", *args, **kwargs):
        if "w" in mode and part in str(path):
            path.touch()
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_open(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_)


@pytest.mark.parametrize("part", ["levels/c/1/", "entropy/c/1", "hidden/last/c/1/", "receipts/00001"])
def test_a_full_disk_costs_only_the_shard_being_written(tmp_path, monkeypatch, part):
    tiny = make_cache(tmp_path, committed=1)
    with monkeypatch.context() as patch:
        fill_disk(patch, part)
        with pytest.raises(StorageError, match="the disk is full"):
            tiny.commit(1)
    assert tiny.open().missing_shards() == [1, 2]
    assert not list(tiny.path.rglob("*.partial"))
    assert_rows(tiny, 0, 0, 12)
    tiny.commit(1)
    assert_rows(tiny, 1, 0, 12)


def test_a_run_removes_what_killed_writers_of_its_shards_left(tmp_path):
    tiny = make_cache(tmp_path, committed=1)
    own = [tiny.teacher / f"{key}.0a.partial" for key in ("ids/c/1/0", "floor/c/1", "receipts/00001.json")]
    others = [tiny.teacher / f"{key}.0a.partial" for key in ("floor/c/0", "floor/c/11", "receipts/00000.json")]
    for path in own + others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    writer.remove_leftovers(tiny.open(), [1])
    assert set(tiny.path.rglob("*.partial")) == set(others)


def test_committing_a_shard_lists_no_folder(tmp_path, monkeypatch):
    tiny = make_cache(tmp_path, committed=1)
    teacher = tiny.open()
    len(teacher.encoding.shards)
    for function in ("listdir", "scandir"):
        monkeypatch.setattr(os, function, lambda *_: pytest.fail("a folder was listed"))
    commit_shard(teacher, 1, tiny.predictions[1], {"device": "none"})
    assert tiny.receipt_file(1).exists()


def test_a_shard_committed_twice_has_the_same_bytes(tmp_path):
    tiny = make_cache(tmp_path)
    before = snapshot(tiny.path)
    tiny.receipt_file(1).unlink()
    tiny.commit(1)
    assert snapshot(tiny.path) == before


def test_an_infinite_cross_entropy_leaves_the_receipt_readable(tmp_path):
    tiny = make_cache(tmp_path, committed=0)
    tiny.predictions[0].scalars["gold_logprob"][3] = -np.inf
    receipt = tiny.commit(0)
    assert receipt.statistics["cross_entropy_nats"] == np.inf
    assert read_receipt(tiny.teacher, 0) == receipt
    json.loads(tiny.receipt_file(0).read_bytes(), parse_constant=pytest.fail)
    assert tiny.open().scalar("gold_logprob", 3, 4).tolist() == [-np.inf]


def without_hidden(manifest):
    """Return the manifest of the same teacher without its hidden states."""
    return manifest.model_copy(update={"hidden": {}})


def late_predictions(tiny, shard, **parts):
    """Return only some predictions of a shard."""
    whole = tiny.predictions[shard]
    return Predictions(**{"targets": None, "scalars": {}, **{name: getattr(whole, name) for name in parts["keep"]}})


def test_layers_added_later_give_the_same_bytes_as_captured_at_once(tmp_path):
    once = make_cache(tmp_path / "once")
    later = make_cache(tmp_path / "later", committed=0)
    teacher = declare_teacher(encoding_of(later), "late", without_hidden(later.manifest))
    for shard in range(3):
        commit_shard(teacher, shard, late_predictions(later, shard, keep=["targets", "scalars"]), {"device": "none"})
    assert teacher.groups == [TARGETS]
    teacher = declare_teacher(encoding_of(later), "late", later.manifest)
    assert teacher.missing_groups(1) == ["hidden/last", "hidden/1"]
    for shard in range(3):
        commit_shard(teacher, shard, late_predictions(later, shard, keep=["hidden"]), {"device": "none"})
    found = snapshot(later.encoding / "teachers" / "late")
    assert found == snapshot(once.teacher)


def test_a_layer_that_a_shard_lacks_is_not_read_and_the_rest_is(tmp_path):
    tiny = make_cache(tmp_path, committed=0)
    declare_teacher(encoding_of(tiny), "late", without_hidden(tiny.manifest))
    teacher = declare_teacher(encoding_of(tiny), "late", tiny.manifest)
    commit_shard(teacher, 0, late_predictions(tiny, 0, keep=["targets", "scalars"]), {"device": "none"})
    reader = encoding_of(tiny).teacher("late")
    with pytest.raises(IncompleteError, match="no receipt of hidden/1 for 1 of 3 shards"):
        reader.hidden("1", 0, 12)
    before = reader.targets(0, 12)
    commit_shard(teacher, 0, late_predictions(tiny, 0, keep=["hidden"]), {"device": "none"})
    assert np.array_equal(reader.hidden("1", 0, 12), tiny.predictions[0].hidden["1"])
    assert np.array_equal(reader.targets(0, 12).log_probs, before.log_probs)


def test_provenance_is_kept_by_group(tmp_path):
    tiny = make_cache(tmp_path, committed=0)
    teacher = tiny.open()
    commit_shard(teacher, 0, late_predictions(tiny, 0, keep=["targets", "scalars"]), {"device": "first"})
    receipt = commit_shard(teacher, 0, late_predictions(tiny, 0, keep=["hidden"]), {"device": "second"})
    assert receipt.provenance == {
        TARGETS: {"device": "first"},
        **{f"hidden/{layer}": {"device": "second"} for layer in HIDDEN},
    }
    assert receipt == read_receipt(tiny.teacher, 0)


def test_a_layer_being_added_leaves_the_old_receipt_in_force_until_it_is_done(tmp_path, monkeypatch):
    tiny = make_cache(tmp_path, committed=0)
    teacher = tiny.open()
    first = commit_shard(teacher, 0, late_predictions(tiny, 0, keep=["targets", "scalars"]), {"device": "none"})
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_receipt", kill)
        with pytest.raises(KeyboardInterrupt):
            commit_shard(teacher, 0, late_predictions(tiny, 0, keep=["hidden"]), {"device": "none"})
    assert read_receipt(tiny.teacher, 0) == first
    assert tiny.open().missing_groups(0) == ["hidden/last", "hidden/1"]


@pytest.mark.parametrize("hidden", [{}, {"last": HIDDEN["1"]}, {"1": HIDDEN["1"]}])
def test_refuses_to_go_on_without_a_layer_that_the_teacher_has(tmp_path, hidden):
    tiny = make_cache(tmp_path)
    before = snapshot(tiny.path)
    with pytest.raises(IdentityError, match=r"hidden\.last"):
        declare_teacher(encoding_of(tiny), "toy", tiny.manifest.model_copy(update={"hidden": hidden}))
    assert snapshot(tiny.path) == before
