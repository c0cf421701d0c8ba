"""``logitcask vocabulary``: one vocabulary for a student of several teachers."""

import json
from typing import TYPE_CHECKING

import click

from cache_tools.cli_places import CacheType

if TYPE_CHECKING:
    from cache_tools.storage import StorePath


@click.command("vocabulary")
@click.argument("caches", nargs=-1, required=True, type=CacheType())
@click.option("-o", "--output", required=True, type=CacheType(), help="Folder to write.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def vocabulary_command(caches: "tuple[StorePath, ...]", output: "StorePath", as_json: bool) -> None:
    """Unite the vocabularies of CACHES into one for a student that learns from all of them.

    Tokens that are written differently but are the same become one. The folder holds the union, where each
    tokenizer's ids went, and a tokenizer; a student file names it as vocabulary.
    The ids of the first cache stay, and caches that are added at the end change none.

    \b
    Example:
        logitcask vocabulary runs/en/cache runs/de/cache -o runs/vocabulary
    """
    from cache_tools.reader import Cache
    from cache_tools.vocabulary_folder import write_vocabulary

    opened = [Cache(place) for place in caches]
    made = write_vocabulary(output, [cache.encoding(name) for cache in opened for name in cache.encodings])
    if as_json:
        click.echo(json.dumps(made.model_dump(mode="json"), indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("tokenizer", "ids", "shared with another", "new text is split", title=f"{made.size:,} tokens")
    for part in made.tokenizers:
        rules = "as by its own rules" if part.same_rules else "by longest match only"
        table.add_row(f"{part.vocabulary[:12]}…", f"{part.ids:,}", f"{part.shared:,}", rules)
    Console().print(table)
