"""``logitcask evaluate``: a student against the cached teacher, on held-out text."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cache_tools.cli_options import CacheType

if TYPE_CHECKING:
    from cache_tools.format.manifest import Split
    from cache_tools.storage import StorePath
    from trainer.evaluation.evaluate import Positions
    from trainer.evaluation.results import EvaluateResult

WHAT = {"all": "positions", "labels": "labels", "tokens": "positions of tokens"}


@click.command("evaluate")
@click.argument("student", type=click.Path(path_type=Path))
@click.argument("cache", type=CacheType())
@click.option("--encoding", help="Name of the encoding, if the cache has several.")
@click.option("--teacher", help="Name of the teacher, if the encoding has several.")
@click.option(
    "--split",
    type=click.Choice(["held_out", "train"]),
    default="held_out",
    show_default=True,
    help="Split of the cache to measure on.",
)
@click.option(
    "--positions",
    type=click.Choice(["all", "labels", "tokens"]),
    default="all",
    show_default=True,
    help="If documents have labels: measure only labels, only the other tokens, or all.",
)
@click.option("--vocabulary", type=CacheType(), help="Folder of the student's vocabulary, if it is not the cache's.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Sequences per forward pass.")
@click.option("--device", default="auto", show_default=True, help="Torch device; auto uses a GPU if there is one.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the reliability diagram to this file (.png, .svg, .pdf).",
)
@click.option(
    "--trust-remote-code", is_flag=True, help="Run Python code that comes with STUDENT. Only for models you trust."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def evaluate_command(
    student: Path,
    cache: "StorePath",
    encoding: str | None,
    teacher: str | None,
    split: "Split",
    positions: "Positions",
    vocabulary: "StorePath | None",
    batch_size: int,
    device: str,
    plot: Path | None,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Compare the model in folder STUDENT with the text and the teacher of CACHE; no teacher is loaded.

    \b
    Example:
        logitcask evaluate runs/demo/student_cached/final runs/demo/cache
    """
    from cache_tools.separate_places import require_outside
    from trainer.plots import check_plot

    if plot is not None:
        check_plot(plot)
        require_outside(plot, cache, "the diagram")
    from transformers.utils.logging import disable_progress_bar

    from cache_tools.json_output import json_text
    from cache_tools.progress.lines import open_reporter
    from trainer.evaluation.diagram import draw_reliability
    from trainer.evaluation.evaluate import evaluate_student

    disable_progress_bar()
    with open_reporter() as reporter:
        result = evaluate_student(
            *(student, cache, reporter, encoding, teacher, split, positions, vocabulary, batch_size, device),
            trust_remote_code=trust_remote_code,
        )
    if plot is not None:
        draw_reliability(result, plot)
    if as_json:
        click.echo(json_text(result))
    else:
        _print_table(result, f"{student} on {result.positions:,} {split} {WHAT[positions]}")


def _print_table(result: "EvaluateResult", title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("measure", "value", title=title)
    bound = {"upper bound": "at most ", "lower bound": "at least "}
    kl_bound, acceptance_bound = bound.get(result.kl_to_teacher_is, ""), bound.get(result.acceptance_is or "", "")
    table.add_row("cross-entropy", f"{result.cross_entropy_nats:.4f} nats")
    table.add_row("gold token most likely", f"{result.accuracy:.1%}")
    table.add_row("KL to the teacher", f"{kl_bound}{result.kl_to_teacher_nats:.4f} nats")
    table.add_row("same most likely token as the teacher", f"{result.top1_agreement:.1%}")
    table.add_row("expected calibration error", f"{result.calibration_error:.1%}")
    if result.acceptance is not None:
        table.add_row("its tokens accepted in speculative decoding", f"{acceptance_bound}{result.acceptance:.1%}")
    table.add_row("the teacher's own cross-entropy", f"{result.teacher_cross_entropy_nats:.4f} nats")
    Console().print(table)
