"""Which files of an export are finished, so that an export that was stopped trusts no file that it did not write.

``export.yaml`` says what is exported and is written first. A part of an export, the files of one shard, is finished
when its record ``.export/<part>.json`` is written, which names each file with size and hash and states what the part
was made from. An export that continues reads the files of finished parts once; a part whose files are missing, damaged
or others, or that was made from other stored bytes, is written again. The folder's name begins with a dot, so that no
reader of the files takes a record for data.
"""

import json
from collections.abc import Mapping
from typing import Any

from cache_tools.errors import DamageError, IdentityError
from cache_tools.format.fingerprint import fingerprint
from cache_tools.storage import (
    StorePath,
    names,
    object_exists,
    object_sha256,
    object_size,
    read_object,
    remove_partial,
    sha256,
    write_object,
)
from cache_tools.store.teacher import CachedTeacher

RECORD = "export.yaml"
FINISHED = ".export"
"""Folder of the records of finished parts."""


class FinishedFiles:
    """The folder of an export.

    Args:
        target: The folder.
        identity: Everything that determines the files, as plain JSON.

    Raises:
        IdentityError: the folder holds another export, or other files.
    """

    def __init__(self, target: StorePath, identity: Mapping[str, Any]) -> None:
        self.target, self._export = target, fingerprint(identity)
        content = (json.dumps(identity, indent=1, sort_keys=True) + "\n").encode()
        there = names(target)
        if RECORD not in there and any(not name.startswith(RECORD) for name in there):
            raise _occupied(target, "other files")
        if RECORD in there and read_object(target / RECORD) != content:
            raise _occupied(target, "another export")
        self.write(RECORD, content)

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the folder whole."""
        remove_partial(self.target / name)
        write_object(self.target / name, content)

    def finished_bytes(self, part: str, origin: str) -> int | None:
        """Return the size of a part's files; None if the part must be written (again).

        Args:
            part: Name of the part.
            origin: Hash of what the part is made from.
        """
        try:
            record = json.loads(read_object(self._record(part)))
            if record["origin"] != origin or record["export"] != self._export:
                return None
            stated = [(str(name), int(size), str(digest)) for name, (size, digest) in record["files"].items()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, DamageError):
            return None
        intact = all(self._is_intact(*file) for file in stated)
        return sum(size for _, size, _ in stated) if intact else None

    def finish(self, part: str, origin: str, contents: Mapping[str, tuple[int, str]]) -> int:
        """Record the files of a part, each with size and hex sha256, which must all be written; return their size."""
        record = {"export": self._export, "origin": origin, "files": {name: list(of) for name, of in contents.items()}}
        remove_partial(self._record(part))
        write_object(self._record(part), (json.dumps(record, sort_keys=True) + "\n").encode())
        return sum(size for size, _ in contents.values())

    def _record(self, part: str) -> StorePath:
        return self.target / FINISHED / f"{part}.json"

    def _is_intact(self, name: str, size: int, digest: str) -> bool:
        path = self.target / name
        try:
            return object_exists(path) and object_size(path) == size and object_sha256(path, size) == digest
        except DamageError:
            return False


def size_and_hash(content: bytes) -> tuple[int, str]:
    """Return what a record states of a file."""
    return len(content), sha256(content)


def origin_of(teacher: CachedTeacher, shard: int, **more: Any) -> str:
    """Return a hash of the stored bytes of a shard, as its receipt states them, and of what else its files hold."""
    receipt = teacher.receipt(shard)
    objects = {} if receipt is None else {key: record.sha256 for key, record in receipt.objects.items()}
    return fingerprint({"objects": objects, "shard": shard, **more})


def _occupied(target: StorePath, found: str) -> IdentityError:
    return IdentityError(
        "the folder of the export is not empty",
        where=target,
        expected="a new folder, or the same export that was stopped",
        found=found,
        why="rows of two exports would be mixed",
        fix="Choose another folder",
    )
