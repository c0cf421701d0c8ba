"""Create an object only if none of its name exists: the operation by which processes agree on a single writer.

On a disk a finished file is linked to its name, which fails if the name is taken. In a bucket the upload carries this
condition, and the store decides. All other operations are in ``storage.py``.
"""

import errno
import os
from pathlib import Path

from upath import UPath

from cache_tools.regular_files import place_whole
from cache_tools.requests.in_flight import asked
from cache_tools.storage import (
    BUCKETS,
    StorePath,
    _driver,
    read_object,
    storage_errors,
)

NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""Errors of file systems that do not support hard links."""


def create_object(path: StorePath, content: bytes) -> bool:
    """Write an object only if none of this name exists: of several writers, exactly one succeeds.

    An existing object with the same content is a success, because a request whose response was lost is repeated.

    Returns:
        Whether the object now has this content.

    Raises:
        StorageError: the disk is full, or disk or bucket refuse.
    """
    with storage_errors(path):
        try:
            if isinstance(path, Path):
                _create_local(path, content)
            else:
                _create_remote(path, content)
        except FileExistsError:
            return read_object(path) == content
    return True


def _create_local(path: Path, content: bytes) -> None:
    """Link a finished file to its name, which fails if the name is taken; without hard links, open it exclusively."""
    try:
        place_whole(path, content, lambda partial: os.link(partial, path))
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        with path.open("xb") as file:
            file.write(content)


def _create_remote(path: UPath, content: bytes) -> None:
    driver = _driver(path)
    if path.protocol not in BUCKETS:
        driver.pipe_file(path.path, content, mode="create")
        return
    import obstore
    from obstore.exceptions import AlreadyExistsError

    bucket, key = driver._split_path(path.path)
    store = driver._construct_store(bucket)  # fsspec's interface has no conditional put
    try:
        asked(lambda: obstore.put(store, key, content, mode="create"))
    except AlreadyExistsError as error:
        raise FileExistsError(str(path)) from error
