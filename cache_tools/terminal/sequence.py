"""What ``logitcask show`` prints: tokens coloured by surprise, alternatives as bars, sequences that were found.

Everything that comes from a corpus is put into ``Text`` objects, never into rich's markup, and is
escaped before (see ``escaping.printable``). What is written from right to left is isolated (see ``print_bidi``).
"""

import math
from bisect import bisect_right
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from cache_tools.escaping import printable
from cache_tools.inspection.search import Found
from cache_tools.terminal.bidi import IsolatedLines, isolated

BANDS: tuple[tuple[float, str], ...] = (
    (0.5, "black on grey85"),
    (1.0, "black on light_goldenrod1"),
    (2.0, "black on gold1"),
    (4.0, "black on orange1"),
    (8.0, "white on red3"),
    (math.inf, "bold white on purple4"),
)
"""Upper limits in nats, and how a token below one is shown; 2 nats is a token of probability 0.14, 8 of 0.0003."""

FRAGMENT = "·"
"""Stands for a token that is the beginning of a character."""

BAR_CHARACTERS = 24
TOKEN_CHARACTERS = 32
MOST_SURPRISING = 5


def print_sequence(console: Console, view: dict[str, Any]) -> None:
    """Print a sequence as each teacher saw it, side by side, then where each was most surprised."""
    document = isolated(printable(view["document_id"]))
    turn = "" if view["turn"] is None else f", turn {view['turn']}"
    title = f"sequence {view['sequence_id']} · document {document}{turn} · {len(view['tokens'])} tokens"
    console.print(Text(title, style="bold"))
    table = Table(expand=True, show_lines=False)
    for teacher in view["teachers"]:
        table.add_column(Text(_heading(teacher)), overflow="fold", ratio=1)
    columns = [IsolatedLines(_coloured(view["tokens"], teacher["surprise_nats"])) for teacher in view["teachers"]]
    table.add_row(*columns)
    table.add_row(*([Text()] * len(columns)))
    table.add_row(*(_most_surprising(view["tokens"], teacher["surprise_nats"]) for teacher in view["teachers"]))
    console.print(table)
    console.print(_legend(view["objective"]))


def print_position(console: Console, view: dict[str, Any]) -> None:
    """Print the alternatives of one position, a table for each teacher."""
    heading = Text.assemble(
        (f"sequence {view['sequence_id']}, position {view['position']}: ", "bold"),
        ("…" + view["before"], "dim"),
        (shortened(view["gold"]), "bold green"),
    )
    console.print(IsolatedLines(heading))
    for teacher in view["teachers"]:
        console.print(_alternatives_table(teacher, view))


def print_found(console: Console, found: list[Found], measure: str | None) -> None:
    """Print the sequences that were found; ``measure`` heads the column of values, if there is one."""
    table = Table()
    for heading in ("sequence", "shard", *filter(None, [measure])):
        table.add_column(heading, justify="right")
    table.add_column("document", overflow="fold")
    table.add_column("text", overflow="fold")
    for item in found:
        value = [] if item.value is None else [f"{item.value:.3g}"]
        texts = (IsolatedLines(Text(text)) for text in (printable(item.document_id), item.excerpt))
        table.add_row(str(item.sequence_id), str(item.shard), *value, *texts)
    console.print(table)


def _coloured(tokens: list[dict[str, Any]], surprise: list[float | None]) -> Text:
    text = Text()
    for token, nats in zip(tokens, surprise, strict=True):
        if token["masked"]:
            text.append(f"[{token['seen']}→", style="dim")
        shown = token["text"].replace("\n", "↵\n") or FRAGMENT
        text.append(shown, style="dim" if token["position"] is None else _style(nats))
        if token["masked"]:
            text.append("]", style="dim")
    return text


def _style(nats: float | None) -> str:
    """Return the style of a judged token; None is infinitely surprising."""
    value: float = math.inf if nats is None else nats
    limits = [limit for limit, _ in BANDS[:-1]]
    return BANDS[bisect_right(limits, value)][1]


def _most_surprising(tokens: list[dict[str, Any]], surprise: list[float | None]) -> Text:
    judged = [
        (math.inf if s is None else s, t) for t, s in zip(tokens, surprise, strict=True) if t["position"] is not None
    ]
    text = Text("most surprising:")
    for nats, token in sorted(judged, key=lambda item: -item[0])[:MOST_SURPRISING]:
        shown = token_cell(printable(token["text"]) or FRAGMENT)
        text.append(f"\n  --position {token['position']}  {nats:.1f} nats  ")
        text.append(isolated(shown), style=_style(nats))
    return text


def _heading(teacher: dict[str, Any]) -> str:
    mean = teacher["mean_surprise_nats"]
    return str(teacher["name"]) + ("" if mean is None else f" · mean surprise {mean:.2f} nats")


def _legend(objective: str) -> Text:
    legend = Text("surprise in nats: ")
    low = "0"
    for limit, style in BANDS:
        high = "" if math.isinf(limit) else f"–{limit:g}"
        legend.append(f" {low}{high or '+'} ", style=style)
        low = f"{limit:g}"
    legend.append("  dim: not asked", style="dim")
    legend.append(f"  {FRAGMENT} part of a character", style="dim")
    if objective == "masked":
        legend.append("  [seen→gold]", style="dim")
    return legend


def _alternatives_table(teacher: dict[str, Any], view: dict[str, Any]) -> Group:
    table = Table(title=Text(teacher["name"]), title_justify="left")
    for heading, side in (("token", "left"), ("id", "right"), ("probability", "right"), ("", "left")):
        table.add_column(heading, justify=side)  # type: ignore[arg-type]
    for item in teacher["alternatives"]:
        style = "bold green" if item["gold"] else ""
        mark = " ← gold" if item["gold"] else ""
        bar = _bar(item["probability"]) + mark
        cells = (isolated(token_cell(item["text"])), str(item["id"]), f"{item['probability']:.4f}", bar)
        table.add_row(*(Text(cell, style=style) for cell in cells))
    rest = sum(item["probability"] for item in teacher["alternatives"])
    unlisted = teacher["kept"] - len(teacher["alternatives"])
    if unlisted:
        mass = max(0.0, 1 - rest - teacher["left_out"])
        table.add_row(*(Text(cell, style="dim") for cell in (f"{unlisted} more kept", "", f"{mass:.4f}", _bar(mass))))
    left_out = teacher["left_out"]
    table.add_row(*(Text(cell, style="dim") for cell in ("left out", "", f"{left_out:.4f}", _bar(left_out))))
    return Group(table, _facts(teacher, view))


def _facts(teacher: dict[str, Any], view: dict[str, Any]) -> Text:
    rank, probability, entropy = teacher["gold_rank"], teacher["gold_probability"], teacher["entropy_nats"]
    place = f"rank {rank + 1}" if rank is not None else f"not among the {teacher['kept']} kept"
    parts = [f"gold {isolated(token_cell(view['gold']))} (id {view['gold_id']}): {place}"]
    parts += [] if probability is None else [f"probability {probability:.2g}"]
    parts += [] if entropy is None else [f"entropy {entropy:.2f} nats"]
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
