"""``logitcask inspect``: what a cache holds, as tables or JSON."""

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
    help="Number of positions to sample of each teacher, for its calibration; with 0 no array is read.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random choice of positions.")
@click.option(
    "--groups",
    type=click.Choice(["folder", "group"]),
    help="Also list the sample by documents: by the folder that their ids begin with, or by held-out group.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def inspect_command(
    cache: "StorePath", sample: int, seed: int, groups: Literal["folder", "group"] | None, as_json: bool
) -> None:
    """Show what CACHE holds: splits, teachers, sizes, statistics, calibration and progress.

    Only manifests, receipts and a sample of positions are read, so this is quick on a cache of any
    size. It also works while a capture is running.

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
        from cache_tools.json_output import json_text

        click.echo(json_text(summary))
        return
    from rich.console import Console

    from cache_tools.terminal.summary import print_summary

    print_summary(Console(), summary)
