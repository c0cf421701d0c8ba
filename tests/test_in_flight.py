"""Requests in flight: bounded, in order, repeated with growing random pauses, and none of them inherited by a fork."""

import os
import threading

import pytest
from upath import UPath

from cache_tools.requests import in_flight
from cache_tools.requests.in_flight import ATTEMPTS, IN_FLIGHT, Gate, asked, in_parallel

BUCKET = UPath("memory://anywhere")


def test_results_come_in_order_and_reading_stays_a_bounded_way_ahead():
    taken, at_once = [], 3
    results = in_parallel(lambda item: -item, (taken.append(i) or i for i in range(100)), BUCKET, at_once)
    for expected in range(100):
        assert next(results) == -expected
        assert len(taken) <= expected + 1 + 2 * at_once


def test_a_disk_is_read_item_after_item_in_the_same_thread(tmp_path):
    threads = list(in_parallel(lambda _: threading.get_ident(), range(5), tmp_path))
    assert set(threads) == {threading.get_ident()}


def test_an_error_reaches_the_reader_in_the_place_of_its_item():
    def read(item):
        if item == 2:
            raise ValueError("two")
        return item

    results = in_parallel(read, range(50), BUCKET)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)


def test_no_more_requests_are_in_flight_than_the_gate_has_places(monkeypatch):
    gate, meeting = Gate(IN_FLIGHT), threading.Barrier(IN_FLIGHT)
    monkeypatch.setattr(in_flight, "GATE", gate)
    list(in_parallel(lambda _: asked(lambda: meeting.wait(60)), range(4 * IN_FLIGHT), BUCKET, 2 * IN_FLIGHT))
    assert gate.most == IN_FLIGHT
    asked(lambda: None, 10 * IN_FLIGHT)  # a call with more requests than places takes all of them, and does not wait
    assert gate.most == IN_FLIGHT


def test_a_failed_request_is_repeated_after_pauses_whose_bound_doubles(monkeypatch):
    bounds, answers = [], iter([OSError("cut off"), OSError("cut off"), b"whole"])
    monkeypatch.setattr(in_flight.random, "uniform", lambda low, high: bounds.append((low, high)) or 0.0)

    def request():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert asked(request) == b"whole"
    assert bounds == [(0, in_flight.PAUSE_SECONDS), (0, 2 * in_flight.PAUSE_SECONDS)]


def test_an_absent_object_is_no_failure_and_a_lasting_one_is_raised(monkeypatch):
    monkeypatch.setattr(in_flight.time, "sleep", lambda _: None)
    calls = []

    def request(error):
        calls.append(error)
        raise error

    for error, times in ((FileNotFoundError(), 1), (OSError(), ATTEMPTS)):
        calls.clear()
        with pytest.raises(type(error)):
            asked(lambda error=error: request(error))
        assert len(calls) == times


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_all_places_free():
    with in_flight.GATE.holding(IN_FLIGHT):
        child = os.fork()
        if not child:
            with in_flight.GATE.holding(IN_FLIGHT):
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
