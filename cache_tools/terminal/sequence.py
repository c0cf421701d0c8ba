"""What ``logitcask show`` prints: tokens coloured by surprise, alternatives as bars, the matches of a search.

Everything that comes from a corpus is escaped (see ``escaping.printable``) and put into ``Text`` objects, never into
rich's markup. Right-to-left text is isolated (see ``bidi``).
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from cache_tools.escaping import printable
from cache_tools.inspection.search import Match
from cache_tools.inspection.views import PositionPrediction, PositionView, SequenceView, TeacherSurprise, ViewedToken
from cache_tools.terminal.bidi import IsolatedLines, isolated

BANDS: tuple[tuple[float, str], ...] = (
    (0.5, "black on grey85"),
    (1.0, "black on light_goldenrod1"),
    (2.0, "black on gold1"),
    (4.0, "black on orange1"),
    (8.0, "white on red3"),
    (math.inf, "bold white on purple4"),
)
"""Upper limits in nats and the style of a token below each; 2 nats is a probability of 0.14, 8 nats of 0.0003."""

FRAGMENT = "·"
"""Printed for a token that is only the beginning of a character."""

BAR_CHARACTERS = 24
TOKEN_CHARACTERS = 32
MOST_SURPRISING = 5


def print_sequence(console: Console, view: SequenceView) -> None:
    """Print a sequence with each teacher's surprise, side by side, then where each teacher was most surprised."""
    document = isolated(printable(view.document_id))
    turn = "" if view.turn is None else f", turn {view.turn}"
    own = "" if view.student_tokens is None else f" · a student reads {view.student_tokens}"
    title = f"sequence {view.sequence_id} · document {document}{turn} · {len(view.tokens)} tokens{own}"
    console.print(Text(title, style="bold"))
    table = Table(expand=True, show_lines=False)
    for teacher in view.teachers:
        table.add_column(Text(_heading(teacher)), overflow="fold", ratio=1)
    table.add_row(*(IsolatedLines(_coloured(view.tokens, teacher.surprise_nats)) for teacher in view.teachers))
    table.add_row(*([Text()] * len(view.teachers)))
    table.add_row(*(_most_surprising(view.tokens, teacher.surprise_nats) for teacher in view.teachers))
    console.print(table)
    console.print(_legend(view.objective))


def print_position(console: Console, view: PositionView) -> None:
    """Print the alternatives at one position, a table for each teacher."""
    heading = Text.assemble(
        (f"sequence {view.sequence_id}, position {view.position}: ", "bold"),
        ("…" + view.before, "dim"),
        (shortened(view.gold), "bold green"),
    )
    console.print(IsolatedLines(heading))
    for teacher in view.teachers:
        console.print(Group(_alternatives_table(teacher), _facts(teacher, view)))


def print_matches(console: Console, matches: Sequence[Match], measure: str | None) -> None:
    """Print the matches of a search; ``measure`` is the heading of their values, None if they have no values."""
    table = Table()
    for heading in ("sequence", "shard", *filter(None, [measure])):
        table.add_column(heading, justify="right")
    table.add_column("document", overflow="fold")
    table.add_column("text", overflow="fold")
    for match in matches:
        value = [] if match.value is None else [f"{match.value:.3g}"]
        texts = (IsolatedLines(Text(text)) for text in (printable(match.document_id), match.excerpt))
        table.add_row(str(match.sequence_id), str(match.shard), *value, *texts)
    console.print(table)


def _coloured(tokens: Sequence[ViewedToken], surprise_nats: list[float | None]) -> Text:
    text = Text()
    for token, nats in zip(tokens, surprise_nats, strict=True):
        if token.masked:
            text.append(f"[{token.seen}→", style="dim")
        shown = token.text.replace("\n", "↵\n") or FRAGMENT
        text.append(shown, style="dim" if token.position is None else _style(nats))
        if token.masked:
            text.append("]", style="dim")
    return text


