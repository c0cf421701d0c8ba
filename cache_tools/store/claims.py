"""Claims and locks: which of several processes may work at a place.

Only what a manifest lists exists. What is written before the manifest could be overwritten by a second process that
begins other work at the same place and time. So a process first writes a small document, ``claim.json``, which is
created only if there is none. It records everything that determines the bytes of the work. A process with the same
work may join, because it writes the same bytes; a process with other work is refused before it writes anything.

A claim is removed when the work is committed or has failed. After a kill it remains, and the same command continues;
other work is refused, and the error names the file to delete. The holder of a claim checks it again before every file,
so a process that was paused while its claim was deleted stops instead of overwriting its successor. Only the file that
it was writing at that moment can be lost, and its hash shows that.

The order makes this safe without clocks: first the manifest, then the claim is removed; first the claim is taken, then
the manifest is read. Rejected: locks with a time limit, which need clocks that agree, and files under names of
their own, which every reader would have to know.

**Locks** are for local folders that one process alone may write, such as that of a training run: two processes that
continue the same run would remove each other's unfinished checkpoints, and the slower one would fail at its very last
step. It happens when a job is submitted twice, or when a run is started again that was thought to be dead. The process
holds a lock of the operating system on ``run.lock``, which the kernel releases however the process ends; after a kill
the file is left and is no obstacle. The lock is POSIX's, of a process. Rejected: ``flock``, and the package
``filelock``, which uses it: data-loading workers inherit it, and keep it for seconds after their parent was killed.
"""

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cache_tools.errors import IdentityError, StorageError
from cache_tools.format.fingerprint import differences, fingerprint
from cache_tools.mappings import JsonObject
from cache_tools.storage import StorePath, read_object, remove_object, remove_partial, storage_errors
from cache_tools.store.creation import create_object

logger = logging.getLogger(__name__)

CLAIM = "claim.json"
ATTEMPTS = 20
"""How often a claim that vanishes while it is looked at is taken anew."""
LOCK = "run.lock"
"""Name of the file that the working process locks in a folder."""


def this_process() -> dict[str, str | int]:
    """Return who writes a claim or holds a lock, and since when."""
    started = datetime.now(UTC).isoformat("T", "seconds")
    return {"host": socket.gethostname(), "process": os.getpid(), "started": started}


@dataclass(frozen=True)
class Claim:
    """The right to write below a folder.

    Attributes:
        folder: The folder of an encoding or of a teacher.
        work: What determines the bytes that will be written; plain JSON.
        problem: One sentence for a process with other work.
    """

    folder: StorePath
    work: JsonObject
    problem: str

    @property
    def path(self) -> StorePath:
        """The claim's document."""
        return self.folder / CLAIM

    def hold(self) -> bool:
        """Take the claim, or check that it still names this work.

        Returns:
            Whether it was taken just now, so that another process may have held one and committed before.

        Raises:
            IdentityError: it names other work.
            StorageError: disk or bucket refuse.
        """
        content = json.dumps({"work": dict(self.work)} | this_process(), indent=1).encode()
        for attempt in range(ATTEMPTS):
            stored = self._stored()
            if stored is None:
                create_object(self.path, content)  # and read back: whoever created it, its document decides
            elif self._is_same(stored):
                return attempt > 0
            else:
                raise self._refusal(stored)
        raise self._refusal({})

    def is_held(self) -> bool:
        """Say whether the claim names this work."""
        stored = self._stored()
        return stored is not None and self._is_same(stored)

    def release(self) -> None:
        """Remove the claim if it names this work."""
        if self.is_held():
            remove_object(self.path)
            remove_partial(self.path)

    def _is_same(self, stored: JsonObject) -> bool:
        work = stored.get("work")
        return isinstance(work, dict) and fingerprint(work) == fingerprint(self.work)

    def _stored(self) -> JsonObject | None:
        """Return the document; empty if it cannot be read, None if there is none."""
        try:
            document = json.loads(read_object(self.path))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            return {}
        return document if isinstance(document, dict) else {}

    def _refusal(self, stored: JsonObject) -> IdentityError:
        work = stored.get("work")
        maker = f"process {stored.get('process')} on {stored.get('host')} began it at {stored.get('started')}"
        return IdentityError(
            self.problem,
            where=self.folder,
            found="; ".join(differences(work, self.work)[:5]) if isinstance(work, dict) else "",
            why=f"{maker if stored else 'another process began it'} and has not finished",
            fix=f"Choose another place; or, if that process no longer runs, delete {self.path} and start again",
        )


@contextmanager
def claimed(folder: StorePath, work: JsonObject, problem: str) -> Iterator[Claim]:
    """Hold a claim while the block runs.

    Args:
        folder: The folder of an encoding or of a teacher.
        work: What determines the bytes that will be written; plain JSON.
        problem: One sentence for a process with other work.

    Raises:
        IdentityError: another process has claimed the folder for other work.
    """
    claim = Claim(folder, work, problem)
    claim.hold()
    try:
        yield claim
    finally:
        claim.release()


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Keep other processes from working in a local folder while the block runs.

    Where the file system has no locks, this logs a warning and other processes are not kept out.

    Args:
        folder: The folder to keep for this process. It must exist.

    Raises:
        StorageError: another process works there, or the disk refuses.
    """
    lock = _locked_file(folder)
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()
        os.close(lock)  # releases it


def _locked_file(folder: Path) -> int:
    """Open the lock file and lock it; if the process before has just removed the file, open it again."""
    while True:
        with storage_errors(folder):
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            _take(lock, folder)
            if os.fstat(lock).st_nlink:
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _take(lock: int, folder: Path) -> None:
    """Lock the open file, and write into it which process has done so."""
    import fcntl  # Windows has none, and reads caches all the same

    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # POSIX allows either
        raise StorageError(
            "another process is at work in this folder",
            where=folder,
            found=_holder(lock),
            why="two processes would overwrite each other's files",
            fix="Wait until it ends, or choose another folder",
        ) from error
    except OSError as error:
        logger.warning("%s cannot be locked: %s. See that no second process works in it.", folder, error.strerror)
        return
    with storage_errors(folder):
        os.ftruncate(lock, 0)
        os.pwrite(lock, (json.dumps(this_process()) + "\n").encode(), 0)


def _holder(lock: int) -> str:
    """Return which process holds the lock, as far as the file says."""
    try:
        maker = json.loads(os.pread(lock, 1000, 0))
        return f"process {maker['process']} on {maker['host']} since {maker['started']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
