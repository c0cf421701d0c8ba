"""Copy a cache byte for byte between any two disks or buckets.

Every object is compared with its recorded hash while it is copied, so a finished copy has also verified its source.
Manifests and receipts are written last, as in a capture: a copy that was stopped continues when the same command runs
again, and a copy of a source that has grown copies only what is new.
"""

from functools import partial
from pathlib import Path

from cache_tools.errors import DamageError, IdentityError
from cache_tools.format import layout
from cache_tools.format.manifest import (
    EncodingManifest,
    ObjectRecord,
    TeacherManifest,
    read_manifest,
    write_group,
    write_manifest,
)
from cache_tools.format.receipts import read_receipt
from cache_tools.format.sequences import read_recorded
from cache_tools.limits import TABLE_BYTES
from cache_tools.maintenance.alignments import aligned_bytes, copy_alignments
from cache_tools.maintenance.drop import drop_hidden
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.requests.in_flight import in_parallel
from cache_tools.separate_places import require_apart
from cache_tools.storage import (
    StorePath,
    names,
    object_exists,
    object_sizes,
    read_object,
    remove_object,
    write_object,
    write_objects,
)
from cache_tools.store.gathered import gather_all
from cache_tools.store.reader import Cache, Encoding
from cache_tools.store.root import create_cache
from cache_tools.store.teacher import CachedTeacher
from cache_tools.store.writer import clear_remains, refuse_remains, write_array_metadata

AT_ONCE = 8
"""Shards that are copied at a time to or from a bucket; each is in memory as a whole, 16 MB at the default settings."""


def copy_cache(source: Cache, target: StorePath, progress: Advance = ignore) -> None:
    """Copy everything that a cache holds, or what an earlier copy lacks.

    Args:
        source: The cache to read.
        target: A new place, or an unfinished or older copy of the same cache.
        progress: Called with the number of bytes that were copied.

    Raises:
        ConfigError: the target is the source, or one lies inside the other.
        IdentityError: the target holds another encoding or teacher of the same name.
        DamageError: bytes of the source are missing or not what was written.
        StorageError: a disk or bucket refused.
    """
    require_apart(target, source.path)
    create_cache(target)
    for name in source.encodings:
        encoding = source.encoding(name)
        folder = layout.encoding_folder(target, name)
        copy_sequences(encoding, folder, progress)
        copied = Encoding(folder, name)
        for teacher in encoding.teachers:
            copy_teacher(encoding.teacher(teacher), copied, progress)
        copy_alignments(encoding, folder, progress)


def stored_bytes(source: Cache) -> int:
    """Return the size of all sequences, predictions and alignments of a cache, as tables and receipts state it."""
    total = 0
    for encoding in map(source.encoding, source.encodings):
        total += sum(entry.bytes for entry in encoding.shards) + aligned_bytes(encoding)
        for teacher in map(encoding.teacher, encoding.teachers):
            total += sum(receipt.stored_bytes for receipt in teacher.receipts())
    return total


def copy_sequences(source: Encoding, folder: StorePath, progress: Advance) -> None:
    """Copy an encoding without its teachers: files, sequences, tables, then the manifest."""
    copied_shards = _copied_shards(source, folder) if object_exists(folder / layout.MANIFEST) else 0
    files = source.manifest.files
    write_objects(folder, {key: read_recorded(source.path / key, r.sha256, r.bytes) for key, r in files.items()})
    stored = object_sizes(layout.sequences_file(folder, 0).parent)

    def copy(shard: int) -> int:
        entry, target = source.shards[shard], layout.sequences_file(folder, shard)
        if shard >= copied_shards or stored.get(target.name) != entry.bytes:  # an earlier copy may have lost a file
            write_object(target, read_recorded(layout.sequences_file(source.path, shard), entry.sha256, entry.bytes))
        return entry.bytes

    remote = folder if isinstance(source.path, Path) else source.path
    for copied_bytes in in_parallel(copy, range(len(source.shards)), remote, AT_ONCE):
        progress(copied_bytes)
    for number, part in enumerate(source.manifest.parts):
        for place, sha256 in (
            (layout.file_table_file, part.files_sha256),
            (layout.shard_table_file, part.shards_sha256),
        ):
            write_object(place(folder, number), read_recorded(place(source.path, number), sha256, TABLE_BYTES))
    write_group(folder / "teachers")
    write_manifest(folder, source.manifest)


