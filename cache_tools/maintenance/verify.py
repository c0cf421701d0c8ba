"""Is this cache whole, and are its bytes the ones that were written?

The quick check reads manifests, tables, receipts, sequence files and object sizes.
``deep`` also hashes every object and decodes every row under the value rules of FORMAT.md, so its
cost is reading and decoding everything once. Both go on after a problem: one run lists all.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.registry import EMPTY_ID, MASS_TOLERANCE
from cache_tools.errors import DamageError, LogitcaskError
from cache_tools.format import layout
from cache_tools.format.manifest import ObjectRecord
from cache_tools.format.receipts import TARGETS, Receipt
from cache_tools.format.sealed import read_sealed
from cache_tools.format.shards import read_file_tables
from cache_tools.format.zarr_arrays import ArrayLayout
from cache_tools.inspection.row_check import shard_contradictions
from cache_tools.maintenance.verify_encoding import manifest_problems, root_problems, sequence_problems, table_problems
from cache_tools.progress.reporter import BeginPart
from cache_tools.storage import StorePath, object_sha256, object_size, read_object
from cache_tools.store.chunk_reader import open_array
from cache_tools.store.predictions import group_layouts, hidden_array
from cache_tools.store.reader import Cache, Encoding
from cache_tools.store.teacher import CachedTeacher

Remedy = Literal["capture", "redo", "metadata", "restore"]
"""What helps: run the capture; redo one shard; rewrite metadata that follows from the manifests; a copy."""


@dataclass(frozen=True)
class Problem:
    """One finding.

    Attributes:
        kind: ``missing`` (something nobody has captured yet) or ``damage``.
        where: Path of the object.
        message: What is wrong with it.
        remedy: What helps.
        encoding: Encoding it belongs to.
        teacher: Teacher it belongs to, if any.
        shard: Shard it belongs to, if one.
    """

    kind: Literal["missing", "damage"]
    where: str
    message: str
    remedy: Remedy = "restore"
    encoding: str | None = None
    teacher: str | None = None
    shard: int | None = None


def verify(path: StorePath, deep: bool = False, progress: BeginPart = lambda _: None) -> list[Problem]:
    """Check a cache and return every problem found; an empty list means it is whole.

    Args:
        path: The cache.
        deep: Also hash every object and check every stored value.
        progress: Called with the name of each part before it is checked.

    Raises:
        FormatError: the path is not a cache of this format version.
    """
    cache = Cache(path)
    folder = layout.encodings_folder(cache.path)
    root = Problem("damage", str(cache.path / layout.MANIFEST), "")
    problems = [_found(root, message) for message in root_problems(cache.path)]
    problems += list(_group(folder, Problem("damage", str(folder / layout.MANIFEST), "", "metadata")))
    if not cache.encodings:
        problems.append(Problem("missing", str(path), "no encoding has been committed", "capture"))
    for name in cache.encodings:
        blank = Problem("damage", str(folder / name), "", encoding=name)
        problems += _guarded(blank, partial(_encoding, cache, blank, deep, progress))
    return problems


def shards_to_check(cache: Cache) -> int | None:
    """Return how many parts ``verify`` will begin; None if the cache is too damaged to say, which it will report."""
    try:
        encodings = [cache.encoding(name) for name in cache.encodings]
        return sum(len(encoding.shards) * (1 + len(encoding.teachers)) for encoding in encodings)
    except LogitcaskError:
        return None


def _guarded(blank: Problem, check: Callable[[], Iterator[Problem]]) -> list[Problem]:
    """Run a check; an error that stops it becomes its last problem."""
    problems: list[Problem] = []
    try:
        for problem in check():
            problems.append(problem)
    except LogitcaskError as error:
        problems.append(_found(blank, error.message, error.where or blank.where))
    return problems


def _found(blank: Problem, message: str, where: object = None) -> Problem:
    return Problem(**{**vars(blank), "message": message, "where": str(where or blank.where)})


def _group(folder: StorePath, blank: Problem) -> Iterator[Problem]:
    """Check the ``zarr.json`` of a group without a manifest."""
    try:
        read_sealed(read_object(folder / layout.MANIFEST))
    except (OSError, ValueError, DamageError) as error:
        yield _found(blank, f"the group's metadata is missing or damaged: {error}", folder / layout.MANIFEST)


def _encoding(cache: Cache, blank: Problem, deep: bool, progress: BeginPart) -> Iterator[Problem]:
    encoding = cache.encoding(blank.encoding)
    yield from _files(encoding.path, encoding.manifest.files, blank, deep=True)
    yield from _guarded(blank, partial(_file_tables, encoding))
    shards = range(len(encoding.shards))
    yield from _guarded(blank, lambda: (_found(blank, message) for message in manifest_problems(encoding)))
    for shard in shards:
        progress(f"{encoding.name}: sequences {shard}")
        yield from _guarded(blank, partial(_sequences, encoding, shard, blank))
    if not encoding.teachers:
        yield Problem("missing", str(encoding.path), "no teacher has been captured", "capture")
        return
    metadata = Problem(**{**vars(blank), "remedy": "metadata"})
    yield from _group(encoding.path / "teachers", metadata)
    for name in encoding.teachers:
        of_teacher = Problem(
            "damage", str(layout.teacher_folder(encoding.path, name)), "", "restore", encoding.name, name
        )
        yield from _guarded(of_teacher, partial(_teacher, encoding, of_teacher, deep, progress))


def _file_tables(encoding: Encoding) -> Iterator[Problem]:
    """Read the tables of corpus files; reading checks their hashes."""
    read_file_tables(encoding.path, encoding.manifest.parts)
    yield from ()


def _sequences(encoding: Encoding, shard: int, blank: Problem) -> Iterator[Problem]:
    """Hash and read one sequence file (reading checks the hash) and compare it with the shard table."""
    entry, where = encoding.shards[shard], layout.sequences_file(encoding.path, shard)
    for message in table_problems(entry, encoding.manifest.positions_per_shard, shard):
        yield _found(blank, message)
    sequences = encoding.stored_sequences(shard)
    row = shard * encoding.manifest.positions_per_shard
    for sequence in sequences:
        if sequence.first_position != row:
            yield _found(blank, f"sequence {sequence.sequence_id} does not start at row {row}", where)
        if int(sequence.byte_lengths.sum()) != len(sequence.text.encode()):
            yield _found(blank, f"sequence {sequence.sequence_id}: byte lengths do not add up to its text", where)
        row += sequence.num_positions
    if row - shard * encoding.manifest.positions_per_shard != entry.positions:
        yield _found(blank, f"the shard table states {entry.positions} positions", where)
    for message in sequence_problems(encoding.manifest, entry, sequences, object_size(where)):
        yield _found(blank, message, where)


def _teacher(encoding: Encoding, blank: Problem, deep: bool, progress: BeginPart) -> Iterator[Problem]:
    teacher = encoding.teacher(blank.teacher)
    beside = list(_files(teacher.path, teacher.manifest.files, blank, deep))
    metadata = Problem(**{**vars(blank), "remedy": "metadata"})
    if teacher.manifest.hidden:
        beside += _group(teacher.path / "hidden", metadata)
    for group in group_layouts(teacher.manifest, encoding.manifest.positions_per_shard).values():
        for name, cut in group.items():
            beside += _guarded(metadata, partial(_array, teacher, name, cut, metadata))
    yield from beside
    values = deep and not any(problem.kind == "damage" for problem in beside)  # no shard's fault if unreadable
    for shard in range(len(encoding.shards)):
        progress(f"{teacher.name}: shard {shard}")
        redo = Problem("damage", str(teacher.path), "", "redo", encoding.name, teacher.name, shard)
        yield from _guarded(redo, partial(_shard, teacher, redo, deep, values))


def _array(teacher: CachedTeacher, name: str, cut: ArrayLayout, blank: Problem) -> Iterator[Problem]:
    """Check an array's metadata; one whose axis is too short awaits the next capture, but for shards it has."""
    array = open_array(teacher.path, name, cut)
    size = teacher.encoding.manifest.positions_per_shard
    rows = size * len(teacher.encoding.shards)
    if array.layout and array.num_rows < rows:
        missing = teacher.missing_shards()
        awaited = missing and array.num_rows >= size * missing[0]
        short = Problem(**{**vars(blank), "kind": "missing", "remedy": "capture"}) if awaited else blank
        yield _found(short, f"the array ends at row {array.num_rows} of {rows}", teacher.path / name)


