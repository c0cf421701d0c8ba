"""Where a cache lies: a local folder, or a prefix of an object store, through one set of functions.

A place is a path: ``pathlib.Path`` on a local disk, ``UPath`` (the same interface over
fsspec) for ``s3://``, ``gs://``, ``az://``, ``memory://`` and, to read only, ``hf://`` (room ``hub``). Buckets are
reached through obstore, whose Rust client retries throttling and dropped connections by itself, and which takes its
credentials from the usual environment variables (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, …).

An object is written whole or not at all: on a disk under a temporary name in its own folder, then renamed; in a bucket
by one upload, which becomes visible when it is complete. A killed writer leaves at most a ``*.partial`` file that
nothing reads. There is no fsync: killing a process is safe at any moment, but after a power cut run ``verify --deep``.
A cache may be untrusted, so local files are read by the rules of ``regular_files.py``.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator
from upath import UPath

from cache_tools.errors import ConfigError, DamageError, StorageError
from cache_tools.hub.places import endpoint, parse, pin
from cache_tools.hub.reader import HubReader
from cache_tools.hub.refusals import PROTOCOL as HUB
from cache_tools.hub.refusals import read_only
from cache_tools.limits import DOCUMENT_BYTES
from cache_tools.mappings import Arguments
from cache_tools.regular_files import PARTIAL_SUFFIX as PARTIAL_SUFFIX
from cache_tools.regular_files import Span as Span
from cache_tools.regular_files import (
    open_regular,
    read_regular,
    read_regular_spans,
    refuse_large,
    refuse_links,
    regular_size,
    write_whole,
)
from cache_tools.requests.in_flight import IN_FLIGHT, asked, refuse_forked
from cache_tools.requests.listing import ListedObject, listed_by_driver, listed_in_bucket, listed_on_disk

BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs")
"""Protocols that obstore serves."""

RETRIES = {"max_retries": 10, "retry_timeout": timedelta(seconds=60)}
"""How often and how long obstore itself retries a request that is throttled or dropped."""

StorePath = Path | UPath


def store_path(place: str | StorePath) -> StorePath:
    """Return the path that a local name or a URL stands for.

    Raises:
        ConfigError: the URL's protocol is unknown or its driver is not installed, or this is neither text nor a path.
    """
    if not isinstance(place, str | Path | UPath):
        raise ConfigError("a place is a path or a URL", found=f"{place!r:.80}, which is of type {type(place).__name__}")
    text = str(place)
    if "://" not in text:
        return Path(text).expanduser()
    if isinstance(place, UPath) and place.protocol == HUB:
        return place  # it may be pinned
    protocol = text.split("://")[0]
    options: Arguments = {}
    try:
        if protocol in BUCKETS:
            options = {"retry_config": RETRIES}
        if protocol == HUB:
            parse(text)
            options = {"endpoint": endpoint()}
        path: UPath = UPath(text, **options)
        _driver(path)  # a missing driver is an error here, not at the first read
    except (ImportError, ValueError) as error:
        raise ConfigError(
            "this kind of URL is not supported",
            where=text,
            expected="a local path, or s3://, gs://, az://, memory:// or hf://",
            found=str(error).splitlines()[0],
        ) from error
    return path


def pinned(path: StorePath) -> StorePath:
    """Return the place that a cache is read from: a hub URL at the commit that it stands for now, any other as it is.

    Raises:
        StorageError: there is no such repository or revision, or the Hub refused.
    """
    if isinstance(path, Path) or path.protocol != HUB or "token" in path.storage_options:
        return path
    url, options = pin(str(path))
    place: UPath = UPath(url, **options)
    return place


def require_writable(path: StorePath) -> None:
    """Refuse a place that can only be read.

    Raises:
        StorageError: it is on the Hub.
    """
    if not isinstance(path, Path) and path.protocol == HUB:
        raise read_only(path)


def _driver(path: UPath) -> Any:
    """Return the fsspec file system of a path; registers obstore first, also for a path from another process.

    Raises:
        StorageError: this process was forked from one that had opened the bucket, whose threads it lacks.
    """
    if path.protocol in BUCKETS:
        _register(path.protocol)
        refuse_forked(path.fs, path)
    return HubReader(path.fs) if path.protocol == HUB else path.fs


@cache
def _register(protocol: str) -> None:
    from obstore.fsspec import register

    register(protocol)


def _configured_path(place: Any) -> StorePath:
    if not isinstance(place, str | Path | UPath) or not str(place):
        raise ValueError("a path or URL is text")
    return store_path(place)


class PlaceText:
    """Marks a type whose values are written as text, whatever they look like."""


CachePath = Annotated[Any, PlaceText, PlainValidator(_configured_path), PlainSerializer(str)]
"""A cache's place in a configuration file."""


