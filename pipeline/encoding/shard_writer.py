"""Sequences fill shards: the two splits side by side, each shard of one split.

Sequence ids and rows follow the order in which shards are written, behind those of earlier parts.
"""

from collections import abc
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from cache_tools.format.manifest import Split
from cache_tools.format.sequences import Sequence
from cache_tools.format.shards import ShardEntry, write_shard
from cache_tools.storage import StorePath

WriteShard = Callable[[StorePath, int, Split, int, list[Sequence]], ShardEntry]


@dataclass
class ShardWriter:
    """Fills one open shard per split and writes it when the next sequence would not fit.

    Attributes:
        folder: The encoding's folder.
        shard_rows: Positions that a shard can hold.
        before: Shards of earlier parts.
        write: Writes a shard; arguments and result as for ``write_shard``.
    """

    folder: StorePath
    shard_rows: int
    before: abc.Sequence[ShardEntry]
    write: WriteShard = write_shard
    open: dict[Split, list[Sequence]] = field(default_factory=lambda: {"train": [], "held_out": []})
    rows: dict[Split, int] = field(default_factory=lambda: {"train": 0, "held_out": 0})
    entries: list[ShardEntry] = field(default_factory=list)
    last_document: dict[Split, str] = field(default_factory=dict)

    def add(self, split: Split, sequence: Sequence) -> None:
        """Take the next sequence of a split."""
        if self.rows[split] + sequence.num_positions > self.shard_rows:
            self._write(split)
        self.open[split].append(sequence)
        self.rows[split] += sequence.num_positions

    def finish(self) -> list[ShardEntry]:
        """Write the shards that are still open; return all that were written."""
        for split, sequences in self.open.items():
            if sequences:
                self._write(split)
        return self.entries

    def _write(self, split: Split) -> None:
        shard = len(self.before) + len(self.entries)
        last = (self.entries or self.before)[-1] if shard else None
        sequences, row = [], shard * self.shard_rows
        first = last.first_sequence + last.sequences if last else 0
        for number, sequence in enumerate(self.open[split], first):
            sequences.append(replace(sequence, sequence_id=number, first_position=row))
            row += sequence.num_positions
        documents = self._new_documents(split, sequences)
        self.entries.append(self.write(self.folder, shard, split, documents, sequences))
        self.open[split], self.rows[split] = [], 0

    def _new_documents(self, split: Split, sequences: list[Sequence]) -> int:
        """Count the documents that begin in this shard; one may have begun in the shard before."""
        ids = {sequence.document_id for sequence in sequences} - {self.last_document.get(split)}
        self.last_document[split] = sequences[-1].document_id
        return len(ids)
