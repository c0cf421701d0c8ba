"""Gathered receipts: many receipts in one file, so that a teacher of any size is opened with a few requests.

A receipt per shard is what makes a capture safe to kill, and what a reader of a million shards cannot ask for one
after another. So the receipts of 1,024 neighbouring shards are also kept in one Arrow file, byte for byte, when all of
them are there. Its name is its number and its hash.

A gathered receipt is a copy and never the proof. It holds only if the store lists the receipt itself with the same
size and an earlier time than the file: a receipt that was deleted, replaced or added later is seen in the listing,
whoever did that, an older version of logitcask included. All others are read themselves, many at a time. Rows are
decoded by the receipt itself in any case (see ``teacher.py``). So these files can be lost, deleted or damaged at any
moment: reading becomes slower and stays right, and ``repair`` writes them anew.

Nobody locks anything. Two processes that gather the same receipts write the same bytes under the same name; a process
that is killed before it gathers leaves the work to the next capture, ``copy`` or ``repair``. Rejected: one growing
index, which needs a single writer; and receipts without files of their own, which could not be committed one by one.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import DamageError
from cache_tools.format import layout
from cache_tools.format.layout import GATHERED_SHARDS as GATHERED_SHARDS
from cache_tools.format.receipts import gathered_bytes, read_gathered, receipt_head
from cache_tools.limits import TABLE_BYTES
from cache_tools.requests.in_flight import in_parallel
from cache_tools.storage import StorePath, listed_objects, names, read_object, remove_object, sha256, write_object

FEWEST_SHARDS = 64
"""Fewer receipts are not gathered: they are read in two rounds of requests anyway."""


LONGEST_NUMBER = 18
"""Digits of the largest number of a shard; the name of a foreign file may hold more."""


class GatheredFile(NamedTuple):
    """A file of gathered receipts, as a listing shows it.

    Attributes:
        number: It holds receipts of shards from ``number`` · GATHERED_SHARDS on.
        name: Its name, which begins with the number and ends with its hash.
        modified: When it was written, in seconds of the store's clock.
    """

    number: int
    name: str
    modified: float


@dataclass(frozen=True)
class ListedReceipts:
    """Which receipts a teacher has, without any of their contents.

    Attributes:
        sizes: (shards,) int64, bytes of each receipt; -1 where there is none.
        modified: (shards,) float64, when it was written, in seconds of the store's clock.
    """

    sizes: NDArray[np.int64]
    modified: NDArray[np.float64]

    @property
    def shards(self) -> NDArray[np.int64]:
        """The shards that have a receipt, ascending."""
        return np.flatnonzero(self.sizes >= 0)

    def holds(self, file: GatheredFile, shard: int, size_bytes: int) -> bool:
        """Say whether a copy of so many bytes in a file may be used in place of a shard's receipt."""
        is_older = not file.modified or bool(self.modified[shard] < file.modified)
        return is_older and bool(self.sizes[shard] == size_bytes)


def list_receipts(teacher: StorePath, num_shards: int) -> ListedReceipts:
    """List a teacher's receipts: 16 bytes of memory for each shard, and a request per thousand.

    Args:
        teacher: The teacher's folder.
        num_shards: Shards of its encoding; receipts of others are ignored.
    """
    listed = ListedReceipts(np.full(num_shards, -1, np.int64), np.zeros(num_shards))
    for name, size, modified in listed_objects(layout.receipts_folder(teacher)):
        number = name.removesuffix(".json")
        shard = int(number) if number.isdecimal() and len(number) <= LONGEST_NUMBER else num_shards
        if shard < num_shards and layout.receipt_name(shard) == name:
            listed.sizes[shard], listed.modified[shard] = size, modified
    return listed


def gathered_files(teacher: StorePath) -> list[GatheredFile]:
    """Return a teacher's files of gathered receipts; of several with one number the latest comes last."""
    files = []
    for name, _, modified in listed_objects(layout.gathered_folder(teacher)):
        parts = layout.gathered_parts(name)
        if parts is not None:
            files.append(GatheredFile(parts[0], name, modified))
    return sorted(files, key=lambda file: (file.number, file.modified, file.name))


def read_gathered_file(teacher: StorePath, name: str) -> dict[int, bytes]:
    """Return the receipts in a file, by shard.

    Raises:
        FileNotFoundError: it is not there any more.
        DamageError: it is not what its name says.
        StorageError: the disk or bucket refused.
    """
    path, parts = layout.gathered_folder(teacher) / name, layout.gathered_parts(name)
    content = read_object(path, TABLE_BYTES)
    try:
        if parts is None or not sha256(content).startswith(parts[1]):
            raise ValueError("its hash is not that of its name")
        return read_gathered(content)
    except ValueError as error:
        raise DamageError(
            f"gathered receipts cannot be read: {error}",
            where=path,
            why="the receipts themselves are read instead, one request for each",
            fix="Run 'logitcask repair' on the cache",
        ) from error


