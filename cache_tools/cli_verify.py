"""``logitcask verify``: is a cache whole and undamaged?"""

import json
from typing import TYPE_CHECKING

import click

from cache_tools.cli_places import CacheType

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
    from dataclasses import asdict

    from rich.console import Console

    from cache_tools.verify import verify

    with Console(stderr=True).status("checking") as status:
        problems = verify(cache, deep, progress=lambda part: status.update(f"checking {part}"))
    if as_json:
        click.echo(json.dumps({"path": str(cache), "deep": deep, "problems": [asdict(p) for p in problems]}, indent=2))
    else:
        for problem in problems:
            click.echo(f"{problem.kind}: {problem.where}: {problem.message}")
        what = "every object and value" if deep else "structure, sizes and sequence files"
        click.echo(f"{len(problems)} problems" if problems else f"no problems ({what} checked)")
    if problems:
        raise SystemExit(1)
