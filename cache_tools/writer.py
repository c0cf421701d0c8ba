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
    EncodingManifest,
    TeacherManifest,
    read_manifest,
    write_group,
    write_manifest,
)
from cache_tools.predictions import Predictions, array_types, codec_of, statistics, to_arrays
from cache_tools.receipts import ObjectRecord, Receipt, write_receipt
from cache_tools.shards import ShardEntry


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


def declare_teacher(encoding: Path, name: str, manifest: TeacherManifest, num_shards: int) -> Path:
    """Create a teacher's folder and arrays, or check that the same teacher is already there.

    Args:
        encoding: The encoding's folder.
        name: The teacher's name in the cache.
        manifest: What is to be captured.
        num_shards: Shards of the encoding.

    Returns:
        The teacher's folder.

    Raises:
        IdentityError: another teacher, or other capture parameters, under the same name.
    """
    folder = layout.teacher_folder(encoding, name)
    if (folder / layout.MANIFEST).exists():
        _check_same(name, folder, read_manifest(folder, TeacherManifest), manifest)
    else:  # before the arrays: their shapes belong to whoever is declared here
        write_manifest(folder, manifest)
    shard_rows = read_manifest(encoding, EncodingManifest).positions_per_shard
    create_arrays(folder, array_types(manifest), num_shards, shard_rows, manifest.chunk_positions)
    if manifest.hidden:
        write_group(folder / "hidden")
    write_group(folder.parent)
    return folder


def commit_shard(
    teacher: Path,
    manifest: TeacherManifest,
    shard: int,
    entry: ShardEntry,
    predictions: Predictions,
    provenance: dict[str, Any],
) -> Receipt:
    """Write one shard: every array, then the receipt.

    Args:
        teacher: The teacher's folder, declared before.
        manifest: The teacher's manifest.
        shard: Shard index.
        entry: The shard's row of the shard table.
        predictions: Exactly ``entry.positions`` rows, in position order.
        provenance: Software, device and time, for the receipt.

    Raises:
        ValueError: a row cannot be stored.
        StorageError: the disk is full or refuses.
    """
    arrays = to_arrays(manifest, predictions)
    assert all(len(rows) == entry.positions for rows in arrays.values())
    objects = {}
    for name, rows in arrays.items():
        key = write_shard(teacher, name, shard, rows)
        if (teacher / key).exists():  # zarr stores no object for a shard of fill values
            objects[key] = ObjectRecord(bytes=(teacher / key).stat().st_size, sha256=file_sha256(teacher / key))
    codec_kl = kl_nats(predictions.targets, codec_of(manifest).decode(arrays))
    receipt = Receipt(
        shard=shard,
        positions=entry.positions,
        tokens=entry.tokens,
        teacher_fingerprint=manifest.fingerprint,
        sequences_sha256=entry.sha256,
        objects=objects,
        statistics=statistics(predictions, codec_kl),
        provenance=provenance,
    )
    write_receipt(teacher, receipt)
    return receipt


def _check_same(name: str, folder: Path, stored: TeacherManifest, wanted: TeacherManifest) -> None:
    if stored.fingerprint != wanted.fingerprint:
        raise IdentityError(
            f"the cache already holds another teacher under the name {name!r}",
            where=folder,
            found="; ".join(differences(stored.identity, wanted.identity)),
            expected="the same weights and capture parameters",
            why="half of its shards would come from one teacher and half from the other",
            fix="Give the new teacher another name, or restore the old settings",
        )
