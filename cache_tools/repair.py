"""Repair: forget what is damaged, so that the next capture redoes that and nothing else.

A damaged shard loses its receipt, and metadata that follows from the manifests is written
again. Sequences, manifests and files such as ``head.safetensors`` cannot be derived from the rest;
a problem there is reported and left alone.
"""

from cache_tools import layout
from cache_tools.manifest import group_bytes
from cache_tools.predictions import group_layouts
from cache_tools.progress import BeginPart
from cache_tools.reader import Cache, Encoding
from cache_tools.storage import StorePath, remove_object, write_object
from cache_tools.verify import Problem, verify


def repair(
    path: StorePath, deep: bool = True, progress: BeginPart = lambda _: None
) -> tuple[list[Problem], list[Problem]]:
    """Check a cache and mend what can be mended.

    Args:
        path: The cache.
        deep: Look at every byte, not only at sizes.
        progress: Called with the name of each part before it is checked.

    Returns:
        (mended, left): the problems dealt with, and the damage that only a copy can mend.

    Raises:
        FormatError: the path is not a cache of this format version.
    """
    cache = Cache(path)
    damage = [problem for problem in verify(path, deep, progress) if problem.kind == "damage"]
    for problem in damage:
        if problem.remedy == "redo":
            _forget(cache, problem)
        elif problem.remedy == "metadata":
            _rewrite(cache, problem)
    mended = [problem for problem in damage if problem.remedy != "restore"]
    return mended, [problem for problem in damage if problem.remedy == "restore"]


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
