"""A cache lives: it grows by documents, teachers and layers, loses layers, and is killed in the middle of it.

Real tiny models, real processes that die by SIGKILL with a file written but not yet in its
place. What was there before is compared byte for byte.
"""

import json
import shutil
import signal
from functools import partial

import numpy as np
import pytest

import tiny
from cache_tools.errors import CorpusError, FormatError, IdentityError
from cache_tools.maintenance.drop import drop_hidden, drop_teacher
from cache_tools.maintenance.verify import verify
from cache_tools.store.reader import Cache
from pipeline.config.capture_file import CaptureConfig
from pipeline.run import Worker, run_capture
from processes import finish, kill_at_rename, kill_at_unlink, start
from store_fixtures import snapshot

LAYERS = {"layers": ["last", 1], "codec": "budget"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny.save_teacher(tmp_path_factory.mktemp("teacher"))


def add(folder, name, numbers, prefix="doc"):
    """Put a file of some of the tiny texts into the corpus."""
    (folder / "corpus").mkdir(exist_ok=True)
    lines = [json.dumps({"id": f"{prefix}{number}", "text": tiny.TEXTS[number]}) for number in numbers]
    (folder / "corpus" / name).write_text("\n".join(lines) + "\n")


def values(folder, teacher, **changes):
    return tiny.capture_values(folder, teacher, paths=[str(folder / "corpus")], held_out_fraction=0.3, **changes)


def capture(folder, teacher, append=False, worker=Worker(), **changes):  # noqa: B008
    config = CaptureConfig.model_validate(values(folder, teacher, **changes))
    return run_capture(config, worker, tiny.SilentReporter(), append)["toy"]


def tree(folder):
    """Return every file of a cache, of receipts all but the provenance, without what killed writers left."""
    files = snapshot(folder / "cache")
    return {k: content.split(b'"provenance"')[0] for k, content in files.items() if not k.endswith(".partial")}


def objects(folder):
    """Return sequences, tables, objects and receipts: what never changes once it is there."""
    kept = ("/c/", "receipts", "sequences", "parts", "tokenizer")
    return {key: content for key, content in snapshot(folder / "cache").items() if any(part in key for part in kept)}


def first_part(folder, teacher, **changes):
    """Capture one file and put a second one beside it."""
    add(folder, "a.jsonl", range(8))
    capture(folder, teacher, **changes)
    add(folder, "b.jsonl", range(8, 14))


# Appending


@pytest.fixture(scope="module")
def appended(tmp_path_factory, teacher):
    """What an append that nobody killed leaves behind."""
    folder = tmp_path_factory.mktemp("appended")
    first_part(folder, teacher, hidden=LAYERS)
    capture(folder, teacher, append=True, hidden=LAYERS)
    return tree(folder)


def test_an_append_touches_nothing_old_and_captures_only_what_is_new(tmp_path, teacher, appended):
    first_part(tmp_path, teacher, hidden=LAYERS)
    before, old = objects(tmp_path), len(Cache(tmp_path / "cache").encoding().shards)
    done = capture(tmp_path, teacher, append=True, hidden=LAYERS)
    assert before.items() <= objects(tmp_path).items()
    assert old + done == len(Cache(tmp_path / "cache").encoding().shards)
    assert verify(tmp_path / "cache", deep=True) == []
    assert capture(tmp_path, teacher, hidden=LAYERS) == 0
    assert tree(tmp_path) == appended


def test_three_files_appended_one_by_one_are_three_parts_in_a_row(tmp_path, teacher):
    first_part(tmp_path, teacher)
    capture(tmp_path, teacher, append=True)
    before = objects(tmp_path)
    add(tmp_path, "0.jsonl", range(14, 20))  # read first, if all were new
    capture(tmp_path, teacher, append=True)
    assert before.items() <= objects(tmp_path).items()
    encoding = Cache(tmp_path / "cache").encoding()
    assert len(encoding.manifest.parts) == 3
    ids = [s.sequence_id for shard in range(len(encoding.shards)) for s in encoding.sequences(shard)]
    assert ids == list(range(len(ids)))
    assert verify(tmp_path / "cache", deep=True) == []


def test_a_taken_document_id_is_refused_and_the_cache_stays_as_it_was(tmp_path, teacher):
    first_part(tmp_path, teacher)
    before = snapshot(tmp_path / "cache")
    add(tmp_path, "c.jsonl", [*range(20, 36), 3])  # so many that shards are written before the last is read
    with pytest.raises(CorpusError, match="'doc3' occurs a second time"):
        capture(tmp_path, teacher, append=True)
    assert snapshot(tmp_path / "cache") == before


@pytest.mark.parametrize("change", [lambda file: file.unlink(), lambda file: file.write_text('{"text": "else"}\n')])
def test_a_changed_or_missing_old_file_is_refused_even_with_append(tmp_path, teacher, change):
    first_part(tmp_path, teacher)
    before = snapshot(tmp_path / "cache")
    change(tmp_path / "corpus" / "a.jsonl")
    with pytest.raises(IdentityError, match=r"a\.jsonl is (changed|gone)"):
        capture(tmp_path, teacher, append=True)
    assert snapshot(tmp_path / "cache") == before


def test_a_new_file_without_append_is_refused_by_name(tmp_path, teacher):
    first_part(tmp_path, teacher)
    before = snapshot(tmp_path / "cache")
    with pytest.raises(IdentityError, match=r"b\.jsonl is new.*--append"):
        capture(tmp_path, teacher)
    assert snapshot(tmp_path / "cache") == before


RENAMES = {  # what is there when the append dies: the old cache, or the new encoding with shards to come
    "old": ["main/sequences/00003.arrow", "00001/files.arrow", "00001/shards.arrow", "encodings/main/zarr.json"],
    "new": ["toy/levels/zarr.json", "hidden/1/zarr.json", "toy/ids/c/3/0", "receipts/00003.json"],
}


FEW = ("main/sequences/00003.arrow", "encodings/main/zarr.json", "toy/ids/c/3/0", "receipts/00003.json")


@pytest.mark.parametrize(
    ("state", "suffix"),
    [
        pytest.param(state, suffix, marks=[] if suffix in FEW else [pytest.mark.slow])
        for state in RENAMES
        for suffix in RENAMES[state]
    ],
)
def test_an_append_killed_at_a_rename_leaves_a_sound_cache_and_continues(tmp_path, teacher, appended, state, suffix):
    first_part(tmp_path, teacher, hidden=LAYERS)
    before = objects(tmp_path)
    rows = Cache(tmp_path / "cache").encoding().teacher().shard_rows(1)
    targets = Cache(tmp_path / "cache").encoding().teacher().targets(*rows)
    process = start(kill_at_rename, suffix, partial(capture, tmp_path, teacher, append=True, hidden=LAYERS))
    assert finish(process) == -signal.SIGKILL
    assert before.items() <= objects(tmp_path).items()
    found = Cache(tmp_path / "cache").encoding().teacher().targets(*rows)
    assert all(np.array_equal(values, getattr(targets, name)) for name, values in vars(found).items())
    kinds = {problem.kind for problem in verify(tmp_path / "cache", deep=True)}
    assert kinds == (set() if state == "old" else {"missing"})
    capture(tmp_path, teacher, append=True, hidden=LAYERS)
    assert tree(tmp_path) == appended


def test_two_workers_append_what_one_appends(tmp_path, teacher, appended):
    first_part(tmp_path, teacher, hidden=LAYERS)
    more = {"append": True, "hidden": LAYERS}
    workers = [start(partial(capture, tmp_path, teacher, worker=Worker(rank, 2), **more)) for rank in (1, 0)]
    assert [finish(worker) for worker in workers] == [0, 0]
    assert tree(tmp_path) == appended


# Layers come and go


@pytest.mark.parametrize("codec", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow), "budget"])
def test_layers_added_one_by_one_equal_those_captured_at_once(tmp_path, teacher, codec):
    for folder in (tmp_path / "steps", tmp_path / "once"):
        folder.mkdir()
        add(folder, "a.jsonl", range(8))
    one, both = ({"layers": layers, "codec": codec} for layers in (["last"], ["last", 1]))
    capture(tmp_path / "once", teacher, hidden=both)
    capture(tmp_path / "steps", teacher)
    before = objects(tmp_path / "steps")
    for hidden in (one, both):
        capture(tmp_path / "steps", teacher, hidden=hidden)
        arrays = {key: content for key, content in before.items() if "receipts" not in key}
        assert arrays.items() <= objects(tmp_path / "steps").items()
    assert tree(tmp_path / "steps") == tree(tmp_path / "once")
    receipt = Cache(tmp_path / "steps/cache").encoding().teacher().receipt(0)
    assert list(receipt.groups) == list(receipt.provenance) == ["targets", "hidden/last", "hidden/1"]
    assert {"hidden_1_relative_error", "hidden_last_kl_nats"} <= set(receipt.statistics) or codec != "budget"
    with pytest.raises(IdentityError, match=r"hidden\.1"):
        capture(tmp_path / "steps", teacher, hidden=one)


