"""A cache in a bucket: the same bytes and numbers as on a disk, through throttling, broken connections and kills.

The bucket is moto's S3 server behind a proxy that misbehaves on demand (see ``bucket.py``); ``memory://``
stands for every other protocol of fsspec.
"""

import multiprocessing
import os
import re
import signal
from itertools import count
from unittest.mock import patch

import numpy as np
import pytest

import processes
import tiny
from bucket import environment, first, serve
from cache_tools.errors import DamageError, FormatError, StorageError
from cache_tools.maintenance.copying import copy_cache
from cache_tools.maintenance.drop import drop_teacher
from cache_tools.maintenance.verify import verify
from cache_tools.storage import (
    Span,
    names,
    object_exists,
    object_size,
    read_object,
    read_spans,
    remove_object,
    remove_tree,
    store_path,
    write_object,
)
from cache_tools.store.reader import Cache
from cache_tools.store.root import create_cache
from doc_blocks import ROOT
from store_fixtures import make_cache, snapshot

TIMEOUT_SECONDS = 600
NUMBERS = count()


@pytest.fixture(scope="module")
def bucket():
    with serve() as running, patch.dict(os.environ, environment(running)):
        yield running


@pytest.fixture(params=["s3", "memory", "disk"])
def place(request, tmp_path):
    """An empty place in each kind of store."""
    if request.param == "disk":
        return tmp_path / "place"
    if request.param == "memory":
        return store_path(f"memory://tests/{next(NUMBERS)}")
    return store_path(f"{request.getfixturevalue('bucket').url}/{next(NUMBERS)}")


@pytest.fixture
def remote(bucket):
    """An empty place in the bucket."""
    return store_path(f"{bucket.url}/{next(NUMBERS)}")


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("local"))


def contents(place):
    """Return the bytes of every object below a place, by name."""
    if not names(place):
        return {}
    found = {}
    for name in names(place):
        below = contents(place / name)
        found |= {f"{name}/{key}": value for key, value in below.items()} or {name: read_object(place / name)}
    return found


# One set of functions for every store


def test_an_object_reads_back_whole_and_in_spans(place):
    content = bytes(range(256)) * 100
    write_object(place / "a" / "b", content)
    assert read_object(place / "a" / "b") == content
    assert object_size(place / "a" / "b") == len(content)
    spans = [Span(place / "a" / "b", start, start + size) for start, size in ((0, 1), (25_000, 600), (3, 7), (3, 7))]
    assert read_spans(spans) == [content[span.start : span.stop] for span in spans]


def test_what_does_not_exist_is_not_there(place):
    assert not object_exists(place / "nothing")
    assert names(place / "nothing") == []
    with pytest.raises(FileNotFoundError):
        read_object(place / "nothing")
    with pytest.raises(FileNotFoundError):
        read_spans([Span(place / "nothing", 0, 1)])
    remove_object(place / "nothing")
    remove_tree(place / "nothing")


def test_names_are_those_directly_inside(place):
    for key in ("b", "a/x", "a/y/z"):
        write_object(place.joinpath(*key.split("/")), b"!")
    assert names(place) == ["a", "b"]
    assert names(place / "a") == ["x", "y"]
    remove_object(place / "b")
    assert names(place) == ["a"]
    remove_tree(place / "a")
    assert names(place) == []


def test_an_object_is_replaced_as_a_whole(place):
    write_object(place / "one", b"long " * 1000)
    write_object(place / "one", b"short")
    assert read_object(place / "one") == b"short"


def test_refuses_a_place_of_an_unknown_kind():
    with pytest.raises(Exception, match="this kind of URL is not supported"):
        store_path("gopher://old/cache")


def test_the_how_to_names_the_variables_that_these_tests_set(bucket):
    text = (ROOT / "docs" / "how-to" / "bucket.md").read_text().split("## Any gateway that speaks S3")[1]
    assert set(re.findall(r"(AWS_\w+)=", text.split("```")[1])) == set(environment(bucket))


# A cache in it


def test_a_copy_has_the_same_bytes_in_every_store_and_back(local, place, tmp_path):
    copy_cache(Cache(local.path), place)
    assert contents(place) == snapshot(local.path)
    assert verify(place, deep=True) == []
    copy_cache(Cache(place), tmp_path / "back")
    assert snapshot(tmp_path / "back") == snapshot(local.path)


def test_a_window_in_a_bucket_equals_the_one_on_disk_and_takes_one_batch_of_requests(bucket, local, remote):
    copy_cache(Cache(local.path), remote)
    ours, theirs = Cache(str(remote)).encoding().teacher(), local.open()
    for start, stop in ((0, 5), (3, 9), (16, 28)):
        found, expected = ours.targets(start, stop), theirs.targets(start, stop)
        assert all(np.array_equal(values, getattr(expected, name)) for name, values in vars(found).items())
    stored = {key.split("/c/")[0] for key in ours.receipt(0).objects}
    before = len(bucket.requests)
    ours.targets(2, 4)  # metadata, receipt and indexes are known by now
    assert len(bucket.requests) - before == len(stored & set(ours.codec.array_types()))


