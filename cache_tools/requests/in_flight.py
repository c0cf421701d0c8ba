"""How many requests a process has in flight, and what happens to one that fails: the one place that knows.

A disk answers at once. A bucket answers after tens of milliseconds, whatever is asked, so many requests must be in
flight; but a store slows a client down that sends hundreds at a time, and each answer takes memory. So every request
to a bucket passes a gate with ``IN_FLIGHT`` places, from whatever thread it comes; a call that makes several requests
takes as many places. ``in_parallel`` is how work on many objects reaches that number: it keeps the order, reads no
further ahead than twice the gate, and does nothing in parallel for a disk.

A request that fails is repeated after a random pause whose mean doubles each time, so that many clients that were
refused together do not come back together. Obstore repeats throttled requests itself; this is for what it does not
repeat, such as a response that is cut off.
"""

import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from cache_tools.errors import StorageError

IN_FLIGHT = 32
"""Requests of one process at a time: with 30 ms each, a thousand a second, which one connection pool and one core
serve."""

ATTEMPTS = 3
"""How often a request is made."""

PAUSE_SECONDS = 0.1
"""Longest pause before the second attempt; twice as long before each further one."""

T = TypeVar("T")
R = TypeVar("R")


class Gate:
    """Places for requests in flight; a caller waits until as many are free as it needs.

    Args:
        places: How many there are.

    Attributes:
        most: The most that were taken at a time so far.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self.reset()

    def reset(self) -> None:
        """Free all places: in a forked process none of the requests is its own."""
        self._free, self.most, self._changed = self._places, 0, threading.Condition()

    @contextmanager
    def holding(self, places: int) -> Iterator[None]:
        """Hold some places, at most all of them, while the block runs."""
        count = min(max(places, 1), self._places)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= count)
            self._free -= count
            self.most = max(self.most, self._places - self._free)
        try:
            yield
        finally:
            with self._changed:
                self._free += count
                self._changed.notify_all()


GATE = Gate(IN_FLIGHT)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=GATE.reset)


def asked(request: Callable[[], T], requests: int = 1) -> T:
    """Make a request to a bucket, and repeat it if it fails or its response is cut off.

    Args:
        request: Makes it.
        requests: How many it makes at a time.
    """
    for attempt in range(ATTEMPTS - 1):
        try:
            with GATE.holding(requests):
                return request()
        except (FileNotFoundError, NotADirectoryError, StorageError):
            raise
        except Exception:
            time.sleep(random.uniform(0, PAUSE_SECONDS * 2**attempt))
    with GATE.holding(requests):
        return request()


def refuse_forked(driver: object, place: object) -> None:
    """Refuse a driver that was made before this process was forked: its threads and connections stayed behind.

    Raises:
        StorageError: it was.
    """
    if getattr(driver, "_pid", os.getpid()) != os.getpid():
        raise StorageError(
            "this process was forked from one that had opened the bucket, and its connections do not survive that",
            where=place,
            fix='Start loader workers with DataLoader(..., multiprocessing_context="forkserver"), or "spawn"',
        )


def in_parallel(function: Callable[[T], R], items: Iterable[T], place: object, at_once: int = IN_FLIGHT) -> Iterator[R]:
    """Yield ``function(item)`` for each item, in order; in a bucket many of them are computed at a time.

    Args:
        function: Reads something; it must not call ``in_parallel`` itself.
        items: What to read; taken as it is needed, so it may be endless.
        place: Where it is read: a path on a disk is read item after item.
        at_once: How many items are read at a time, and twice as many results wait at most; fewer where an item is
            large.

    Raises:
        Exception: what ``function`` raised first, in the order of the items.
    """
    if isinstance(place, Path):
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 2 * at_once:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
