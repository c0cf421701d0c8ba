"""Writing a teacher into a cache: declare it once, then commit its shards in any order.

``declare_teacher`` is idempotent and refuses another teacher under the same name.
``commit_shard`` writes the arrays of one shard, each atomically, and the receipt last; a
process killed anywhere leaves either a committed shard or one that does not exist.
"""

from pathlib import Path
from typing import Any

from cache_tools import layout
from cache_tools.arrays import create_arrays, write_shard
from cache_tools.codec import kl_nats
from cache_tools.errors import FormatError, IdentityError
from cache_tools.files import PARTIAL_SUFFIX, file_sha256
from cache_tools.fingerprint import differences
from cache_tools.manifest import (
    CacheManifest,
    TeacherManifest,
    read_manifest,
    write_group,
    write_manifest,
)
from cache_tools.predictions import Predictions, array_types, statistics, to_arrays
from cache_tools.reader import CachedTeacher, Encoding
from cache_tools.receipts import ObjectRecord, Receipt, write_receipt


def create_cache(cache: Path) -> None:
    """Create an empty cache, or check that what lies there is one.

    Raises:
        FormatError: the folder holds something else, or another format version.
    """
    if (cache / layout.MANIFEST).exists():
        read_manifest(cache, CacheManifest)
        return
    if cache.exists() and (not cache.is_dir() or any(_foreign(path) for path in cache.iterdir())):
        raise FormatError(
            "this path holds something that is not a cache",
            where=cache,
            expected="a new path, an empty folder or a cache",
            found="other files",
            why="writing here could mix a cache with somebody's data",
            fix="Choose another 'cache:' path",
        )
    write_group(layout.encodings_folder(cache))
    write_manifest(cache, CacheManifest())


def _foreign(path: Path) -> bool:
    """Say whether a file is none that a creation killed half-way could have left."""
    return path.name != layout.encodings_folder(Path()).name and path.suffix != PARTIAL_SUFFIX


def declare_teacher(encoding: Encoding, name: str, manifest: TeacherManifest) -> CachedTeacher:
    """Create a teacher's folder and arrays, or check that the same teacher is already there.

    Args:
        encoding: The committed encoding that the teacher reads.
        name: The teacher's name in the cache.
        manifest: What is to be captured.

    Raises:
        IdentityError: another teacher, or other capture parameters, under the same name.
    """
    folder = layout.teacher_folder(encoding.path, name)
    if (folder / layout.MANIFEST).exists():
        _check_same(name, folder, read_manifest(folder, TeacherManifest), manifest)
    else:  # before the arrays, so that other parameters never meet arrays made for these
        write_group(folder.parent)
        write_manifest(folder, manifest)
    if manifest.hidden:
        write_group(folder / "hidden")
    create_arrays(
        folder,
        array_types(manifest),
        len(encoding.shards),
        encoding.manifest.positions_per_shard,
        manifest.chunk_positions,
    )
    return encoding.teacher(name)


def commit_shard(teacher: CachedTeacher, shard: int, predictions: Predictions, provenance: dict[str, Any]) -> Receipt:
    """Write one shard: every array, then the receipt.

    Args:
        teacher: The declared teacher.
        shard: Shard index.
        predictions: As many rows as the shard has positions, in position order.
        provenance: Software, device and time, for the receipt.

    Raises:
        ValueError: a row cannot be stored.
        StorageError: the disk is full or refuses.
    """
    entry = teacher.encoding.shards[shard]
    arrays = to_arrays(teacher.manifest, predictions)
    assert all(len(rows) == entry.positions for rows in arrays.values())
    objects = {}
    for name, rows in arrays.items():
        key = write_shard(teacher.path, name, shard, rows)
        path = teacher.path / key
        if path.exists():  # zarr stores no object for a shard of fill values
            objects[key] = ObjectRecord(bytes=path.stat().st_size, sha256=file_sha256(path))
    codec_kl = kl_nats(predictions.targets, teacher.codec.decode(arrays))
    receipt = Receipt(
        shard=shard,
        positions=entry.positions,
        tokens=entry.tokens,
        teacher_fingerprint=teacher.manifest.fingerprint,
        sequences_sha256=entry.sha256,
        objects=objects,
        statistics=statistics(predictions, codec_kl),
        provenance=provenance,
    )
    write_receipt(teacher.path, receipt)
    return receipt


def _check_same(name: str, folder: Path, stored: TeacherManifest, wanted: TeacherManifest) -> None:
    if stored.fingerprint != wanted.fingerprint:
        raise IdentityError(
            f"the cache already holds another teacher under the name {name!r}",
            where=folder,
            found="; ".join(differences(stored.identity, wanted.identity)),
            expected="the same weights and capture parameters",
            why="half of its shards would come from one teacher and half from the other",
            fix="Restore the old settings, give the new teacher another name, or delete this folder to start over",
        )
