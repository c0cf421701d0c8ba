"""Types of command-line options: the place of a cache, finite numbers. Storage is imported only when it is used."""

import math
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


class FiniteRange(click.FloatRange):
    """A number in a range; click's own lets "nan" and "inf" through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Turn text into a number."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number
