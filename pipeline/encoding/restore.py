"""Write the lost files of an encoding again, from the corpus that it was made from.

An encoding is deterministic, and its manifest and tables record the hash of every file. So a tokenizer file, a table
or a sequence file that is missing is made again and compared with its hash before it is written: what comes back
is what was there, or nothing, and the predictions that teachers made of it stay usable. Settings and corpus files
were compared before.

A part without its table of shards is encoded twice, once for the table and once for the sequence files that are
missing; so memory stays that of a capture. Damage to manifests is for a copy to mend.
"""

from collections.abc import Callable, Iterable

from cache_tools.errors import IdentityError
from cache_tools.format import layout
from cache_tools.format.manifest import EncodingManifest, Split
from cache_tools.format.sequences import Sequence, sequences_bytes
from cache_tools.format.shards import ShardEntry, file_table_bytes, shard_entry, shard_table_bytes
from cache_tools.storage import StorePath, sha256, write_object
from cache_tools.store.encoding_files import MissingFiles, first_shards, missing_files, shard_entries
from pipeline.encoding.shard_writer import ShardWriter

SplitSequences = Iterable[tuple[Split, Sequence]]

EncodeFiles = Callable[[list[str]], SplitSequences]
"""Encodes corpus files, given by name in the order of a part."""


def restore_tokenizer(
    folder: StorePath, manifest: EncodingManifest, missing: MissingFiles, files: Callable[[], dict[str, bytes]]
) -> None:
    """Write missing tokenizer files.

    Args:
        folder: The encoding's folder.
        manifest: The encoding's manifest.
        missing: What the encoding lacks.
        files: Returns the files of the tokenizer, by name.

    Raises:
        IdentityError: this version of transformers writes another file than the recorded one.
    """
    contents = files() if missing.tokenizer else {}
    for key in missing.tokenizer:
        content = contents.get(key.removeprefix(f"{layout.TOKENIZER}/"), b"")
        _write_recorded(folder / key, content, manifest.files[key].sha256)


def restore_file_tables(
    folder: StorePath, manifest: EncodingManifest, missing: MissingFiles, hashes: dict[str, str]
) -> None:
    """Write the missing table of corpus files; at most one, because two could not be told apart.

    Args:
        folder: The encoding's folder.
        manifest: The encoding's manifest.
        missing: What the encoding lacks.
        hashes: Hashes by name of the corpus files that no other part has, in the corpus' order.

    Raises:
        IdentityError: these are not the files of the part.
    """
    for part in missing.file_tables:
        path = layout.file_table_file(folder, part)
        _write_recorded(path, file_table_bytes(hashes), manifest.parts[part].files_sha256)


def restore_shards(
    folder: StorePath, manifest: EncodingManifest, files: dict[int, list[str]], encode_files: EncodeFiles
) -> None:
    """Write missing tables of shards, then missing sequence files.

    Args:
        folder: The encoding's folder.
        manifest: The encoding's manifest.
        files: The corpus files of each part.
        encode_files: Encodes them.

    Raises:
        IdentityError: what comes out is not what the encoding recorded.
        DamageError: a file is there, but is not what was written.
    """
    for part in missing_files(folder, manifest).shard_tables:
        table = shard_table_bytes(_encode_part(folder, manifest, part, encode_files(files[part]), set()))
        _write_recorded(layout.shard_table_file(folder, part), table, manifest.parts[part].shards_sha256)
    shards, firsts = set(missing_files(folder, manifest).shards), first_shards(manifest)
    for part, first in enumerate(firsts):
        count = sum(totals.shards for totals in manifest.parts[part].splits.values())
        missing_shards = shards & set(range(first, first + count))
        if missing_shards:
            _encode_part(folder, manifest, part, encode_files(files[part]), missing_shards)


def _encode_part(
    folder: StorePath,
    manifest: EncodingManifest,
    part: int,
    sequences: SplitSequences,
    missing_shards: set[int],
) -> list[ShardEntry]:
    """Encode a part as it was encoded, write the missing shards of it, and return its shards as they come out."""
    recorded, first = shard_entries(folder, manifest), first_shards(manifest)[part]
    left = set(missing_shards)

    def put(folder: StorePath, shard: int, split: Split, documents: int, members: list[Sequence]) -> ShardEntry:
        if missing_shards and shard not in left:
            return recorded[shard]
        content = sequences_bytes(members)
        if shard in left:
            _write_recorded(layout.sequences_file(folder, shard), content, recorded[shard].sha256)
            left.discard(shard)
        return shard_entry(split, documents, members, len(content), sha256(content))

    writer = ShardWriter(folder, manifest.positions_per_shard, [recorded[shard] for shard in range(first)], write=put)
    for split, sequence in sequences:
        writer.add(split, sequence)
        if missing_shards and not left:
            return []
    return writer.finish()


def _write_recorded(path: StorePath, content: bytes, expected_sha256: str) -> None:
    actual_sha256 = sha256(content)
    if actual_sha256 != expected_sha256:
        raise IdentityError(
            "a lost file cannot be restored: encoding the corpus again gives another file",
            where=path,
            expected=f"sha256 {expected_sha256[:12]}…",
            found=f"{actual_sha256[:12]}…",
            why="the corpus, or a version of tokenizers, transformers or pyarrow, has changed since the first capture",
            fix="Restore the corpus and the versions (a teacher's receipts name them), or copy the file from a backup",
        )
    write_object(path, content)
