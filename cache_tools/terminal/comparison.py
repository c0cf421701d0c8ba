"""What ``logitcask diff`` prints: the means, by A's certainty and by document group, and the worst positions."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cache_tools.escaping import printable
from cache_tools.terminal.bidi import IsolatedLines, isolated
from cache_tools.terminal.sequence import shortened, token_cell

GROUPS = 10
"""Groups that are printed; JSON has all."""

COLUMNS = ("positions", "KL(A‖B)", "KL(B‖A)", "same top-1")
CONTEXT_CHARACTERS = 60


def print_comparison(console: Console, result: dict[str, Any]) -> None:
    """Print the result of ``comparison.compare``."""
    sides = f"A = {result['a']}, B = {result['b']}"
    read = f"{len(result['shards'])} of {result['shards_in_common']} shards, seed-drawn, KL in nats (lower bounds)"
    console.print(Text(f"{sides} · {read}"))
    parts = [{"name": "all"} | result["all"]]
    parts += [part | {"name": f"{part['above']:g} to {part['up_to']:g}"} for part in result["bins"]]
    console.print(_table("A's largest probability", parts))
    groups = [part | {"name": isolated(printable(part["group"]))} for part in result["groups"]]
    of = f" (farthest {GROUPS} of {len(groups)})" if len(groups) > GROUPS else ""
    console.print(_table(f"document group{of}", groups[:GROUPS]))
    for item in result["worst"]:
        _print_worst(console, item)
    _print_remarks(console, result["all"])


def _table(heading: str, parts: list[dict[str, Any]]) -> Table:
    table = Table()
    table.add_column(heading, overflow="fold")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for part in parts:
        kl = (_number(part[name], ".3g") for name in ("kl_ab_nats", "kl_ba_nats"))
        cells = (part["name"], f"{part['positions']:,}", *kl, _number(part["same_top1"], ".1%"))
        table.add_row(*map(Text, cells))
    return table


def _print_worst(console: Console, item: dict[str, Any]) -> None:
    kl = "infinite" if item["kl_nats"] is None else f"{item['kl_nats']:.3g} nats"
    heading = Text.assemble(
        (f"{kl}: sequence {item['sequence_id']}, position {item['position']}", "bold"),
        f" · {shortened(printable(item['document_id']))}\n  ",
        ("…" + item["before"][-CONTEXT_CHARACTERS:], "dim"),
        (shortened(item["gold"]), "green"),
    )
    console.print(IsolatedLines(heading))
    for side, teacher in zip("AB", item["teachers"], strict=True):
        said = "  ".join(f"{isolated(token_cell(t['text']))} {t['probability']:.3f}" for t in teacher["alternatives"])
        console.print(Text(f"  {side}: {said}"))


def _print_remarks(console: Console, total: dict[str, Any]) -> None:
    if total["infinite"]:
        console.print(
            f"At {total['infinite']:,} positions the KL is infinite: one teacher leaves nothing out and rules out "
            "what the other does not. They are not in the means.",
            highlight=False,
        )
    if total["skipped"]:
        console.print(f"{total['skipped']:,} positions were skipped: a teacher said nothing there.", highlight=False)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
