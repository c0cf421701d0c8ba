"""How a program reports its progress: stages, amounts and notes; and a reporter that shows none of it.

A command works through stages. A stage has a name, a unit and, where it is known, a total; the program counts what is
done. ``lines.py`` and ``bars.py`` show it.
"""

import threading
import time
from collections.abc import Callable
from typing import Protocol, Self

from cache_tools.progress.stage import Stage


class Advance(Protocol):
    """A function that is called with the amount that was just done."""

    def __call__(self, count: int, share_done: float | None = None, /) -> object:
        """Count an amount.

        Args:
            count: How much was done since the last call, in the unit of the stage.
            share_done: If the total is unknown, an estimate of the share of the stage that is done, in [0, 1].
        """


BeginPart = Callable[[str], object]
"""Called with the name of each part before it is worked on."""


def ignore(count: int, share_done: float | None = None, /) -> None:
    """Show nothing: the default ``Advance``."""


class Reporter:
    """Shows nothing; the interface of all reporters, and the reporter of programs without output.

    Use it as a context manager; the last stage ends with the block.
    """

    def stage(
        self,
        name: str,
        total: int | None = None,
        unit: str = "tokens",
        *,
        speed_unit: str | None = None,
        done: int = 0,
    ) -> None:
        """Begin a stage, and end the stage before it.

        Args:
            name: What is being done.
            total: How much there is to do, in ``unit``; None if unknown.
            unit: The unit of amounts.
            speed_unit: The unit of the speed, if it is another one.
            done: How much of the total an earlier run has done.
        """

    def advance(self, count: int, share_done: float | None = None, *, work: int | None = None) -> None:
        """Count what was done of the current stage; an ``Advance``.

        Args:
            count: How much was done since the last call, in the stage's unit.
            share_done: If the total is unknown, an estimate of the share of the stage that is done, in [0, 1].
            work: The same amount in the stage's ``speed_unit``, if it has another.
        """

    def note(self, text: str) -> None:
        """Show a text beside the current stage's figures from now on."""

    def part(self, name: str) -> None:
        """Begin a part of the current stage, and count the part before it; a ``BeginPart``."""

    def __enter__(self) -> Self:
        """Begin to show stages."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the last stage; after an exception it is shown as stopped, not as finished."""


class StageReporter(Reporter):
    """Keeps the figures of the current stage; a subclass shows them in ``_begin``, ``_changed`` and ``end``.

    Args:
        clock: Returns the time in seconds; only differences matter.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.current: Stage | None = None
        self._lock = threading.Lock()  # stages end and begin at once for a thread that prints them

    def stage(
        self,
        name: str,
        total: int | None = None,
        unit: str = "tokens",
        *,
        speed_unit: str | None = None,
        done: int = 0,
    ) -> None:
        """End the stage before, and begin another."""
        with self._lock:
            self.end()
            self.current = Stage(name, total, unit, speed_unit or unit, self.clock(), done)
            self._begin(self.current)

    def advance(self, count: int, share_done: float | None = None, *, work: int | None = None) -> None:
        """Count what was done of the current stage."""
        assert self.current is not None, "there is no stage to advance"
        self.current.advance(self.clock(), count, share_done, count if work is None else work)
        self._changed()

    def note(self, text: str) -> None:
        """Show a text beside the current stage's figures."""
        assert self.current is not None, "there is no stage that this note belongs to"
        self.current.note = text
        self._changed()

    def part(self, name: str) -> None:
        """Count the part before, and name this one beside the figures."""
        assert self.current is not None, "there is no stage that this part belongs to"
        self.current.end_part(self.clock())
        self.current.in_part = True
        self.note(name)

    def end(self, finished: bool = True) -> None:
        """End the current stage, if there is one."""
        self.current = None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the last stage."""
        self.end(finished=kind is None)

    def _begin(self, stage: Stage) -> None:
        """Show the beginning of a stage."""

    def _changed(self) -> None:
        """Show the new figures of the current stage."""
