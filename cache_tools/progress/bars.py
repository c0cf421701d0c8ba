"""Bars in a terminal: the same stages and figures as the plain lines, drawn by rich."""

import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cache_tools.progress.reporter import StageReporter


class BarReporter(StageReporter):
    """One bar for each stage that counts something; one that counts nothing leaves when it ends.

    Args:
        brief: Leave no bar behind.
        clock: Returns seconds; only differences count.
    """

    def __init__(self, brief: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        text = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
        )
        columns = (*text, TimeElapsedColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=Console(stderr=True), transient=brief)
        self._bar: TaskID | None = None

    def stage(
        self,
        name: str,
        total: int | None = None,
        unit: str = "tokens",
        *,
        speed_unit: str | None = None,
        done: int = 0,
    ) -> None:
        """Begin a bar."""
        super().stage(name, total, unit, speed_unit=speed_unit, done=done)
        self._bar = self._bars.add_task(name, total=total, completed=done, figures="")

    def advance(self, count: int, share_done: float | None = None, *, work: int | None = None) -> None:
        """Move the bar, and its end where that is estimated."""
        super().advance(count, share_done, work=work)
        self._show()

    def note(self, text: str) -> None:
        """Show the text beside the bar."""
        super().note(text)
        self._show()

    def end(self, finished: bool = True) -> None:
        """Stop the bar."""
        if self.current is None or self._bar is None:
            return
        if finished:
            self.current.end_part(self.clock())
        self._show()
        stage, self.current = self.current, None
        self._bars.stop_task(self._bar)
        if stage.done == stage.first:
            self._bars.remove_task(self._bar)

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Draw the last state."""
        super().__exit__(kind)
        self._bars.stop()

    def _show(self) -> None:
        stage = self.current
        assert stage is not None
        assert self._bar is not None
        parts = (stage.amount() if stage.done > stage.first else "", stage.speed(self.clock()), stage.note)
        figures = " · ".join(part for part in parts if part)
        self._bars.update(self._bar, completed=stage.done, total=stage.total, figures=figures)
