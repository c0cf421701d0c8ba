"""Check that a cache is complete and that its bytes are those that were written.

The quick check reads manifests, tables, receipts, sequence files and object sizes. ``deep`` also hashes every object,
decodes every row and checks the value rules of FORMAT.md, so its cost is reading and decoding everything once. Both
continue after a problem, so that one run lists all problems.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cache_tools.alignments.stored import Alignment
from cache_tools.codecs.registry import EMPTY_ID, MASS_TOLERANCE
from cache_tools.errors import DamageError, LogitcaskError
from cache_tools.format import layout
from cache_tools.format.manifest import ObjectRecord
from cache_tools.format.receipts import TARGETS, Receipt
from cache_tools.format.sealed import read_sealed
from cache_tools.format.shards import read_file_tables
from cache_tools.format.zarr_arrays import ArrayLayout
from cache_tools.inspection.row_check import shard_contradictions
from cache_tools.maintenance.alignments import alignments, shard_problems
from cache_tools.maintenance.object_sizes import ObjectSizes, sizes_below
from cache_tools.maintenance.verify_encoding import manifest_problems, root_problems, sequence_problems, table_problems
from cache_tools.progress.reporter import BeginPart
from cache_tools.requests.in_flight import IN_FLIGHT, in_parallel
from cache_tools.storage import StorePath, object_sha256, object_size, read_object
from cache_tools.store.chunk_reader import open_array
from cache_tools.store.gathered import gathered_files, list_receipts, read_gathered_file, read_receipts
from cache_tools.store.predictions import group_layouts, hidden_array
from cache_tools.store.reader import Cache, Encoding
from cache_tools.store.teacher import CachedTeacher

Remedy = Literal["capture", "redo", "metadata", "restore"]
"""How a problem is solved: run the capture again; capture one shard again; rewrite metadata that follows from the
manifests; restore an object from a copy."""

CAPTURE = "run 'logitcask capture' again"
"""What solves a problem of which the remedy is ``capture``."""


@dataclass(frozen=True)
class Problem:
    """A problem that was found.

    Attributes:
        kind: ``missing`` (not captured yet) or ``damage``.
        where: Path of the object.
        message: What is wrong with it.
        remedy: How it is solved.
        encoding: The encoding that it belongs to; None for the cache itself.
        teacher: The teacher that it belongs to, if it belongs to one.
        shard: The shard that it belongs to, if it belongs to one.
    """

    kind: Literal["missing", "damage"]
    where: str
    message: str
    remedy: Remedy = "restore"
    encoding: str | None = None
    teacher: str | None = None
    shard: int | None = None


@dataclass(frozen=True)
class VerifyResult:
    """What ``logitcask verify --json`` prints.

    Attributes:
        path: Folder or URL of the cache.
        deep: Whether every stored value was decoded and checked, instead of hashes alone.
        problems: What is wrong; empty if nothing is.
    """

    path: str
    deep: bool
    problems: list[Problem]


@dataclass(frozen=True)
class Subject:
    """What a check is about: each problem that it finds belongs here.

    Attributes:
        where: Path that a problem names unless it names a more exact one.
        remedy: How damage here is solved.
        encoding: As in ``Problem``, like the next two.
        teacher: The teacher.
        shard: The shard.
    """

    where: StorePath
    remedy: Remedy = "restore"
    encoding: str | None = None
    teacher: str | None = None
    shard: int | None = None

    def damage(self, message: str, where: object = None) -> Problem:
        """Return damage that was found here."""
        place = str(where or self.where)
        return Problem("damage", place, message, self.remedy, self.encoding, self.teacher, self.shard)

    def missing(self, message: str, where: object = None) -> Problem:
        """Return something that has not been captured here yet."""
        place = str(where or self.where)
        return Problem("missing", place, message, "capture", self.encoding, self.teacher, self.shard)


def verify(path: StorePath, deep: bool = False, progress: BeginPart = lambda _: None) -> list[Problem]:
    """Check a cache and return every problem; an empty list means that it is complete and undamaged.

    Args:
        path: The cache.
        deep: Also hash every object and check every stored value.
        progress: Called with the name of each part before it is checked.

    Raises:
        FormatError: the path is not a cache of this format version.
    """
    cache = Cache(path)
    folder = layout.encodings_folder(cache.path)
    root = Subject(cache.path / layout.MANIFEST)
    problems = [root.damage(message) for message in root_problems(cache.path)]
    problems += list(_group(folder, Subject(folder / layout.MANIFEST, "metadata")))
    if not cache.encodings:
        problems.append(Subject(cache.path).missing(f"no finished shard: no encoding has been committed; {CAPTURE}"))
    for name in cache.encodings:
        subject = Subject(folder / name, encoding=name)
        problems += _guarded(subject, partial(_encoding, cache, subject, deep, progress))
    return problems


def shards_to_check(cache: Cache) -> int | None:
    """Return how many parts ``verify`` will begin; None if damage, which it will report, keeps it from being known."""
    try:
        encodings = [cache.encoding(name) for name in cache.encodings]
        return sum(len(e.shards) * (1 + len(e.teachers) + len(e.alignments)) for e in encodings)
    except LogitcaskError:
        return None


def _guarded(subject: Subject, check: Callable[[], Iterator[Problem]]) -> list[Problem]:
    """Run a check; an error that stops it becomes its last problem."""
    problems: list[Problem] = []
    try:
        for problem in check():
            problems.append(problem)
    except LogitcaskError as error:
        problems.append(subject.damage(error.message, error.where))
    return problems


def _group(folder: StorePath, subject: Subject) -> Iterator[Problem]:
    """Check the ``zarr.json`` of a group without a manifest."""
    try:
        read_sealed(read_object(folder / layout.MANIFEST))
    except (OSError, ValueError, DamageError) as error:
        yield subject.damage(f"the group's metadata is missing or damaged: {error}", folder / layout.MANIFEST)


def _encoding(cache: Cache, subject: Subject, deep: bool, progress: BeginPart) -> Iterator[Problem]:
    encoding = cache.encoding(subject.encoding)
    yield from _files(encoding.path, encoding.manifest.files, subject, deep=True)
    yield from _guarded(subject, partial(_file_tables, encoding))
    shards = range(len(encoding.shards))
    yield from _guarded(subject, lambda: (subject.damage(message) for message in manifest_problems(encoding)))
    sizes = sizes_below(layout.sequences_file(encoding.path, 0).parent)
    check = partial(_sequences, encoding, subject, sizes)
    for shard, problems in zip(shards, _checked(subject, check, shards, encoding.path, deep), strict=True):
        progress(f"{encoding.name}: sequences {shard}")
        yield from problems
    yield from _guarded(subject, partial(_alignments, encoding, subject, deep, progress))
    if not encoding.teachers:
        yield Subject(encoding.path).missing(f"no finished shard: no teacher has been captured; {CAPTURE}")
        return
    metadata = replace(subject, remedy="metadata")
    yield from _group(encoding.path / "teachers", metadata)
    for name in encoding.teachers:
        of_teacher = Subject(layout.teacher_folder(encoding.path, name), "restore", encoding.name, name)
        yield from _guarded(of_teacher, partial(_teacher, encoding, of_teacher, deep, progress))


def _alignments(encoding: Encoding, subject: Subject, deep: bool, progress: BeginPart) -> Iterator[Problem]:
    """Check the alignments with students' tokenizers; a shard that has not been aligned is no problem of a cache."""
    for alignment in alignments(encoding):
        yield from _files(alignment.path, alignment.manifest.files, subject, deep=True)
        for shard in range(len(encoding.shards)):
            progress(f"{alignment.name}: aligned shard {shard}")
            yield from _guarded(subject, partial(_aligned_shard, alignment, subject, deep, shard))