def _shard(teacher: CachedTeacher, blank: Problem, deep: bool, values: bool) -> Iterator[Problem]:
    assert blank.shard is not None
    receipt, where = teacher.receipt(blank.shard), layout.receipt_file(teacher.path, blank.shard)
    absent = teacher.groups if receipt is None else [g for g in teacher.groups if g not in receipt.groups]
    if absent:
        lacking = f" of {', '.join(absent)}" if receipt else ""
        message = f"shard {blank.shard} has not been captured{lacking}; run 'logitcask capture' again"
        yield Problem("missing", str(where), message, "capture", blank.encoding, blank.teacher, blank.shard)
    if receipt is None:
        return
    entry = teacher.encoding.shards[blank.shard]
    if (receipt.positions, receipt.tokens) != (entry.positions, entry.tokens):
        yield _found(
            blank, f"the receipt counts other positions or tokens than the shard table: {receipt.positions}", where
        )
    sound = True
    for problem in _files(teacher.path, receipt.objects, blank, deep):
        sound = False
        yield problem
    if values and sound:
        yield from _values(teacher, receipt, blank)


def _files(folder: StorePath, objects: dict[str, ObjectRecord], blank: Problem, deep: bool) -> Iterator[Problem]:
    """Compare objects with their recorded sizes, and when deep with their hashes."""
    for key, record in objects.items():
        yield from _guarded(blank, partial(_file, folder / key, record, blank, deep))


