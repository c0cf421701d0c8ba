"""The sequences of a shard: one Arrow IPC file, zstd inside, one row per sequence.

A sequence is a piece of one document that a teacher read in one go. Its kept positions
are consecutive rows of the teacher's arrays, starting at ``first_position``; which tokens
they belong to stands in ``position_mask``.

The gold token of position t is ``input_ids[t + 1]`` for a causal teacher, and
``original_ids[t]`` for a masked one, whose input has the slot masked out.

``byte_lengths`` cuts ``text`` into the tokens' surface forms: their sum is the length of
the text in UTF-8, so a token's place in the text is a running sum.

Where a teacher reads a context that its students do not, the file holds both readings: the columns above are the
teacher's, and ``student_*`` are what a student reads (:class:`StudentReading`). Both keep the same tokens in the same
order, so that the rows belong to both, and whoever trains takes :meth:`Sequence.as_student`.

What a file holds is checked twice: its columns when it is read (``read_sequences``), and what it says of rows and
tokens against the shard table (``contradiction``) before anything uses it.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from cache_tools.errors import ConfigError, DamageError
from cache_tools.format.arrow_files import read_arrow
from cache_tools.format.manifest import Objective
from cache_tools.limits import (
    DOCUMENT_BYTES,
    SEQUENCES_BYTES,
    SEQUENCES_FLOOR_BYTES,
    SEQUENCES_TOKEN_BYTES,
    SHARD_SEQUENCES,
)
from cache_tools.storage import StorePath, read_object, sha256, write_object

PADDING_BYTES = 2**16
"""Much more than what Arrow adds to the ends of buffers."""

SCHEMA = pa.schema(
    [
        pa.field("sequence_id", pa.int64(), nullable=False),
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("first_position", pa.int64(), nullable=False),
        pa.field("input_ids", pa.list_(pa.uint32()), nullable=False),
        pa.field("position_mask", pa.list_(pa.bool_()), nullable=False),
        pa.field("original_ids", pa.list_(pa.uint32()), nullable=True),
        pa.field("text", pa.string(), nullable=False),
        pa.field("byte_lengths", pa.list_(pa.uint32()), nullable=False),
    ]
)

DOCUMENT_IDS = pa.schema([SCHEMA.field("document_id")])
TURN = pa.field("turn", pa.int32(), nullable=True)
"""Optional column: there if a sequence of the file ends with one turn of a chat."""
STUDENT = (
    pa.field("student_ids", pa.list_(pa.uint32()), nullable=True),
    pa.field("student_mask", pa.list_(pa.bool_()), nullable=True),
    pa.field("student_text", pa.string(), nullable=True),
    pa.field("student_byte_lengths", pa.list_(pa.uint32()), nullable=True),
)
"""Optional columns: there if teachers read a context that students do not."""

MENDING = (
    "run 'logitcask repair' on the cache and then the same capture again, which writes the files of an encoding anew "
    "from their corpus; or restore the file from a copy with 'logitcask copy'"
)
"""What helps when a file with a recorded hash is missing or damaged."""


@dataclass(frozen=True)
class StudentReading:
    """A sequence without the context that only teachers read.

    Attributes:
        input_ids: (n,) uint32, what a student reads.
        position_mask: (n,) bool, true where the student predicts a token of which a row is kept.
        text: The text that the tokens cover.
        byte_lengths: (n,) uint32, UTF-8 bytes of ``text`` that belong to each token.
    """

    input_ids: NDArray[np.uint32]
    position_mask: NDArray[np.bool_]
    text: str
    byte_lengths: NDArray[np.uint32]


@dataclass(frozen=True)
class Sequence:
    """One sequence, as encoded and as read back.

    Attributes:
        sequence_id: Index over the whole encoding, in order of writing.
        document_id: Id of the document it is a piece of.
        group_id: Group that is held out as a whole.
        first_position: Row of its first kept position in every array of a teacher.
        input_ids: (n,) uint32, what the teacher reads.
        position_mask: (n,) bool, true where a prediction is kept.
        original_ids: (n,) uint32 before masking; None for a causal objective.
        text: The piece of text that the tokens cover.
        byte_lengths: (n,) uint32, UTF-8 bytes of ``text`` that belong to each token.
        turn: Number of the chat's message, from 0, that is kept, where a chat became a sequence for each turn; None
            where a document is read as a whole.
        student: What a student reads instead, without the teachers' context; None where it reads the same.
    """

    sequence_id: int
    document_id: str
    group_id: str
    first_position: int
    input_ids: NDArray[np.uint32]
    position_mask: NDArray[np.bool_]
    original_ids: NDArray[np.uint32] | None
    text: str
    byte_lengths: NDArray[np.uint32]
    turn: int | None = None
    student: StudentReading | None = None

    @property
    def num_positions(self) -> int:
        """Number of kept positions."""
        return int(self.position_mask.sum())

    @property
    def rows(self) -> tuple[int, int]:
        """Rows ``[start, stop)`` of this sequence in every array of a teacher."""
        return self.first_position, self.first_position + self.num_positions

    def positions(self) -> NDArray[np.int64]:
        """Return the token indices of the kept positions: (p,) int64, ascending."""
        return np.flatnonzero(self.position_mask)

    def gold_ids(self, objective: Objective) -> NDArray[np.uint32]:
        """Return the token that each kept position should predict: (p,) uint32."""
        if objective == "causal":
            return self.input_ids[self.positions() + 1]
        assert self.original_ids is not None
        return self.original_ids[self.positions()]

    def as_student(self) -> "Sequence":
        """Return the sequence as a student reads it: other tokens, the same rows and the same gold tokens."""
        if self.student is None:
            return self
        ids, mask, text, lengths = (getattr(self.student, name) for name in READING)
        return replace(self, input_ids=ids, position_mask=mask, text=text, byte_lengths=lengths, student=None)


READING = ("input_ids", "position_mask", "text", "byte_lengths")
"""What a student's reading consists of; the columns ``STUDENT`` have this order."""


