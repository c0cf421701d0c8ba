"""What a program tells of its progress: stages, amounts and notes; and a reporter that shows none of it.

A command works through stages. A stage has a name, a unit, a total where it is known, and is told what gets done.
``lines.py`` and ``bars.py`` show it.
"""

import time
from collections.abc import Callable
from typing import Protocol, Self

from cache_tools.progress.stage import Stage


class Advance(Protocol):
    """Told how much more is done."""

    def __call__(self, count: int, share_done: float | None = None, /) -> object:
        """Count some more.

        Args:
            count: How much was done since the last call, in the unit of the stage.
            share_done: Where no total is known, about which share of the stage is done now, in [0, 1].
        """


BeginPart = Callable[[str], object]
"""Called with the name of each part before it is worked on."""


def ignore(count: int, share_done: float | None = None, /) -> None:
    """Show nothing: the default ``Advance``."""


class Reporter:
    """Shows nothing. The interface of all reporters, and what a program takes that wants no output.

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
        """Begin a stage, and end the one before.

        Args:
            name: What is being done.
            total: How much there is to do; None if unknown.
            unit: What is counted.
            speed_unit: What the speed counts, if not the same.
            done: How much of it an earlier run has done.
        """

    def advance(self, count: int, share_done: float | None = None, *, work: int | None = None) -> None:
        """Count what was done of the current stage; an ``Advance``.

        Args:
            count: How much was done since the last call, in the stage's unit.
            share_done: Where no total is known, about which share of the stage is done now, in [0, 1].
            work: The same in the stage's ``speed_unit``, if that is another.
        """

    def note(self, text: str) -> None:
        """Show a text beside the current stage's figures from now on."""

    def part(self, name: str) -> None:
        """Begin a part of the current stage, and count the one before: a ``BeginPart``."""

    def __enter__(self) -> Self:
        """Begin to show stages."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the last stage; one that an exception ended is not called finished."""


class StageReporter(Reporter):
    """Keeps the figures of the current stage, for reporters that show them.

    Args:
        clock: Returns seconds; only differences count.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.current: Stage | None = None

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
        self.end()
        self.current = Stage(name, total, unit, speed_unit or unit, self.clock(), done)

    def advance(self, count: int, share_done: float | None = None, *, work: int | None = None) -> None:
        """Count."""
        assert self.current is not None, "there is no stage to advance"
        self.current.advance(self.clock(), count, share_done, count if work is None else work)

    def note(self, text: str) -> None:
        """Keep the text."""
        assert self.current is not None, "there is no stage to note this beside"
        self.current.note = text

    def part(self, name: str) -> None:
        """Count the part before, and name this one beside the figures."""
        assert self.current is not None, "there is no stage that this could be a part of"
        self.current.end_part(self.clock())
        self.current.in_part = True
        self.note(name)

    def end(self, finished: bool = True) -> None:
        """End the current stage, if there is one."""
        self.current = None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the last stage."""
        self.end(finished=kind is None)
