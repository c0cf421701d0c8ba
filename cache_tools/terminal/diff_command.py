"""``logitcask diff``: how far two teachers are apart."""

from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from cache_tools.cli_options import CacheType

if TYPE_CHECKING:
    from cache_tools.comparison.pair import Comparison
    from cache_tools.comparison.reference import ReferenceComparison
    from cache_tools.storage import StorePath
    from cache_tools.store.teacher import CachedTeacher


@click.command("diff")
@click.argument("a", type=CacheType())
@click.argument("b", type=CacheType(), required=False)
@click.option("--teacher-a", help="Name of the teacher in A, if there are several.")
@click.option("--teacher-b", help="Name of the teacher in B; by default, in a cache of two teachers, the other one.")
@click.option("--encoding-a", help="Name of the encoding in A, if there are several.")
@click.option(
    "--encoding-b", help="Name of the encoding in B, if there are several; without B, by default the encoding of A."
)
@click.option(
    "--reference", metavar="NAME", help="Compare all other teachers of A with this one, in one table; without B."
)
@click.option("--shards", type=click.IntRange(1), default=4, show_default=True, help="Number of shards to compare.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random choice of shards.")
@click.option(
    "--worst",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="Number of positions with the largest KL to list.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def diff_command(
    a: "StorePath",
    b: "StorePath | None",
    teacher_a: str | None,
    teacher_b: str | None,
    encoding_a: str | None,
    encoding_b: str | None,
    reference: str | None,
    shards: int,
    seed: int,
    worst: int,
    as_json: bool,
) -> None:
    """Compare two teachers that read the same sequences: KL divergence, agreement, worst positions.

    One teacher is in the cache A and the other in B; without B, both are in A. The KL divergence is the
    smallest that the kept tokens allow, a lower bound of the true one. It is shown with the noise floor:
    what storing and rounding alone make two teachers of the same weights differ by, given the types and
    engines that they were computed with. The exit code is 0 whatever the difference.

    \b
    Example:
        logitcask diff runs/demo/cache --teacher-a toy --teacher-b large
    """
    from cache_tools.comparison.pair import compare
    from cache_tools.comparison.reference import compare_with_reference
    from cache_tools.json_output import json_text
    from cache_tools.progress.lines import open_reporter
    from cache_tools.store.reader import Cache

    if reference is not None:
        _refuse_with_reference()
        with open_reporter() as reporter:
            reporter.stage("comparing", None, "shards")
            encoding = Cache(a).encoding(encoding_a)
            table = compare_with_reference(encoding, reference, shards=shards, seed=seed, advance=reporter.advance)
        if as_json:
            click.echo(json_text(table))
        else:
            _print(table)
        return
    with open_reporter() as reporter:
        reporter.stage("comparing", None, "shards")
        first, second = _teachers(a, b, (teacher_a, teacher_b), (encoding_a, encoding_b))
        result = compare(first, second, shards=shards, seed=seed, worst=worst, advance=reporter.advance)
    if as_json:
        click.echo(json_text(result))
    else:
        _print(result)


WITHOUT_REFERENCE = ("b", "teacher_a", "teacher_b", "encoding_b", "worst")
"""Parameters that mean nothing where all teachers are compared with one."""


def _refuse_with_reference() -> None:
    context = click.get_current_context()
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name in WITHOUT_REFERENCE and source is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--reference and {parameter.opts[0]} exclude each other.")


def _print(result: "Comparison | ReferenceComparison") -> None:
    from rich.console import Console

    from cache_tools.comparison.pair import Comparison
    from cache_tools.terminal.comparison import print_comparison, print_reference

    if isinstance(result, Comparison):
        print_comparison(Console(), result)
    else:
        print_reference(Console(), result)


def _teachers(
    a: "StorePath", b: "StorePath | None", names: tuple[str | None, str | None], encodings: tuple[str | None, ...]
) -> tuple["CachedTeacher", "CachedTeacher"]:
    """Open both teachers; in one encoding of exactly two, a single name or no name is enough."""
    from cache_tools.store.reader import Cache

    cache_a = Cache(a)
    encoding_a = cache_a.encoding(encodings[0])
    if b is not None:
        return encoding_a.teacher(names[0]), Cache(b).encoding(encodings[1]).teacher(names[1])
    encoding_b = encoding_a if encodings[1] is None else cache_a.encoding(encodings[1])
    if encoding_b is not encoding_a or len(encoding_a.teachers) != 2:
        return encoding_a.teacher(names[0]), encoding_b.teacher(names[1])
    first, second = encoding_a.teachers
    name_a = names[0] or (first if names[1] != first else second)
    return encoding_a.teacher(name_a), encoding_b.teacher(names[1] or (second if name_a == first else first))
