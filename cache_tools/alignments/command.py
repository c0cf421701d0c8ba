"""``logitcask align``: a cache's text read by a student's own tokenizer."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cache_tools.cli_options import CacheType

if TYPE_CHECKING:
    from rich.table import Table

    from cache_tools.alignments.coverage import AlignedExample, AlignmentReport, Coverage
    from cache_tools.storage import StorePath


@click.command("align")
@click.argument("cache", type=CacheType())
@click.option("--tokenizer", required=True, help="Folder or hub id of the student's tokenizer.")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--encoding", help="Name of the encoding, if there are several.")
@click.option("--name", help="Name of the alignment; by default that of the tokenizer's folder.")
@click.option("--examples", type=click.IntRange(0), default=3, show_default=True, help="Sequences to show.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def align_command(
    cache: "StorePath",
    tokenizer: str,
    revision: str | None,
    encoding: str | None,
    name: str | None,
    examples: int,
    as_json: bool,
) -> None:
    """Align CACHE with a student's tokenizer, so that a student with another tokenizer can learn from it.

    The text is tokenised again, and it is recorded which of the teacher's predictions belong to which of the student's
    positions. No teacher is run and no prediction is changed. If the command is stopped, run it again to continue; run
    it again after documents were appended. A student file refers to the result as alignment.

    \b
    Example:
        logitcask align runs/demo/cache --tokenizer models/student
    """
    from cache_tools.alignments.coverage import report
    from cache_tools.alignments.making import align_encoding
    from cache_tools.json_output import json_text
    from cache_tools.progress.lines import open_reporter
    from cache_tools.store.reader import Cache
    from cache_tools.vocabularies.tokenizer_folder import open_tokenizer

    with open_reporter() as reporter:
        reporter.stage("opening the cache and the tokenizer", None)
        opened = Cache(cache).encoding(encoding)
        folder = open_tokenizer(tokenizer, revision)
        tokens = sum(entry.tokens for entry in opened.shards)
        reporter.stage("aligning", tokens, "tokens")
        alignment = align_encoding(opened, name or _name_of(tokenizer), folder, reporter.advance)
        reporter.stage("measuring the coverage", len(opened.shards), "shards")
        covered = report(alignment, examples, reporter.advance)
    if as_json:
        click.echo(json_text(covered))
    else:
        _print(covered)


def _name_of(tokenizer: str) -> str:
    """Return a legal name from the last part of a path or hub id."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(tokenizer.rstrip("/")).expanduser().name).lstrip("._-")[:100]
    return name or "student"


def _print(covered: "AlignmentReport") -> None:
    from rich.console import Console

    console = Console()
    console.print(_table(covered))
    ratio = covered.student_tokens / max(covered.teacher_tokens, 1)
    lines = [
        f"{covered.text_bytes:,} bytes of text: {covered.teacher_tokens:,} tokens of the teacher, "
        f"{covered.student_tokens:,} of the student ({ratio:.2f} times as many).",
        f"The student's longest sequence has {covered.longest_tokens:,} tokens.",
        f"In a student file: alignment: {covered.name}",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for example in covered.examples:
        for line in _example_lines(example):
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(covered: "AlignmentReport") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    from cache_tools.escaping import printable

    table = Table("documents", "positions", "exact", "composed", "same prefix", "no row", title=covered.name)
    table.add_row("all", *_cells(covered.coverage))
    if covered.num_groups > 1:
        for group in covered.groups:
            table.add_row(escape(printable(group.group_id)), *_cells(group.coverage))
    if covered.num_groups > len(covered.groups):
        table.add_row(f"… {covered.num_groups - len(covered.groups):,} more groups", *[""] * 5)
    return table


def _cells(coverage: "Coverage") -> list[str]:
    counts = (coverage.exact, coverage.composed, coverage.prefix, coverage.none)
    return [f"{coverage.positions:,}", *(f"{count / max(coverage.positions, 1):.1%}" for count in counts)]


def _example_lines(example: "AlignedExample") -> list[str]:
    from cache_tools.escaping import printable

    covered = example.coverage.exact + example.coverage.composed
    return [
        "",
        f"sequence {example.sequence_id}, document {printable(example.document_id)}, from byte {example.first_byte}: "
        f"{covered} of {example.coverage.positions} positions exact or composed",
        f"  teacher │{'│'.join(example.teacher_tokens)}│",
        f"  student │{'│'.join(example.student_tokens)}│",
    ]