def read_object(path: StorePath, largest_bytes: int = DOCUMENT_BYTES) -> bytes:
    """Return the bytes of a file or object.

    Args:
        path: The object.
        largest_bytes: Largest permitted size; by default that of a manifest.

    Raises:
        FileNotFoundError: there is no such object.
        DamageError: the object is larger, or not a regular file.
        StorageError: the disk or bucket refused.
    """
    with _reading(path):
        if isinstance(path, Path):
            return read_regular(path, largest_bytes)
        content = bytes(asked(lambda: _driver(path).cat_file(path.path, 0, largest_bytes + 1)))
        refuse_large(path, len(content), largest_bytes)
        return content


def object_sha256(path: StorePath, size: int) -> str:
    """Return the hex sha256 of an object of ``size`` bytes, read piece by piece; errors as for ``read_object``."""
    if not isinstance(path, Path):
        return sha256(read_object(path, size))
    with _reading(path), open_regular(path) as (file, actual_size):
        refuse_large(path, actual_size, size)
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_spans(spans: Sequence[Span]) -> list[bytes]:
    """Return the bytes of each span, in order; from a bucket all at once, adjacent spans in one request.

    A span beyond the end of its object is returned short or is an error; it is never padded.

    Raises:
        FileNotFoundError: an object does not exist.
        DamageError: an object is not a regular file.
        StorageError: the disk or bucket refused.
    """
    if not spans:
        return []
    first = spans[0].path
    with _reading(first):
        if isinstance(first, Path):
            return read_regular_spans(spans)
        contents = []
        for part in _few_objects(spans):
            paths, starts, stops = zip(*((s.path.path, s.start, s.stop) for s in part), strict=True)
            ranges = [list(paths), list(starts), list(stops)]
            contents += asked(lambda: _driver(first).cat_ranges(*ranges, on_error="raise"), len(set(paths)))  # noqa: B023
        return [bytes(content) for content in contents]


