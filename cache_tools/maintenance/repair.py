"""Repair a cache: forget what is damaged, so that the next capture writes that again and nothing else.

The receipt of a damaged shard is removed. Metadata that follows from the manifests is written again, and so is the
cache's own manifest, which states only the format. A damaged sequence file, table or tokenizer file of an encoding is
removed: if the corpus is available, the capture writes it again and compares it with the recorded hash, so that
predictions stay valid. Manifests and files such as ``head.safetensors`` cannot be derived from anything else; problems
there are reported and not touched.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from cache_tools.errors import DamageError, FormatError, LogitcaskError
from cache_tools.format import layout
from cache_tools.format.manifest import (
    FORMAT,
    CacheManifest,
    EncodingManifest,
    group_bytes,
    read_manifest,
    stated_format,
    write_manifest,
)
from cache_tools.format.sealed import read_sealed
from cache_tools.maintenance.verify import Problem, verify
from cache_tools.progress.reporter import BeginPart
from cache_tools.storage import StorePath, names, read_object, remove_object, write_object
from cache_tools.store.encoding_files import lost_files
from cache_tools.store.gathered import gather_all, gathered_files
from cache_tools.store.predictions import group_layouts
from cache_tools.store.reader import Cache, Encoding


@dataclass(frozen=True)
class RepairResult:
    """What ``logitcask repair --json`` prints.

    Attributes:
        path: The cache.
        mended: The problems that were solved; a capture writes again what was forgotten.
        left: The damage that only a copy can repair.
    """

    path: str
    mended: list[Problem]
    left: list[Problem]


def repair(
    path: StorePath, deep: bool = True, progress: BeginPart = lambda _: None
) -> tuple[list[Problem], list[Problem]]:
    """Check a cache and repair what can be repaired.

    Args:
        path: The cache.
        deep: Check every byte, not only sizes.
        progress: Called with the name of each part before it is checked.

    Returns:
        (mended, left): the problems that were solved, and the damage that only a copy can repair.

    Raises:
        FormatError: the path is not a cache of this format version.
    """
    mended = list(_mend_root(path))
    cache = Cache(path)
    damage = [problem for problem in verify(path, deep, progress) if problem.kind == "damage"]
    forgotten = set(_forget_files(cache, damage))
    mended += [problem for problem in damage if problem.where in forgotten or _mended(cache, problem)]
    _gather(cache)
    return mended, [problem for problem in damage if problem not in mended]


def _gather(cache: Cache) -> None:
    """Gather the receipts of every teacher that can be opened."""
    for name in cache.encodings:
        with suppress(LogitcaskError):  # damage that only a copy can repair
            encoding = cache.encoding(name)
            for teacher in map(encoding.teacher, encoding.teachers):
                gather_all(teacher.path, len(encoding.shards))


def _mended(cache: Cache, problem: Problem) -> bool:
    """Solve a problem and return whether that was possible; nothing behind a link is touched."""
    try:
        if problem.remedy == "redo":
            _forget(cache, problem)
        elif problem.remedy == "metadata":
            _rewrite(cache, problem)
    except DamageError:
        return False
    return problem.remedy != "restore"


def _mend_root(path: StorePath) -> Iterator[Problem]:
    """Write the cache's manifest again if it is missing or damaged, provided that the folder holds an encoding."""
    where = path / layout.MANIFEST
    try:
        content = read_object(where)
        read_sealed(content)
        return
    except FileNotFoundError:
        reason = "no such file"
    except ValueError as error:
        if stated_format(content) not in (None, FORMAT):
            return
        reason = str(error)
    folder = layout.encodings_folder(path)
    if any(_is_encoding(folder / name) for name in names(folder)):
        write_manifest(path, CacheManifest())
        yield Problem("damage", str(where), f"the cache's manifest is missing or damaged: {reason}", "metadata")


def _is_encoding(folder: StorePath) -> bool:
    try:
        read_manifest(folder, EncodingManifest)
    except FormatError:
        return False
    return True


def _forget_files(cache: Cache, damage: list[Problem]) -> Iterator[str]:
    """Remove the damaged files that a capture can write again; yield their paths as ``Problem.where`` states them."""
    for name in {problem.encoding for problem in damage if problem.remedy == "restore" and problem.teacher is None}:
        if name is None:
            continue
        try:
            encoding = cache.encoding(name)
        except FormatError:  # the manifest itself is damaged
            continue
        for path in list(lost_files(encoding.path, encoding.manifest)):
            with suppress(DamageError):  # behind a link
                remove_object(path)
                yield str(path)


def _forget(cache: Cache, problem: Problem) -> None:
    """Remove the receipt of a damaged shard."""
    assert problem.encoding is not None
    assert problem.teacher is not None
    assert problem.shard is not None
    encoding = layout.encoding_folder(cache.path, problem.encoding)
    remove_object(layout.receipt_file(layout.teacher_folder(encoding, problem.teacher), problem.shard))


def _rewrite(cache: Cache, problem: Problem) -> None:
    """Write the metadata of a group or of a teacher's arrays again."""
    if problem.teacher is None:
        folders = [layout.encodings_folder(cache.path)]
        if problem.encoding is not None:
            folders = [layout.encoding_folder(cache.path, problem.encoding) / "teachers"]
        for folder in folders:
            write_object(folder / layout.MANIFEST, group_bytes())
        return
    _rewrite_arrays(cache.encoding(problem.encoding), problem.teacher)


def _rewrite_arrays(encoding: Encoding, name: str) -> None:
    teacher, rows_per_shard = encoding.teacher(name), encoding.manifest.positions_per_shard
    for group in group_layouts(teacher.manifest, rows_per_shard).values():
        for array, cut in group.items():
            metadata = cut.metadata(rows_per_shard * len(encoding.shards))
            write_object(layout.array_metadata_file(teacher.path, array), metadata)
    if teacher.manifest.hidden:
        write_object(teacher.path / "hidden" / layout.MANIFEST, group_bytes())
    _remove_gathered(teacher.path)


def _remove_gathered(teacher: StorePath) -> None:
    """Remove the files of gathered receipts; they are only copies, and are written again at the end."""
    for file in gathered_files(teacher):
        remove_object(layout.gathered_folder(teacher) / file.name)
