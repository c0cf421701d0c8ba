"""Listings with sizes and times, one object after another: a folder of millions never lies in memory as a whole.

fsspec's listings are complete lists of dictionaries without times, so buckets are listed through obstore here, page by
page. A bucket lists everything below a prefix, folders inside it included, for the price of a flat listing: the objects
of an array, ``ids/c/0/0``, ``ids/c/1/0`` and so on, take one request per thousand and not one each.
"""

import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from cache_tools.regular_files import refuse_links
from cache_tools.requests.in_flight import asked

PAGE_OBJECTS = 1000
"""Objects that a bucket lists per request."""


class ListedObject(NamedTuple):
    """What a listing states of an object.

    Attributes:
        key: Its path below the folder that was listed.
        size_bytes: Its size.
        modified: When it was written, in seconds of the store's clock; 0 if the store does not state it.
    """

    key: str
    size_bytes: int
    modified: float


def listed_on_disk(folder: Path) -> Iterator[ListedObject]:
    """Yield the files directly inside a folder."""
    refuse_links(folder)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                yield ListedObject(entry.name, status.st_size, status.st_mtime)


def listed_in_bucket(driver: Any, path: str) -> Iterator[ListedObject]:
    """Yield what is below a prefix of a bucket, at any depth, by obstore's file system for fsspec."""
    import obstore

    bucket, prefix = driver._split_path(path)
    store = driver._construct_store(bucket)  # fsspec's interface has no pages and no times
    pages = iter(obstore.list(store, prefix, chunk_size=PAGE_OBJECTS))
    while (page := asked(lambda: next(pages, None))) is not None:
        for item in page:
            key = item["path"].removeprefix(prefix).strip("/")
            yield ListedObject(key, int(item["size"]), item["last_modified"].timestamp())


def listed_by_driver(driver: Any, path: str) -> Iterator[ListedObject]:
    """Yield the files directly inside a folder of any other file system of fsspec."""
    for item in asked(lambda: driver.ls(path, detail=True)):
        if item["type"] == "file":
            created = item.get("created")
            modified = created.timestamp() if isinstance(created, datetime) else 0.0
            yield ListedObject(item["name"].rpartition("/")[2], int(item["size"]), modified)