def _style(nats: float | None) -> str:
    """Return the style of a judged token; None is infinitely surprising."""
    value: float = math.inf if nats is None else nats
    limits = [limit for limit, _ in BANDS[:-1]]
    return BANDS[bisect_right(limits, value)][1]


def _most_surprising(tokens: Sequence[ViewedToken], surprise_nats: list[float | None]) -> Text:
    judged = [
        (math.inf if nats is None else nats, token)
        for token, nats in zip(tokens, surprise_nats, strict=True)
        if token.position is not None
    ]
    text = Text("most surprising:")
    for nats, token in sorted(judged, key=lambda item: -item[0])[:MOST_SURPRISING]:
        shown = token_cell(printable(token.text) or FRAGMENT)
        words = f"{nats:.1f} nats" if math.isfinite(nats) else "not kept"
        text.append(f"\n  --position {token.position}  {words}  ")
        text.append(isolated(shown), style=_style(nats))
    return text


def _heading(teacher: TeacherSurprise) -> str:
    mean = teacher.mean_surprise_nats
    return teacher.name + ("" if mean is None else f" · mean surprise {mean:.2f} nats")


def _legend(objective: str) -> Text:
    legend = Text("surprise in nats: ")
    low = "0"
    for limit, style in BANDS:
        high = "" if math.isinf(limit) else f"–{limit:g}"
        legend.append(f" {low}{high or '+'} ", style=style)
        low = f"{limit:g}"
    legend.append("  dim: not predicted", style="dim")
    legend.append(f"  {FRAGMENT} part of a character", style="dim")
    if objective == "masked":
        legend.append("  [seen→gold]", style="dim")
    return legend


def _alternatives_table(teacher: PositionPrediction) -> Table:
    table = Table(title=Text(teacher.name), title_justify="left")
    table.add_column("token", justify="left")
    table.add_column("id", justify="right")
    table.add_column("probability", justify="right")
    table.add_column("", justify="left")
    for token in teacher.alternatives:
        style, mark = ("bold green", " ← gold") if token.gold else ("", "")
        bar = _bar(token.probability) + mark
        cells = (isolated(token_cell(token.text)), str(token.id), f"{token.probability:.4f}", bar)
        table.add_row(*(Text(cell, style=style) for cell in cells))
    for name, mass in _unlisted(teacher):
        table.add_row(*(Text(cell, style="dim") for cell in (name, "", f"{mass:.4f}", _bar(mass))))
    return table


def _unlisted(teacher: PositionPrediction) -> Iterator[tuple[str, float]]:
    """Yield the probability of what the alternatives leave out: (name, mass)."""
    unlisted = teacher.kept - len(teacher.alternatives)
    if unlisted:
        listed = sum(token.probability for token in teacher.alternatives)
        yield f"{unlisted} more kept", max(0.0, 1 - listed - teacher.left_out)
    yield "left out", teacher.left_out


def _facts(teacher: PositionPrediction, view: PositionView) -> Text:
    rank = teacher.gold_rank
    place = f"rank {rank + 1}" if rank is not None else f"not among the {teacher.kept} kept"
    parts = [f"gold {isolated(token_cell(view.gold))} (id {view.gold_id}): {place}"]
    parts += [] if teacher.gold_probability is None else [f"probability {teacher.gold_probability:.2g}"]
    parts += [] if teacher.entropy_nats is None else [f"entropy {teacher.entropy_nats:.2f} nats"]
    return Text(" · ".join(parts))


def _bar(probability: float) -> str:
    return "█" * round(probability * BAR_CHARACTERS)


def token_cell(text: str) -> str:
    """Return a token for a table: cut, and with the spaces at its ends made visible."""
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" "))
    after = len(text) - before - len(inner)
    return shortened("␣" * before + inner + "␣" * after)


def shortened(text: str) -> str:
    """Return a text cut to a table cell."""
    return text if len(text) <= TOKEN_CHARACTERS else text[: TOKEN_CHARACTERS - 1] + "…"
