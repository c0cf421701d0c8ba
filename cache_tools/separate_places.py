"""Refuse an output that is inside its own input.

A copy of a cache into itself would read what it writes, and a file inside a cache becomes a part of it. On a disk,
places are compared by the file system's identity, so that links, ``..``, ``file://`` and mounted folders make no
difference; in a bucket, keys are compared with prefixes. The cost is one ``stat`` for each folder above the output.
"""

import os
from pathlib import Path
from urllib.parse import unquote, urlparse

from cache_tools.errors import ConfigError
from cache_tools.storage import StorePath

SAME_PROTOCOLS = {"s3a": "s3", "gcs": "gs", "abfs": "az"}
"""Other names of the same stores."""


def require_outside(output: StorePath | Path, source: StorePath | Path, what: str = "the output") -> None:
    """Refuse an output that is its input or lies inside it.

    Args:
        output: The file or folder that will be written; it need not exist.
        source: The folder that will be read.
        what: What the output is, for the message.

    Raises:
        ConfigError: the output is the source or lies inside it.
    """
    if is_inside(output, source):
        raise ConfigError(
            f"{what} lies inside the folder that is read",
            where=output,
            expected=f"a place outside {source}",
            why="the command would read, and could damage, what it writes",
            fix="Choose another place",
        )


def require_apart(target: StorePath, source: StorePath) -> None:
    """Refuse a target that is the source, lies inside it, or contains it.

    Raises:
        ConfigError: they are not apart.
    """
    require_outside(target, source, "the target")
    if is_inside(source, target):
        raise ConfigError(
            "the source lies inside the target",
            where=target,
            expected=f"a place that does not contain {source}",
            why="the copy would contain the cache that it is made from",
            fix="Choose another target",
        )


def is_inside(place: StorePath | Path, folder: StorePath | Path) -> bool:
    """Say whether a place is a folder or lies below it, on the same disk or in the same bucket."""
    inner, outer = _local(place), _local(folder)
    if inner is not None and outer is not None:
        return _is_inside_locally(inner, outer)
    if inner is not None or outer is not None:
        return False
    keys, prefix = _keys(place), _keys(folder)
    return keys[: len(prefix)] == prefix


def _local(place: StorePath | Path) -> Path | None:
    """Return the path on a disk, every link resolved; None in a bucket."""
    text = str(place)
    if text.startswith(("file://", "local://")):
        return Path(os.path.realpath(unquote(urlparse(text).path)))
    if isinstance(place, Path) and "://" not in text:
        return Path(os.path.realpath(os.path.expanduser(text)))  # resolve() raises at links in a circle
    return None


def _is_inside_locally(inner: Path, outer: Path) -> bool:
    if inner.is_relative_to(outer):
        return True
    if not outer.exists():
        return False
    return any(above.exists() and above.samefile(outer) for above in (inner, *inner.parents))


def _keys(place: StorePath | Path) -> list[str]:
    """Return protocol, bucket and the parts of a key; doubled and trailing slashes make no difference."""
    protocol, _, rest = str(place).partition("://")
    return [SAME_PROTOCOLS.get(protocol, protocol), *(part for part in rest.split("/") if part not in ("", "."))]
