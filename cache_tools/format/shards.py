"""The tables of one part of an encoding: its shards, and the corpus files that they came from.

Two Arrow files per part, written after its sequence files; the encoding's manifest,
written after them, records their hashes. A shard belongs to one split as a whole, so training
and held-out rows never share an object. Appended documents become another part: further
shards behind the others, whose files and rows stay what they are.
"""

import hashlib
from dataclasses import asdict, dataclass, fields

import pyarrow as pa

from cache_tools.format import layout
from cache_tools.format.manifest import SPLITS, Part, Split, SplitTotals
from cache_tools.format.sequences import (
    Sequence,
    largest_unpacked,
    read_table,
    table_bytes,
    unreadable,
    write_sequences,
)
from cache_tools.limits import OBJECT_BYTES, SHARD_POSITIONS, SHARD_SEQUENCES, TABLE_BYTES, TOTAL
from cache_tools.storage import StorePath, sha256, write_object

SHARDS = pa.schema(
    [
        ("split", pa.string()),
        ("documents", pa.int64()),
        ("sequences", pa.int64()),
        ("first_sequence", pa.int64()),
        ("tokens", pa.int64()),
        ("positions", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
    ]
)
FILES = pa.schema([("name", pa.string()), ("sha256", pa.string())])


@dataclass(frozen=True)
class ShardEntry:
    """One row of the table.

    Attributes:
        split: ``train`` or ``held_out``.
        documents: Documents that begin in this shard.
        sequences: Whole sequences in this shard.
        first_sequence: ``sequence_id`` of the first of them.
        tokens: Tokens of those sequences.
        positions: Kept positions, at most ``positions_per_shard``.
        bytes: Size of the sequence file.
        sha256: Hash of the sequence file.
    """

    split: Split
    documents: int
    sequences: int
    first_sequence: int
    tokens: int
    positions: int
    bytes: int
    sha256: str

    @property
    def unpacked_bytes(self) -> int:
        """What the sequence file may unpack to."""
        return largest_unpacked(self.tokens)


def write_shard(encoding: StorePath, shard: int, split: Split, documents: int, sequences: list[Sequence]) -> ShardEntry:
    """Write the sequences of a shard and return its row of the table.

    Args:
        encoding: The encoding's folder.
        shard: Index of the shard.
        split: Which it belongs to.
        documents: Documents that begin in it.
        sequences: Numbered, and with their rows.

    Raises:
        ConfigError: they are more than a reader unpacks.
    """
    size, digest = write_sequences(layout.sequences_file(encoding, shard), sequences)
    return shard_entry(split, documents, sequences, size, digest)


def shard_entry(split: Split, documents: int, sequences: list[Sequence], size: int, digest: str) -> ShardEntry:
    """Return the row of the table for a sequence file of so many bytes with this hash."""
    return ShardEntry(
        split=split,
        documents=documents,
        sequences=len(sequences),
        first_sequence=sequences[0].sequence_id,
        tokens=sum(len(sequence.input_ids) for sequence in sequences),
        positions=sum(sequence.num_positions for sequence in sequences),
        bytes=size,
        sha256=digest,
    )


def write_part(
    encoding: StorePath, number: int, files: dict[str, str], entries: list[ShardEntry], without_beginning: int = 0
) -> Part:
    """Write the tables of a part and return its entry in the encoding's manifest.

    Args:
        encoding: The encoding's folder.
        number: Index of the part.
        files: Hash of each corpus file by its name.
        entries: The part's shards.
        without_beginning: Sequences of chats that begin in the middle of their conversation.
    """
    listed, shards = file_table_bytes(files), shard_table_bytes(entries)
    write_object(layout.file_table_file(encoding, number), listed)
    write_object(layout.shard_table_file(encoding, number), shards)
    return Part(
        splits={split: totals(entries, split) for split in SPLITS},
        files_sha256=sha256(listed),
        shards_sha256=sha256(shards),
        chat_sequences_without_beginning=without_beginning,
    )


def file_table_bytes(files: dict[str, str]) -> bytes:
    """Return the table of corpus files, given as hashes by name."""
    return table_bytes(pa.Table.from_pydict({"name": list(files), "sha256": list(files.values())}, schema=FILES))


def shard_table_bytes(entries: list[ShardEntry]) -> bytes:
    """Return the table of a part's shards."""
    rows = [asdict(entry) for entry in entries]
    columns = {field.name: [row[field.name] for row in rows] for field in fields(ShardEntry)}
    return table_bytes(pa.Table.from_pydict(columns, schema=SHARDS))


def read_shard_tables(encoding: StorePath, parts: tuple[Part, ...]) -> list[ShardEntry]:
    """Read the shards of all parts, in order.

    Raises:
        DamageError: a table is missing, is not what was written, or states impossible values.
    """
    entries: list[ShardEntry] = []
    for number, part in enumerate(parts):
        following = entries[-1].first_sequence + entries[-1].sequences if entries else 0
        entries += read_shard_table(encoding, number, part, following)
    return entries


def read_shard_table(
    encoding: StorePath, number: int, part: Part, first_sequence: int | None = None
) -> list[ShardEntry]:
    """Read the shards of one part, in order; raises as above.

    Args:
        encoding: Folder of the encoding.
        number: Index of the part.
        part: Its entry in the manifest.
        first_sequence: Id of its first sequence; None if the part before it cannot be read.
    """
    path = layout.shard_table_file(encoding, number)
    table = read_table(path, part.shards_sha256, SHARDS, TABLE_BYTES, TABLE_BYTES)
    entries: list[ShardEntry] = []
    for row in zip(*(table.column(name).to_pylist() for name in SHARDS.names), strict=True):
        entry = ShardEntry(*row)
        following = entries[-1].first_sequence + entries[-1].sequences if entries else first_sequence
        wrong = _wrong(entry, entry.first_sequence if following is None else following)
        if wrong:
            raise unreadable(path, f"row {len(entries)}: {wrong}")
        entries.append(entry)
    return entries


def _wrong(entry: ShardEntry, first_sequence: int) -> str | None:
    """Return what cannot be in a row of the table, None if nothing."""
    if any(value is None for value in vars(entry).values()):
        return "a value is missing"
    if entry.split not in SPLITS:
        return f"the split {entry.split!r}"
    if entry.first_sequence != first_sequence:
        return f"first_sequence {entry.first_sequence} instead of {first_sequence}"
    if not 0 < entry.sequences <= min(entry.tokens, SHARD_SEQUENCES) or not 0 <= entry.documents <= TOTAL:
        return f"{entry.documents} documents, {entry.sequences} sequences, {entry.tokens} tokens"
    if not 0 <= entry.positions <= min(entry.tokens, SHARD_POSITIONS) or not entry.tokens <= entry.unpacked_bytes // 8:
        return f"{entry.positions} positions, {entry.tokens} tokens"
    return None if 0 < entry.bytes <= OBJECT_BYTES else f"{entry.bytes} bytes"


def read_file_tables(encoding: StorePath, parts: tuple[Part, ...]) -> dict[str, str]:
    """Read the corpus files of all parts: hash by name.

    Raises:
        DamageError: a table is missing or not what was written.
    """
    tables = (read_file_table(encoding, number, part) for number, part in enumerate(parts))
    return {name: digest for table in tables for name, digest in table.items()}


def read_file_table(encoding: StorePath, number: int, part: Part) -> dict[str, str]:
    """Read the corpus files of one part, in the order in which they were encoded; raises as above."""
    path = layout.file_table_file(encoding, number)
    table = read_table(path, part.files_sha256, FILES, TABLE_BYTES, TABLE_BYTES)
    if any(column.null_count for column in table.columns):
        raise unreadable(path, "a name or hash is missing")
    return dict(zip(*(table.column(name).to_pylist() for name in FILES.names), strict=True))


def totals(entries: list[ShardEntry], split: Split) -> SplitTotals:
    """Return the sums over the shards of one split."""
    counted = [entry for entry in entries if entry.split == split]
    names = ("documents", "sequences", "tokens", "positions")
    return SplitTotals(**{name: sum(getattr(entry, name) for entry in counted) for name in names}, shards=len(counted))


def is_held_out(group: str, fraction: float) -> bool:
    """Return whether a group of documents belongs to the held-out split: a hash of its name decides, nothing else.

    Args:
        group: Group name; documents without one use their own id.
        fraction: Expected share of groups that are held out, in [0, 1].
    """
    digest = hashlib.sha256(group.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2.0**64