def _aligned_shard(alignment: Alignment, subject: Subject, deep: bool, shard: int) -> Iterator[Problem]:
    yield from (subject.damage(message, where) for message, where in shard_problems(alignment, shard, deep))


def _file_tables(encoding: Encoding) -> Iterator[Problem]:
    """Read the tables of corpus files; reading checks their hashes."""
    read_file_tables(encoding.path, encoding.manifest.parts)
    yield from ()


def _checked(
    subject: Subject, check: Callable[[int], Iterator[Problem]], shards: range, place: StorePath, deep: bool
) -> Iterator[list[Problem]]:
    """Yield the problems of each shard in order; in a bucket several shards are checked at a time."""
    at_once = 1 if deep else IN_FLIGHT
    return in_parallel(lambda shard: _guarded(subject, partial(check, shard)), shards, place, at_once)


def _sequences(encoding: Encoding, subject: Subject, sizes: dict[str, int] | None, shard: int) -> Iterator[Problem]:
    """Hash and read one sequence file (reading checks the hash) and compare it with the shard table."""
    entry, where = encoding.shards[shard], layout.sequences_file(encoding.path, shard)
    for message in table_problems(entry, encoding.manifest.positions_per_shard, shard):
        yield subject.damage(message)
    sequences = encoding.stored_sequences(shard)
    row = shard * encoding.manifest.positions_per_shard
    for sequence in sequences:
        if sequence.first_position != row:
            yield subject.damage(f"sequence {sequence.sequence_id} does not start at row {row}", where)
        if int(sequence.byte_lengths.sum()) != len(sequence.text.encode()):
            yield subject.damage(f"sequence {sequence.sequence_id}: byte lengths do not add up to its text", where)
        row += sequence.num_positions
    if row - shard * encoding.manifest.positions_per_shard != entry.positions:
        yield subject.damage(f"the shard table states {entry.positions} positions", where)
    size = object_size(where) if sizes is None else sizes.get(where.name)
    for message in sequence_problems(encoding.manifest, entry, sequences, size):
        yield subject.damage(message, where)


