"""``logitcask demo``: run both stages once on this machine and compare two students."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pipeline.demo.real import RealDemoResult
    from pipeline.demo.run import DemoResult

NAMES = {"student_ce": "student, text alone", "student_cached": "student, from the cache"}


@click.command("demo")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for corpus, cache and students; by default runs/demo, with --real runs/demo-real.",
)
@click.option(
    "--real",
    is_flag=True,
    help="Use a language model that people know, SmolLM2-135M, instead of the toy: downloads 92 MB. "
    "13 minutes on two cores with AMX.",
)
@click.option(
    "--train-teacher",
    is_flag=True,
    help="Train the toy teacher here first (half an hour) instead of using the committed one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def demo_command(output: Path | None, real: bool, train_teacher: bool, as_json: bool) -> None:
    """Run both stages on this machine in a few minutes; nothing is downloaded.

    A toy teacher reads the Python documentation once, and its predictions are stored in a cache.
    One student learns from the text alone, and an identical one from the cache.

    \b
    Example:
        logitcask demo
    """
    from rich.console import Console

    from cache_tools.json_output import json_text
    from pipeline.demo.real import run_real_demo
    from pipeline.demo.run import run_demo

    if real and train_teacher:
        raise click.UsageError("--real and --train-teacher exclude each other: the toy teacher is not used.")
    output = output or Path("runs/demo-real" if real else "runs/demo")
    progress = Console(stderr=True)

    def say(sentence: str) -> None:
        progress.print(f"\n[bold]{sentence}[/bold]")

    real_result = run_real_demo(output.resolve(), say) if real else None
    result = real_result.compared if real_result else run_demo(output.resolve(), train_teacher, say)
    if as_json:
        click.echo(json_text(real_result or result))
        return
    console = Console()
    console.print(_table(result, real))
    console.print(_verdict(result))
    if real_result:
        _print_real(console, real_result)
    console.print("\nTry next:")
    for command in _next_commands(output):
        console.print(f"  {command}", soft_wrap=True, highlight=False)


def _table(result: "DemoResult", real: bool) -> "Table":
    from rich.table import Table

    kind, teacher = ("real", "teacher, SmolLM2-135M") if real else ("toy", "toy teacher")
    table = Table(title=f"held-out text, {kind} models, equal steps and equal data")
    table.add_column("")
    further = ("same top token", "training (seconds)") if real else ()
    for head in ("cross-entropy (nats)", "KL to the teacher (nats)", *further):
        table.add_column(head, justify="right")
    rows = {"teacher": result.teacher, "student_ce": result.student_ce, "student_cached": result.student_cached}
    for key, measured in rows.items():
        seconds = result.seconds.get(f"train_{key}")
        cells = [f"{measured.cross_entropy_nats:.3f}", f"{measured.kl_to_teacher_nats:.3f}"]
        if real:
            cells += [f"{measured.top1_agreement:.1%}", "" if seconds is None else f"{seconds:.0f}"]
        table.add_row(NAMES.get(key, teacher), *cells)
    return table


def _verdict(result: "DemoResult") -> str:
    gain = result.student_ce.cross_entropy_nats - result.student_cached.cross_entropy_nats
    stored = f"The cache holds {result.bytes_per_position:.1f} bytes per position."
    seconds = f"Everything took {sum(result.seconds.values()):.0f} seconds."
    if gain > 0:
        return f"Learning from the cache lowered the held-out loss by {gain:.3f} nats. {stored} {seconds}"
    return f"The cached student did NOT win: its held-out loss is {-gain:.3f} nats higher. {stored} {seconds}"


def _print_real(console: "Console", result: "RealDemoResult") -> None:
    gain = result.gain
    console.print(
        f"Over held-out documents the gain is {gain.mean:.3f} nats, 95 % interval {gain.low:.3f} to {gain.high:.3f}."
    )
    console.print(f"\n[bold]{result.prompt} …[/bold]")
    for key, text in result.continuations.items():
        console.print(f"  {NAMES.get(key, 'teacher')}: {' '.join(text.split())!r}", highlight=False, markup=False)


def _next_commands(output: Path) -> list[str]:
    return [
        f"logitcask inspect {output / 'cache'}",
        f"logitcask view {output / 'cache'}",
        f"logitcask verify --deep {output / 'cache'}",
        f"logitcask evaluate {output / 'student_cached' / 'final'} {output / 'cache'}",
    ]
