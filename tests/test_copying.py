"""``copy`` and ``subset``: another cache from one that is there, without a teacher."""

import signal
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest

import tiny as tiny_models
from cache_tools.codecs.registry import EMPTY_ID
from cache_tools.errors import ConfigError, FormatError, IdentityError, IncompleteError
from cache_tools.format import layout
from cache_tools.hidden_codecs.transform import Transform, transform_bytes
from cache_tools.maintenance import copying
from cache_tools.maintenance.copying import copy_cache
from cache_tools.maintenance.drop import drop_hidden
from cache_tools.maintenance.subset import Choice, subset_cache
from cache_tools.maintenance.verify import verify
from cache_tools.store.reader import Cache
from cache_tools.store.writer import commit_shard, declare_teacher
from kinds import EVERY_HIDDEN, MADE, hidden_files, make
from processes import finish, kill_at_rename, start
from store_fixtures import make_cache, random_predictions, snapshot, teacher_manifest
from student_fixtures import train

NARROWABLE = ["topk", "topk-wide", "topp", "exact", "hidden"]


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """A cache of every kind, by name; nobody changes them."""
    return {name: make(name, tmp_path_factory.mktemp(name)) for name in MADE}


@pytest.fixture(scope="module")
def source(caches):
    return caches["hidden"]


def whole(folder):
    """Return the files below a folder without what killed writers left."""
    return {key: content for key, content in snapshot(folder).items() if not key.endswith(".partial")}


def killed(suffix, work):
    return finish(start(kill_at_rename, suffix, work)) == -signal.SIGKILL


# Copy


def copy(source, target):
    copy_cache(Cache(source), target)