def bytes_before(text: str) -> NDArray[np.int64]:
    """Return, for each character index 0..len(text), the UTF-8 bytes before it."""
    if text.isascii():
        return np.arange(len(text) + 1)
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    lengths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def write_sequences(path: StorePath, sequences: list[Sequence]) -> tuple[int, str]:
    """Write one shard's sequences and return (bytes, sha256) of the file.

    The same sequences give the same bytes.
    """
    content = sequences_bytes(sequences)
    write_object(path, content)
    return len(content), sha256(content)


def sequences_bytes(sequences: list[Sequence]) -> bytes:
    """Return the file that ``write_sequences`` writes.

    Raises:
        ConfigError: it is larger than what a reader unpacks, see ``limits.py``.
    """
    schema = SCHEMA if all(sequence.turn is None for sequence in sequences) else SCHEMA.append(TURN)
    columns = [[getattr(s, field.name) for s in sequences] for field in schema]
    if any(sequence.student is not None for sequence in sequences):
        schema = pa.schema([*schema, *STUDENT])
        columns += [[None if s.student is None else getattr(s.student, name) for s in sequences] for name in READING]
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=schema)
    largest = largest_unpacked(sum(len(sequence.input_ids) for sequence in sequences)) - PADDING_BYTES
    if len(sequences) > SHARD_SEQUENCES or table.nbytes > largest:
        raise ConfigError(
            "a shard has too many sequences, or too large ones",
            expected=f"at most {SHARD_SEQUENCES:,} sequences and {largest:,} bytes",
            found=f"{len(sequences):,} sequences and {table.nbytes:,} bytes",
            why="readers refuse files that are larger",
            fix="Set a smaller encoding.positions_per_shard",
        )
    return table_bytes(table)


def largest_unpacked(tokens: int) -> int:
    """Return to how many bytes the sequences of so many tokens may unpack."""
    return min(SEQUENCES_BYTES, SEQUENCES_FLOOR_BYTES + SEQUENCES_TOKEN_BYTES * tokens)


def read_sequences(
    path: StorePath, expected_sha256: str, file_bytes: int = SEQUENCES_BYTES, unpacked_bytes: int = SEQUENCES_BYTES
) -> list[Sequence]:
    """Read one shard's sequences.

    Args:
        path: The Arrow file.
        expected_sha256: Hash that the shard table records for it.
        file_bytes: Size that the shard table records.
        unpacked_bytes: What its columns may unpack to.

    Raises:
        DamageError: the file is missing or not what was written, or its columns cannot be.
    """
    table = read_table(path, expected_sha256, pa.schema([*SCHEMA, TURN, *STUDENT]), file_bytes, unpacked_bytes)
    if table.num_rows > SHARD_SEQUENCES:
        raise unreadable(path, f"{table.num_rows:,} sequences, more than {SHARD_SEQUENCES:,}")
    columns = [_values(column.combine_chunks()) for column in table.columns]
    sequences = []
    for number, row in enumerate(zip(*columns, strict=True)):
        own, student = row[: -len(STUDENT)], row[-len(STUDENT) :]
        if any(value is None for value in student) != all(value is None for value in student):
            raise unreadable(path, f"sequence number {number} has a part of what a student reads")
        reading = None if student[0] is None else StudentReading(*student)
        sequence = replace(Sequence(*own), student=reading) if reading else Sequence(*own)
        if not _is_aligned(sequence) or (reading and not _is_aligned(sequence.as_student())):
            raise unreadable(path, f"sequence number {number} has lists of different lengths")
        sequences.append(sequence)
    return sequences


def _is_aligned(sequence: Sequence) -> bool:
    lists = (sequence.input_ids, sequence.position_mask, sequence.byte_lengths, sequence.original_ids)
    return len({len(values) for values in lists if values is not None}) == 1


