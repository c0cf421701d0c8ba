"""An alignment on disk: a part of an encoding with a manifest of its own, written shard by shard.

::

    <encoding>/alignments/<name>/zarr.json              the manifest
    <encoding>/alignments/<name>/tokenizer/             the student's tokenizer, no code
    <encoding>/alignments/<name>/tables/00000.arrow     the student's sequences of shard 0, with their teacher rows
    <encoding>/alignments/<name>/receipts/00000.json    hash of that table and of the sequences that it belongs to

It belongs to sequences and not to a teacher: rows are counted from each sequence's first, so one alignment serves all
teachers of the encoding, and those that come later. Nothing else of a cache refers to it. ``FORMAT.md`` is normative.

A shard is aligned if it has a receipt, as with teachers. The same tokenizer and sequences give the same bytes, so two
processes that align the same shard do no harm.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, ValidationError, field_validator

from cache_tools.alignments.matching import KINDS, NO_ROW, OUTSIDE
from cache_tools.errors import DamageError, FormatError, IdentityError, IncompleteError
from cache_tools.format import layout
from cache_tools.format.fingerprint import fingerprint
from cache_tools.format.manifest import Count, Document, Key, ObjectRecord, Sha256, read_manifest
from cache_tools.format.sealed import UNSEALED, read_sealed, sealed_bytes
from cache_tools.format.sequences import Sequence, read_recorded, read_table, table_bytes, unreadable
from cache_tools.format.tokenizer_files import check_keys, without_code
from cache_tools.format.vocabulary import Vocabulary
from cache_tools.limits import SEQUENCES_BYTES
from cache_tools.mappings import Identity
from cache_tools.requests.in_flight import in_parallel
from cache_tools.storage import StorePath, read_object, write_object
from cache_tools.store.reader import Encoding

VERSION = 1
"""Version of the rules that this module writes; part of an alignment's identity."""

SCHEMA = pa.schema(
    [
        pa.field("sequence_id", pa.int64(), nullable=False),
        pa.field("input_ids", pa.list_(pa.uint32()), nullable=False),
        pa.field("byte_lengths", pa.list_(pa.uint32()), nullable=False),
        pa.field("kinds", pa.list_(pa.uint8()), nullable=False),
        pa.field("first_rows", pa.list_(pa.int32()), nullable=False),
        pa.field("num_rows", pa.list_(pa.uint16()), nullable=False),
    ]
)

SHARDS_IN_MEMORY = 8


@dataclass(frozen=True)
class AlignedSequence:
    """One sequence as a student reads it.

    Attributes:
        sequence_id: The sequence of the encoding whose text it is.
        input_ids: (n,) uint32, the student's tokens.
        byte_lengths: (n,) uint32, bytes of the text that each covers.
        kinds: (n,) uint8, how the prediction at each position corresponds to the teacher's, see ``matching.py``.
        first_rows: (n,) int32, the teacher's row at each position, counted from the sequence's first; -1 for none.
        num_rows: (n,) uint16, how many consecutive rows belong to the predicted token.
    """

    sequence_id: int
    input_ids: NDArray[np.uint32]
    byte_lengths: NDArray[np.uint32]
    kinds: NDArray[np.uint8]
    first_rows: NDArray[np.int32]
    num_rows: NDArray[np.uint16]

    def positions(self) -> NDArray[np.int64]:
        """Return the positions that a student is trained on: (p,) int64, ascending."""
        return np.flatnonzero(self.kinds != OUTSIDE)


class AlignmentManifest(Document):
    """The manifest of an alignment.

    Attributes:
        identity: ``version`` of the rules, ``encoding`` (fingerprint), and ``tokenizer`` as in an encoding's identity.
        vocabulary_size: Highest id of the student's tokenizer plus one.
        files: The tokenizer's files, by key relative to the alignment.
    """

    identity: Identity
    vocabulary_size: int = Field(gt=0, lt=2**32)
    files: dict[Key, ObjectRecord]

    @field_validator("files")
    @classmethod
    def _data_only(cls, files: dict[str, ObjectRecord]) -> dict[str, ObjectRecord]:
        check_keys(files)
        return files

    @field_validator("identity")
    @classmethod
    def _complete(cls, identity: Identity) -> Identity:
        tokenizer = identity.get("tokenizer")
        if identity.get("version") != VERSION:
            raise ValueError(f"version {identity.get('version')} instead of {VERSION}")
        if not isinstance(tokenizer, dict) or not isinstance(tokenizer.get("vocabulary"), str):
            raise ValueError("the identity does not name the tokenizer")
        return identity

    @property
    def fingerprint(self) -> str:
        """sha256 of the identity."""
        return fingerprint(self.identity)

    @property
    def vocabulary(self) -> Vocabulary:
        """What a student must know of the tokenizer."""
        return Vocabulary(self.vocabulary_size, self.identity["tokenizer"]["vocabulary"])


