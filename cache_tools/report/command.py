"""``logitcask report``: a cache as one HTML page."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cache_tools.cli_options import CacheType

if TYPE_CHECKING:
    from cache_tools.storage import StorePath


@click.command("report")
@click.argument("cache", type=CacheType())
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    help="File to write, by default in the current folder; an existing file is replaced.",
)
@click.option(
    "--sample", type=click.IntRange(1), default=131_072, show_default=True, help="Number of positions to sample."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random choice of positions.")
@click.option("--teacher", "teachers", multiple=True, help="Report on this teacher only; repeatable.")
@click.option("--encoding", help="Name of the encoding, if the cache has several.")
def report_command(
    cache: "StorePath", output: Path, sample: int, seed: int, teachers: tuple[str, ...], encoding: str | None
) -> None:
    """Write CACHE's statistics, figures and most surprising passages as one HTML page.

    The page needs no network and contains no script. It shows what is stored, how certain and how
    accurate the teachers are, where they agree, and text of the corpus: share the page only with
    people who may read the corpus.

    \b
    Example:
        logitcask report runs/demo/cache -o report.html
    """
    from cache_tools.errors import ConfigError
    from cache_tools.progress.lines import open_reporter
    from cache_tools.report.data import report_data
    from cache_tools.separate_places import require_outside
    from cache_tools.storage import write_object
    from cache_tools.store.reader import Cache

    try:
        from cache_tools.report.html import render
    except ImportError as error:
        raise ConfigError(
            f"a report needs a package that is not installed: {error.name}",
            where="logitcask report",
            fix="Install it: pip install 'logitcask[plots]'",
        ) from error
    with open_reporter() as reporter:
        reporter.stage("reading", None, "chunks")
        opened = Cache(cache)
        require_outside(output, opened.path, "the report")
        opened_encoding = opened.encoding(encoding)
        opened_teachers = [opened_encoding.teacher(name) for name in teachers or opened_encoding.teachers]
        data = report_data(opened, opened_encoding, opened_teachers, sample, seed, reporter.advance)
        reporter.stage("drawing the page", None)
        page = render(data).encode()
    write_object(output, page)
    click.echo(f"wrote {output.absolute()} ({len(page):,} bytes)")
