"""``logitcask copy``, ``subset``, ``drop`` and ``repair``: commands on a cache after its capture."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cache_tools.cli_options import CacheType

if TYPE_CHECKING:
    from cache_tools.storage import StorePath


@click.command("copy")
@click.argument("source", type=CacheType())
@click.argument("target", type=CacheType())
def copy_command(source: "StorePath", target: "StorePath") -> None:
    """Copy the cache SOURCE to TARGET, between any two disks or buckets.

    Every object is compared with its recorded hash while it is copied. If the command is stopped, run
    it again to continue. If SOURCE has grown since an earlier copy, only what is new is copied.

    \b
    Example:
        logitcask copy runs/demo/cache s3://bucket/demo-cache
    """
    from cache_tools.maintenance.copying import copy_cache, stored_bytes
    from cache_tools.progress.lines import open_reporter
    from cache_tools.store.reader import Cache

    with open_reporter() as reporter:
        reporter.stage("reading the receipts", None, "shards")
        cache = Cache(source)
        reporter.stage("copying", stored_bytes(cache), "bytes")
        copy_cache(cache, target, reporter.advance)
    click.echo(str(target))


@click.command("subset")
@click.argument("source", type=CacheType())
@click.argument("target", type=CacheType())
@click.option("--teacher", "teachers", multiple=True, help="Keep this teacher only; repeatable.")
@click.option("--document", "documents", multiple=True, metavar="ID", help="Keep this document only; repeatable.")
@click.option(
    "--documents",
    "listed",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with one document id per line.",
)
@click.option("--split", type=click.Choice(["train", "held_out"]), help="Keep this split only.")
@click.option(
    "--k", type=click.IntRange(1), help="Keep the K likeliest tokens of each row; the others become left-out mass."
)
def subset_command(
    source: "StorePath",
    target: "StorePath",
    teachers: tuple[str, ...],
    documents: tuple[str, ...],
    listed: Path | None,
    split: Any,
    k: int | None,
) -> None:
    """Write a smaller cache TARGET from SOURCE, without running a teacher.

    Alignments with students' tokenizers are not copied: 'logitcask align' makes them anew.

    \b
    Example:
        logitcask subset runs/demo/cache runs/small --k 16 --split train
    """
    from cache_tools.maintenance.subset import Choice, subset_cache
    from cache_tools.progress.lines import open_reporter
    from cache_tools.store.reader import Cache

    ids = {*documents, *(_lines(listed) if listed else ())} - {""}
    choice = Choice(teachers or None, frozenset(ids) if documents or listed else None, split, k)
    with open_reporter() as reporter:
        reporter.stage("writing the subset", None, "shards")
        subset_cache(Cache(source), target, choice, reporter.advance)
    click.echo(str(target))


def _lines(path: Path) -> list[str]:
    from cache_tools.errors import ConfigError

    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the file of document ids cannot be read", where=path, found=error) from error


@click.command("drop")
@click.argument("cache", type=CacheType())
@click.argument("teacher")
@click.option("--encoding", help="Name of the teacher's encoding, if there are several.")
@click.option("--hidden", metavar="LAYER", help="Delete only this layer of hidden states.")
@click.option("--alignment", is_flag=True, help="Delete the alignment of this name instead of a teacher.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def drop_command(
    cache: "StorePath", teacher: str, encoding: str | None, hidden: str | None, alignment: bool, yes: bool
) -> None:
    """Delete a TEACHER, one of its layers of hidden states, or an alignment, from CACHE.

    \b
    Example:
        logitcask drop runs/demo/cache toy --hidden last
    """
    from cache_tools.maintenance.alignments import drop_alignment
    from cache_tools.maintenance.drop import drop_hidden, drop_teacher
    from cache_tools.store.reader import Cache

    if hidden and alignment:
        raise click.UsageError("--hidden and --alignment cannot be used together.")
    opened = Cache(cache).encoding(encoding)
    what = f"layer {hidden} of teacher {teacher}" if hidden else f"teacher {teacher}"
    what = f"alignment {teacher}" if alignment else what
    if not yes:
        click.confirm(f"Delete {what} from {cache}?", abort=True)
    if alignment:
        drop_alignment(opened, teacher)
    elif hidden:
        drop_hidden(opened.teacher(teacher), hidden)
    else:
        drop_teacher(opened, teacher)
    click.echo(f"deleted {what}")


@click.command("repair")
@click.argument("cache", type=CacheType())
@click.option("--quick", is_flag=True, help="Check structure and sizes only, not every byte.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def repair_command(cache: "StorePath", quick: bool, as_json: bool) -> None:
    """Forget what is damaged in CACHE, so that the next capture writes only that again.

    The next capture then runs the teacher again for its damaged shards. Damaged or missing files of sequences, tables
    or the tokenizer are written again from the same corpus, without a teacher. The exit code is 1 if there is damage
    that only a copy can repair.

    \b
    Example:
        logitcask repair runs/demo/cache
    """
    from cache_tools.json_output import json_text
    from cache_tools.maintenance.repair import RepairResult, repair
    from cache_tools.maintenance.verify import shards_to_check
    from cache_tools.progress.lines import open_reporter
    from cache_tools.store.reader import Cache

    opened = Cache(cache)
    with open_reporter() as reporter:
        reporter.stage("checking", shards_to_check(opened) or None, "shards")
        mended, left = repair(cache, not quick, progress=reporter.part)
    if as_json:
        click.echo(json_text(RepairResult(str(cache), mended, left)))
    else:
        for verb, problems in (("forgotten", mended), ("left", left)):
            for problem in problems:
                click.echo(f"{verb}: {problem.where}: {problem.message}")
        again = "; run 'logitcask capture' again to redo what was forgotten" if mended else ""
        click.echo(f"{len(mended)} mended, {len(left)} left{again}")
    if left:
        raise SystemExit(1)