def receipt_contents(teacher: StorePath, num_shards: int) -> Iterator[tuple[int, bytes]]:
    """Yield the bytes of the receipt of every committed shard, in any order.

    Memory is that of the files in flight. Requests are two listings, the gathered files, and the receipts that these
    lack.

    Args:
        teacher: The teacher's folder.
        num_shards: Shards of its encoding.

    Raises:
        StorageError: the disk or bucket refused.
    """
    files = {file.number: file for file in gathered_files(teacher)}
    listed = list_receipts(teacher, num_shards)
    read_alone = [listed.shards]
    if files:
        written = np.full(-(-num_shards // GATHERED_SHARDS), -np.inf)
        for number, file in files.items():
            if number < len(written):
                written[number] = file.modified if file.modified else np.inf
        is_older = listed.modified < written[np.arange(num_shards) // GATHERED_SHARDS]
        older = listed.shards[is_older[listed.shards]]
        read_alone = [listed.shards[~is_older[listed.shards]]]
        used = [files[number] for number in np.unique(older // GATHERED_SHARDS).tolist()]
        for file, rows in zip(used, in_parallel(partial(_rows, teacher), used, teacher), strict=True):
            own = older[older // GATHERED_SHARDS == file.number].tolist()
            held = [shard for shard in own if len(rows.get(shard, b"")) == listed.sizes[shard]]
            yield from ((shard, rows[shard]) for shard in held)
            read_alone.append(np.array(sorted(set(own) - set(held)), np.int64))
    yield from read_receipts(teacher, np.concatenate(read_alone).tolist())


def read_receipts(teacher: StorePath, shards: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """Yield the bytes of the receipts of these shards, many requests at a time; nothing for one that is not there."""

    def read(shard: int) -> tuple[int, bytes | None]:
        try:
            return shard, read_object(layout.receipt_file(teacher, shard))
        except FileNotFoundError:
            return shard, None

    for shard, content in in_parallel(read, shards, teacher):
        if content is not None:
            yield shard, content


def _rows(teacher: StorePath, file: GatheredFile) -> dict[int, bytes]:
    """Return what a file holds; nothing if it cannot be used, as ``verify`` reports."""
    try:
        return read_gathered_file(teacher, file.name)
    except (FileNotFoundError, DamageError):
        return {}


class Gathering:
    """Gathers receipts while a process commits shards.

    Args:
        teacher: The teacher's folder.
        num_shards: Shards of its encoding.
        shards: Those that this process will commit.
    """

    def __init__(self, teacher: StorePath, num_shards: int, shards: Sequence[int]) -> None:
        self._teacher, self._num_shards = teacher, num_shards
        self._left = Counter(shard // GATHERED_SHARDS for shard in shards)

    def committed(self, shard: int) -> None:
        """Count a shard; after the last one of its file, gather, if all other processes have finished theirs, too."""
        number = shard // GATHERED_SHARDS
        self._left[number] -= 1
        if not self._left[number]:
            gather(self._teacher, self._num_shards, number)


def gather_all(teacher: StorePath, num_shards: int) -> list[str]:
    """Gather all complete runs of receipts that have no file, or one that is older than a receipt.

    Args:
        teacher: The teacher's folder.
        num_shards: Shards of its encoding.

    Returns:
        Names of the files that were written.

    Raises:
        StorageError: the disk or bucket refused.
    """
    if num_shards < FEWEST_SHARDS:
        return []
    written = {file.number: file.modified or np.inf for file in gathered_files(teacher)}
    listed = list_receipts(teacher, num_shards)
    names_written = list[str]()
    for number in range(-(-num_shards // GATHERED_SHARDS)):
        own = slice(number * GATHERED_SHARDS, (number + 1) * GATHERED_SHARDS)
        is_complete = (listed.sizes[own] >= 0).all()
        if is_complete and listed.modified[own].max() >= written.get(number, -np.inf):
            names_written += filter(None, [gather(teacher, num_shards, number)])
    return names_written


def gather(teacher: StorePath, num_shards: int, number: int) -> str | None:
    """Gather the receipts of one file, if all are there.

    Args:
        teacher: The teacher's folder.
        num_shards: Shards of its encoding.
        number: Number of the file.

    Returns:
        The name of the file; None if a receipt is missing or damaged, or if they are too few or too large.

    Raises:
        StorageError: the disk or bucket refused.
    """
    shards = range(number * GATHERED_SHARDS, min((number + 1) * GATHERED_SHARDS, num_shards))
    if len(shards) < FEWEST_SHARDS:
        return None
    receipts = dict[int, bytes]()
    for expected, (shard, content) in zip(shards, read_receipts(teacher, shards), strict=False):
        if shard != expected or not _is_receipt(shard, content):
            return None
        receipts[shard] = content
    if len(receipts) < len(shards) or sum(map(len, receipts.values())) > TABLE_BYTES // 2:
        return None
    content = gathered_bytes(receipts)
    name, folder = layout.gathered_name(number, sha256(content)), layout.gathered_folder(teacher)
    write_object(folder / name, content)
    for other in names(folder):
        parts = layout.gathered_parts(other)
        if parts is not None and parts[0] == number and other != name:
            remove_object(folder / other)
    return name


def _is_receipt(shard: int, content: bytes) -> bool:
    try:
        return receipt_head(content).shard == shard
    except ValueError:
        return False
