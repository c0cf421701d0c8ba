"""Writing a cache and reading it back: by shard, by window, by sequence, and when something is wrong."""

import pickle
from functools import partial

import numpy as np
import pytest
from test_sequences import equal

from cache_tools.codecs.registry import EMPTY_ID
from cache_tools.errors import DamageError, FormatError, IdentityError, IncompleteError
from cache_tools.format import layout
from cache_tools.format.manifest import SOFTWARE, CacheManifest, write_manifest
from cache_tools.store import reader
from cache_tools.store import teacher as store_teacher
from cache_tools.store.reader import Cache
from cache_tools.store.root import create_cache
from cache_tools.store.writer import declare_teacher
from store_fixtures import (
    HIDDEN,
    POSITIONS_PER_SHARD,
    TinyCache,
    assert_rows,
    by_id,
    make_cache,
    read_everything,
    sealed,
    teacher_manifest,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A whole cache that no test changes."""
    return make_cache(tmp_path_factory.mktemp("tiny"))


def encoding_of(tiny: TinyCache):
    """Open the encoding as a new reader."""
    return Cache(tiny.path).encoding()


@pytest.mark.parametrize(("vocabulary", "k"), [(1000, 4), (70_000, 1)])
def test_every_shard_reads_back_as_written(tmp_path, vocabulary, k):
    tiny = make_cache(tmp_path, vocabulary=vocabulary, k=k)
    for shard, entry in enumerate(tiny.entries):
        assert_rows(tiny, shard, 0, entry.positions)
        found = tiny.open().targets(*tiny.open().shard_rows(shard))
        assert [set(row) for row in by_id(tiny.predictions[shard].targets)] == [set(row) for row in by_id(found)]


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (3, 5), (4, 8), (11, 12), (5, 5)])
def test_a_window_reads_back_as_written(tiny, start, stop):
    assert_rows(tiny, 1, start, stop)


def test_a_window_over_a_partly_filled_shard_shows_its_unused_rows_as_empty(tiny):
    used = tiny.entries[0].positions
    assert used < POSITIONS_PER_SHARD
    teacher = tiny.open()
    found = teacher.targets(0, POSITIONS_PER_SHARD + 5)
    first, second = teacher.targets(0, used), teacher.targets(POSITIONS_PER_SHARD, POSITIONS_PER_SHARD + 5)
    unused = np.full((POSITIONS_PER_SHARD - used, 4), EMPTY_ID)
    assert np.array_equal(found.ids, np.concatenate([first.ids, unused, second.ids]))
    assert np.isneginf(found.log_left_out[used:POSITIONS_PER_SHARD]).all()
    assert not teacher.scalar("entropy", used, POSITIONS_PER_SHARD).any()


@pytest.mark.parametrize("sequence_id", range(9))
def test_a_sequence_and_its_rows_are_found_by_id(tiny, sequence_id):
    encoding, (shard, number) = Cache(tiny.path).encoding(), divmod(sequence_id, 3)
    sequence = encoding.sequence(sequence_id)
    assert equal(sequence, tiny.sequences[shard][number])
    assert_rows(tiny, shard, *(row - shard * POSITIONS_PER_SHARD for row in sequence.rows))


@pytest.mark.parametrize("sequence_id", [-1, 9])
def test_refuses_a_sequence_that_does_not_exist(tiny, sequence_id):
    with pytest.raises(IndexError, match=f"sequence {sequence_id} does not exist"):
        Cache(tiny.path).encoding().sequence(sequence_id)


def test_shards_belong_to_one_split(tiny):
    encoding = Cache(tiny.path).encoding()
    assert (encoding.split_shards("train"), encoding.split_shards("held_out")) == ([0, 1], [2])


def test_a_shard_without_receipt_does_not_exist(tmp_path):
    tiny = make_cache(tmp_path, shards=4, committed=2)
    teacher = tiny.open()
    assert teacher.missing_shards() == [2, 3]
    assert teacher.missing_shards("held_out") == [3]
    for read in (teacher.targets, lambda *rows: teacher.scalar("entropy", *rows)):
        with pytest.raises(IncompleteError, match="missing shards 2, 3") as refusal:
            read(0, 4 * POSITIONS_PER_SHARD)
        assert "Run the same 'logitcask capture' again" in str(refusal.value)
    assert_rows(tiny, 1, 0, 12, teacher)


def test_a_split_is_complete_when_its_shards_are(tmp_path):
    teacher = make_cache(tmp_path, committed=2).open()
    teacher.require_complete("train")
    with pytest.raises(IncompleteError, match="no receipt for 1 of 3 shards"):
        teacher.require_complete("held_out")


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 3 * POSITIONS_PER_SHARD + 1), (3, 2)])
def test_rows_outside_the_shards_do_not_exist(tiny, start, stop):
    teacher = tiny.open()
    for read in (teacher.targets, partial(teacher.scalar, "entropy"), partial(teacher.hidden, "1")):
        with pytest.raises(IndexError, match=f"rows {start} to {stop} of 48"):
            read(start, stop)


def test_a_missing_object_is_never_read_as_zeros(tmp_path):
    tiny = make_cache(tmp_path)
    for path in tiny.objects(1):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(DamageError, match=r"stored bytes cannot be decoded .*FileNotFoundError"):
            read_everything(tiny.open(), POSITIONS_PER_SHARD, POSITIONS_PER_SHARD + 2)
        path.write_bytes(content)
    read_everything(tiny.open(), POSITIONS_PER_SHARD, POSITIONS_PER_SHARD + 2)


def test_an_object_that_no_receipt_lists_is_never_read(tmp_path):
    """A shard of fill values has no object; what a killed writer left in its place must not show."""
    tiny = make_cache(tmp_path, committed=0)
    zeros = np.zeros((12, 2), dtype=np.float32)
    tiny.predictions[0].hidden["1"][:] = zeros
    receipt = tiny.commit(0)
    assert "hidden/1/c/0/0" not in receipt.objects
    tiny.commit(1)
    stray = tiny.teacher / "hidden/1/c/0/0"
    assert not stray.exists()
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_bytes((tiny.teacher / "hidden/1/c/1/0").read_bytes())
    assert np.array_equal(tiny.open().hidden("1", 0, 12), zeros)


def test_refuses_a_teacher_of_another_encoding(tiny, tmp_path):
    other = make_cache(tmp_path, committed=0)
    write_manifest(layout.teacher_folder(other.encoding, "stray"), teacher_manifest({"corpus": "another"}, 1000, 4))
    with pytest.raises(IdentityError, match="belong to another encoding"):
        Cache(other.path).encoding().teacher("stray")


def test_refuses_a_newer_format_by_both_versions(tmp_path):
    write_manifest(tmp_path, CacheManifest(format=2, software="logitcask 9.9"))
    for refuse in (Cache, create_cache):
        with pytest.raises(FormatError, match=r"expected format 1, found format 2, written by logitcask 9\.9"):
            refuse(tmp_path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "no such file"),
        (b"{", "damaged .Expecting"),
        (b"[]", "damaged .it has no seal"),
        (b"\xff", "damaged"),
        (sealed({"zarr_format": 3, "node_type": "group", "attributes": {}}), "no 'logitcask' entry"),
        (sealed({"attributes": {"logitcask": 5}}), "Input should be a valid dictionary"),
        (
            sealed({"attributes": {"logitcask": {"format": 1, "software": 5}}}),
            "software: Input should be a valid string",
        ),
        (sealed({"attributes": {"logitcask": {"format": 1}}}).replace(b"\n", b"\n ", 1), "its seal is broken"),
    ],
)
def test_refuses_what_is_not_a_cache(tmp_path, content, found):
    if content is not None:
        (tmp_path / layout.MANIFEST).write_bytes(content)
    with pytest.raises(FormatError, match=f"no readable cache manifest here .*{found}") as refusal:
        Cache(tmp_path)
    assert str(refusal.value).startswith(str(tmp_path / layout.MANIFEST))


def test_unknown_manifest_keys_are_ignored(tmp_path):
    later = {"format": 1, "software": SOFTWARE, "invented_later": True}
    (tmp_path / layout.MANIFEST).write_bytes(sealed({"attributes": {"logitcask": later}}))
    assert Cache(tmp_path).manifest == CacheManifest()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "../a", "a\\b", ".a", "-a", "a b", "a\n", "ä", "a" * 101])
def test_refuses_names_that_are_not_plain(name):
    with pytest.raises(FormatError, match="not a legal name"):
        layout.checked_name(name)


@pytest.mark.parametrize("name", ["a", "Qwen3-8B", "0.6b_base", "a" * 100])
def test_accepts_plain_names(name):
    assert layout.checked_name(name) == name


@pytest.mark.parametrize("key", ["scalars", "hidden"])
def test_refuses_a_manifest_whose_array_names_are_paths(tmp_path, key):
    tiny = make_cache(tmp_path)
    path = "../../../outside"
    value = (path,) if key == "scalars" else {path: HIDDEN["last"]}
    write_manifest(tiny.teacher, tiny.manifest.model_copy(update={key: value}))
    with pytest.raises(FormatError, match="no readable teacher manifest"):
        tiny.open()


def test_refuses_a_name_that_is_not_there_and_lists_those_that_are(tiny):
    with pytest.raises(FormatError, match=r"there is no encoding 'other' here \(expected one of: tiny, found other\)"):
        Cache(tiny.path).encoding("other")
    with pytest.raises(FormatError, match=r"there is no teacher '\.\.' here \(expected one of: toy, found \.\.\)"):
        Cache(tiny.path).encoding("tiny").teacher("..")


def test_without_a_name_the_choice_must_be_plain(tmp_path):
    tiny = make_cache(tmp_path, committed=0)
    declare_teacher(encoding_of(tiny), "second", tiny.manifest)
    with pytest.raises(FormatError, match="several teachers here; name one of them"):
        tiny.open()


def test_a_cache_without_encodings_is_said_to_have_none(tmp_path):
    tiny = make_cache(tmp_path, committed=0)
    (encoding_of(tiny).path / "zarr.json").unlink()
    for name in (None, "other"):
        with pytest.raises(FormatError, match=r"there is no encoding here yet\. Run 'logitcask capture' first"):
            Cache(tiny.path).encoding(name)


def test_a_table_of_shards_reads_like_a_list_of_entries_and_holds_only_columns(tmp_path):
    tiny = make_cache(tmp_path, shards=5)
    shards = Cache(tiny.path).encoding().shards
    assert shards == tiny.entries
    assert [*shards, shards[-1]] == [*tiny.entries, tiny.entries[-1]]
    assert shards[1:3] == tiny.entries[1:3]
    assert shards != tiny.entries[:4]
    assert shards.numbers("positions").tolist() == [entry.positions for entry in tiny.entries]
    assert len(pickle.dumps(shards)) < 5 * 200 + 2000


def test_a_teacher_goes_to_another_process_without_opening_anything(tmp_path, monkeypatch):
    tiny = make_cache(tmp_path, committed=3)
    teacher = tiny.open()
    teacher.require_complete("train")
    packed = pickle.dumps(teacher)
    with monkeypatch.context() as patch:
        for function in ("read_manifest", "names"):
            patch.setattr(reader, function, lambda *_: pytest.fail("a file was read"))
        patch.setattr(store_teacher, "receipt_contents", lambda *_: pytest.fail("receipts were read"))
        patch.setattr(store_teacher, "read_receipts", lambda *_: pytest.fail("receipts were read"))
        other = pickle.loads(packed)
        other.require_complete("train")
        assert other.encoding.shards == tiny.entries
    assert np.array_equal(other.targets(3, 9).ids, teacher.targets(3, 9).ids)
