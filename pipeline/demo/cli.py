"""``logitcask demo``: run both stages once on this machine and compare two students."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.demo.run import DemoResult


@click.command("demo")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Folder for corpus, cache and students.",
)
@click.option(
    "--train-teacher",
    is_flag=True,
    help="Train the toy teacher here first (half an hour) instead of using the committed one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def demo_command(output: Path, train_teacher: bool, as_json: bool) -> None:
    """Run both stages on this machine in a few minutes; nothing is downloaded.

    A toy teacher reads the Python documentation once, and its predictions are stored in a cache.
    One student learns from the text alone, and an identical one from the cache.

    \b
    Example:
        logitcask demo
    """
    from rich.console import Console

    from cache_tools.json_output import json_text
    from pipeline.demo.run import run_demo

    progress = Console(stderr=True)
    result = run_demo(
        output.resolve(), train_teacher, say=lambda sentence: progress.print(f"\n[bold]{sentence}[/bold]")
    )
    if as_json:
        click.echo(json_text(result))
        return
    console = Console()
    console.print(_table(result))
    console.print(_verdict(result))
    console.print("\nTry next:")
    for command in _next_commands(output):
        console.print(f"  {command}", soft_wrap=True, highlight=False)


def _table(result: "DemoResult") -> "Table":
    from rich.table import Table

    table = Table(title="held-out text, toy models, equal steps and equal data")
    table.add_column("")
    table.add_column("cross-entropy (nats)", justify="right")
    table.add_column("KL to the teacher (nats)", justify="right")
    rows = {
        "toy teacher": result.teacher,
        "student, text alone": result.student_ce,
        "student, from the cache": result.student_cached,
    }
    for name, measured in rows.items():
        table.add_row(name, f"{measured.cross_entropy_nats:.3f}", f"{measured.kl_to_teacher_nats:.3f}")
    return table


def _verdict(result: "DemoResult") -> str:
    gain = result.student_ce.cross_entropy_nats - result.student_cached.cross_entropy_nats
    stored = f"The cache holds {result.bytes_per_position:.1f} bytes per position."
    seconds = f"Everything took {sum(result.seconds.values()):.0f} seconds."
    if gain > 0:
        return f"Learning from the cache lowered the held-out loss by {gain:.3f} nats. {stored} {seconds}"
    return f"The cached student did NOT win: its held-out loss is {-gain:.3f} nats higher. {stored} {seconds}"


def _next_commands(output: Path) -> list[str]:
    return [
        f"logitcask inspect {output / 'cache'}",
        f"logitcask view {output / 'cache'}",
        f"logitcask verify --deep {output / 'cache'}",
        f"logitcask evaluate {output / 'student_cached' / 'final'} {output / 'cache'}",
    ]