def contradiction(
    sequences: list[Sequence], objective: Objective, vocabulary_size: int, first_sequence: int, first_row: int
) -> str | None:
    """Return how a shard's sequences contradict their encoding, None if they do not.

    Args:
        sequences: As ``read_sequences`` returned them.
        objective: Objective of the encoding.
        vocabulary_size: Token ids are below this.
        first_sequence: Id of the shard's first sequence.
        first_row: The shard's first row.
    """
    lengths = np.array([len(sequence.input_ids) for sequence in sequences], dtype=np.int64)
    if not lengths.all():
        return "a sequence has no token"
    ends = np.cumsum(lengths)
    starts = ends - lengths
    masks = np.concatenate([sequence.position_mask for sequence in sequences])
    kept = np.add.reduceat(masks, starts, dtype=np.int64)
    covered = np.add.reduceat(np.concatenate([s.byte_lengths for s in sequences]), starts, dtype=np.int64)
    originals = [s.original_ids for s in sequences if s.original_ids is not None]
    rules = {
        "has another number": _column(sequences, "sequence_id") != first_sequence + np.arange(len(sequences)),
        "starts at another row": _column(sequences, "first_position") != first_row + np.cumsum(kept) - kept,
        "keeps a prediction at its last token, which has no next": masks[ends - 1] & (objective == "causal"),
        "has byte lengths that do not add up to its text": covered != [len(s.text.encode()) for s in sequences],
    }
    for rule, broken in rules.items():
        if broken.any():
            return f"sequence {first_sequence + int(np.flatnonzero(broken)[0])} {rule}"
    if len(originals) != (0 if objective == "causal" else len(sequences)):
        return f"a sequence is not {objective}"
    if max(int(np.max(ids)) for ids in [*(s.input_ids for s in sequences), *originals]) >= vocabulary_size:
        return f"a token id is not below {vocabulary_size}"
    wrong = ((s.sequence_id, student_contradiction(s, vocabulary_size)) for s in sequences if s.student is not None)
    return next((f"sequence {number} {rule}" for number, rule in wrong if rule), None)


def student_contradiction(sequence: Sequence, vocabulary_size: int) -> str | None:
    """Return how what a student reads contradicts what a teacher reads; None if it does not."""
    own = sequence.as_student()
    if sequence.original_ids is not None:
        return "has a student's reading, which only causal sequences have"
    if not len(own.input_ids) or int(own.input_ids.max()) >= vocabulary_size:
        return f"gives a student no token, or one that is not below {vocabulary_size}"
    if own.position_mask[-1] or not np.array_equal(own.gold_ids("causal"), sequence.gold_ids("causal")):
        return "keeps other tokens in what a student reads than in what a teacher reads"
    if int(own.byte_lengths.sum()) != len(own.text.encode()):
        return "has a student's byte lengths that do not add up to its text"
    return None


def _column(sequences: list[Sequence], name: str) -> NDArray[np.int64]:
    return np.array([getattr(sequence, name) for sequence in sequences], dtype=np.int64)


def table_bytes(table: pa.Table) -> bytes:
    """Return a table as one Arrow IPC file with zstd-compressed buffers."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def read_table(
    path: StorePath, expected_sha256: str, schema: pa.Schema, file_bytes: int, unpacked_bytes: int
) -> pa.Table:
    """Read the columns of an Arrow IPC file whose hash is known.

    Args:
        path: The file.
        expected_sha256: Its hash.
        schema: The columns that it must have.
        file_bytes: Its size, or the largest that it can have.
        unpacked_bytes: The largest that its columns can have.

    Raises:
        DamageError: it is missing or not what was written, or no such file.
    """
    content = read_recorded(path, expected_sha256, file_bytes)
    try:
        return read_arrow(content, schema, unpacked_bytes)
    except ValueError as error:
        raise unreadable(path, error) from error


def read_recorded(path: StorePath, expected_sha256: str, largest_bytes: int = DOCUMENT_BYTES) -> bytes:
    """Read a file of an encoding or teacher whose hash is known.

    Args:
        path: The file.
        expected_sha256: Its hash.
        largest_bytes: Its recorded size; nothing of a larger one is read.

    Raises:
        DamageError: it is missing or not what was written.
    """
    try:
        content = read_object(path, largest_bytes)
    except OSError as error:
        raise DamageError(
            "the file is missing",
            where=path,
            fix=MENDING,
        ) from error
    actual_sha256 = sha256(content)
    if actual_sha256 != expected_sha256:
        raise DamageError(
            "the file is not the one that was written",
            where=path,
            expected=f"sha256 {expected_sha256[:12]}…",
            found=f"{actual_sha256[:12]}…",
            why="predictions would be joined to other tokens",
            fix=MENDING,
        )
    return content


def unreadable(path: StorePath, problem: object) -> DamageError:
    """Return the error that a file is what was written, but cannot be what the format asks for."""
    return DamageError(
        "the file cannot be used",
        where=path,
        found=problem,
        why="its hash is right, so it was written this way",
        fix="Ask whoever made the cache, or capture the corpus again",
    )


def _values(column: Any) -> list[Any]:
    """Return one Python or numpy value per row; lists become numpy views of one flat array."""
    if not pa.types.is_list(column.type):
        values: list[Any] = column.to_pylist()
        return values
    flat = column.values.to_numpy(zero_copy_only=False)
    offsets = column.offsets.to_numpy()
    valid = column.is_valid().to_pylist()
    return [flat[a:b] if ok else None for a, b, ok in zip(offsets[:-1], offsets[1:], valid, strict=True)]
