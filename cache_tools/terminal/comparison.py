"""What ``logitcask diff`` prints: means by A's confidence and by document group, then the worst positions."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cache_tools.escaping import printable
from cache_tools.inspection.comparison import Comparison, Means, WorstPosition
from cache_tools.quantities import counted
from cache_tools.terminal.bidi import IsolatedLines, isolated
from cache_tools.terminal.sequence import shortened, token_cell

GROUPS = 10
"""Groups that are printed; JSON has all."""

COLUMNS = ("positions", "KL(A‖B)", "KL(B‖A)", "same top-1")
CONTEXT_CHARACTERS = 60


def print_comparison(console: Console, result: Comparison) -> None:
    """Print a comparison of two teachers."""
    sides = f"A = {result.a}, B = {result.b}"
    shards = f"{len(result.shards):,} of {counted(result.shards_in_common, 'shard')}"
    read = f"{shards}, drawn at random, KL in nats (lower bounds)"
    console.print(Text(f"{sides} · {read}"))
    bins = [(f"{part.above:g} to {part.up_to:g}", part.means) for part in result.bins]
    console.print(_table("A's largest probability", [("all", result.all), *bins]))
    groups = [(isolated(printable(part.group)), part.means) for part in result.groups]
    of = f" (farthest {GROUPS} of {len(groups)})" if len(groups) > GROUPS else ""
    console.print(_table(f"document group{of}", groups[:GROUPS]))
    for position in result.worst:
        _print_worst(console, position)
    _print_remarks(console, result.all)


def _table(heading: str, rows: list[tuple[str, Means]]) -> Table:
    table = Table()
    table.add_column(heading, overflow="fold")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for name, means in rows:
        kl = (_number(value, ".3g") for value in (means.kl_ab_nats, means.kl_ba_nats))
        table.add_row(*map(Text, (name, f"{means.positions:,}", *kl, _number(means.same_top1, ".1%"))))
    return table


def _print_worst(console: Console, position: WorstPosition) -> None:
    kl = "infinite" if position.kl_nats is None else f"{position.kl_nats:.3g} nats"
    view = position.view
    heading = Text.assemble(
        (f"{kl}: sequence {view.sequence_id}, position {view.position}", "bold"),
        f" · {shortened(printable(position.document_id))}\n  ",
        ("…" + view.before[-CONTEXT_CHARACTERS:], "dim"),
        (shortened(view.gold), "green"),
    )
    console.print(IsolatedLines(heading))
    for side, teacher in zip("AB", view.teachers, strict=True):
        cells = (f"{isolated(token_cell(token.text))} {token.probability:.3f}" for token in teacher.alternatives)
        console.print(Text(f"  {side}: {'  '.join(cells)}"))


def _print_remarks(console: Console, total: Means) -> None:
    if total.infinite:
        console.print(
            f"At {total.infinite:,} positions the KL is infinite: one teacher keeps all of its probability and gives "
            "none to a token that the other keeps. The means leave these positions out.",
            highlight=False,
        )
    if total.skipped:
        console.print(f"{total.skipped:,} positions were skipped: the row of one teacher is empty.", highlight=False)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