def _file(path: StorePath, record: ObjectRecord, blank: Problem, deep: bool) -> Iterator[Problem]:
    size = object_size(path)
    if size is None:
        yield _found(blank, "the object is missing", path)
    elif size != record.bytes:
        yield _found(blank, f"{size} bytes instead of {record.bytes}", path)
    elif deep and object_sha256(path, size) != record.sha256:
        yield _found(blank, "the bytes are not those that were written", path)


def _values(teacher: CachedTeacher, receipt: Receipt, blank: Problem) -> Iterator[Problem]:
    """Decode every row of a shard, some at a time, and check the rules that FORMAT.md states."""
    broken: set[str] = set()
    for start, stop in teacher.row_blocks(receipt.shard):
        for problem, rule in _broken_rules(teacher, receipt, blank, start, stop):
            if rule not in broken:
                yield problem
            broken.add(rule)
    if TARGETS in receipt.groups and not broken:
        yield from _contradictions(teacher, receipt.shard, blank)


def _contradictions(teacher: CachedTeacher, shard: int, blank: Problem) -> Iterator[Problem]:
    """Compare a shard's rows with the scalars and gold tokens beside them."""
    try:
        teacher.encoding.sequences(shard)
    except LogitcaskError:  # reported where the encoding is checked, and no fault of this shard's
        return
    positions = teacher.encoding.shards[shard].positions
    for problem in shard_contradictions(teacher, shard):
        rows = f"row {problem.first}: {problem.rule} ({problem.count} of {positions} rows)"
        yield _found(blank, f"shard {shard}, {rows}")


def _broken_rules(
    teacher: CachedTeacher, receipt: Receipt, blank: Problem, start: int, stop: int
) -> Iterator[tuple[Problem, str]]:
    first = receipt.shard * teacher.encoding.manifest.positions_per_shard
    rules: dict[str, NDArray[np.bool_]] = {}
    if TARGETS in receipt.groups:
        stored = teacher.stored_targets(receipt.shard, start - first, stop - first)
        rules |= teacher.codec.broken_rows(stored.arrays, stored.parameters)
        targets = stored.decode(0, stop - start)
        used = targets.ids != EMPTY_ID
        mass = np.exp(targets.log_probs).sum(axis=1) + np.exp(targets.log_left_out)
        ascending = (targets.ids[:, 1:] > targets.ids[:, :-1]) | ~used[:, 1:]
        beyond = used & (targets.ids >= teacher.manifest.vocabulary_size)
        rules["an id is not below the vocabulary size"] = beyond.any(axis=1)
        if teacher.codec.ids_ascend:
            rules["ids do not ascend"] = ~ascending.all(axis=1)
        rules["the probabilities do not sum to 1"] = ~(np.abs(mass - 1) <= MASS_TOLERANCE)
        for name in teacher.manifest.scalars:
            rules[f"{name} is not a number"] = np.isnan(teacher.scalar(name, start, stop))
    for layer in teacher.manifest.hidden:
        if hidden_array(layer) in receipt.groups:
            finite = np.isfinite(teacher.hidden(layer, start, stop)).all(axis=1)
            rules[f"hidden state {layer} is not finite"] = np.logical_not(finite)
    for rule, broken in rules.items():
        if broken.any():
            row = start + int(np.flatnonzero(broken)[0])
            yield _found(blank, f"shard {receipt.shard}, row {row}: {rule}"), rule
