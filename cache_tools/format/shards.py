"""The tables of one part of an encoding: its shards, and the corpus files that they came from.

Two Arrow files per part, written after its sequence files; the encoding's manifest,
written after them, records their hashes. A shard belongs to one split as a whole, so training
and held-out rows never share an object. Appended documents become another part: further
shards behind the others, whose files and rows stay what they are.
"""

import hashlib
from collections import abc
from dataclasses import asdict, dataclass, fields
from operator import eq
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache_tools.format import layout
from cache_tools.format.manifest import SPLITS, Part, Split, SplitTotals, WrittenBy
from cache_tools.format.sequences import (
    Sequence,
    largest_unpacked,
    read_table,
    table_bytes,
    unreadable,
    write_sequences,
)
from cache_tools.limits import OBJECT_BYTES, SEQUENCES_BYTES, SHARD_POSITIONS, SHARD_SEQUENCES, TABLE_BYTES, TOTAL
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


class ShardTable(abc.Sequence[ShardEntry]):
    """Shards as columns: 120 bytes for each, where as many objects of Python would take half a kilobyte.

    It reads like a list of ``ShardEntry``, each of which is made when it is asked for.

    Args:
        columns: An array (n,) for each field of ``ShardEntry``; ``split`` as bool, true if held out, and ``sha256`` as
            64 bytes.
    """

    def __init__(self, columns: dict[str, NDArray[Any]]) -> None:
        self._columns = columns

    @classmethod
    def of(cls, entries: abc.Sequence[ShardEntry]) -> "ShardTable":
        """Return a table of some entries."""
        return cls({name: np.array([_stored(getattr(e, name)) for e in entries], TYPES[name]) for name in TYPES})

    @classmethod
    def joined(cls, tables: abc.Sequence["ShardTable"]) -> "ShardTable":
        """Return the shards of several tables, in order."""
        if not tables:
            return cls.of([])
        return cls({name: np.concatenate([table._columns[name] for table in tables]) for name in TYPES})

    def numbers(self, name: str) -> NDArray[np.int64]:
        """Return one column of numbers: (n,) int64."""
        column: NDArray[np.int64] = self._columns[name]
        return column

    def split(self, shard: int) -> Split:
        """Return the split of a shard."""
        return "held_out" if self._columns["split"][shard] else "train"

    def sha256(self, shard: int) -> str:
        """Return the hash of a shard's sequence file."""
        digest: bytes = self._columns["sha256"][shard].item()
        return digest.decode()

    def of_split(self, split: Split) -> NDArray[np.int64]:
        """Return the indices of the shards of a split, ascending: (m,) int64."""
        return np.flatnonzero(self._columns["split"] == (split == "held_out"))

    def __len__(self) -> int:
        return len(self._columns["split"])

    @overload
    def __getitem__(self, index: int) -> ShardEntry: ...

    @overload
    def __getitem__(self, index: slice) -> list[ShardEntry]: ...

    def __getitem__(self, index: int | slice) -> ShardEntry | list[ShardEntry]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        values = {name: column[index].item() for name, column in self._columns.items()}
        held_out, digest = values.pop("split"), values.pop("sha256")
        return ShardEntry(split="held_out" if held_out else "train", sha256=digest.decode(), **values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, abc.Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]


SHA256_DIGITS = 64

TYPES = {field.name: "<i8" for field in fields(ShardEntry)} | {"split": "?", "sha256": f"S{SHA256_DIGITS}"}
"""How a table holds each column in memory."""


def _stored(value: int | str) -> int | str | bool:
    return value == "held_out" if value in SPLITS else value


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
    encoding: StorePath,
    number: int,
    files: dict[str, str],
    entries: list[ShardEntry],
    without_beginning: int = 0,
    written_by: tuple[WrittenBy, ...] = (),
) -> Part:
    """Write the tables of a part and return its entry in the encoding's manifest.

    Args:
        encoding: The encoding's folder.
        number: Index of the part.
        files: Hash of each corpus file by its name.
        entries: The part's shards.
        without_beginning: Sequences of chats that begin in the middle of their conversation.
        written_by: Models that wrote completions in these files.
    """
    listed, shards = file_table_bytes(files), shard_table_bytes(entries)
    write_object(layout.file_table_file(encoding, number), listed)
    write_object(layout.shard_table_file(encoding, number), shards)
    return Part(
        splits={split: totals(entries, split) for split in SPLITS},
        files_sha256=sha256(listed),
        shards_sha256=sha256(shards),
        chat_sequences_without_beginning=without_beginning,
        written_by=written_by,
    )


