"""The figures of one stage of a long command: how much is done, how fast, how long it will take.

Pure arithmetic on clock values that the caller passes, so that lines and bars show the same figures and tests need not
wait. The speed is the mean of about the last minute: a mean over the whole stage would hide a stall.
"""

from collections import deque
from dataclasses import dataclass, field

STALL_SECONDS = 60.0
"""A line mentions a stall when nothing was counted for this long."""

MARK_SECONDS, MARKS = 10.0, 6
"""Speed is the mean over the last MARKS marks, set at advances at least MARK_SECONDS apart: about a minute."""


@dataclass
class Stage:
    """The figures of one stage.

    Attributes:
        name: What is being done.
        total: How much there is to do, in ``unit``; None if unknown.
        unit: The unit of amounts.
        speed_unit: The unit of the speed: ``unit``, or another measure of the same work.
        began: Clock at the beginning, in seconds.
        done: How much is done.
        first: How much an earlier run had done at the beginning.
        work: How much was done since the beginning, in ``speed_unit``.
        advanced: Clock at the last advance, in seconds.
        estimated: The total is estimated from a share.
        note: A text shown with the figures, such as a loss or the current part.
        in_part: A part has begun that is not counted yet.
        marks: (clock, done, work) at some of the last advances.
    """

    name: str
    total: int | None
    unit: str
    speed_unit: str
    began: float
    done: int = 0
    work: int = 0
    estimated: bool = False
    note: str = ""
    in_part: bool = False
    first: int = field(init=False)
    advanced: float = field(init=False)
    marks: deque[tuple[float, int, int]] = field(init=False)

    def __post_init__(self) -> None:
        self.first, self.advanced = self.done, self.began
        self.marks = deque([(self.began, self.done, 0)], maxlen=MARKS)

    def advance(self, now: float, count: int, share_done: float | None, work: int) -> None:
        """Count what was done up to now; a share, if given, sets the estimated total."""
        self.done, self.work = self.done + count, self.work + work
        self.advanced = now
        if share_done:
            self.total, self.estimated = round(self.done / share_done), share_done < 1
        if now - self.marks[-1][0] >= MARK_SECONDS:
            self.marks.append((now, self.done, self.work))

    def end_part(self, now: float) -> None:
        """Count the part that has begun, if one has."""
        if self.in_part:
            self.advance(now, 1, None, 1)
            self.in_part, self.note = False, ""

    def seconds(self, now: float) -> float:
        """Return how long the stage has run."""
        return now - self.began

    def amount(self) -> str:
        """Return how much is done, of how much: "120 of 400 steps (30.0%)"."""
        if not self.total:
            return quantity(self.done, self.unit)
        done = quantity(self.done, "bytes" if self.unit == "bytes" else "")
        about = "about " if self.estimated else ""
        return f"{done} of {about}{quantity(self.total, self.unit)} ({self.done / self.total:.1%})"

    def speed(self, now: float) -> str | None:
        """Return the speed of about the last minute; None before anything is done."""
        began, _, work = self.marks[0]
        return rate(self.work - work, now - began, self.speed_unit) if self.work and now > began else None

    def left(self, now: float) -> str | None:
        """Return the time left at the speed of about the last minute; None if it is unknown."""
        began, done, _ = self.marks[0]
        if self.total is None or self.done <= done:
            return None
        return f"{clock_time((self.total - self.done) * (now - began) / (self.done - done))} left"

    def figures(self, now: float) -> str:
        """Return a line's figures: amount, speed, note, time left, and how long nothing has been done."""
        begun = self.done > self.first
        parts = [self.amount() if begun or self.total else None, self.speed(now), self.note or None, self.left(now)]
        if not begun or self.total is None:
            parts.append(f"{clock_time(self.seconds(now))} so far")
        elif now - self.advanced >= STALL_SECONDS:
            parts.append(f"nothing new for {clock_time(now - self.advanced)}")
        return ", ".join(part for part in parts if part)

    def beginning(self) -> str:
        """Return what there is to do."""
        if self.total is None:
            return "started"
        if self.total <= self.done:
            return "nothing left to do"
        return f"{quantity(self.total - self.done, self.unit)} to do" + (
            f", {quantity(self.done)} done before" if self.done else ""
        )

    def ending(self, now: float) -> str:
        """Return the totals of a finished stage."""
        seconds = self.seconds(now)
        parts = [f"done in {clock_time(seconds)}"]
        if self.done > self.first:
            parts = [f"{quantity(self.done - self.first, self.unit)} in {clock_time(seconds)}"]
            parts += [rate(self.work, seconds, self.speed_unit)] if seconds > 0 and self.work else []
        return ", ".join([*parts, self.note] if self.note else parts)


def quantity(amount: float, unit: str = "") -> str:
    """Return an amount with its unit: "1,234 tokens", "1 token", "1.2 GB"."""
    if unit == "bytes":
        for name, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if amount >= size:
                return f"{amount / size:,.1f} {name}"
    number = f"{amount:,.0f}"
    return f"{number} {unit.removesuffix('s') if number == '1' else unit}".rstrip()


def rate(amount: float, seconds: float, unit: str) -> str:
    """Return a speed: "15,816 tokens/s", "0.25 shards/s"."""
    speed = amount / seconds
    if unit == "bytes" or speed >= 10 or not speed:
        return f"{quantity(speed, unit)}/s"
    return f"{speed:.2g} {unit}/s"


def clock_time(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds: "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
