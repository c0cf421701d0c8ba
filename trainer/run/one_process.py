"""One process at a time in a run folder.

Two processes that continue the same run remove each other's unfinished checkpoints and write one log, and the slower
one fails at its very last step. It happens when a job is submitted twice, or when a run is started again that was
thought to be dead. So the first process of a run holds a lock of the operating system on ``<output_dir>/run.lock``
from before its first step until it ends. The kernel releases it however a process ends, so after a kill there is
nothing to clean up: the file that is left is no obstacle. A process that ends otherwise removes it.

The lock is POSIX's, of a process. Rejected: ``flock``, and ``filelock`` which is built on it: data-loading workers
inherit it, and keep it for seconds after their parent was killed. And the claims of a cache
(``cache_tools/store/claims.py``), which let processes with the same work join and stay after a kill.
"""

import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from cache_tools.errors import StorageError
from cache_tools.storage import storage_errors

logger = logging.getLogger(__name__)

LOCK = "run.lock"
"""In a run folder: what the process that trains there holds."""


@contextmanager
def only_process(output: Path) -> Iterator[None]:
    """Keep other processes from training in a run folder while the block runs.

    Where the file system has no locks, this logs a warning and keeps nobody out.

    Args:
        output: The run folder, which exists.

    Raises:
        StorageError: another process trains there, or the disk refuses.
    """
    lock = _locked_file(output)
    try:
        yield
    finally:
        with suppress(OSError):
            (output / LOCK).unlink()
        os.close(lock)  # releases it


def _locked_file(output: Path) -> int:
    """Return the open lock, held; opened again if its holder removed it in between."""
    while True:
        with storage_errors(output):
            lock = os.open(output / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            _take(lock, output)
            if os.fstat(lock).st_nlink:
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _take(lock: int, output: Path) -> None:
    """Lock the open file, and write into it which process has done so."""
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # POSIX allows either
        raise StorageError(
            "another process is training in this folder",
            where=output,
            found=_holder(lock),
            why="two processes would remove each other's checkpoints",
            fix="Wait until it ends, or choose another training.output_dir",
        ) from error
    except OSError as error:
        logger.warning("%s cannot be locked: %s. See that no second process trains in it.", output, error.strerror)
        return
    started = datetime.now(UTC).isoformat("T", "seconds")
    maker = {"host": socket.gethostname(), "process": os.getpid(), "started": started}
    with storage_errors(output):
        os.ftruncate(lock, 0)
        os.pwrite(lock, (json.dumps(maker) + "\n").encode(), 0)


def _holder(lock: int) -> str:
    """Return which process holds the lock, as far as the file says."""
    try:
        maker = json.loads(os.pread(lock, 1000, 0))
        return f"process {maker['process']} on {maker['host']} since {maker['started']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