def file_table_bytes(files: dict[str, str]) -> bytes:
    """Return the table of corpus files, given as hashes by name."""
    return table_bytes(pa.Table.from_pydict({"name": list(files), "sha256": list(files.values())}, schema=FILES))


def shard_table_bytes(entries: abc.Sequence[ShardEntry]) -> bytes:
    """Return the table of a part's shards."""
    rows = [asdict(entry) for entry in entries]
    columns = {field.name: [row[field.name] for row in rows] for field in fields(ShardEntry)}
    return table_bytes(pa.Table.from_pydict(columns, schema=SHARDS))


def read_shard_tables(encoding: StorePath, parts: tuple[Part, ...]) -> ShardTable:
    """Read the shards of all parts, in order.

    Raises:
        DamageError: a table is missing, is not what was written, or states impossible values.
    """
    tables: list[ShardTable] = []
    for number, part in enumerate(parts):
        following = tables[-1][-1].first_sequence + tables[-1][-1].sequences if tables and tables[-1] else 0
        tables.append(read_shard_table(encoding, number, part, following))
    return ShardTable.joined(tables)


def read_shard_table(encoding: StorePath, number: int, part: Part, first_sequence: int | None = None) -> ShardTable:
    """Read the shards of one part, in order; raises as above.

    Args:
        encoding: Folder of the encoding.
        number: Index of the part.
        part: Its entry in the manifest.
        first_sequence: Id of its first sequence; None if the part before it cannot be read.
    """
    path = layout.shard_table_file(encoding, number)
    table = read_table(path, part.shards_sha256, SHARDS, TABLE_BYTES, TABLE_BYTES)
    if _is_sound(table, first_sequence):
        columns = {name: table.column(name).to_numpy() for name in SHARDS.names}
        columns["split"] = columns["split"] == "held_out"
        return ShardTable({name: columns[name].astype(kind) for name, kind in TYPES.items()})
    entries: list[ShardEntry] = []
    for row in zip(*(table.column(name).to_pylist() for name in SHARDS.names), strict=True):
        entry = ShardEntry(*row)
        following = entries[-1].first_sequence + entries[-1].sequences if entries else first_sequence
        wrong = _wrong(entry, entry.first_sequence if following is None else following)
        if wrong:
            raise unreadable(path, f"row {len(entries)}: {wrong}")
        entries.append(entry)
    return ShardTable.of(entries)


def _is_sound(table: pa.Table, first_sequence: int | None) -> bool:
    """Say whether every row passes what ``_wrong`` checks, by columns; of others, that function says what is wrong."""
    if any(column.null_count for column in table.columns) or not table.num_rows:
        return False
    numbers = {field.name: table.column(field.name).to_numpy() for field in SHARDS if field.type == pa.int64()}
    sequences, tokens, positions = numbers["sequences"], numbers["tokens"], numbers["positions"]
    firsts = numbers["first_sequence"]
    digests = table.column("sha256").to_pylist()
    checks = (
        np.isin(table.column("split").to_numpy(), SPLITS),
        np.array([len(digest) == SHA256_DIGITS and digest.isascii() for digest in digests]),
        (numbers["bytes"] > 0) & (numbers["bytes"] <= OBJECT_BYTES),
        firsts[1:] == firsts[:-1] + sequences[:-1],
        firsts[:1] == (firsts[0] if first_sequence is None else first_sequence),
        (sequences > 0) & (sequences <= tokens) & (sequences <= SHARD_SEQUENCES),
        (numbers["documents"] >= 0) & (numbers["documents"] <= TOTAL),
        (positions >= 0) & (positions <= tokens) & (positions <= SHARD_POSITIONS),
        (tokens >= 0) & (tokens <= SEQUENCES_BYTES // 8),  # and so no more than a file may unpack to
    )
    return all(bool(check.all()) for check in checks)


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
    if len(entry.sha256) != SHA256_DIGITS or not entry.sha256.isascii():
        return f"a hash of {len(entry.sha256)} characters, or of others than digits"
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


def totals(entries: abc.Sequence[ShardEntry], split: Split) -> SplitTotals:
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