def _teacher(encoding: Encoding, subject: Subject, deep: bool, progress: BeginPart) -> Iterator[Problem]:
    teacher = encoding.teacher(subject.teacher)
    beside = list(_files(teacher.path, teacher.manifest.files, subject, deep))
    metadata = replace(subject, remedy="metadata")
    if teacher.manifest.hidden:
        beside += _group(teacher.path / "hidden", metadata)
    for group in group_layouts(teacher.manifest, encoding.manifest.positions_per_shard).values():
        for name, cut in group.items():
            beside += _guarded(metadata, partial(_array, teacher, name, cut, metadata))
    yield from beside
    values = deep and not any(problem.kind == "damage" for problem in beside)  # else every shard would fail
    yield from _gathered(teacher, metadata, deep)
    shards, sizes = range(len(encoding.shards)), ObjectSizes(teacher)

    def check(shard: int) -> list[Problem]:
        of_shard = Subject(teacher.path, "redo", encoding.name, teacher.name, shard)
        return _guarded(of_shard, partial(_shard, teacher, shard, of_shard, deep, values, sizes))

    for shard, problems in zip(shards, in_parallel(check, shards, teacher.path, 1 if deep else IN_FLIGHT), strict=True):
        progress(f"{teacher.name}: shard {shard}")
        yield from problems


def _gathered(teacher: CachedTeacher, subject: Subject, deep: bool) -> Iterator[Problem]:
    """Check files of gathered receipts; when deep, also that each copy which a reader would use is the receipt."""
    listed = list_receipts(teacher.path, len(teacher.encoding.shards))
    for file in gathered_files(teacher.path):
        try:
            rows = read_gathered_file(teacher.path, file.name)
        except FileNotFoundError:
            continue
        except DamageError as error:
            yield subject.damage(error.message, error.where)
            continue
        used = [shard for shard in rows if shard < len(listed.sizes) and listed.holds(file, shard, len(rows[shard]))]
        for shard, content in read_receipts(teacher.path, used if deep else []):
            if content != rows[shard]:
                where = layout.gathered_folder(teacher.path) / file.name
                yield subject.damage(f"the gathered receipt of shard {shard} is not the receipt", where)
                break