class AlignmentReceipt(Document):
    """What one aligned shard consists of.

    Attributes:
        shard: Index of the shard.
        alignment_fingerprint: Identity of the alignment.
        sequences_sha256: Hash of the encoding's sequence file that was aligned.
        table: Size and hash of the table.
        tokens: The student's tokens.
        kinds: Number of positions of each kind.
        with_row: Number of positions that have a teacher row.
        longest_tokens: Tokens of the longest sequence.
    """

    shard: Count
    alignment_fingerprint: Sha256
    sequences_sha256: Sha256
    table: ObjectRecord
    tokens: Count
    kinds: dict[str, Count]
    with_row: Count
    longest_tokens: Count


class Alignment:
    """An alignment of an encoding, opened.

    Args:
        encoding: The encoding.
        name: Name of the alignment.

    Raises:
        FormatError: there is no such alignment, or one of another version.
        IdentityError: it belongs to another encoding.
    """

    def __init__(self, encoding: Encoding, name: str) -> None:
        if name not in encoding.alignments:
            raise FormatError(
                f"there is no alignment {name!r} here",
                where=encoding.path,
                expected=f"one of: {', '.join(encoding.alignments)}" if encoding.alignments else "",
                fix="Run 'logitcask align' with the student's tokenizer",
            )
        self.encoding, self.name = encoding, name
        self.path = layout.alignment_folder(encoding.path, name)
        self.manifest = read_manifest(self.path, AlignmentManifest)
        if self.manifest.identity.get("encoding") != encoding.manifest.fingerprint:
            raise IdentityError(
                "this alignment belongs to another encoding",
                where=self.path,
                why="its rows would be those of other text",
                fix="Delete this folder and run 'logitcask align' again",
            )
        self._sequences = lru_cache(SHARDS_IN_MEMORY)(self._read_sequences)

    def __reduce__(self) -> tuple[type["Alignment"], tuple[Encoding, str]]:
        """Go on in another process: what is in memory stays behind."""
        return Alignment, (self.encoding, self.name)

    def receipt(self, shard: int) -> AlignmentReceipt | None:
        """Return the receipt of a shard; None if it has not been aligned.

        Raises:
            DamageError: it cannot be read, or belongs to another alignment or to other sequences.
        """
        path = layout.receipt_file(self.path, shard)
        try:
            receipt = AlignmentReceipt.model_validate(read_sealed(read_object(path)))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, ValidationError) as error:
            raise _damaged(path, "it cannot be read") from error
        entry = self.encoding.shards[shard]
        stated = (receipt.shard, receipt.alignment_fingerprint, receipt.sequences_sha256)
        if stated != (shard, self.manifest.fingerprint, entry.sha256):
            raise _damaged(path, "it belongs to another shard, to other sequences, or to another alignment")
        return receipt

    @cached_property
    def receipts(self) -> dict[int, AlignmentReceipt]:
        """The receipts of all aligned shards, by shard, as they were when they were first asked for."""
        shards = range(len(self.encoding.shards))
        receipts = zip(shards, in_parallel(self.receipt, shards, self.path), strict=True)
        return {shard: receipt for shard, receipt in receipts if receipt is not None}

    @cached_property
    def is_same(self) -> bool:
        """Whether both have one vocabulary, and every token of this text is one token of the other tokenizer."""
        counts = [receipt.kinds for receipt in self.receipts.values()]
        others = sum(kinds.get(name, 0) for kinds in counts for name in KINDS if name not in ("outside", "one"))
        same = self.manifest.vocabulary.fingerprint == self.encoding.manifest.vocabulary.fingerprint
        return same and not others

    @property
    def longest_tokens(self) -> int:
        """Tokens of the student's longest sequence."""
        return max((receipt.longest_tokens for receipt in self.receipts.values()), default=0)

    def require_complete(self, shards: list[int]) -> None:
        """Refuse an alignment that lacks one of some shards.

        Raises:
            IncompleteError: it does.
        """
        missing = [shard for shard in shards if shard not in self.receipts]
        if missing:
            raise IncompleteError(
                f"{len(missing)} of {len(shards)} shards have not been aligned",
                where=self.path,
                found=f"no receipt of shard {missing[0]}",
                why="documents were added since, or the alignment was stopped",
                fix="Run 'logitcask align' again with the same tokenizer; it continues",
            )

    def sequences(self, shard: int) -> list[AlignedSequence]:
        """Return the aligned sequences of a shard, in the order of the encoding's; the last few shards stay in memory.

        Raises:
            DamageError: the table is missing or not what was written, or contradicts the encoding.
            IncompleteError: the shard has not been aligned.
        """
        return self._sequences(shard)

    def tokenizer_files(self) -> dict[str, bytes]:
        """Return the student's tokenizer: contents by name, without anything that runs code.

        Raises:
            DamageError: a file is missing or not what was written.
        """
        contents = {
            key.removeprefix(f"{layout.TOKENIZER}/"): read_recorded(self.path / key, record.sha256, record.bytes)
            for key, record in self.manifest.files.items()
        }
        return {name: without_code(name, content) for name, content in contents.items()}

    def _read_sequences(self, shard: int) -> list[AlignedSequence]:
        receipt = self.receipt(shard)
        if receipt is None:
            self.require_complete([shard])
        assert receipt is not None
        path = layout.alignment_table_file(self.path, shard)
        table = read_table(path, receipt.table.sha256, SCHEMA, receipt.table.bytes, SEQUENCES_BYTES)
        columns = [table.column("sequence_id").to_pylist(), *(_lists(table.column(name)) for name in SCHEMA.names[1:])]
        aligned = [AlignedSequence(*row) for row in zip(*columns, strict=True)]
        wrong = contradiction(aligned, self.encoding.student_sequences(shard), self.manifest.vocabulary_size)
        if wrong:
            raise unreadable(path, wrong)
        return aligned


