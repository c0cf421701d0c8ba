"""The root of a cache: created before anything is written into it, and removed if nothing was.

A cache that exists is left as it is. A folder with other files is refused, because nobody could tell them from the
cache's files later. A creation that was killed is finished by the next one.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cache_tools.errors import FormatError, LogitcaskError
from cache_tools.format import layout
from cache_tools.format.manifest import (
    CacheManifest,
    read_manifest,
    write_group,
    write_manifest,
)
from cache_tools.regular_files import enclose
from cache_tools.storage import (
    PARTIAL_SUFFIX,
    StorePath,
    names,
    object_exists,
    remove_object,
    require_writable,
)


def create_cache(cache: StorePath) -> None:
    """Create an empty cache, or check that what lies there is one.

    Raises:
        FormatError: the folder holds something else, or another format version.
        StorageError: the place can only be read.
    """
    require_writable(cache)
    enclose(cache)
    if object_exists(cache / layout.MANIFEST):
        read_manifest(cache, CacheManifest)
        return
    if any(_foreign(name) for name in names(cache)) or (object_exists(cache) and not cache.is_dir()):
        raise FormatError(
            "this path holds something that is not a cache",
            where=cache,
            expected="a new path, an empty folder or a cache",
            found="other files",
            why="writing here could mix a cache with somebody's data",
            fix="Choose another 'cache:' path",
        )
    write_group(layout.encodings_folder(cache))
    write_manifest(cache, CacheManifest())


@contextmanager
def new_cache(cache: StorePath) -> Iterator[None]:
    """Create a cache as ``create_cache`` does; take it away again if what follows is refused and has left it empty.

    Only a cache that was created here is taken away, and only while nothing lies in a folder of an encoding. Another
    capture that begins in the same new cache at that moment creates it again at the end of this context.

    Raises:
        FormatError: the folder holds something else, or another format version.
    """
    require_writable(cache)
    created = not object_exists(cache / layout.MANIFEST)
    create_cache(cache)
    try:
        yield
    except LogitcaskError:
        if created and _is_empty(cache):
            _remove_empty(cache)
        raise
    create_cache(cache)


def _is_empty(cache: StorePath) -> bool:
    """Say whether a cache holds no encoding, and nothing of one that has begun."""
    folder = layout.encodings_folder(cache)
    return not any(names(folder / name) for name in names(folder) if name != layout.MANIFEST)


def _remove_empty(cache: StorePath) -> None:
    folder = layout.encodings_folder(cache)
    remove_object(cache / layout.MANIFEST)
    remove_object(folder / layout.MANIFEST)
    if isinstance(cache, Path):  # in a bucket there are no folders
        for empty in (*(folder / name for name in names(folder)), folder, cache):
            with suppress(OSError):  # somebody else has put something there
                empty.rmdir()


def _foreign(name: str) -> bool:
    """Say whether a file is none that a creation killed half-way could have left."""
    return name != "encodings" and not name.endswith(PARTIAL_SUFFIX)