def _array(teacher: CachedTeacher, name: str, cut: ArrayLayout, subject: Subject) -> Iterator[Problem]:
    """Check an array's metadata; the next capture extends an axis that ends behind all captured shards."""
    array = open_array(teacher.path, name, cut)
    size = teacher.encoding.manifest.positions_per_shard
    rows = size * len(teacher.encoding.shards)
    if array.layout and array.num_rows < rows:
        missing = teacher.missing_shards()
        awaited = missing and array.num_rows >= size * missing[0]
        problem = subject.missing if awaited else subject.damage
        yield problem(f"the array ends at row {array.num_rows} of {rows}", teacher.path / name)


def _shard(
    teacher: CachedTeacher, shard: int, subject: Subject, deep: bool, values: bool, sizes: ObjectSizes
) -> Iterator[Problem]:
    receipt, where = teacher.receipt(shard), layout.receipt_file(teacher.path, shard)
    missing_groups = teacher.groups if receipt is None else [g for g in teacher.groups if g not in receipt.groups]
    if missing_groups:
        groups = f" of {', '.join(missing_groups)}" if receipt else ""
        yield subject.missing(f"shard {shard} has not been captured{groups}; {CAPTURE}", where)
    if receipt is None:
        return
    entry = teacher.encoding.shards[shard]
    if (receipt.positions, receipt.tokens) != (entry.positions, entry.tokens):
        counts = f"{receipt.positions} positions and {receipt.tokens} tokens"
        expected = f"{entry.positions} and {entry.tokens}"
        yield subject.damage(f"the receipt states {counts}, the shard table {expected}", where)
    damaged_objects = list(_files(teacher.path, receipt.objects, subject, deep, lambda key: sizes.of(key, shard)))
    yield from damaged_objects
    if values and not damaged_objects:
        yield from _values(teacher, receipt, subject)


def _files(
    folder: StorePath,
    objects: dict[str, ObjectRecord],
    subject: Subject,
    deep: bool,
    size_of: Callable[[str], int | None] | None = None,
) -> Iterator[Problem]:
    """Compare objects with their recorded sizes, and when deep with their hashes."""
    for key, record in objects.items():
        size = partial(size_of, key) if size_of else partial(object_size, folder / key)
        yield from _guarded(subject, partial(_file, folder / key, record, subject, deep, size))


def _file(
    path: StorePath, record: ObjectRecord, subject: Subject, deep: bool, size_of: Callable[[], int | None]
) -> Iterator[Problem]:
    size = size_of()
    if size is None:
        yield subject.damage("the object is missing", path)
    elif size != record.bytes:
        yield subject.damage(f"{size} bytes instead of {record.bytes}", path)
    elif deep and object_sha256(path, size) != record.sha256:
        yield subject.damage("the bytes are not those that were written", path)


def _values(teacher: CachedTeacher, receipt: Receipt, subject: Subject) -> Iterator[Problem]:
    """Decode every row of a shard, some at a time, and check the rules that FORMAT.md states."""
    broken: set[str] = set()
    for start, stop in teacher.row_blocks(receipt.shard):
        for problem, rule in _broken_rules(teacher, receipt, subject, start, stop):
            if rule not in broken:
                yield problem
            broken.add(rule)
    if TARGETS in receipt.groups and not broken:
        yield from _contradictions(teacher, receipt.shard, subject)


def _contradictions(teacher: CachedTeacher, shard: int, subject: Subject) -> Iterator[Problem]:
    """Compare a shard's rows with the scalars and gold tokens stored beside them."""
    try:
        teacher.encoding.sequences(shard)
    except LogitcaskError:  # damaged sequences are reported by the check of the encoding
        return
    positions = teacher.encoding.shards[shard].positions
    for problem in shard_contradictions(teacher, shard):
        rows = f"row {problem.first}: {problem.rule} ({problem.count} of {positions} rows)"
        yield subject.damage(f"shard {shard}, {rows}")


def _broken_rules(
    teacher: CachedTeacher, receipt: Receipt, subject: Subject, start: int, stop: int
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
            yield subject.damage(f"shard {receipt.shard}, row {row}: {rule}"), rule
