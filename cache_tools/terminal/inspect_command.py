"""``logitcask inspect``: what is in a cache, as tables or JSON."""

import json
from typing import TYPE_CHECKING, Literal

import click

from cache_tools.cli_options import CacheType

if TYPE_CHECKING:
    from cache_tools.storage import StorePath


@click.command("inspect")
@click.argument("cache", type=CacheType())
@click.option(
    "--sample",
    type=click.IntRange(0),
    default=65_536,
    show_default=True,
    help="Positions of each teacher to read for its calibration; with 0 no array is read.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which positions are drawn.")
@click.option(
    "--groups",
    type=click.Choice(["folder", "group"]),
    help="Also tell the sample's documents apart: by their ids up to the first slash, or by what is held out together.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def inspect_command(
    cache: "StorePath", sample: int, seed: int, groups: Literal["folder", "group"] | None, as_json: bool
) -> None:
    """Show what CACHE holds: splits, teachers, sizes, statistics, calibration and progress.

    Reads manifests, receipts and a sample of positions, so it is quick on a cache of any size
    and works while a capture is running.

    \b
    Example:
        logitcask inspect runs/demo/cache --groups folder
    """
    from cache_tools.inspection.summary import summarise
    from cache_tools.progress.lines import open_reporter
    from cache_tools.store.reader import Cache

    with open_reporter(brief=True) as reporter:
        reporter.stage("reading receipts and a sample", None, "receipts and chunks")
        summary = summarise(Cache(cache), sample, seed, groups, lambda count, *_: reporter.advance(count))
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    from rich.console import Console

    from cache_tools.terminal.summary import print_summary

    print_summary(Console(), summary)
