"""The time that training waits for data is measured and logged.

The clock is a counter that only the test moves: what is asserted is what is counted, not how fast anything is.
"""

import json
import time

import tiny
from student_fixtures import train
from trainer.data.cached_sequences import CachedSequences
from trainer.run.stall import StallClock


class Clock:
    """Seconds that pass when told to."""

    now = 0.0

    def __call__(self):
        return self.now


def slow_batches(clock, seconds):
    for wait in seconds:
        clock.now += wait
        yield wait


def test_the_means_are_of_waits_and_steps_since_the_last_log():
    clock = Clock()
    stall = StallClock(clock)
    batches = slow_batches(clock, [1.0, 0.5, 0.0, 2.5])
    assert stall.drain() == {}
    for size, computing in ((1, 3.0), (2, 1.5)):  # the second step accumulates two batches
        timed = stall.timed(batches)
        assert len([next(timed) for _ in range(size)]) == size
        clock.now += computing
        stall.on_step_end(None, None, None)
        clock.now += 100.0  # saving and logging
    assert stall.drain() == {"data_stall_seconds": 0.75, "data_stall_share": 0.25}
    assert stall.drain() == {}
    assert list(stall.timed(batches)) == [2.5]
    stall.on_step_end(None, None, None)
    assert stall.drain() == {"data_stall_seconds": 2.5, "data_stall_share": 1.0}


def test_the_wait_for_the_end_of_the_data_is_a_wait_too():
    clock = Clock()
    stall = StallClock(clock)

    def ends_late():
        yield 0
        clock.now += 2.0

    assert list(stall.timed(ends_late())) == [0]
    clock.now += 2.0
    stall.on_step_end(None, None, None)
    assert stall.drain()["data_stall_share"] == 0.5


def test_a_slow_dataset_shows_up_in_the_log(tmp_path, monkeypatch):
    cache, read = tiny.capture(tmp_path).path, CachedSequences.__getitem__

    def slowly(dataset, index):
        time.sleep(0.01)
        return read(dataset, index)

    monkeypatch.setattr(CachedSequences, "__getitem__", slowly)
    start = time.perf_counter()
    train(cache, tmp_path / "run", max_steps=4, logging_steps=2)
    elapsed_seconds = time.perf_counter() - start
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss" in line]
    assert len(logged) == 2
    for line in logged:
        assert line["data_stall_seconds"] > 0.079  # eight sequences a step
        assert 0 < line["data_stall_share"] < 1
    assert sum(2 * line["data_stall_seconds"] for line in logged) < elapsed_seconds  # of two steps each, counted once
