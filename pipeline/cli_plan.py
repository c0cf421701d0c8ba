"""``logitcask plan``: what a capture will cost, before it is paid for."""

import json
from pathlib import Path
from typing import Any

import click


@click.command("plan")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key: teachers.0.target.k=32.")
@click.option(
    "--measure", is_flag=True, help="Run each teacher over part of the sample: speed, bytes, and a table of k."
)
@click.option("--tokens-per-s", type=click.FloatRange(min=0, min_open=True), help="Speed of a teacher, if you know it.")
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that share the capture."
)
@click.option(
    "--student-positions-per-s",
    type=click.FloatRange(min=0),
    default=65_000,
    show_default=True,
    help="What a student reads.",
)
@click.option(
    "--sample-documents", type=click.IntRange(1), default=500, show_default=True, help="Documents to tokenise."
)
@click.option(
    "--sample-sequences", type=click.IntRange(1), default=256, show_default=True, help="Sequences to measure on."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def plan_command(
    config: Path,
    overrides: tuple[str, ...],
    measure: bool,
    tokens_per_s: float | None,
    workers: int,
    student_positions_per_s: float,
    sample_documents: int,
    sample_sequences: int,
    as_json: bool,
) -> None:
    """Say what the capture CONFIG will cost: sequences, bytes, objects, hours, bandwidth.

    The corpus is read once and an even sample of it tokenised; nothing is written. Exits 1
    if the cache would not fit on the disk.

    \b
    Example:
        logitcask plan configs/demo/capture.yaml --measure
    """
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from cache_tools.configuration import load_config
    from pipeline.config import CaptureConfig
    from pipeline.plan import require_space
    from pipeline.run import plan_capture

    settings = load_config(config, CaptureConfig, overrides)
    disable_progress_bar()
    with Console(stderr=True).status("planning") as status:
        plan = plan_capture(settings, sample_documents, sample_sequences if measure else 0, tokens_per_s, status.update)
    for teacher in plan["teachers"]:
        teacher["hours"] = teacher["hours"] and teacher["hours"] / workers
        teacher["student_bytes_per_s"] = student_positions_per_s * teacher["target_bytes_per_position"]
    if as_json:
        click.echo(json.dumps(plan, indent=2))
    else:
        _print(plan)
    require_space(settings.cache, plan["stored_bytes"])


def _print(plan: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console, about = Console(), "" if plan["exact"] else "about "
    splits = Table(
        title=f"{about}{plan['documents']:,} documents"
        if plan["exact"]
        else f"{plan['documents']:,} documents, sampled"
    )
    for heading in ("split", "tokens", "positions", "shards"):
        splits.add_column(heading, justify="left" if heading == "split" else "right")
    for split, totals in plan["splits"].items():
        splits.add_row(split, *(f"{value:,}" for value in totals.values()))
    console.print(splits)
    for teacher in plan["teachers"]:
        table = Table(
            title=f"teacher {teacher['name']}"
            + ("" if teacher["measured"] else " (rules of thumb; --measure measures)"),
            show_header=False,
        )
        for row in _teacher_rows(teacher):
            table.add_row(*row)
        console.print(table)
        if teacher["choices"]:
            console.print(_choices_table(teacher["choices"]))


def _teacher_rows(teacher: dict[str, Any]) -> list[tuple[str, str]]:
    hours = (
        f"{teacher['hours']:,.2f} hours at {teacher['tokens_per_s']:,.0f} tokens/s a worker"
        if teacher["hours"]
        else "unknown: give --tokens-per-s, or --measure"
    )
    return [
        ("stored", f"{teacher['stored_bytes'] / 1e9:,.3f} GB in {teacher['objects']:,} objects"),
        ("targets and scalars", f"{teacher['target_bytes_per_position']:.1f} bytes per position"),
        ("hidden states", f"{teacher['hidden_bytes_per_position']:,.0f} bytes per position"),
        ("teacher", hours),
        ("a student reads", f"{teacher['student_bytes_per_s'] / 1e6:,.1f} MB/s"),
    ]


def _choices_table(choices: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(title="what k keeps and costs")
    for heading in ("k", "kept mass", "KL floor (nats)", "bytes per position"):
        table.add_column(heading, justify="right")
    for row in choices:
        table.add_row(
            str(row["k"]), f"{row['kept_mass']:.1%}", f"{row['kl_floor_nats']:.3g}", f"{row['bytes_per_position']:.1f}"
        )
    return table