@pytest.mark.slow
def test_a_capture_into_a_bucket_writes_what_one_onto_a_disk_writes(remote, tmp_path):
    teacher = tiny.save_teacher(tmp_path / "teacher")
    tiny.write_corpus(tmp_path / "corpus.jsonl", tiny.TEXTS[:14])
    on_disk = tiny.capture(tmp_path, teacher, hidden={"layers": ["last"]}).path
    values = tiny.capture_values(tmp_path, teacher, hidden={"layers": ["last"]})
    tiny.run(values | {"cache": str(remote)})
    ours, theirs = contents(remote), snapshot(on_disk)
    assert len(Cache(on_disk).encoding().shards) > 2
    assert set(ours) == set(theirs)
    assert all(ours[key] == theirs[key] for key in ours if "receipts" not in key)
    assert tiny.run(values | {"cache": str(remote)}) == {"toy": 0}
    assert verify(remote, deep=True) == []


def test_a_teacher_dropped_from_a_bucket_is_gone(local, remote):
    copy_cache(Cache(local.path), remote)
    drop_teacher(Cache(remote).encoding(), "toy")
    assert Cache(remote).encoding().teachers == []
    assert not any("toy" in key for key in contents(remote))


def test_refuses_to_create_a_cache_among_other_objects(remote):
    write_object(remote / "thesis.tex", b"years of work")
    with pytest.raises(FormatError, match="holds something that is not a cache"):
        create_cache(remote)


# When it misbehaves


@pytest.mark.parametrize(
    "fault", [*(pytest.param(fault, marks=pytest.mark.slow) for fault in ("throttle", "drop")), "cut"]
)
def test_a_cache_is_copied_and_read_through_faults_of_every_object(bucket, local, remote, fault):
    with bucket.failing(first(1, fault)):
        copy_cache(Cache(local.path), remote)
        found = Cache(remote).encoding().teacher().targets(0, 12)
    assert contents(remote) == snapshot(local.path)
    assert np.array_equal(found.log_probs, local.open().targets(0, 12).log_probs)


@pytest.mark.slow  # it waits between its attempts
def test_a_bucket_that_stays_broken_ends_in_one_sentence(bucket, local, remote):
    copy_cache(Cache(local.path), remote)
    teacher = Cache(remote).encoding().teacher()
    with bucket.failing(lambda method, path, count: "cut"), pytest.raises(StorageError, match=r"cannot read \(found"):
        teacher.targets(0, 5)


def test_a_forked_process_that_reads_the_bucket_says_how_to_start_one_that_can(local, remote):
    copy_cache(Cache(local.path), remote)
    encoding = Cache(str(remote)).encoding()
    answer, sender = multiprocessing.Pipe(duplex=False)

    def read():
        try:
            encoding.sequences(0)
        except StorageError as error:
            sender.send(str(error))

    process = multiprocessing.get_context("fork").Process(target=read)
    process.start()
    assert answer.poll(TIMEOUT_SECONDS)
    message = answer.recv()
    process.join()
    assert "was forked" in message
    assert 'multiprocessing_context="forkserver"' in message


def test_an_object_that_vanished_is_damage_and_never_zeros(bucket, local, remote):
    copy_cache(Cache(local.path), remote)
    remove_object(remote / "encodings/tiny/teachers/toy/levels/c/1/0")
    with pytest.raises(DamageError, match="stored bytes cannot be decoded"):
        Cache(remote).encoding().teacher().targets(16, 18)


def copy(variables, source, target):
    os.environ |= variables
    copy_cache(Cache(source), store_path(target))


@pytest.mark.slow
@pytest.mark.parametrize("key", ["levels/c/1/0", "receipts/00001.json", "main/zarr.json"])
def test_a_writer_killed_while_uploading_leaves_whole_shards_and_continues(bucket, local, remote, key):
    key = key.replace("main", "tiny")
    bucket.stalled.clear()
    with bucket.failing(lambda method, path, count: "stall" if method in ("PUT", "POST") and key in path else None):
        process = processes.start(copy, environment(bucket), str(local.path), str(remote))
        assert bucket.stalled.wait(TIMEOUT_SECONDS)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert not any(name.endswith(key) for name in contents(remote))
    cache = Cache(remote)
    if cache.encodings:
        teacher = cache.encoding().teacher()
        assert 1 in teacher.missing_shards()  # several shards are copied at a time
        assert {problem.kind for problem in verify(remote, deep=True)} == {"missing"}
    copy_cache(Cache(local.path), remote)
    assert contents(remote) == snapshot(local.path)