def contradiction(aligned: list[AlignedSequence], sequences: list[Sequence], vocabulary_size: int) -> str | None:
    """Return how a shard's table contradicts its encoding; None if it does not."""
    if [one.sequence_id for one in aligned] != [sequence.sequence_id for sequence in sequences]:
        return "it does not hold the sequences of this shard"
    for own, sequence in zip(aligned, sequences, strict=True):
        where = f"sequence {own.sequence_id}"
        columns = (own.input_ids, own.byte_lengths, own.kinds, own.first_rows, own.num_rows)
        if len({len(column) for column in columns}) > 1:
            return f"{where} has lists of different lengths"
        if not len(own.input_ids):
            continue  # a text of white space, read by a tokenizer that drops it
        if int(own.input_ids.max()) >= vocabulary_size:
            return f"{where} has a token id that is not below {vocabulary_size}"
        if int(own.byte_lengths.sum()) not in (0, len(sequence.text.encode())):
            return f"{where} has byte lengths that do not add up to its text"
        if int(own.kinds.max()) >= len(KINDS) or own.kinds[-1] != OUTSIDE:
            return f"{where} has a kind that cannot be"
        has_row = own.first_rows != NO_ROW
        last_rows = own.first_rows + own.num_rows.astype(np.int64) - 1
        if (own.first_rows < NO_ROW).any() or (last_rows[has_row] >= sequence.num_positions).any():
            return f"{where} has a row that its sequence does not have"
        if ((own.num_rows > 0) != has_row).any() or (has_row & (own.kinds == OUTSIDE)).any():
            return f"{where} has rows at a position that has none"
    return None


def write_shard(alignment: Alignment, shard: int, aligned: list[AlignedSequence]) -> None:
    """Write the table of a shard, then its receipt.

    Raises:
        StorageError: a disk or bucket refused.
    """
    columns = [[getattr(sequence, field.name) for sequence in aligned] for field in SCHEMA]
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    content = table_bytes(pa.Table.from_arrays(arrays, schema=SCHEMA))
    write_object(layout.alignment_table_file(alignment.path, shard), content)
    kinds = np.bincount(np.concatenate([sequence.kinds for sequence in aligned]), minlength=len(KINDS))
    receipt = AlignmentReceipt(
        shard=shard,
        alignment_fingerprint=alignment.manifest.fingerprint,
        sequences_sha256=alignment.encoding.shards[shard].sha256,
        table=ObjectRecord.of(content),
        tokens=sum(len(sequence.input_ids) for sequence in aligned),
        kinds=dict(zip(KINDS, kinds.tolist(), strict=True)),
        with_row=sum(int((sequence.first_rows != NO_ROW).sum()) for sequence in aligned),
        longest_tokens=max(len(sequence.input_ids) for sequence in aligned),
    )
    document = receipt.model_dump(mode="json") | {"seal": UNSEALED}
    write_object(layout.receipt_file(alignment.path, shard), sealed_bytes(document))


def _lists(column: pa.ChunkedArray) -> list[NDArray[np.generic]]:
    """Return numpy views of one flat array."""
    whole = column.combine_chunks()
    flat, offsets = whole.values.to_numpy(zero_copy_only=False), whole.offsets.to_numpy()
    return [flat[start:stop] for start, stop in pairwise(offsets.tolist())]


def _damaged(path: StorePath, problem: str) -> DamageError:
    return DamageError(
        "the receipt of an aligned shard cannot be used",
        where=path,
        found=problem,
        fix="Delete this file and run 'logitcask align' again with the same tokenizer; only this shard is redone",
    )