def _few_objects(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """Yield spans in order, in groups that lie in at most IN_FLIGHT objects."""
    group, objects = list[Span](), set[str]()
    for span in spans:
        if len(objects | {span.path.path}) > IN_FLIGHT:
            yield group
            group, objects = [], set()
        group.append(span)
        objects.add(span.path.path)
    yield group


def object_size(path: StorePath) -> int | None:
    """Return the size of an object in bytes, or None if there is none.

    Raises:
        DamageError: it is not a regular file.
        StorageError: the disk or bucket refused.
    """
    try:
        with _reading(path):
            if isinstance(path, Path):
                return regular_size(path)
            return int(asked(lambda: _driver(path).info(path.path)["size"]))
    except (FileNotFoundError, NotADirectoryError):
        return None


def object_exists(path: StorePath) -> bool:
    """Say whether an object of this name exists; on a disk, whether a file or folder does."""
    if not isinstance(path, Path):
        return object_size(path) is not None
    refuse_links(path)
    try:
        with _reading(path):
            path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def names(folder: StorePath) -> list[str]:
    """Return the names directly inside a folder, sorted; none if it does not exist."""
    try:
        with _reading(folder):
            if isinstance(folder, Path):
                refuse_links(folder)
                return sorted(os.listdir(folder))
            listed = asked(lambda: _driver(folder).ls(folder.path, detail=False))
            inside = {name.strip("/") for name in listed} - {folder.path.strip("/")}  # an object lists itself
            return sorted(name.rpartition("/")[2] for name in inside)
    except (FileNotFoundError, NotADirectoryError):
        return []


def object_sizes(folder: StorePath) -> dict[str, int]:
    """Return the size in bytes of each object directly inside a folder, by name; a bucket lists 1,000 per request."""
    return {key: size for key, size, _ in listed_objects(folder) if "/" not in key}


def listed_objects(folder: StorePath) -> Iterator[ListedObject]:
    """Yield the objects directly inside a folder with sizes and times; those of a bucket at any depth below it.

    Raises:
        DamageError: the folder is a link, or behind one.
        StorageError: the disk or bucket refused.
    """
    with _reading(folder), suppress(FileNotFoundError, NotADirectoryError):
        if isinstance(folder, Path):
            yield from listed_on_disk(folder)
        else:
            listed = listed_in_bucket if folder.protocol in BUCKETS else listed_by_driver
            yield from listed(_driver(folder), folder.path)


def write_object(path: StorePath, content: bytes) -> None:
    """Write an object whole or not at all.

    Raises:
        StorageError: the disk is full, or disk or bucket refuse.
    """
    with storage_errors(path):
        if isinstance(path, Path):
            write_whole(path, content)
        else:
            asked(lambda: _driver(path).pipe_file(path.path, content))


def write_objects(folder: StorePath, contents: Mapping[str, bytes]) -> None:
    """Write several objects below a folder, in a bucket concurrently; each is written whole or not at all.

    Raises:
        StorageError: the disk is full, or disk or bucket refuse.
    """
    if isinstance(folder, Path):
        for key, content in contents.items():
            write_object(folder / key, content)
    elif contents:
        with storage_errors(folder):
            paths = {(folder / key).path: content for key, content in contents.items()}
            asked(lambda: _driver(folder).pipe(paths), len(paths))


def remove_partial(path: StorePath) -> None:
    """Remove the temporary files that killed writers of a local ``path`` left; only its single writer may call this.

    It lists the folder: where many objects share one, call ``remove_partials`` once per run.
    """
    remove_partials(path.parent, {path.name})


def remove_partials(folder: StorePath, objects: Container[str]) -> None:
    """Remove the temporary files that killed writers of some objects left in a local folder, in one listing.

    Args:
        folder: The folder.
        objects: Names of the objects; only their single writer may call this.
    """
    if isinstance(folder, Path):
        refuse_links(folder)
        for name in names(folder):
            if name.endswith(PARTIAL_SUFFIX) and name.removesuffix(PARTIAL_SUFFIX).rpartition(".")[0] in objects:
                (folder / name).unlink(missing_ok=True)


def remove_object(path: StorePath) -> None:
    """Delete an object if it exists; of a link, only the link."""
    with storage_errors(path):
        if isinstance(path, Path):
            refuse_links(path.parent)
            path.unlink(missing_ok=True)
        elif object_exists(path):
            _driver(path).rm_file(path.path)


def remove_tree(folder: StorePath) -> None:
    """Delete a folder and everything below it; of a link, only the link."""
    with storage_errors(folder):
        if isinstance(folder, Path):
            refuse_links(folder)
            with suppress(FileNotFoundError):
                shutil.rmtree(folder)
        elif names(folder):
            _driver(folder).rm(folder.path, recursive=True)


def sha256(content: bytes) -> str:
    """Return the hex sha256 of bytes (about 1.5 GB/s on one core with SHA extensions)."""
    return hashlib.sha256(content).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the hex sha256 of a regular local file without holding it in memory."""
    with open_regular(path) as (file, _):
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def storage_errors(path: StorePath) -> Iterator[None]:
    """Turn a refusal to write (disk full, no permission, bucket gone) inside the block into a StorageError."""
    try:
        yield
    except (StorageError, DamageError):
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StorageError(
            "the disk is full" if full else f"cannot write: {error.strerror or error}",
            where=path,
            why="nothing that was committed before is lost",
            fix="Free some space and run the same command again; it continues" if full else "",
        ) from error
    except Exception as error:
        if isinstance(path, Path):
            raise
        raise _bucket_error(path, "cannot write", error) from error


@contextmanager
def _reading(path: StorePath) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, StorageError, DamageError):
        raise
    except OSError as error:
        raise StorageError(f"cannot read: {error.strerror or error}", where=path) from error
    except Exception as error:
        if isinstance(path, Path):
            raise
        raise _bucket_error(path, "cannot read", error) from error


def _bucket_error(path: StorePath, problem: str, error: Exception) -> StorageError:
    """Return an error with the first line of what a bucket's client raised after its own retries."""
    return StorageError(
        problem,
        where=path,
        found=str(error).splitlines()[0][:300],
        why="nothing that was committed before is lost",
        fix="Check the address, the credentials and the network, and run the same command again; it continues",
    )