def _copied_shards(source: Encoding, folder: StorePath) -> int:
    """Return how many shards an earlier copy has; refuse anything but an earlier state of the source."""
    stored = read_manifest(folder, EncodingManifest)
    if stored.fingerprint != source.manifest.fingerprint or stored.parts != source.manifest.parts[: len(stored.parts)]:
        raise IdentityError(
            "the target holds another encoding of this name",
            where=folder,
            expected=f"{source.manifest.contents_fingerprint[:12]}… or an earlier state of it",
            found=f"{stored.contents_fingerprint[:12]}…",
            why="the target would mix two caches",
            fix="Choose another target",
        )
    return sum(totals.shards for totals in stored.splits.values())


def copy_teacher(source: CachedTeacher, encoding: Encoding, progress: Advance) -> None:
    """Copy a teacher into a copied encoding: manifest and metadata, then shard by shard, receipts last."""
    folder = layout.teacher_folder(encoding.path, source.name)
    if object_exists(folder / layout.MANIFEST):
        copied = read_manifest(folder, TeacherManifest)
        if copied.fingerprint != source.manifest.fingerprint:
            raise IdentityError(
                f"the target holds another teacher under the name {source.name!r}",
                where=folder,
                expected=f"{source.manifest.fingerprint[:12]}…",
                found=f"{copied.fingerprint[:12]}…",
                fix="Choose another target, or remove it there with 'logitcask drop'",
            )
        for layer in _changed_layers(copied, source.manifest):
            drop_hidden(encoding.teacher(source.name), layer)
        clear_remains(encoding.teacher(source.name), source.manifest)
    else:
        refuse_remains(source.name, folder)
    write_objects(folder, {key: source.file(key) for key in source.manifest.files})
    write_manifest(folder, source.manifest)
    if source.manifest.hidden:
        write_group(folder / "hidden")
    write_array_metadata(encoding, folder, source.manifest)
    done = set(names(layout.receipts_folder(folder)))
    remote = folder if isinstance(source.path, Path) else source.path
    copy = partial(_copy_shard, source, folder, done)
    for copied_bytes in in_parallel(copy, range(len(encoding.shards)), remote, AT_ONCE):
        progress(copied_bytes)
    gather_all(folder, len(encoding.shards))


def _changed_layers(copied: TeacherManifest, source: TeacherManifest) -> list[str]:
    """Return the layers of an earlier copy that the source no longer has, or stores differently now."""

    def described(manifest: TeacherManifest, layer: str) -> tuple[object, object]:
        return manifest.hidden.get(layer), manifest.files.get(layout.transform_key(layer))

    return [layer for layer in copied.hidden if described(copied, layer) != described(source, layer)]


def _copy_shard(source: CachedTeacher, folder: StorePath, done: set[str], shard: int) -> int:
    """Copy the objects that an earlier copy lacks, then the receipt; a receipt of other objects is removed first.

    Returns:
        Bytes of the shard's objects, copied now or before; 0 if it has not been captured.
    """
    receipt, path = source.receipt(shard), layout.receipt_file(folder, shard)
    if receipt is None:
        return 0
    content = read_object(layout.receipt_file(source.path, shard))
    if path.name not in done or read_object(path) != content:
        copied = _copied_objects(folder, shard)
        new = {key: record for key, record in receipt.objects.items() if copied.get(key) != record}
        if new.keys() & copied.keys():
            remove_object(path)
        write_objects(folder, {key: read_recorded(source.path / key, r.sha256, r.bytes) for key, r in new.items()})
        write_object(path, content)
    return receipt.stored_bytes


def _copied_objects(folder: StorePath, shard: int) -> dict[str, ObjectRecord]:
    """Return the objects that an earlier copy of a shard has; none if its receipt is damaged."""
    try:
        receipt = read_receipt(folder, shard)
    except DamageError:
        return {}
    return receipt.objects if receipt else {}
