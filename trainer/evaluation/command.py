"""``logitcask evaluate``: a student against the cached teacher, on held-out text."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cache_tools.cli_options import CacheType

if TYPE_CHECKING:
    from cache_tools.format.manifest import Split
    from cache_tools.storage import StorePath
    from trainer.evaluation.evaluate import Positions

WHAT = {"all": "positions", "labels": "labels", "tokens": "positions of tokens"}


@click.command("evaluate")
@click.argument("student", type=click.Path(path_type=Path))
@click.argument("cache", type=CacheType())
@click.option("--encoding", help="Name of the encoding, if the cache has several.")
@click.option("--teacher", help="Name of the teacher, if the encoding has several.")
@click.option(
    "--split", type=click.Choice(["held_out", "train"]), default="held_out", show_default=True, help="Which sequences."
)
@click.option(
    "--positions",
    type=click.Choice(["all", "labels", "tokens"]),
    default="all",
    show_default=True,
    help="Where documents have labels: measure these, or all else.",
)
@click.option("--vocabulary", type=CacheType(), help="The student's vocabulary, if it is not the cache's.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Sequences per forward pass.")
@click.option("--device", default="auto", show_default=True, help="Where to run; auto takes a GPU when there is one.")
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw the reliability diagram (.png, .svg, .pdf)."
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
    """Compare the model in folder STUDENT with the teacher in CACHE; no teacher is loaded.

    \b
    Example:
        logitcask evaluate runs/demo/student_cached/final runs/demo/cache
    """
    from cache_tools.separate_places import require_outside
    from cache_tools.store.reader import Cache
    from trainer import plots

    if plot is not None:
        plots.check_plot(plot)
        require_outside(plot, cache, "the diagram")
    cached = Cache(cache).encoding(encoding).teacher(teacher)
    import torch
    from transformers.utils.logging import disable_progress_bar

    from cache_tools.progress.lines import open_reporter
    from cache_tools.vocabularies.folder import read_vocabulary
    from trainer.evaluation.evaluate import evaluate_folder

    union = None if vocabulary is None else read_vocabulary(vocabulary)
    disable_progress_bar()
    chosen = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    with open_reporter() as reporter:
        reporter.stage(f"evaluating on the {split} split", cached.encoding.manifest.splits[split].tokens)
        result = evaluate_folder(
            *(student, cached, split, batch_size, chosen, reporter.advance, union, positions),
            trust_remote_code=trust_remote_code,
        )
    if plot is not None:
        plots.draw_reliability(result, plot)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        _print_table(result, f"{student} on {result['positions']:,} {split} {WHAT[positions]}")


def _print_table(result: dict[str, Any], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("measure", "value", title=title)
    bound = {"upper bound": "at most ", "lower bound": "at least "}
    kl, acceptance = (bound.get(result.get(f"{name}_is", ""), "") for name in ("kl_to_teacher", "acceptance"))
    table.add_row("cross-entropy", f"{result['cross_entropy_nats']:.4f} nats")
    table.add_row("gold token most likely", f"{result['accuracy']:.1%}")
    table.add_row("KL to the teacher", f"{kl}{result['kl_to_teacher_nats']:.4f} nats")
    table.add_row("same most likely token as the teacher", f"{result['top1_agreement']:.1%}")
    table.add_row("expected calibration error", f"{result['calibration_error']:.1%}")
    if "acceptance" in result:
        table.add_row("its tokens accepted in speculative decoding", f"{acceptance}{result['acceptance']:.1%}")
    table.add_row("the teacher's own cross-entropy", f"{result['teacher_cross_entropy_nats']:.4f} nats")
    Console().print(table)
