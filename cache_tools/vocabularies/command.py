"""``logitcask vocabulary``: one vocabulary for a student of several teachers, or a smaller one than its teacher's."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cache_tools.cli_options import CacheType

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from cache_tools.storage import StorePath
    from cache_tools.vocabularies.folder import VocabularyManifest


@click.command("vocabulary")
@click.argument("caches", nargs=-1, required=True, type=CacheType())
@click.option("-o", "--output", required=True, type=CacheType(), help="Folder to write.")
@click.option("--keep", type=float, help="Keep this share (at most 1) or number of one tokenizer's tokens.")
@click.option("--forced", type=click.Path(path_type=Path), help="File of tokens to keep in any case, one a line.")
@click.option(
    "--embeddings",
    type=click.Path(path_type=Path),
    help="Model whose word embeddings say what a dropped token is read as; default: as unknown.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def vocabulary_command(
    caches: "tuple[StorePath, ...]",
    output: "StorePath",
    keep: float | None,
    forced: Path | None,
    embeddings: Path | None,
    as_json: bool,
) -> None:
    """Unite the vocabularies of CACHES into one for a student that learns from all of them.

    Tokens that are written differently but are the same become one. The folder holds the union, where each
    tokenizer's ids went, and a tokenizer; a student file names it as vocabulary.
    The ids of the first cache stay, and caches that are added at the end change none.
    With --keep, the caches have one tokenizer, and the student knows only the tokens that they use most.

    \b
    Example:
        logitcask vocabulary runs/en/cache runs/de/cache -o runs/vocabulary
        logitcask vocabulary runs/en/cache --keep 0.5 --embeddings models/teacher -o runs/half
    """
    if keep is None and (forced or embeddings):
        raise click.UsageError("--forced and --embeddings need --keep")
    if keep is not None and keep <= 0:
        raise click.BadParameter("a share or a number above 0", param_hint="--keep")
    from cache_tools.progress.lines import open_reporter
    from cache_tools.separate_places import require_outside
    from cache_tools.store.reader import Cache
    from cache_tools.vocabularies.compressed_folder import write_compressed
    from cache_tools.vocabularies.folder import write_vocabulary

    with open_reporter() as reporter:
        reporter.stage("opening the caches", None)
        opened = [Cache(place) for place in caches]
        for cache in opened:
            require_outside(output, cache.path, "the vocabulary")
        encodings = [cache.encoding(name) for cache in opened for name in cache.encodings]
        if keep is None:
            reporter.stage("merging the vocabularies", None)
            made = write_vocabulary(output, encodings)
        else:
            reporter.stage("counting tokens and choosing among them", sum(len(e.shards) for e in encodings), "shards")
            made = write_compressed(output, encodings, keep, _names(forced), embeddings, reporter.advance)
    if as_json:
        click.echo(json.dumps(made.model_dump(mode="json"), indent=2))
        return
    from rich.console import Console

    Console().print(_united(made) if keep is None else _kept(made, output))


def _names(path: Path | None) -> list[str]:
    from cache_tools.errors import ConfigError

    try:
        return [] if path is None else path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the list of tokens cannot be read", where=path, found=error) from error


def _united(made: "VocabularyManifest") -> "Table":
    from rich.table import Table

    table = Table("tokenizer", "ids", "shared with another", "new text is split", title=f"{made.size:,} tokens")
    for part in made.tokenizers:
        rules = "as by its own rules" if part.same_rules else "by longest match only"
        table.add_row(f"{part.vocabulary[:12]}…", f"{part.ids:,}", f"{part.shared:,}", rules)
    return table


def _kept(made: "VocabularyManifest", folder: "StorePath") -> "Group":
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    from cache_tools.escaping import printable
    from cache_tools.vocabularies.compression import crowding
    from cache_tools.vocabularies.folder import read_vocabulary

    (part,), coverage = made.tokenizers, made.coverage or {}
    table = Table("split", "tokens of the text that are kept", title=f"{made.size:,} of {part.ids:,} tokens")
    for split, share in coverage.items():
        table.add_row(split, f"{share:.2%}")
    rows = part.ids - made.size
    stand_ins, name, count = crowding(read_vocabulary(folder))
    lines = [f"{rows:,} embeddings fewer: {rows:,} parameters for each unit of the student's width."]
    if count:
        lines.append(
            f"Dropped tokens are read as {stand_ins:,} others, {count:,} of them as {escape(printable(name))}."
        )
    return Group(table, *lines)
