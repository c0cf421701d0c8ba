"""Tables of the recipes, printed as Markdown."""

import click
import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from configs.papers.intervals import Interval, over_seeds


def markdown(*columns: str, title: str | None = None) -> Table:
    """Return an empty table."""
    return Table(*columns, title=title, box=box.MARKDOWN)


def show(table: Table) -> None:
    """Print a table, its title before it; nothing if it has no rows."""
    if not table.rows:
        return
    title, table.title, console = table.title, None, Console(width=240)
    with console.capture() as printed:
        console.print(table)
    click.echo(f"\n{title}\n\n{printed.get().strip()}" if title else f"\n{printed.get().strip()}")


def spread(values_S: NDArray[np.float64], digits: int = 3) -> str:
    """Return a mean over seeds with half its interval, if there are several seeds."""
    if len(values_S) == 1:
        return f"{values_S[0]:.{digits}f}"
    interval = over_seeds(values_S)
    return f"{interval.mean:.{digits}f} ± {interval.high - interval.mean:.{digits}f}"


def unsigned(interval: Interval) -> str:
    """Return an interval of something that has no sign."""
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
