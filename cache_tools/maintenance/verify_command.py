"""``logitcask verify``: check that a cache is complete and undamaged."""

from typing import TYPE_CHECKING

import click

from cache_tools.cli_options import CacheType

if TYPE_CHECKING:
    from cache_tools.storage import StorePath


@click.command("verify")
@click.argument("cache", type=CacheType())
@click.option("--deep", is_flag=True, help="Also hash every object and check every stored value.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def verify_command(cache: "StorePath", deep: bool, as_json: bool) -> None:
    """Check that CACHE is complete and undamaged; exit 1 if it is not.

    \b
    Example:
        logitcask verify --deep runs/demo/cache
    """
    from cache_tools.json_output import json_text
    from cache_tools.maintenance.verify import VerifyResult, shards_to_check, verify
    from cache_tools.progress.lines import open_reporter
    from cache_tools.quantities import counted
    from cache_tools.store.reader import Cache

    opened = Cache(cache)
    with open_reporter() as reporter:
        reporter.stage("checking", shards_to_check(opened) or None, "shards")
        problems = verify(opened.path, deep, progress=reporter.part)
    if as_json:
        click.echo(json_text(VerifyResult(str(cache), deep, problems)))
    else:
        for problem in problems:
            click.echo(f"{problem.kind}: {problem.where}: {problem.message}")
        what = "every object and value" if deep else "structure, sizes and sequence files"
        click.echo(counted(len(problems), "problem") if problems else f"no problems ({what} checked)")
    if problems:
        raise SystemExit(1)
