"""Is this cache whole, and are its bytes the ones that were written?

The quick check reads manifests, the shard table, receipts and file sizes. ``deep`` also
hashes every object and decodes every row under the value rules of FORMAT.md, so its cost
is reading and decoding everything once. Both go on after a problem: one run lists all.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from cache_tools import layout
from cache_tools.codec import EMPTY_ID, MASS_TOLERANCE
from cache_tools.errors import LogitcaskError
from cache_tools.files import file_sha256
from cache_tools.predictions import array_types
from cache_tools.reader import Cache, CachedTeacher, Encoding
from cache_tools.receipts import Receipt


@dataclass(frozen=True)
class Problem:
    """One finding.

    Attributes:
        kind: ``missing`` (a shard nobody has captured yet) or ``damage``.
        where: Path of the object.
        message: What is wrong with it.
    """

    kind: str
    where: str
    message: str


def verify(path: Path, deep: bool = False, progress: Callable[[str], None] = lambda _: None) -> list[Problem]:
    """Check a cache and return every problem found; an empty list means it is whole.

    Args:
        path: The cache.
        deep: Also hash every object and check every stored value.
        progress: Called with the name of each part before it is checked.

    Raises:
        FormatError: the path is not a cache of this format version.
    """
    cache = Cache(path)
    problems = []
    if not cache.encodings:
        problems.append(Problem("missing", str(path), "no encoding has been committed"))
    for name in cache.encodings:
        problems += _guarded(path / "encodings" / name, partial(_encoding, cache, name, deep, progress))
    return problems


def _guarded(where: Path, check: Callable[[], Iterator[Problem]]) -> list[Problem]:
    """Run a check; an error that stops it becomes its last problem."""
    problems: list[Problem] = []
    try:
        for problem in check():
            problems.append(problem)
    except LogitcaskError as error:
        problems.append(Problem("damage", error.where or str(where), error.message))
    return problems


def _encoding(cache: Cache, name: str, deep: bool, progress: Callable[[str], None]) -> Iterator[Problem]:
    encoding = cache.encoding(name)
    for shard in range(len(encoding.shards)):
        progress(f"{encoding.name}: sequences {shard}")
        yield from _guarded(encoding.path, partial(_sequences, encoding, shard))
    if not encoding.teachers:
        yield Problem("missing", str(encoding.path), "no teacher has been captured")
    for teacher in encoding.teachers:
        yield from _guarded(encoding.path / "teachers" / teacher, partial(_teacher, encoding, teacher, deep, progress))


def _sequences(encoding: Encoding, shard: int) -> Iterator[Problem]:
    """Hash and read one sequence file (reading checks the hash) and compare it with the shard table."""
    entry, sequences = encoding.shards[shard], encoding.sequences(shard)
    where = str(layout.sequences_file(encoding.path, shard))
    row = shard * encoding.manifest.positions_per_shard
    for sequence in sequences:
        if sequence.first_position != row:
            yield Problem("damage", where, f"sequence {sequence.sequence_id} does not start at row {row}")
        if int(sequence.byte_lengths.sum()) != len(sequence.text.encode()):
            yield Problem("damage", where, f"sequence {sequence.sequence_id}: byte lengths do not add up to its text")
        row += sequence.num_positions
    if row - shard * encoding.manifest.positions_per_shard != entry.positions:
        yield Problem("damage", where, f"the shard table promises {entry.positions} positions")


def _teacher(encoding: Encoding, name: str, deep: bool, progress: Callable[[str], None]) -> Iterator[Problem]:
    teacher = encoding.teacher(name)
    for array in array_types(teacher.manifest):
        if not (teacher.path / array / layout.MANIFEST).is_file():
            yield Problem("damage", str(teacher.path / array), "the array's zarr.json is missing")
    for shard in range(len(teacher.encoding.shards)):
        progress(f"{teacher.name}: shard {shard}")
        yield from _guarded(teacher.path, partial(_shard, teacher, shard, deep))


def _shard(teacher: CachedTeacher, shard: int, deep: bool) -> Iterator[Problem]:
    receipt = teacher.receipt(shard)
    if receipt is None:
        where = str(layout.receipt_file(teacher.path, shard))
        yield Problem("missing", where, f"shard {shard} has not been captured; run 'logitcask capture' again")
        return
    sound = True
    for problem in _objects(teacher.path, receipt, deep):
        sound = False
        yield problem
    if deep and sound:
        yield from _values(teacher, shard)


def _objects(teacher: Path, receipt: Receipt, deep: bool) -> Iterator[Problem]:
    for key, record in receipt.objects.items():
        path = teacher / key
        fix = f"delete {layout.receipt_file(teacher, receipt.shard)} and capture again to redo this shard"
        if ".." in Path(key).parts or Path(key).is_absolute():
            yield Problem("damage", str(teacher), f"the receipt names a path outside the cache: {key!r}")
        elif not path.is_file():
            yield Problem("damage", str(path), f"the object is missing; {fix}")
        elif path.stat().st_size != record.bytes:
            yield Problem("damage", str(path), f"{path.stat().st_size} bytes instead of {record.bytes}; {fix}")
        elif deep and file_sha256(path) != record.sha256:
            yield Problem("damage", str(path), f"the bytes are not those that were written; {fix}")


def _values(teacher: CachedTeacher, shard: int) -> Iterator[Problem]:
    """Decode every row of a shard and check the rules that FORMAT.md states."""
    start, stop = teacher.shard_rows(shard)
    targets = teacher.targets(start, stop)
    used = targets.ids != EMPTY_ID
    mass = np.exp(targets.log_probs).sum(axis=1) + np.exp(targets.log_left_out)
    ascending = (targets.ids[:, 1:] > targets.ids[:, :-1]) | ~used[:, 1:]
    rules = {
        "an id is not below the vocabulary size": (used & (targets.ids >= teacher.manifest.vocabulary_size)).any(
            axis=1
        ),
        "ids do not ascend": ~ascending.all(axis=1),
        "the probabilities do not sum to 1": np.abs(mass - 1) > MASS_TOLERANCE,
    }
    for name in teacher.manifest.scalars:
        teacher.scalar(name, start, stop)  # any integer is a legal value, but it must decode
    for layer in teacher.manifest.hidden:
        rules[f"hidden state {layer} is not finite"] = ~np.isfinite(teacher.hidden(layer, start, stop)).all(axis=1)
    for rule, broken in rules.items():
        if broken.any():
            row = start + int(np.flatnonzero(broken)[0])
            yield Problem("damage", str(teacher.path), f"shard {shard}, row {row}: {rule}")
