"""``logitcask evaluate``: a student or a quantised model against the cached teacher, on held-out text."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cache_tools.cli_options import CacheType

if TYPE_CHECKING:
    from cache_tools.format.manifest import Split
    from cache_tools.storage import StorePath
    from trainer.evaluation.evaluate import Dtype, Positions
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
@click.option("--alignment", help="Name of the alignment with the student's tokenizer, if it is not the cache's.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Sequences per forward pass.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "auto"]),
    default="float32",
    show_default=True,
    help="Type in which the model computes; auto is the type of its checkpoint.",
)
@click.option(
    "--original",
    type=click.Path(path_type=Path),
    help="Model folder or GGUF file of the cached teacher: run it too, in the same way, and show its figures.",
)
@click.option("--device", default="auto", show_default=True, help="Torch device; auto uses a GPU if there is one.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the reliability diagram to this file (.png, .svg, .pdf).",
)
@click.option(
    "--card",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the figures, with both models and the text, to this Markdown file.",
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
    alignment: str | None,
    batch_size: int,
    dtype: "Dtype",
    original: Path | None,
    device: str,
    plot: Path | None,
    card: Path | None,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Compare a model, STUDENT, with the text and the teacher of CACHE.

    No teacher is loaded, unless --original names it.

    STUDENT is a model folder, quantised or not, or a GGUF file.

    With --alignment, a student with its own tokenizer is measured per byte of text.

    \b
    Example:
        logitcask evaluate runs/demo/student_cached/final runs/demo/cache
    """
    from cache_tools.separate_places import require_outside
    from trainer.plots import check_plot

    if plot is not None:
        check_plot(plot)
        require_outside(plot, cache, "the diagram")
    if card is not None:
        require_outside(card, cache, "the card")
    from transformers.utils.logging import disable_progress_bar

    from cache_tools.json_output import json_text
    from cache_tools.progress.lines import open_reporter
    from trainer.evaluation.diagram import draw_reliability
    from trainer.evaluation.evaluate import evaluate_student

    disable_progress_bar()
    if alignment is not None:
        _check_aligned(positions, {"--vocabulary": vocabulary, "--original": original, "--plot": plot, "--card": card})
        own = (alignment, encoding, teacher, split, batch_size, device, trust_remote_code, dtype)
        _print_aligned(student, cache, as_json, *own)
        return
    with open_reporter() as reporter:
        result = evaluate_student(
            *(student, cache, reporter, encoding, teacher, split, positions, vocabulary, batch_size, device),
            trust_remote_code=trust_remote_code,
            dtype=dtype,
            original=original,
        )
    if as_json:  # before the files, so that a disk that is full loses no figure
        click.echo(json_text(result))
    else:
        _print_table(result, f"{student} on {result.positions:,} {split} {WHAT[positions]}")
    if plot is not None:
        draw_reliability(result, plot)
    if card is not None:
        _write_card(result, card, cache, encoding)


def _check_aligned(positions: "Positions", options: dict[str, object]) -> None:
    """Refuse what has no meaning for a student whose tokens are not the teacher's."""
    given = [name for name, value in options.items() if value is not None]
    given += [] if positions == "all" else ["--positions"]
    if given:
        raise click.UsageError(f"--alignment cannot be used together with {', '.join(given)}.")


def _print_aligned(
    student: Path,
    cache: "StorePath",
    as_json: bool,
    alignment: str,
    encoding: str | None,
    teacher: str | None,
    split: "Split",
    *how: *tuple[int, str, bool, "Dtype"],
) -> None:
    from rich.console import Console
    from rich.table import Table

    from cache_tools.json_output import json_text
    from cache_tools.progress.lines import open_reporter
    from trainer.evaluation.aligned import evaluate_aligned_student
    from trainer.evaluation.figures import aligned_figures

    with open_reporter() as reporter:
        result = evaluate_aligned_student(student, cache, alignment, reporter, encoding, teacher, split, *how)
    if as_json:
        click.echo(json_text(result))
        return
    title = f"{student} on {result.positions:,} {split} positions, {result.text_bytes:,} bytes"
    table = Table("measure", "value", title=title)
    for row in aligned_figures(result):
        table.add_row(row.measure, row.value)
    Console().print(table)


def _write_card(result: "EvaluateResult", card: Path, cache: "StorePath", encoding: str | None) -> None:
    from cache_tools.storage import store_path, write_object
    from cache_tools.store.reader import Cache
    from trainer.evaluation.card import card_text

    cached = Cache(cache).encoding(encoding).teacher(result.teacher)
    write_object(store_path(str(card)), card_text(result, cached).encode())


def _print_table(result: "EvaluateResult", title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from trainer.evaluation.figures import figures_of, floor_words

    columns = ["measure", "value", "floor", "the original"][: 4 if result.original else 3]
    table = Table(*columns, title=title, caption=f"floor: {floor_words(result.floor)}")
    for row in figures_of(result):
        table.add_row(*(row.measure, row.value, row.floor, row.original)[: len(columns)])
    Console().print(table)
