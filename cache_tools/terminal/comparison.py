"""What ``logitcask diff`` prints: means by A's confidence and by document group, the worst positions, the noise floor.

With ``--reference`` it is one table, a row for each teacher.
"""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cache_tools.comparison.floor import NoiseFloor
from cache_tools.comparison.pair import Comparison, WorstPosition
from cache_tools.comparison.reference import AgainstReference, ReferenceComparison
from cache_tools.comparison.sums import Means
from cache_tools.escaping import printable
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
    for line in floor_lines(result.floor, result.all.larger_kl_nats):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_reference(console: Console, result: ReferenceComparison) -> None:
    """Print all teachers against one of them, R."""
    shards = f"{len(result.shards):,} of {counted(result.shards_in_common, 'shard')}"
    console.print(
        Text(f"R = {result.reference} ({result.computed_by}) · {shards}, drawn at random, KL in nats (lower bounds)")
    )
    table = Table()
    table.add_column("teacher T", overflow="fold")
    for heading in ("KL(R‖T)", "KL(T‖R)", "top-1", "floor", "explained"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result.teachers:
        table.add_row(*map(Text, _reference_row(row)))
    console.print(table)
    console.print(
        "top-1: same likeliest token. floor: mean KL that storing both and rounding are expected to cost; rounding was "
        f"measured on {result.teachers[0].floor.measured_on}. explained: whether these explain the KL, given the same "
        "weights.",
        highlight=False,
    )
    if result.left_out:
        console.print(f"Left out, because they keep draws or nothing yet: {', '.join(result.left_out)}.", markup=False)


def _reference_row(row: AgainstReference) -> tuple[str, ...]:
    floor, means = row.floor, row.means
    name = f"{isolated(printable(row.teacher))}\n{floor.b_computed_by}"
    kl = (_number(value, ".3g") for value in (means.kl_ab_nats, means.kl_ba_nats))
    expected = "unknown" if floor.rounding_nats is None else f"{floor.storage_nats + floor.rounding_nats:.2g}"
    verdict = {None: "unknown", True: "yes", False: "no"}[row.explained]
    if floor.same_weights is False:
        verdict = "other\nweights"
    return name, *kl, _number(means.same_top1, ".1%"), expected, verdict


def floor_lines(floor: NoiseFloor, kl_nats: float | None) -> list[str]:
    """Return what storing and rounding explain of a mean KL, as sentences."""
    sides = f"A computed by {floor.a_computed_by}, B by {floor.b_computed_by}"
    if floor.rounding_nats is None:
        return [f"noise floor: storing {floor.storage_nats:.2g} nats; rounding is unknown ({sides})"]
    where = " where machines or batches differ" if floor.same_arithmetic else ""
    lines = [
        f"noise floor: storing {floor.storage_nats:.2g} nats, rounding about {floor.rounding_nats:.2g}{where} "
        f"({sides}; measured on {floor.measured_on})"
    ]
    explained = floor.explains(kl_nats)
    if explained and floor.same_weights is False:
        lines.append("The weights differ, but the predictions by no more than storing and rounding could explain.")
    elif explained:
        lines.append("This is no difference that storing and rounding do not explain.")
    elif explained is False and floor.same_weights:
        lines.append(
            f"The weights are the same, and storing and rounding explain about {floor.limit_nats:.2g} nats. To measure "
            "this model's own rounding, capture it with dtype: float32 too and run diff --reference."
        )
    return lines


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
