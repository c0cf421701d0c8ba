"""Encoding and writing a shard overlap the teacher's reading of the next, and lose nothing by it."""

import threading

import pytest

import pipeline.capture.shards
import tiny
from cache_tools.errors import StorageError
from cache_tools.maintenance.verify import verify

TIMEOUT_SECONDS = 600


def recorded(monkeypatch, name, before):
    """Call ``before(number)`` ahead of each call of a function of the capture."""
    real, calls = getattr(pipeline.capture.shards, name), []

    def wrapper(*arguments):
        calls.append(name)
        before(len(calls))
        return real(*arguments)

    monkeypatch.setattr(pipeline.capture.shards, name, wrapper)


def test_a_shard_is_written_while_the_teacher_reads_the_next(tmp_path, monkeypatch):
    second_is_read = threading.Event()
    recorded(monkeypatch, "predict", lambda number: number < 2 or second_is_read.set())
    in_time = []
    recorded(monkeypatch, "commit_shard", lambda number: in_time.append(second_is_read.wait(TIMEOUT_SECONDS)))
    cache = tiny.capture(tmp_path)
    assert len(in_time) > 2
    assert all(in_time)
    assert verify(cache.path, deep=True) == []


def test_at_most_one_shard_waits_to_be_written(tmp_path, monkeypatch):
    counts, most = {"predict": 0, "commit_shard": 0}, []

    def count(name):
        counts[name] += 1
        most.append(counts["predict"] - counts["commit_shard"])

    for name in counts:
        recorded(monkeypatch, name, lambda _, name=name: count(name))
    tiny.capture(tmp_path)
    assert max(most) <= 2


def test_a_write_that_fails_stops_the_capture_and_the_next_run_continues(tmp_path, monkeypatch):
    def fail(number):
        if number == 2:
            raise StorageError("the disk is full")

    values = tiny.capture_values(tmp_path)
    with monkeypatch.context() as patch:
        recorded(patch, "commit_shard", fail)
        with pytest.raises(StorageError, match="the disk is full"):
            tiny.run(values)
    assert tiny.run(values)["toy"] > 0
    assert verify(tmp_path / "cache", deep=True) == []