KILLS = [
    "sequences/00001.arrow",
    "levels/c/1/0",
    "receipts/00002.json",
    *(
        pytest.param(suffix, marks=pytest.mark.slow)
        for suffix in ("cache/zarr.json", "encodings/tiny/zarr.json", "toy/zarr.json")
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", KILLS)
def test_a_killed_copy_goes_on_to_the_same_bytes(tmp_path, source, suffix):
    target = tmp_path / "cache"
    assert killed(suffix, partial(copy, source.path, target))
    assert not any(key.endswith(suffix) for key in whole(target))
    copy(source.path, target)
    assert whole(target) == snapshot(source.path)


def test_a_copy_takes_what_is_new_and_nothing_else(tmp_path, monkeypatch):
    teacher, corpus = tiny_models.save_teacher(tmp_path / "teacher"), tmp_path / "corpus"
    corpus.mkdir()
    values = tiny_models.capture_values(tmp_path, teacher, paths=[str(corpus)], positions_per_shard=256)
    written = []
    real = copying.write_objects
    monkeypatch.setattr(copying, "write_objects", lambda folder, new: written.extend(new) or real(folder, new))
    for name, numbers in (("a.jsonl", range(8)), ("b.jsonl", range(8, 14))):
        tiny_models.write_corpus(corpus / name, tiny_models.TEXTS[numbers.start : numbers.stop])
        text = (corpus / name).read_text().replace('"doc', f'"{name}')
        (corpus / name).write_text(text)
        before = len(Cache(tmp_path / "cache").encoding().shards) if (tmp_path / "cache").exists() else 0
        tiny_models.run(values, append=True)
        written.clear()
        copy(tmp_path / "cache", tmp_path / "copy")
        assert snapshot(tmp_path / "copy") == snapshot(tmp_path / "cache")
        shards = {int(key.split("/c/")[1].split("/")[0]) for key in written if "/c/" in key}
        assert shards == set(range(before, len(Cache(tmp_path / "cache").encoding().shards)))
    values["teachers"][0]["hidden"] = {"layers": ["last"]}
    tiny_models.run(values)
    written.clear()
    copy(tmp_path / "cache", tmp_path / "copy")
    assert snapshot(tmp_path / "copy") == snapshot(tmp_path / "cache")
    assert {key.split("/c/")[0] for key in written if "/c/" in key} == {"hidden/last"}


def test_a_copy_follows_a_layer_that_is_kept_in_another_way_since(tmp_path):
    """Even killed in the middle: rows quantised in one basis are never decoded in another."""
    old = make("hidden", tmp_path / "old")
    other = Transform(np.zeros(5, np.float32), np.eye(5, dtype=np.float32))
    files = hidden_files() | {layout.transform_key("1"): transform_bytes(other)}
    new = make_cache(tmp_path / "new", hidden=EVERY_HIDDEN, files=files)
    copy(old.path, tmp_path / "copy")
    assert killed("hidden/1/c/1/0", partial(copy, new.path, tmp_path / "copy"))
    teacher = Cache(tmp_path / "copy").encoding().teacher()
    assert np.array_equal(teacher.hidden("1", 0, 12), new.open().hidden("1", 0, 12))
    with pytest.raises(IncompleteError):
        teacher.hidden("1", 16, 28)
    copy(new.path, tmp_path / "copy")
    assert whole(tmp_path / "copy") == snapshot(new.path)


def test_a_copy_follows_a_dropped_layer(tmp_path):
    tiny = make("hidden", tmp_path)
    copy(tiny.path, tmp_path / "copy")
    drop_hidden(tiny.open(), "1")
    copy(tiny.path, tmp_path / "copy")
    assert whole(tmp_path / "copy") == snapshot(tiny.path)


@pytest.mark.parametrize("other", ["sampled", "another corpus"])
def test_refuses_to_copy_over_another_cache(tmp_path, source, caches, other):
    target = make_cache(tmp_path, vocabulary=900).path if other == "another corpus" else tmp_path / "copy"
    if other == "sampled":
        copy(caches["sampled"].path, target)
    before = snapshot(target)
    with pytest.raises(IdentityError, match=r"the target holds another (encoding|teacher)"):
        copy(source.path, target)
    assert {key: value for key, value in snapshot(target).items() if "teachers/toy" in key} == {
        key: value for key, value in before.items() if "teachers/toy" in key
    }


# Subset


def subset(source, target, choice):
    subset_cache(Cache(source), target, choice)
    return Cache(target).encoding()


def keyed(encoding, read):
    """Return a value for each (document, number of the sequence in it, position), read from each sequence's rows."""
    found, counts = {}, {}
    for shard in range(len(encoding.shards)):
        for sequence in encoding.sequences(shard):
            number = counts[sequence.document_id] = counts.get(sequence.document_id, -1) + 1
            for position, value in zip(sequence.positions(), read(*sequence.rows), strict=True):
                found[sequence.document_id, number, int(position)] = value
    return found


@cache
def keyed_source(path, method, *value):
    """Return ``keyed`` of a cache that nobody changes: by a method of its teacher, or by ``rows_of``."""
    encoding = Cache(path).encoding()
    teacher = encoding.teacher()
    return keyed(encoding, partial(getattr(teacher, method), *value) if method else rows_of(teacher))


def rows_of(teacher):
    """Return what ``keyed`` reads: each row's entries and left-out probability."""

    def read(start, stop):
        t = teacher.targets(start, stop)
        return [
            ({i: p for i, p in zip(*row[:2], strict=True) if i != EMPTY_ID}, float(np.exp(row[2])))
            for row in zip(t.ids.tolist(), t.log_probs.tolist(), t.log_left_out, strict=True)
        ]

    return read


CHOICES = {
    "all": Choice(),
    "one document": Choice(documents=frozenset({"document-1"})),
    "two documents": Choice(documents=frozenset({"document-0", "document-2"})),
    "train": Choice(split="train"),
    "held out": Choice(split="held_out"),
}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("name", MADE)
def test_a_subset_says_what_its_source_says(tmp_path, caches, name, choice):
    found = subset(caches[name].path, tmp_path / "subset", choice)
    path, ours, theirs = caches[name].path, found.teacher(), caches[name].open()
    expected = {key: value for key, value in keyed_source(path, None).items() if chosen(key[0], choice)}
    assert keyed(found, rows_of(ours)) == expected
    reads = [(scalar, "scalar", 0) for scalar in theirs.manifest.scalars]
    reads += [(layer, "hidden", 1e-5) for layer in theirs.manifest.hidden]
    for value, method, tolerance in reads:
        new, old = keyed(found, partial(getattr(ours, method), value)), keyed_source(path, method, value)
        assert all(np.allclose(new[key], old[key], rtol=0, atol=tolerance) for key in new)
    assert verify(tmp_path / "subset", deep=True) == []


def chosen(document, choice):
    split = "held_out" if document == "document-2" else "train"
    return choice.split in (None, split) and (choice.documents is None or document in choice.documents)


@pytest.mark.parametrize("name", NARROWABLE)
@pytest.mark.parametrize("k", [1, 2])
def test_fewer_entries_are_the_likeliest_and_leave_the_rest_out(tmp_path, caches, name, k):
    found, encoding = subset(caches[name].path, tmp_path / "subset", Choice(k=k)), caches[name].open().encoding
    old = keyed(encoding, rows_of(encoding.teacher()))
    half_level = 0.5 / (0.3 * 15)  # of the new left-out mass, in nats, on the coarsest scale that a row can have
    for key, (entries, left_out) in keyed(found, rows_of(found.teacher())).items():
        before, rest = old[key]
        kept = sorted(before, key=lambda i: (-before[i], i))[:k]
        assert set(entries) == set(kept)
        dropped = sum(np.exp(before[i]) for i in before if i not in kept)
        assert left_out == pytest.approx(rest + dropped, abs=half_level / 4)  # of x (1 - x)
        assert all(entries[i] == pytest.approx(before[i], abs=half_level) for i in kept)
    assert verify(tmp_path / "subset", deep=True) == []


def test_a_subset_of_one_teacher_of_two(tmp_path):
    tiny = make_cache(tmp_path)
    manifest = teacher_manifest({"corpus": "random"}, 1000, 3)
    second = declare_teacher(tiny.open().encoding, "second", manifest)
    drawn = [random_predictions(np.random.default_rng(1), entry.positions, 3, 1000) for entry in tiny.entries]
    for shard, predictions in enumerate(drawn):
        commit_shard(second, shard, predictions, {})
    found = subset(tiny.path, tmp_path / "subset", Choice(teachers=("second",)))
    assert found.teachers == ["second"]
    assert keyed(found, rows_of(found.teacher())) == keyed(second.encoding, rows_of(second))
    found = subset(tiny.path, tmp_path / "subset", Choice())  # another teacher joins it later
    assert found.teachers == ["second", "toy"]
    assert verify(tmp_path / "subset", deep=True) == []


def test_more_entries_than_there_are_change_nothing(tmp_path, source):
    found = subset(source.path, tmp_path / "subset", Choice(k=9))
    assert found.teacher().codec.k == source.open().codec.k


def test_documents_are_counted_where_they_begin(tmp_path):
    values = tiny_models.capture_values(tmp_path, positions_per_shard=128)
    tiny_models.run(values)
    source = Cache(tmp_path / "cache")
    totals = subset(source.path, tmp_path / "subset", Choice()).manifest.splits
    assert totals == source.encoding().manifest.splits
    train(tmp_path / "subset", tmp_path / "run")  # a student learns from it as from any other


REFUSED = {
    "unknown document": (Choice(documents=frozenset({"document-1", "nobody"})), ConfigError, "no document 'nobody'"),
    "unknown teacher": (Choice(teachers=("nobody",)), FormatError, "no teacher 'nobody'"),
    "smaller samples": (Choice(k=2), ConfigError, "rows of teacher 'toy' cannot be narrowed"),
}


@pytest.mark.parametrize(("choice", "error", "match"), REFUSED.values(), ids=REFUSED)
def test_refuses_what_cannot_be_chosen_and_the_target_stays_usable(tmp_path, caches, choice, error, match):
    with pytest.raises(error, match=match):
        subset(caches["sampled"].path, tmp_path / "subset", choice)
    assert len(subset(caches["sampled"].path, tmp_path / "subset", Choice()).shards) == 3
    assert verify(tmp_path / "subset", deep=True) == []


def test_refuses_a_target_that_holds_another_choice(tmp_path, source):
    subset(source.path, tmp_path / "subset", Choice(split="train"))
    before = snapshot(tmp_path / "subset")
    for choice in (Choice(), Choice(split="held_out"), Choice(split="train", k=1)):
        with pytest.raises(IdentityError, match=r"another (encoding|teacher)"):
            subset(source.path, tmp_path / "subset", choice)
    assert snapshot(tmp_path / "subset") == before


def test_refuses_shards_that_were_not_captured(tmp_path):
    tiny = make_cache(tmp_path, committed=2)
    with pytest.raises(IncompleteError, match="missing shards 2"):
        subset(tiny.path, tmp_path / "subset", Choice())
    assert len(subset(tiny.path, tmp_path / "train", Choice(split="train")).shards) == 2


@pytest.mark.parametrize("suffix", ["sequences/00001.arrow", "tiny/zarr.json", "toy/zarr.json", "receipts/00001.json"])
def test_a_killed_subset_goes_on_to_the_same_bytes(tmp_path, source, suffix):
    choice = replace(CHOICES["two documents"], k=2)
    assert killed(suffix, partial(subset, source.path, tmp_path / "subset", choice))
    subset(source.path, tmp_path / "subset", choice)
    subset(source.path, tmp_path / "straight", choice)
    assert whole(tmp_path / "subset") == snapshot(tmp_path / "straight")
