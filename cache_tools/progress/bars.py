"""Bars in a terminal: the same stages and figures as the plain lines, drawn by rich."""

import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cache_tools.progress.reporter import StageReporter
from cache_tools.progress.stage import Stage


class BarReporter(StageReporter):
    """A bar for each stage; the bar of a stage that counts nothing disappears when the stage ends.

    Args:
        brief: Remove every bar when its stage ends.
        clock: Returns the time in seconds; only differences matter.
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

    def end(self, finished: bool = True) -> None:
        """Stop the bar."""
        if self.current is None or self._bar is None:
            return
        if finished:
            self.current.end_part(self.clock())
        self._changed()
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

    def _begin(self, stage: Stage) -> None:
        """Add a bar."""
        self._bar = self._bars.add_task(stage.name, total=stage.total, completed=stage.done, figures="")

    def _changed(self) -> None:
        """Move the bar, and its end if the total is estimated."""
        stage = self.current
        assert stage is not None
        assert self._bar is not None
        parts = (stage.amount() if stage.done > stage.first else "", stage.speed(self.clock()), stage.note)
        figures = " · ".join(part for part in parts if part)
        self._bars.update(self._bar, completed=stage.done, total=stage.total, figures=figures)
