"""The sequences of an import: each row of a file becomes one sequence, in shards of one split each.

The same files give the same bytes. An encoding that is there already is not written again: what would be
written is compared with it, so a second teacher over the same sequences shares them, and one over others is refused.
Memory: the sequences of two open shards.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import ConfigError, IdentityError
from cache_tools.exchange.plan import ImportPlan, row_name
from cache_tools.format import layout
from cache_tools.format.manifest import (
    EncodingManifest,
    ObjectRecord,
    Split,
    read_manifest,
    write_group,
    write_manifest,
)
from cache_tools.format.sequences import Sequence, sequences_bytes
from cache_tools.format.shards import ShardEntry, shard_entry, write_part, write_shard
from cache_tools.progress.reporter import Reporter
from cache_tools.row_files.alignment import TokenRows, read_tokens
from cache_tools.row_files.source_rows import columns_to_read
from cache_tools.storage import StorePath, object_exists, remove_partial, remove_partials, sha256, write_objects
from cache_tools.store.claims import claimed
from cache_tools.store.reader import Encoding

UNASSIGNED = -1
SaveShard = Callable[[int, Split, int, list[Sequence]], ShardEntry]


@dataclass
class _Shards:
    """Fills one open shard for each split, and saves it when the next sequence would not fit."""

    size: int
    save: SaveShard
    open: dict[Split, list[Sequence]] = field(default_factory=lambda: {"train": [], "held_out": []})
    rows: dict[Split, int] = field(default_factory=lambda: {"train": 0, "held_out": 0})
    last_document: dict[Split, str] = field(default_factory=dict)
    entries: list[ShardEntry] = field(default_factory=list)

    def add(self, split: Split, sequence: Sequence) -> None:
        if self.rows[split] + sequence.num_positions > self.size:
            self._save(split)
        self.open[split].append(sequence)
        self.rows[split] += sequence.num_positions

    def finish(self) -> list[ShardEntry]:
        for split in ("train", "held_out"):
            if self.open[split] and not self.rows[split]:  # rows without predictions never begin a further shard
                raise ConfigError(
                    f"the rows of the split {split} hold no predictions",
                    where=self.open[split][0].document_id,
                    why="a shard has at least one position",
                    fix="Leave these rows out, or choose another --held-out",
                )
            if self.open[split]:
                self._save(split)
        return self.entries

    def _save(self, split: Split) -> None:
        row, sequences = len(self.entries) * self.size, []
        first = self.entries[-1].first_sequence + self.entries[-1].sequences if self.entries else 0
        for number, sequence in enumerate(self.open[split], first):
            sequences.append(replace(sequence, sequence_id=number, first_position=row))
            row += sequence.num_positions
        documents = len({s.document_id for s in sequences} - {self.last_document.get(split)})
        self.last_document[split] = sequences[-1].document_id
        self.entries.append(self.save(len(self.entries), split, documents, sequences))
        self.open[split], self.rows[split] = [], 0


@dataclass(frozen=True)
class ImportedEncoding:
    """The sequences of an import.

    Attributes:
        encoding: As it lies in the cache.
        widest: Entries of the widest prediction.
    """

    encoding: Encoding
    widest: int


def encoding_identity(plan: ImportPlan) -> dict[str, object]:
    """Return everything that determines how rows of files become sequences."""
    settings = {
        "objective": plan.objective,
        "held_out_fraction": plan.options.held_out_fraction,
        "positions_per_shard": plan.options.positions_per_shard,
    }
    return {"corpus": {"imported": "token ids"}, "encoding": settings, "tokenizer": plan.tokenizer.identity}


def write_encoding(cache: StorePath, plan: ImportPlan, reporter: Reporter) -> ImportedEncoding:
    """Write the sequences of an import, or compare them with those that are there.

    Raises:
        ConfigError: a row is longer than a shard, or a split has no predictions.
        FormatError: a row cannot be a sequence.
        IdentityError: the cache holds other sequences under this name.
    """
    folder = layout.encoding_folder(cache, plan.options.encoding)
    identity = encoding_identity(plan)
    if object_exists(folder / layout.MANIFEST):
        widest = _compare(folder, identity, plan, reporter)
        return ImportedEncoding(Encoding(folder, plan.options.encoding), widest)
    work = {"identity": identity, "files": plan.hashes}
    with claimed(folder, work, "the cache already holds another encoding of this name") as claim:

        def save(shard: int, split: Split, documents: int, sequences: list[Sequence]) -> ShardEntry:
            claim.hold()
            return write_shard(folder, shard, split, documents, sequences)

        entries, widest = _filled(plan, save, reporter)
        files = {f"{layout.TOKENIZER}/{name}": content for name, content in plan.tokenizer.files.items()}
        write_objects(folder, files)
        part = write_part(folder, 0, plan.hashes, entries)
        write_group(folder / "teachers")
        manifest = EncodingManifest(
            identity=identity,
            objective=plan.objective,
            vocabulary_size=plan.tokenizer.size,
            positions_per_shard=plan.options.positions_per_shard,
            parts=(part,),
            files={key: ObjectRecord.of(content) for key, content in files.items()},
        )
        claim.hold()
        write_manifest(folder, manifest)
        _clear_partial(folder, len(entries))
    return ImportedEncoding(Encoding(folder, plan.options.encoding), widest)


def _clear_partial(folder: StorePath, shards: int) -> None:
    """Remove the unfinished files that a killed import left."""
    for path in (layout.file_table_file(folder, 0), layout.shard_table_file(folder, 0), folder / layout.MANIFEST):
        remove_partial(path)
    sequences = [layout.sequences_file(folder, shard) for shard in range(shards)]
    if sequences:
        remove_partials(sequences[0].parent, {path.name for path in sequences})


def _filled(plan: ImportPlan, save: SaveShard, reporter: Reporter) -> tuple[list[ShardEntry], int]:
    """Pass all sequences to ``save``, shard by shard; return the shards and the entries of the widest prediction."""
    shards, widest = _Shards(plan.options.positions_per_shard, save), 0
    reporter.stage("reading tokens", sum(file.num_rows for file in plan.files), "rows")
    for number, (file, source) in enumerate(zip(plan.files, plan.formats, strict=True)):
        columns = columns_to_read(source, file.schema, values=False)
        for place, batch in file.batches(columns, lambda first, stop: True):
            rows = read_tokens(batch, place, source, plan.first_token, plan.tokenizer.size)
            widest = max(widest, rows.widest)
            held_out = plan.held_out[number][place.first_row :]
            for held, sequence in zip(held_out, _sequences(rows, place.file, place.first_row), strict=False):
                _check_length(sequence, plan)
                shards.add("held_out" if held else "train", sequence)
            reporter.advance(len(rows.tokens))
    return shards.finish(), widest


def _sequences(rows: TokenRows, file: str, first_row: int) -> Iterator[Sequence]:
    for number, (tokens, mask) in enumerate(zip(rows.tokens, rows.masks(), strict=True)):
        name = rows.documents[number] if rows.documents else row_name(file, first_row + number)
        original: NDArray[np.uint32] | None = rows.originals[number] if rows.originals else None
        lengths = np.zeros(len(tokens), np.uint32)
        yield Sequence(UNASSIGNED, name, name, UNASSIGNED, tokens, mask, original, "", lengths)


def _check_length(sequence: Sequence, plan: ImportPlan) -> None:
    if sequence.num_positions > plan.options.positions_per_shard:
        raise ConfigError(
            "a row has more predictions than a shard can hold",
            where=sequence.document_id,
            expected=f"at most {plan.options.positions_per_shard}",
            found=sequence.num_positions,
            fix="Set a larger --positions-per-shard",
        )


def _compare(folder: StorePath, identity: dict[str, object], plan: ImportPlan, reporter: Reporter) -> int:
    """Refuse an encoding with other sequences; return the entries of the widest prediction."""
    stored = read_manifest(folder, EncodingManifest)
    there = Encoding(folder, plan.options.encoding).shards

    def save(shard: int, split: Split, documents: int, sequences: list[Sequence]) -> ShardEntry:
        content = sequences_bytes(sequences)
        entry = shard_entry(split, documents, sequences, len(content), sha256(content))
        if shard >= len(there) or there[shard] != entry:
            raise _other_sequences(folder, f"shard {shard} has other sequences")
        return entry

    if stored.identity != identity:
        raise _other_sequences(folder, "another tokenizer or other settings")
    entries, widest = _filled(plan, save, reporter)
    if len(entries) != len(there):
        raise _other_sequences(folder, f"{len(there)} shards instead of {len(entries)}")
    return widest


def _other_sequences(folder: StorePath, found: str) -> IdentityError:
    return IdentityError(
        "the cache holds other sequences under this name",
        where=folder,
        expected="the sequences of these files",
        found=found,
        why="predictions would be joined to other tokens",
        fix="Choose another name with --encoding, or another cache",
    )
