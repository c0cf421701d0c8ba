"""The shard table of an encoding: how many sequences and positions each shard holds, and of which split.

One Arrow file, written after all sequence files; the encoding's manifest, written after
it, records its hash. A shard belongs to one split as a whole, so training and held-out
rows never share an object and appended documents simply become further shards.
"""

import hashlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pyarrow as pa

from cache_tools import layout
from cache_tools.files import write_atomically
from cache_tools.manifest import Split
from cache_tools.sequences import read_table, table_bytes

SCHEMA = pa.schema(
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


def write_shard_table(encoding: Path, entries: list[ShardEntry]) -> str:
    """Write the table and return the sha256 of its file."""
    names = [field.name for field in fields(ShardEntry)]
    rows = [asdict(entry) for entry in entries]
    table = pa.Table.from_pydict({name: [row[name] for row in rows] for name in names}, schema=SCHEMA)
    content = table_bytes(table)
    write_atomically(layout.shard_table_file(encoding), content)
    return hashlib.sha256(content).hexdigest()


def read_shard_table(encoding: Path, sha256: str) -> list[ShardEntry]:
    """Read the table whose hash the encoding's manifest records.

    Raises:
        DamageError: it is missing or not what was written.
    """
    table = read_table(layout.shard_table_file(encoding), sha256)
    return [ShardEntry(**row) for row in table.to_pylist()]


def totals(entries: list[ShardEntry], split: Split) -> dict[str, int]:
    """Return the sums over the shards of one split, as ``SplitTotals`` wants them."""
    chosen = [entry for entry in entries if entry.split == split]
    names = ("documents", "sequences", "tokens", "positions")
    return {name: sum(getattr(entry, name) for entry in chosen) for name in names} | {"shards": len(chosen)}
