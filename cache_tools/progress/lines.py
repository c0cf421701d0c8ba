"""Progress as plain lines on stderr, and the choice between lines and bars.

In a terminal a stage is shown as a bar (``bars.py``). Everywhere else (a log file, nohup, Slurm, a notebook,
``TERM=dumb``, ``NO_COLOR``) it is shown as plain lines: when it begins, after FIRST_LINE_SECONDS, every LINE_SECONDS,
and with its total when it ends::

    teacher toy: 601,041 tokens to do
    teacher toy: 81,920 of 601,041 tokens (13.6%), 16,384 tokens/s, 0:00:32 left
    teacher toy: 601,041 tokens in 0:00:38, 15,816 tokens/s

A thread that wakes once a second prints the lines. Rejected: checking the clock whenever something is counted, which is
simpler but prints nothing while a model loads, the first batch hangs, or the process waits for another rank. The
thread owns no resources, ends with the process, and costs microseconds per second. A C function that never releases
the GIL stops the thread, too; therefore each stage begins with a line.

A reporter never ends a command: lines that stderr refuses (a closed pipe, a closed terminal) are dropped.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from cache_tools.progress.reporter import Reporter, StageReporter
from cache_tools.progress.stage import Stage, clock_time

LINE_SECONDS = 30.0
"""Time between two lines of a stage."""

FIRST_LINE_SECONDS = 5.0
"""Time from the beginning of a stage to its first line with figures."""

TICK_SECONDS = 1.0
"""How often the thread checks whether a line is due."""


class LineReporter(StageReporter):
    """Prints plain lines, for when stderr is no terminal.

    Args:
        write: Called with each line; writes to stderr by default.
        prefix: Printed before each line; tells which of several processes wrote it.
        brief: Print nothing for stages shorter than FIRST_LINE_SECONDS; for commands that are usually quick.
        clock: Returns the time in seconds; only differences matter.
    """

    def __init__(
        self,
        write: Callable[[str], object] | None = None,
        prefix: str = "",
        brief: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(clock)
        self._write, self._prefix, self._brief = write or _to_stderr, prefix, brief
        self._due = 0.0
        self._closed = threading.Event()

    def _begin(self, stage: Stage) -> None:
        """Print how much there is to do."""
        self._due = stage.began + FIRST_LINE_SECONDS
        if not self._brief:
            self._print(stage, stage.beginning())

    def tick(self) -> None:
        """Print the current figures if a line is due; the thread calls this every second."""
        with self._lock:
            now = self.clock()
            if self.current is not None and now >= self._due:
                self._print(self.current, self.current.figures(now))
                self._due = now + LINE_SECONDS

    def end(self, finished: bool = True) -> None:
        """Print the stage's totals; a short stage that counts nothing needs no second line."""
        stage, self.current, now = self.current, None, self.clock()
        if stage is None:
            return
        if finished:
            stage.end_part(now)
        short = stage.seconds(now) < FIRST_LINE_SECONDS
        if short and (stage.done == stage.first or self._brief):
            return
        stopped = f"stopped at {stage.amount()} after {clock_time(stage.seconds(now))}"
        self._print(stage, stage.ending(now) if finished else stopped)

    def __enter__(self) -> Self:
        """Start the thread."""
        threading.Thread(target=self._run, name="progress", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the thread and the last stage."""
        self._closed.set()
        with self._lock:
            self.end(finished=kind is None)

    def _run(self) -> None:
        while not self._closed.wait(TICK_SECONDS):
            self.tick()

    def _print(self, stage: Stage, words: str) -> None:
        with suppress(OSError, ValueError):  # ValueError: a closed file
            self._write(f"{self._prefix}{stage.name}: {words}\n")


def open_reporter(rank: int | None = None, world_size: int | None = None, brief: bool = False) -> Reporter:
    """Return the reporter for this process' stderr: a bar in a terminal, plain lines elsewhere.

    Args:
        rank: Rank of this process among several that do the same work; by default the rank that torchrun sets.
        world_size: Number of these processes.
        brief: Show nothing of stages that took less than FIRST_LINE_SECONDS; for commands that are usually quick.
    """
    rank = int(os.environ.get("RANK", 0)) if rank is None else rank
    world_size = int(os.environ.get("WORLD_SIZE", 1)) if world_size is None else world_size
    if in_terminal():
        from cache_tools.progress.bars import BarReporter

        return BarReporter(brief)
    return LineReporter(prefix=f"[rank {rank} of {world_size}] " if world_size > 1 else "", brief=brief)


def in_terminal() -> bool:
    """Say whether stderr can show a bar that moves; a notebook cannot, whatever it says of itself."""
    if sys.stderr is None or sys.stderr.closed or not sys.stderr.isatty() or os.environ.get("NO_COLOR"):
        return False
    from rich.console import Console

    console = Console(stderr=True)
    return console.is_terminal and not console.is_dumb_terminal


def _to_stderr(line: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(line)
        sys.stderr.flush()
