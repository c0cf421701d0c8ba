"""``logitcask show``: one sequence with the teachers' predictions, or a search for sequences."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from cache_tools.cli_options import CacheType
from cache_tools.quantities import counted

if TYPE_CHECKING:
    from cache_tools.inspection.search import Match
    from cache_tools.progress.reporter import Advance
    from cache_tools.storage import StorePath
    from cache_tools.store.reader import Encoding
    from cache_tools.store.teacher import CachedTeacher

SCANNED_SHARDS = 64
"""How many shards a search for the highest loss or disagreement reads by default."""

MEASURES = {"loss": "loss, nats", "kl": "KL, nats", "top1": "top-1 differs"}
"""What a search ranks by, and the heading of the values."""


@click.command("show")
@click.argument("cache", type=CacheType())
@click.argument("sequence", type=click.IntRange(0), required=False)
@click.option("--position", type=click.IntRange(0), help="List the alternatives at this position of the sequence.")
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="Number of alternatives to list.")
@click.option("--id", "document_id", metavar="DOCUMENT", help="Find the sequences of this document.")
@click.option("--text", help="Find sequences that contain this text.")
@click.option("--highest-loss", is_flag=True, help="Find the sequences with the highest mean loss of a teacher.")
@click.option(
    "--highest-disagreement",
    "disagreement",
    type=click.Choice(["kl", "top1"]),
    help="Find the sequences on which two teachers differ most: in KL, or in their likeliest tokens.",
)
@click.option(
    "--limit", type=click.IntRange(1), default=10, show_default=True, help="Largest number of sequences to list."
)
@click.option(
    "--shards",
    type=click.IntRange(1),
    help="Number of shards to search. --id and --text read from the first shard on, by default until --limit is "
    f"reached; the other searches read shards at random, by default {SCANNED_SHARDS}.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random choice of shards.")
@click.option("--teacher", "teachers", multiple=True, help="Show this teacher only; repeatable.")
@click.option("--encoding", help="Name of the encoding, if the cache has several.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def show_command(
    cache: "StorePath",
    sequence: int | None,
    position: int | None,
    top: int,
    document_id: str | None,
    text: str | None,
    highest_loss: bool,
    disagreement: str | None,
    limit: int,
    shards: int | None,
    seed: int,
    teachers: tuple[str, ...],
    encoding: str | None,
    as_json: bool,
) -> None:
    """Show a SEQUENCE of CACHE, its tokens coloured by the teachers' surprise.

    SEQUENCE is the number of the sequence, 0 by default. With --position, list the tokens that the
    teachers predicted there; a causal teacher predicts a token at the position before it, a masked
    one at the token's own. With --id, --text, --highest-loss or --highest-disagreement, search for
    sequences instead.

    \b
    Example:
        logitcask show runs/demo/cache 41 --position 7
    """
    from cache_tools.store.reader import Cache

    opened = Cache(cache).encoding(encoding)
    names: tuple[str | None, ...] = teachers or tuple(opened.teachers) or (None,)  # None: an error if there is none
    selected_teachers = [opened.teacher(name) for name in names]
    kind = _kind_of_search(document_id is not None or text is not None, highest_loss, disagreement)
    if kind is None:
        _show(opened, selected_teachers, bool(teachers), sequence or 0, position, top, as_json)
        return
    if sequence is not None or position is not None:
        raise click.UsageError("Give either a SEQUENCE or search options, not both.")
    if kind == "text":
        matches = _with_text(opened, document_id, text, shards, limit)
    else:
        matches = _highest(opened, selected_teachers, disagreement, shards or SCANNED_SHARDS, seed, limit)
    _print_matches(matches, MEASURES.get(kind), as_json)


def _kind_of_search(by_text: bool, highest_loss: bool, disagreement: str | None) -> str | None:
    """Return ``text`` or a key of MEASURES; None if the options do not ask for a search."""
    kinds = [*(["text"] if by_text else []), *(["loss"] if highest_loss else []), *filter(None, [disagreement])]
    if len(kinds) > 1:
        raise click.UsageError(
            "Search by one thing at a time: --id and --text, or --highest-loss, or --highest-disagreement."
        )
    return kinds[0] if kinds else None


def _show(
    encoding: "Encoding",
    teachers: list["CachedTeacher"],
    named: bool,
    number: int,
    position: int | None,
    top: int,
    as_json: bool,
) -> None:
    """Show a sequence or a position; of teachers that no option names, those that have captured it already."""
    from rich.console import Console

    from cache_tools.inspection.decoding import token_texts
    from cache_tools.inspection.views import position_view, sequence_of, sequence_view
    from cache_tools.json_output import json_text
    from cache_tools.terminal.sequence import print_position, print_sequence

    sequence = sequence_of(encoding, number)
    shard, texts = encoding.shard_of(number), token_texts(encoding)
    if not named:
        teachers = [teacher for teacher in teachers if shard not in teacher.missing_shards()] or teachers
    if position is not None:
        at_position = position_view(encoding, sequence, position, teachers, texts, top)
        click.echo(json_text(at_position)) if as_json else print_position(Console(), at_position)
        return
    view = sequence_view(encoding, sequence, teachers, texts)
    click.echo(json_text(view)) if as_json else print_sequence(Console(), view)


def _with_text(
    encoding: "Encoding",
    document_id: str | None,
    text: str | None,
    shards: int | None,
    limit: int,
) -> list["Match"]:
    from cache_tools.inspection.search import with_text
    from cache_tools.progress.lines import open_reporter

    searched_shards = list(range(len(encoding.shards))[:shards])
    with open_reporter(brief=True) as reporter:
        reporter.stage("reading", len(searched_shards), "shards")
        return with_text(encoding, _counted(searched_shards, reporter.advance), document_id, text, limit)


def _highest(
    encoding: "Encoding",
    teachers: list["CachedTeacher"],
    disagreement: str | None,
    shards: int,
    seed: int,
    limit: int,
) -> list["Match"]:
    from cache_tools.inspection.sampling import committed_shards, drawn
    from cache_tools.inspection.search import disagreement_of, highest, loss_of
    from cache_tools.progress.lines import open_reporter

    needed = 2 if disagreement else 1
    if len(teachers) != needed:
        raise click.UsageError(
            f"This search needs {counted(needed, 'teacher')}, not {len(teachers)}. "
            f"Select with --teacher from: {', '.join(encoding.teachers)}."
        )
    measure = disagreement_of(teachers[0], teachers[1], disagreement) if disagreement else loss_of(teachers[0])
    committed = committed_shards(teachers)
    searched_shards = drawn(committed, shards, seed)
    with open_reporter(brief=True) as reporter:
        reporter.stage("scanning", len(searched_shards), "shards")
        matches = highest(encoding, _counted(searched_shards, reporter.advance), measure, limit)
    if len(searched_shards) < len(committed):
        shares = f"{len(searched_shards):,} of {counted(len(committed), 'shard')}"
        click.echo(f"scanned {shares}; --shards N scans more", err=True)
    return matches


def _print_matches(matches: list["Match"], measure: str | None, as_json: bool) -> None:
    from rich.console import Console

    from cache_tools.inspection.search import SearchResult
    from cache_tools.json_output import json_text
    from cache_tools.terminal.sequence import print_matches

    if as_json:
        click.echo(json_text(SearchResult(measure, tuple(matches))))
    elif matches:
        print_matches(Console(), matches, measure)
        click.echo(f"To see the first: logitcask show CACHE {matches[0].sequence_id}", err=True)
    else:
        click.echo("No sequence was found.", err=True)


def _counted(shards: list[int], advance: "Advance") -> Iterator[int]:
    """Yield shards, and count each after it was read."""
    for shard in shards:
        yield shard
        advance(1)
