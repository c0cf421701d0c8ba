"""Right-to-left text in a terminal, isolated so that it does not reorder the text beside it.

A terminal that implements Unicode's bidirectional algorithm orders a line as a whole, so a Hebrew word in one column
would move the border and the numbers of the next column. Such text is put between FIRST STRONG ISOLATE and POP
DIRECTIONAL ISOLATE (UAX #9), which have no width; a terminal without bidirectional text shows nothing for them. A line
without right-to-left text gets no marks. A document cannot close an isolate, because ``escaping.printable`` escapes the
marks in its text.
"""

import unicodedata
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.segment import Segment
from rich.text import Text

ISOLATE, POP = "\u2068", "\u2069"
RIGHT_TO_LEFT = {"R", "AL", "AN"}
"""Bidirectional classes: Hebrew and the like, Arabic letters, Arabic digits."""


def has_right_to_left(text: str) -> bool:
    """Say whether a terminal may order a line with this text from right to left."""
    return not text.isascii() and any(unicodedata.bidirectional(char) in RIGHT_TO_LEFT for char in text)


def isolated(text: str) -> str:
    """Return text that does not reorder the rest of its line; for text that is not wrapped."""
    return f"{ISOLATE}{text}{POP}" if has_right_to_left(text) else text


class IsolatedLines:
    """Text whose lines are isolated after wrapping, because an isolate ends with its line."""

    def __init__(self, text: Text) -> None:
        self.text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        """Yield the wrapped lines."""
        for line in console.render_lines(self.text, options, pad=False):
            marked = has_right_to_left("".join(segment.text for segment in line))
            yield from [Segment(ISOLATE), *line, Segment(POP)] if marked else line
            yield Segment.line()

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return the width of the text; the marks have no width."""
        return Measurement.get(console, options, self.text)