@pytest.fixture
def layered(tmp_path, teacher):
    """A captured cache with two layers, and its tree."""
    add(tmp_path, "a.jsonl", range(8))
    capture(tmp_path, teacher, hidden=LAYERS)
    return tree(tmp_path)


def drop(folder, layer=None):
    encoding = Cache(folder / "cache").encoding()
    if layer:
        drop_hidden(encoding.teacher("toy"), layer)
    else:
        drop_teacher(encoding, "toy")


@pytest.mark.parametrize("layer", ["last", "1", None])
def test_what_was_dropped_can_be_captured_again_to_the_same_bytes(tmp_path, teacher, layered, layer):
    drop(tmp_path, layer)
    left = tree(tmp_path)
    gone = "teachers/toy/" if layer is None else f"hidden/{layer}/"
    assert not any(gone in key for key in left)
    if layer:
        assert verify(tmp_path / "cache", deep=True) == []
        assert all(left[key] == layered[key] for key in left if "/c/" in key)
    with pytest.raises(FormatError, match=r"no hidden states of layer|there is no teacher here yet"):
        drop(tmp_path, layer)
    capture(tmp_path, teacher, hidden=LAYERS)
    assert unordered(tree(tmp_path)) == unordered(layered)


def unordered(files):
    """Return a tree whose receipts are compared without the order of their groups, which is that of capture."""
    return {key: sorted(content) if "receipts" in key else content for key, content in files.items()}


