"""``logitcask show``: one sequence as the teachers saw it, or where to find one worth seeing."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from cache_tools.cli_options import CacheType

if TYPE_CHECKING:
    from cache_tools.inspection.search import Found, Measure
    from cache_tools.progress.reporter import Advance
    from cache_tools.storage import StorePath
    from cache_tools.store.reader import Encoding
    from cache_tools.store.teacher import CachedTeacher

SCANNED_SHARDS = 64


@click.command("show")
@click.argument("cache", type=CacheType())
@click.argument("sequence", type=click.IntRange(0), required=False)
@click.option("--position", type=click.IntRange(0), help="List the alternatives at this position of the sequence.")
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="Alternatives to list.")
@click.option("--id", "document_id", metavar="DOCUMENT", help="Find sequences of this document.")
@click.option("--text", help="Find sequences with this text in them.")
@click.option("--highest-loss", is_flag=True, help="Find where the teacher was most surprised on average.")
@click.option(
    "--highest-disagreement",
    "disagreement",
    type=click.Choice(["kl", "top1"]),
    help="Find where two teachers are farthest apart: in KL, or in how often their likeliest tokens differ.",
)
@click.option("--limit", type=click.IntRange(1), default=10, show_default=True, help="Sequences to find.")
@click.option(
    "--shards",
    type=click.IntRange(1),
    help="Shards to look into: from the first, by default until --limit is reached, for --id and --text; "
    f"at random, by default {SCANNED_SHARDS}, for the others.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which shards are drawn.")
@click.option("--teacher", "teachers", multiple=True, help="Show this teacher only; repeatable.")
@click.option("--encoding", help="Name of the encoding, if the cache has several.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
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

    SEQUENCE is its number, 0 by default. With --position, show what the teachers thought
    likely there; the position of a token that is to be predicted is that of the token before
    it (causal) or its own (masked). With --id, --text, --highest-loss or
    --highest-disagreement, list sequences instead.

    \b
    Example:
        logitcask show runs/demo/cache 41 --position 7
    """
    from cache_tools.store.reader import Cache

    opened = Cache(cache).encoding(encoding)
    names: tuple[str | None, ...] = teachers or tuple(opened.teachers) or (None,)  # None: says that there is none
    chosen = [opened.teacher(name) for name in names]
    wanted = _wanted(document_id is not None or text is not None, highest_loss, disagreement)
    if wanted is None:
        _show(opened, chosen, bool(teachers), sequence or 0, position, top, as_json)
        return
    if sequence is not None or position is not None:
        raise click.UsageError("give a SEQUENCE, or options that find some, not both")
    if wanted == "text":
        found = _with_text(opened, document_id, text, shards, limit)
    else:
        found = _highest(opened, chosen, disagreement, shards or SCANNED_SHARDS, seed, limit)
    _print_found(found, {"loss": "loss, nats", "kl": "KL, nats", "top1": "top-1 differs"}.get(wanted), as_json)


def _wanted(by_text: bool, highest_loss: bool, disagreement: str | None) -> str | None:
    """Return the one way of finding that was asked for, None if sequences are not to be found."""
    asked = [*(["text"] if by_text else []), *(["loss"] if highest_loss else []), *filter(None, [disagreement])]
    if len(asked) > 1:
        raise click.UsageError("--id and --text, --highest-loss and --highest-disagreement exclude each other")
    return asked[0] if asked else None


def _show(
    encoding: "Encoding",
    teachers: list["CachedTeacher"],
    named: bool,
    number: int,
    position: int | None,
    top: int,
    as_json: bool,
) -> None:
    """Show a sequence; of teachers that nobody named, those that have captured it already."""
    from rich.console import Console

    from cache_tools.errors import ConfigError
    from cache_tools.inspection.decoding import token_texts
    from cache_tools.inspection.views import position_view, sequence_view
    from cache_tools.terminal.sequence import print_position, print_sequence

    try:
        sequence = encoding.sequence(number)
    except IndexError as error:
        count = sum(entry.sequences for entry in encoding.shards)
        raise ConfigError(
            f"there is no sequence {number}", where=encoding.path, expected=f"0 to {count - 1}"
        ) from error
    shard, texts = encoding.shard_of(number), token_texts(encoding)
    if not named:
        teachers = [teacher for teacher in teachers if shard not in teacher.missing_shards()] or teachers
    if position is None:
        view, show = sequence_view(encoding, sequence, teachers, texts), print_sequence
    else:
        view, show = position_view(encoding, sequence, position, teachers, texts, top), print_position
    if as_json:
        click.echo(json.dumps(view, indent=2))
    else:
        show(Console(), view)


def _with_text(
    encoding: "Encoding",
    document_id: str | None,
    text: str | None,
    shards: int | None,
    limit: int,
) -> list["Found"]:
    from cache_tools.inspection.search import with_text
    from cache_tools.progress.lines import open_reporter

    read = list(range(len(encoding.shards))[:shards])
    with open_reporter(brief=True) as reporter:
        reporter.stage("reading", len(read), "shards")
        return with_text(encoding, _counted(read, reporter.advance), document_id, text, limit)


def _highest(
    encoding: "Encoding",
    teachers: list["CachedTeacher"],
    disagreement: str | None,
    shards: int,
    seed: int,
    limit: int,
) -> list["Found"]:
    from cache_tools.inspection.sampling import committed_shards, drawn
    from cache_tools.inspection.search import disagreement_of, highest, loss_of
    from cache_tools.progress.lines import open_reporter

    needed = 2 if disagreement else 1
    if len(teachers) != needed:
        raise click.UsageError(
            f"this needs {needed} teacher{'s' * (needed > 1)}, not {len(teachers)}; "
            f"choose with --teacher from: {', '.join(encoding.teachers)}"
        )
    measure: Measure = disagreement_of(teachers[0], teachers[1], disagreement) if disagreement else loss_of(teachers[0])
    committed = committed_shards(teachers)
    read = drawn(committed, shards, seed)
    with open_reporter(brief=True) as reporter:
        reporter.stage("scanning", len(read), "shards")
        found = highest(encoding, _counted(read, reporter.advance), measure, limit)
    if len(read) < len(committed):
        click.echo(f"scanned {len(read)} of {len(committed)} shards; --shards N scans more", err=True)
    return found


def _print_found(found: list["Found"], measure: str | None, as_json: bool) -> None:
    from dataclasses import asdict

    from rich.console import Console

    from cache_tools.inspection.views import finite
    from cache_tools.terminal.sequence import print_found

    if as_json:
        plain = [asdict(item) | {"value": None if item.value is None else finite(item.value)} for item in found]
        click.echo(json.dumps({"measure": measure, "found": plain}, indent=2))
    elif found:
        print_found(Console(), found, measure)
        click.echo(f"Look at one: logitcask show CACHE {found[0].sequence_id}", err=True)
    else:
        click.echo("No sequence was found.", err=True)


def _counted(shards: list[int], advance: "Advance") -> Iterator[int]:
    """Yield shards and tell when each is done."""
    for shard in shards:
        yield shard
        advance(1)
