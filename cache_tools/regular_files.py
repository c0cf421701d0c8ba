"""Local files of untrusted caches: regular files only, no link inside a cache, no more bytes than expected.

An archive can contain more than files and folders. Opening a FIFO blocks forever, reading a device never ends, and a
symbolic link leads a reader, a writer or a deletion to any file of the user. So the kind of a file is checked before it
is opened, it is opened without blocking, and its kind is checked again.

A folder is **enclosed** when it is opened as a cache or as a vocabulary. From then on no function of ``storage.py``
follows a link below it. The path of the folder itself may contain links, because the user chose it. Links that stay
inside the cache are refused as well: logitcask never writes links, and a deletion through one would destroy another
teacher. To keep a teacher on another disk, mount that disk at its folder, or link to the whole cache.

The cost is one ``lstat`` for each folder between the cache and the file. Rejected: resolving every path and comparing
prefixes (as many system calls, and links inside the cache would pass); checking the whole tree when a cache is opened
(minutes for a million objects). Files that are exchanged while they are read are not detected.
"""

import os
import stat
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from cache_tools.errors import DamageError

PARTIAL_SUFFIX = ".partial"

ATTEMPTS = 3
"""How often a write is attempted whose temporary file another process removed."""

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}

_enclosed: set[str] = set()
"""Paths of the folders below which no link is followed."""


class Span(NamedTuple):
    """Bytes ``[start, stop)`` of an object, on a disk or in a bucket."""

    path: Any
    start: int
    stop: int


def enclose(folder: object) -> None:
    """Follow no link below a local folder from now on; other places have none."""
    if isinstance(folder, Path):
        _enclosed.add(str(folder))


def refuse_links(path: Path, looked_at: set[str] | None = None) -> None:
    """Raise DamageError if a path inside an enclosed folder is a symbolic link, or leads through one.

    Args:
        path: A path, whether or not anything exists there.
        looked_at: Paths that were checked and are no links; this path and those above it are added.
    """
    text, inside = str(path), []
    no_links = set() if looked_at is None else looked_at
    while text not in _enclosed and text not in no_links:
        inside.append(text)
        parent = text.rpartition(os.sep)[0]  # several times faster than os.path.dirname
        if not parent and (text.startswith(os.sep) or text in (".", "..")):
            return  # no enclosed folder is above
        text = parent or "."
    for place in inside:
        if os.path.islink(place):
            raise DamageError(
                "this is a symbolic link; links inside a cache are not followed",
                where=place,
                why="a link could lead to any of your files",
                fix="Put the files in its place ('cp -RL' copies a cache without links), or mount the other disk there",
            )
    no_links.update(inside)


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[FileIO, int]]:
    """Open a regular file for reading, without waiting; yield it and its size in bytes.

    Raises:
        DamageError: it is a folder, a FIFO, a socket, a device, or a link inside an enclosed folder.
        OSError: it does not exist or cannot be read.
    """
    refuse_links(path)
    with FileIO(_opened(path), "rb") as file:
        yield file, os.fstat(file.fileno()).st_size


def _opened(path: Path) -> int:
    """Open a path that is no link, and return its descriptor."""
    _refuse_special(path, os.stat(path).st_mode)  # before opening, which alone can set a device going
    descriptor = os.open(path, _FLAGS)
    try:
        _refuse_special(path, os.fstat(descriptor).st_mode)
    except DamageError:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: Path, largest_bytes: int) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        DamageError: it is no regular file, or larger than ``largest_bytes``.
        OSError: it does not exist or cannot be read.
    """
    with open_regular(path) as (file, size):
        refuse_large(path, size, largest_bytes)
        parts = []
        while size > 0 and (part := file.read(size)):
            parts.append(part)
            size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def regular_size(path: Path) -> int:
    """Return the size of a regular file in bytes; errors as for ``open_regular``."""
    refuse_links(path)
    status = os.stat(path)
    _refuse_special(path, status.st_mode)
    return status.st_size


def refuse_large(path: object, size: int, largest_bytes: int) -> None:
    """Raise DamageError if a file is larger than expected."""
    if size > largest_bytes:
        raise DamageError(
            "the file is too large",
            where=path,
            expected=f"at most {largest_bytes:,} bytes",
            found=f"{size:,}",
            why="it is not read, so that it cannot fill the memory",
        )


def _refuse_special(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise DamageError(
            "this is not a regular file",
            where=path,
            expected="a file that holds bytes",
            found=_KINDS.get(stat.S_IFMT(mode), "a device"),
            fix="Delete it, and restore the file from a copy",
        )


def read_regular_spans(spans: Sequence[Span]) -> list[bytes]:
    """Return the bytes of each span of regular files, each file opened once; errors as for ``open_regular``."""
    by_path: dict[Any, list[int]] = defaultdict(list)
    for number, span in enumerate(spans):
        by_path[span.path].append(number)
    result, looked_at = [b""] * len(spans), set[str]()
    for path, numbers in by_path.items():
        refuse_links(path, looked_at)
        descriptor = _opened(path)
        try:
            for number in numbers:
                start, stop = spans[number][1:]
                result[number] = os.pread(descriptor, stop - start, start)
        finally:
            os.close(descriptor)
    return result


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name in its own folder, then rename it; a link in its place is replaced."""
    place_whole(path, content, lambda partial: os.replace(partial, path))


def place_whole(path: Path, content: bytes, place: Callable[[Path], None]) -> None:
    """Write content under a temporary name in the folder of ``path`` and call ``place`` with that name.

    Another process may take the temporary file for the remains of a killed writer and remove it; then it is written
    again. The temporary name is gone afterwards, whatever ``place`` did.
    """
    refuse_links(path.parent)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                partial.write_bytes(content)
                place(partial)
                return
            except FileNotFoundError:
                if attempt == ATTEMPTS:
                    raise
    finally:
        partial.unlink(missing_ok=True)
