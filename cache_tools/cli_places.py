"""What the store's commands share: a cache's place, a progress bar. Nothing heavy is imported until it is used."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cache_tools.storage import StorePath


class CacheType(click.ParamType["StorePath"]):
    """A local path or a URL."""

    name = "path or URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> "StorePath":
        """Turn text into a path."""
        from cache_tools.storage import store_path

        return store_path(value)


@contextmanager
def progress_bar(title: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """Show a progress bar with speed and time left while the block runs."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)
