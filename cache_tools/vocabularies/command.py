"""``logitcask vocabulary``: one vocabulary for a student of several teachers, or a smaller one than its teacher's."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cache_tools.cli_options import CacheType

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from cache_tools.storage import StorePath
    from cache_tools.vocabularies.compression import Similarity
    from cache_tools.vocabularies.manifest import VocabularyManifest


@click.command("vocabulary")
@click.argument("caches", nargs=-1, required=True, type=CacheType())
@click.option("-o", "--output", required=True, type=CacheType(), help="Folder to write.")
@click.option(
    "--keep", type=float, help="Keep a part of one tokenizer's tokens: a share (at most 1) or a number of tokens."
)
@click.option(
    "--forced",
    type=click.Path(path_type=Path),
    help="File of tokens to keep whatever their frequency, one token per line.",
)
@click.option(
    "--embeddings",
    type=click.Path(path_type=Path),
    help="Model whose word embeddings tell which kept token a dropped token is read as; by default the unknown token.",
)
@click.option(
    "--similarity",
    type=click.Choice(["dot", "cosine", "centred-cosine"]),
    help="How these word embeddings are compared; default: dot. Centred: after subtracting the mean embedding.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def vocabulary_command(
    caches: "tuple[StorePath, ...]",
    output: "StorePath",
    keep: float | None,
    forced: Path | None,
    embeddings: Path | None,
    similarity: "Similarity | None",
    as_json: bool,
) -> None:
    """Unite the vocabularies of CACHES into one for a student that learns from all of them.

    Equal tokens become one, also if the tokenizers write them differently. The folder holds the union, a map of
    each tokenizer's ids, and a tokenizer for the student; a student file refers to it as vocabulary. The ids of
    the first cache do not change, and adding caches at the end changes no id.
    With --keep, all caches must have one tokenizer, and the student gets only the tokens that they use most.

    \b
    Example:
        logitcask vocabulary runs/en/cache runs/de/cache -o runs/vocabulary
        logitcask vocabulary runs/en/cache --keep 0.5 --embeddings models/teacher -o runs/half
    """
    if keep is None and (forced or embeddings):
        raise click.UsageError("--forced and --embeddings can only be used with --keep.")
    if similarity and not embeddings:
        raise click.UsageError("--similarity can only be used with --embeddings.")
    if keep is not None and keep <= 0:
        raise click.BadParameter("must be above 0.", param_hint="--keep")
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
            written = write_vocabulary(output, encodings)
        else:
            reporter.stage("counting tokens and choosing among them", sum(len(e.shards) for e in encodings), "shards")
            written = write_compressed(
                output, encodings, keep, _names(forced), embeddings, reporter.advance, similarity or "dot"
            )
    if as_json:
        from cache_tools.json_output import json_text

        click.echo(json_text(written))
        return
    from rich.console import Console

    Console().print(_union_table(written) if keep is None else _kept_table(written, output))


def _names(path: Path | None) -> list[str]:
    from cache_tools.errors import ConfigError

    try:
        return [] if path is None else path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the file of tokens cannot be read", where=path, found=error) from error


def _union_table(manifest: "VocabularyManifest") -> "Table":
    from rich.table import Table

    table = Table("tokenizer", "ids", "shared with another", "new text is split", title=f"{manifest.size:,} tokens")
    for part in manifest.tokenizers:
        rules = "by its own rules" if part.same_rules else "by longest match only"
        table.add_row(f"{part.vocabulary[:12]}…", f"{part.ids:,}", f"{part.shared:,}", rules)
    return table


def _kept_table(manifest: "VocabularyManifest", folder: "StorePath") -> "Group":
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    from cache_tools.escaping import printable
    from cache_tools.vocabularies.compression import crowding
    from cache_tools.vocabularies.folder import read_vocabulary

    (part,), coverage = manifest.tokenizers, manifest.coverage or {}
    table = Table("split", "tokens of the text that are kept", title=f"{manifest.size:,} of {part.ids:,} tokens")
    for split, share in coverage.items():
        table.add_row(split, f"{share:.2%}")
    rows = part.ids - manifest.size
    stand_ins = crowding(read_vocabulary(folder))
    lines = [f"{rows:,} embeddings fewer: {rows:,} parameters for each unit of the student's width."]
    if stand_ins.dropped_by_most:
        most = f"{stand_ins.dropped_by_most:,} of them as {escape(printable(stand_ins.most_used))}"
        lines.append(f"Dropped tokens are read as {stand_ins.num_tokens:,} kept tokens, {most}.")
    return Group(table, *lines)
