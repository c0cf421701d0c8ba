"""``logitcask diff``: how far two teachers are apart."""

import json
from typing import TYPE_CHECKING

import click

from cache_tools.cli_options import CacheType

if TYPE_CHECKING:
    from cache_tools.storage import StorePath
    from cache_tools.store.teacher import CachedTeacher


@click.command("diff")
@click.argument("a", type=CacheType())
@click.argument("b", type=CacheType(), required=False)
@click.option("--teacher-a", help="Teacher in A, if there are several.")
@click.option("--teacher-b", help="Teacher in B; in one cache of two teachers, the other one.")
@click.option("--encoding-a", help="Encoding in A, if there are several.")
@click.option("--encoding-b", help="Encoding in B, if there are several; by default that of A if B is not given.")
@click.option("--shards", type=click.IntRange(1), default=4, show_default=True, help="Shards to compare.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which shards are drawn.")
@click.option("--worst", type=click.IntRange(0), default=5, show_default=True, help="Positions to show.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def diff_command(
    a: "StorePath",
    b: "StorePath | None",
    teacher_a: str | None,
    teacher_b: str | None,
    encoding_a: str | None,
    encoding_b: str | None,
    shards: int,
    seed: int,
    worst: int,
    as_json: bool,
) -> None:
    """Compare two teachers that read the same sequences: KL, agreement, where they differ most.

    They lie in the caches A and B, or both in A. KL is the smallest that the kept tokens allow,
    a lower bound of the true one; for two captures of one teacher it is about as small as the
    codec's error. Exits 0 whatever the difference.

    \b
    Example:
        logitcask diff runs/demo/cache --teacher-a toy --teacher-b large
    """
    from cache_tools.inspection.comparison import compare
    from cache_tools.progress.lines import open_reporter

    with open_reporter() as reporter:
        reporter.stage("comparing", None, "shards")
        mine, other = _sides(a, b, (teacher_a, teacher_b), (encoding_a, encoding_b))
        result = compare(mine, other, shards=shards, seed=seed, worst=worst, advance=reporter.advance)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    from rich.console import Console

    from cache_tools.terminal.comparison import print_comparison

    print_comparison(Console(), result)


def _sides(
    a: "StorePath", b: "StorePath | None", teachers: tuple[str | None, str | None], encodings: tuple[str | None, ...]
) -> tuple["CachedTeacher", "CachedTeacher"]:
    """Open both teachers; in one encoding of exactly two, one name is enough and so is none."""
    from cache_tools.store.reader import Cache

    mine = Cache(a).encoding(encodings[0])
    if b is not None:
        return mine.teacher(teachers[0]), Cache(b).encoding(encodings[1]).teacher(teachers[1])
    other = mine if encodings[1] is None else Cache(a).encoding(encodings[1])
    if other is not mine or len(mine.teachers) != 2:
        return mine.teacher(teachers[0]), other.teacher(teachers[1])
    first, second = mine.teachers
    name_a = teachers[0] or (first if teachers[1] != first else second)
    return mine.teacher(name_a), other.teacher(teachers[1] or (second if name_a == first else first))
