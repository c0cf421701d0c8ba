"""Alignments with students' tokenizers: checked, copied and removed, as teachers are.

An alignment follows from the encoding and a tokenizer, so nothing of it is ever lost for good: ``logitcask align`` with
the same tokenizer writes again what is missing.
"""

from collections.abc import Iterator

from cache_tools.alignments.stored import Alignment, AlignmentManifest
from cache_tools.errors import FormatError, IdentityError
from cache_tools.format import layout
from cache_tools.format.manifest import read_manifest, write_group, write_manifest
from cache_tools.format.sequences import read_recorded
from cache_tools.progress.reporter import Advance
from cache_tools.storage import (
    StorePath,
    names,
    object_exists,
    object_sha256,
    object_size,
    read_object,
    remove_object,
    remove_tree,
    write_object,
    write_objects,
)
from cache_tools.store.reader import Encoding

ALIGN = "run 'logitcask align' again with the same tokenizer"
"""What solves a problem of an alignment."""


def alignments(encoding: Encoding) -> Iterator[Alignment]:
    """Yield the alignments of an encoding, opened.

    Raises:
        FormatError: the manifest of one cannot be read.
        IdentityError: one belongs to another encoding.
    """
    for name in encoding.alignments:
        yield Alignment(encoding, name)


def shard_problems(alignment: Alignment, shard: int, deep: bool) -> Iterator[tuple[str, StorePath]]:
    """Yield what is wrong with an aligned shard, and where: a missing receipt is no damage.

    Args:
        alignment: The alignment.
        shard: The shard.
        deep: Whether to read the table and compare its values with the encoding, instead of comparing its size.

    Raises:
        DamageError: the receipt or the table cannot be used.
    """
    receipt, where = alignment.receipt(shard), layout.alignment_table_file(alignment.path, shard)
    if receipt is None:
        return
    size = object_size(where)
    if size is None:
        yield f"the table is missing; {ALIGN}", where
    elif size != receipt.table.bytes:
        yield f"{size} bytes instead of {receipt.table.bytes}; {ALIGN}", where
    elif deep and object_sha256(where, size) != receipt.table.sha256:
        yield f"the bytes are not those that were written; {ALIGN}", where
    elif deep:
        alignment.sequences(shard)


def aligned_bytes(encoding: Encoding) -> int:
    """Return the size of all tables of an encoding's alignments."""
    receipts = (alignment.receipt(shard) for alignment in alignments(encoding) for shard in range(len(encoding.shards)))
    return sum(receipt.table.bytes for receipt in receipts if receipt is not None)


def copy_alignments(source: Encoding, folder: StorePath, progress: Advance) -> None:
    """Copy the alignments of an encoding, or what an earlier copy lacks: manifest, tokenizer, tables, receipts last.

    Args:
        source: The encoding.
        folder: The folder of the copied encoding.
        progress: Called with the number of bytes that were copied.

    Raises:
        IdentityError: the target holds another alignment of the same name.
        DamageError: bytes of the source are missing or not what was written.
    """
    for alignment in alignments(source):
        target = layout.alignment_folder(folder, alignment.name)
        _refuse_another(target, alignment)
        files = alignment.manifest.files
        write_group(layout.alignments_folder(folder))
        write_objects(target, {key: read_recorded(alignment.path / key, r.sha256, r.bytes) for key, r in files.items()})
        write_manifest(target, alignment.manifest)
        for shard in range(len(source.shards)):
            progress(_copy_shard(alignment, target, shard))


def _refuse_another(target: StorePath, alignment: Alignment) -> None:
    if not object_exists(target / layout.MANIFEST):
        return
    copied = read_manifest(target, AlignmentManifest)
    if copied.fingerprint != alignment.manifest.fingerprint:
        raise IdentityError(
            f"the target holds another alignment under the name {alignment.name!r}",
            where=target,
            expected=f"{alignment.manifest.fingerprint[:12]}…",
            found=f"{copied.fingerprint[:12]}…",
            fix="Choose another target, or remove it there with 'logitcask drop --alignment'",
        )


def _copy_shard(alignment: Alignment, target: StorePath, shard: int) -> int:
    """Copy a table and its receipt, unless an earlier copy has both; return the table's bytes."""
    receipt, path = alignment.receipt(shard), layout.receipt_file(target, shard)
    if receipt is None:
        return 0
    table, content = layout.alignment_table_file(target, shard), read_object(layout.receipt_file(alignment.path, shard))
    if object_size(table) != receipt.table.bytes or not object_exists(path) or read_object(path) != content:
        own = layout.alignment_table_file(alignment.path, shard)
        write_object(table, read_recorded(own, receipt.table.sha256, receipt.table.bytes))
        write_object(path, content)
    return receipt.table.bytes


def drop_alignment(encoding: Encoding, name: str) -> None:
    """Delete an alignment; the manifest first, so that what a killed process leaves is no alignment.

    Raises:
        FormatError: there is no such alignment, and no remains of one.
    """
    folder = layout.alignment_folder(encoding.path, name)
    if not names(folder):
        raise FormatError(
            f"there is no alignment {name!r} here",
            where=encoding.path,
            expected=f"one of: {', '.join(encoding.alignments)}" if encoding.alignments else "an encoding with one",
            found=name,
        )
    remove_object(folder / layout.MANIFEST)
    remove_tree(folder)
