"""The files of an encoding beside its manifest, which the same corpus and tokenizer determine to the byte.

Tokenizer, tables and sequence files have recorded hashes, so one that is damaged may be forgotten and written again
from the corpus: no prediction is lost with it. ``repair`` forgets (``lost_files``), ``capture`` finds what is
missing (``missing_files``) and writes it. Looking costs one listing of each folder and the tables;
only ``lost_files`` reads everything.

A subset is no work of a corpus, so its files are not forgotten: they come back by making or copying it again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from cache_tools.errors import DamageError
from cache_tools.format import layout
from cache_tools.format.manifest import EncodingManifest, Policy
from cache_tools.format.sequences import read_recorded
from cache_tools.format.shards import ShardEntry, read_file_table, read_shard_table
from cache_tools.limits import TABLE_BYTES
from cache_tools.storage import StorePath, object_exists, object_size, object_sizes

MEND = "Run 'logitcask repair' on the cache, then the capture with the same corpus again: it writes this file anew"


@dataclass(frozen=True)
class MissingFiles:
    """What an encoding lacks.

    Attributes:
        tokenizer: Keys of tokenizer files.
        file_tables: Parts without a table of corpus files.
        shard_tables: Parts without a table of shards.
        shards: Shards without a sequence file, ascending; of parts whose table of shards is there.
    """

    tokenizer: tuple[str, ...] = ()
    file_tables: tuple[int, ...] = ()
    shard_tables: tuple[int, ...] = ()
    shards: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.tokenizer or self.file_tables or self.shard_tables or self.shards)


@dataclass(frozen=True)
class TextOrigin:
    """Who wrote the text of an encoding, as far as it is recorded.

    Attributes:
        policies: Models that wrote completions, in the order of parts, each once.
        complete: Whether they wrote all of it: the tokens at all kept positions.
    """

    policies: tuple[Policy, ...]
    complete: bool


def text_origin(folder: StorePath, manifest: EncodingManifest) -> TextOrigin:
    """Return who wrote the text of an encoding; the tables of corpus files are read only if a model did.

    Raises:
        DamageError: a table is missing or is not what was written.
    """
    written = [entry for part in manifest.parts for entry in part.written_by]
    complete = bool(written) and all(
        {name for entry in part.written_by for name in entry.files} >= set(read_file_table(folder, number, part))
        for number, part in enumerate(manifest.parts)
    )
    policies = {entry.policy.fingerprint: entry.policy for entry in written}
    return TextOrigin(tuple(policies.values()), complete)


def missing_files(folder: StorePath, manifest: EncodingManifest) -> MissingFiles:
    """Return what an encoding lacks, from names, sizes and tables.

    Raises:
        DamageError: a file is there, but with another size or other bytes than were written.
    """
    tokenizer = {key: object_size(folder / key) for key in manifest.files}
    for key, record in manifest.files.items():
        _check_size(folder / key, tokenizer[key], record.bytes)
    entries = shard_entries(folder, manifest)
    sequences = object_sizes(layout.sequences_file(folder, 0).parent)
    for shard, entry in entries.items():
        path = layout.sequences_file(folder, shard)
        _check_size(path, sequences.get(path.name), entry.bytes)
    parts = range(len(manifest.parts))
    return MissingFiles(
        tuple(key for key, size in tokenizer.items() if size is None),
        tuple(part for part in parts if not object_exists(layout.file_table_file(folder, part))),
        tuple(part for part in parts if not object_exists(layout.shard_table_file(folder, part))),
        tuple(shard for shard in entries if layout.sequences_file(folder, shard).name not in sequences),
    )


def shard_entries(folder: StorePath, manifest: EncodingManifest) -> dict[int, ShardEntry]:
    """Return the entry of each shard of the parts whose table is there, by the number of the shard.

    Raises:
        DamageError: a table is not what was written.
    """
    entries: dict[int, ShardEntry] = {}
    for part, first in enumerate(first_shards(manifest)):
        if object_exists(layout.shard_table_file(folder, part)):
            entries |= dict(enumerate(read_shard_table(folder, part, manifest.parts[part]), first))
    return entries


def first_shards(manifest: EncodingManifest) -> list[int]:
    """Return the number of each part's first shard."""
    counts = [sum(totals.shards for totals in part.splits.values()) for part in manifest.parts]
    return [0, *accumulate(counts)][: len(counts)]


def lost_files(folder: StorePath, manifest: EncodingManifest) -> Iterator[StorePath]:
    """Yield the files that are missing or not what was written, and that a capture can write again."""
    if "subset" in manifest.identity:
        return
    for path, sha256, largest_bytes in _recorded(folder, manifest):
        try:
            read_recorded(path, sha256, largest_bytes)
        except DamageError:
            yield path


def _recorded(folder: StorePath, manifest: EncodingManifest) -> Iterator[tuple[StorePath, str, int]]:
    """Yield each file with its hash and the largest size that it can have."""
    for key, record in manifest.files.items():
        yield folder / key, record.sha256, record.bytes
    for number, (part, first) in enumerate(zip(manifest.parts, first_shards(manifest), strict=True)):
        yield layout.file_table_file(folder, number), part.files_sha256, TABLE_BYTES
        yield layout.shard_table_file(folder, number), part.shards_sha256, TABLE_BYTES
        try:
            entries = read_shard_table(folder, number, part)
        except DamageError:
            continue
        for shard, entry in enumerate(entries, first):
            yield layout.sequences_file(folder, shard), entry.sha256, entry.bytes


def _check_size(path: StorePath, actual_bytes: int | None, expected_bytes: int) -> None:
    if actual_bytes is not None and actual_bytes != expected_bytes:
        raise DamageError(
            "the file is not the one that was written",
            where=path,
            expected=f"{expected_bytes} bytes",
            found=f"{actual_bytes} bytes",
            why="predictions would be joined to other tokens",
            fix=MEND,
        )