@pytest.mark.parametrize("suffix", ["receipts/00000.json", "receipts/00001.json"])
def test_a_drop_killed_between_receipts_is_finished_by_the_next(tmp_path, teacher, layered, suffix):
    assert finish(start(kill_at_rename, suffix, partial(drop, tmp_path, "1"))) == -signal.SIGKILL
    assert verify(tmp_path / "cache", deep=True) == []
    drop(tmp_path, "1")
    assert not any("hidden/1" in content for content in map(repr, tree(tmp_path).items()))
    capture(tmp_path, teacher, hidden=LAYERS)
    assert unordered(tree(tmp_path)) == unordered(layered)


def test_a_layer_whose_drop_was_killed_can_be_captured_in_another_codec(tmp_path, teacher, layered):
    assert finish(start(kill_at_rename, "receipts/00001.json", partial(drop, tmp_path, "1"))) == -signal.SIGKILL
    drop(tmp_path, "last")
    hidden = {"layers": [1], "codec": "float32"}
    capture(tmp_path, teacher, hidden=hidden)
    assert verify(tmp_path / "cache", deep=True) == []
    (tmp_path / "fresh").mkdir()
    add(tmp_path / "fresh", "a.jsonl", range(8))
    capture(tmp_path / "fresh", teacher, hidden=hidden)
    assert unordered(tree(tmp_path)) == unordered(tree(tmp_path / "fresh"))


def test_a_teacher_whose_drop_was_killed_is_unseen_until_the_next_drop_removes_it(tmp_path, teacher, layered):
    assert finish(start(kill_at_unlink, "levels/c/1/0", partial(drop, tmp_path))) == -signal.SIGKILL
    cache = Cache(tmp_path / "cache")
    assert cache.encoding().teachers == []
    assert {problem.kind for problem in verify(cache.path, deep=True)} == {"missing"}
    drop(tmp_path)
    assert not any("teachers/toy" in key for key in tree(tmp_path))
    capture(tmp_path, teacher, hidden=LAYERS)
    assert tree(tmp_path) == layered


def test_arrays_that_a_killed_drop_left_do_not_shape_the_next_teacher(tmp_path, teacher, layered):
    assert finish(start(kill_at_unlink, "levels/zarr.json", partial(drop, tmp_path))) == -signal.SIGKILL
    shutil.rmtree(tmp_path / "cache/encodings/main/teachers/toy/receipts")
    capture(tmp_path, teacher, target={"k": 4})
    assert Cache(tmp_path / "cache").encoding().teacher().targets(0, 5).ids.shape == (5, 4)
    assert verify(tmp_path / "cache", deep=True) == []


def test_predictions_without_a_manifest_are_not_taken_over(tmp_path, teacher, layered):
    (tmp_path / "cache/encodings/main/teachers/toy/zarr.json").unlink()
    before = snapshot(tmp_path / "cache")
    with pytest.raises(FormatError, match=r"manifest of teacher 'toy' is gone.*logitcask drop"):
        capture(tmp_path, teacher, hidden=LAYERS)
    assert snapshot(tmp_path / "cache") == before
