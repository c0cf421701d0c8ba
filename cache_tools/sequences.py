"""The sequences of a shard: one Arrow IPC file, zstd inside, one row per sequence.

A sequence is a piece of one document that a teacher read in one go. Its kept positions
are consecutive rows of the teacher's arrays, starting at ``first_position``; which tokens
they belong to stands in ``position_mask``.

The gold token of position t is ``input_ids[t + 1]`` for a causal teacher, and
``original_ids[t]`` for a masked one, whose input has the slot masked out.

``byte_lengths`` cuts ``text`` into the tokens' surface forms: their sum is the length of
the text in UTF-8, so a token's place in the text is a running sum.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from cache_tools.errors import DamageError
from cache_tools.manifest import Objective
from cache_tools.storage import StorePath, read_object, sha256, write_object

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

TURN = pa.field("turn", pa.int32(), nullable=True)
"""Optional column: there if a sequence of the file ends with one turn of a chat."""

MENDING = (
    "run 'logitcask repair' on the cache and then the same capture again, which writes the files of an encoding anew "
    "from their corpus; or restore the file from a copy with 'logitcask copy'"
)
"""What helps when a file with a recorded hash is missing or damaged."""


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


def write_sequences(path: StorePath, sequences: list[Sequence]) -> tuple[int, str]:
    """Write one shard's sequences and return (bytes, sha256) of the file.

    The same sequences give the same bytes.
    """
    content = sequences_bytes(sequences)
    write_object(path, content)
    return len(content), sha256(content)


def sequences_bytes(sequences: list[Sequence]) -> bytes:
    """Return the file that ``write_sequences`` writes."""
    schema = SCHEMA if all(sequence.turn is None for sequence in sequences) else SCHEMA.append(TURN)
    columns = [[getattr(s, field.name) for s in sequences] for field in schema]
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    return table_bytes(pa.Table.from_arrays(arrays, schema=schema))


def read_sequences(path: StorePath, expected_sha256: str) -> list[Sequence]:
    """Read one shard's sequences.

    Args:
        path: The Arrow file.
        expected_sha256: Hash that the shard table records for it.

    Raises:
        DamageError: the file is missing or not what was written.
    """
    table = read_table(path, expected_sha256)
    columns = {name: _values(table.column(name).combine_chunks()) for name in table.column_names}
    turns = columns.get(TURN.name, [None] * table.num_rows)
    return [Sequence(*row) for row in zip(*(columns[field.name] for field in SCHEMA), turns, strict=True)]


def table_bytes(table: pa.Table) -> bytes:
    """Return a table as one Arrow IPC file with zstd-compressed buffers."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def read_table(path: StorePath, expected_sha256: str) -> pa.Table:
    """Read an Arrow IPC file whose hash is known.

    Raises:
        DamageError: it is missing or not what was written.
    """
    content = read_recorded(path, expected_sha256)
    return pa.ipc.open_file(pa.BufferReader(content)).read_all()


def read_recorded(path: StorePath, expected_sha256: str) -> bytes:
    """Read a file of an encoding or teacher whose hash is known.

    Raises:
        DamageError: it is missing or not what was written.
    """
    try:
        content = read_object(path)
    except OSError as error:
        raise DamageError(
            "the file is missing",
            where=path,
            fix=MENDING,
        ) from error
    found = sha256(content)
    if found != expected_sha256:
        raise DamageError(
            "the file is not the one that was written",
            where=path,
            expected=f"sha256 {expected_sha256[:12]}…",
            found=f"{found[:12]}…",
            why="predictions would be joined to other tokens",
            fix=MENDING,
        )
    return content


def _values(column: Any) -> list[Any]:
    """Return one Python or numpy value per row; lists become numpy views of one flat array."""
    if not pa.types.is_list(column.type):
        values: list[Any] = column.to_pylist()
        return values
    flat = column.values.to_numpy(zero_copy_only=False)
    offsets = column.offsets.to_numpy()
    valid = column.is_valid().to_pylist()
    return [flat[a:b] if ok else None for a, b, ok in zip(offsets[:-1], offsets[1:], valid, strict=True)]
