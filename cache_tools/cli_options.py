"""What the store's commands share: a cache's place. Nothing heavy is imported until it is used."""

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
