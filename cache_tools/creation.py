"""Write an object only if there is none of its name: the one operation on which two processes can agree.

On a disk a finished file is linked to its name, which fails if the name is taken; in a bucket the upload carries that
condition, and the store decides. ``storage.py`` has everything that needs no such agreement.
"""

import errno
import os
import uuid
from pathlib import Path

from upath import UPath

from cache_tools.regular_files import refuse_links
from cache_tools.storage import (
    ATTEMPTS,
    BUCKETS,
    PARTIAL_SUFFIX,
    StorePath,
    _asked,
    _driver,
    read_object,
    storage_errors,
)

NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""What a file system without hard links answers."""


def create_object(path: StorePath, content: bytes) -> bool:
    """Write an object only if there is none of this name: of several writers, exactly one does.

    An object with the same content counts as written, because a bucket's answer may be lost and the request repeated.

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
    refuse_links(path.parent)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                partial.write_bytes(content)
                os.link(partial, path)
                return
            except FileNotFoundError:  # as in write_whole
                if attempt == ATTEMPTS:
                    raise
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        with path.open("xb") as file:
            file.write(content)
    finally:
        partial.unlink(missing_ok=True)


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
        _asked(lambda: obstore.put(store, key, content, mode="create"))
    except AlreadyExistsError as error:
        raise FileExistsError(str(path)) from error
