"""Arrow IPC files from untrusted sources: their unpacked size is computed before they are unpacked.

Arrow compresses each buffer by itself and writes the size that it had before it; the reader allocates what is written
there, so 20 kB can ask for gigabytes. Pyarrow neither bounds this nor tells the sizes, hence the few lines below that
walk from the footer of a file to its record batches and to their buffers, as `File.fbs` and `Message.fbs` of the Arrow
format define them. Then pyarrow reads the file and checks it in full (offsets, UTF-8), and the columns must have the
types that the cache's format gives them: no dictionaries, no extension types, no nulls where there can be none.

The format of the metadata is flatbuffers: a table begins with the distance back to its vtable, which holds the place of
each field relative to the table, or 0 for one that is absent. Every access is checked by ``struct``.
"""

import struct
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.ipc

MAGIC = b"ARROW1"
CONTINUATION = 0xFFFFFFFF
DICTIONARIES, BATCHES = 2, 3  # fields of Footer
VERSION, HEADER_TYPE, HEADER = 0, 1, 2  # of Message
VERSION_5 = 4
"""Files of version 4 could say in another place that they are compressed."""
BUFFERS, COMPRESSION = 2, 3  # of RecordBatch
RECORD_BATCH = 3  # of the union MessageHeader
BLOCK, BUFFER = struct.Struct("<qi4xq"), struct.Struct("<qq")


def read_arrow(content: bytes, schema: pa.Schema, largest_bytes: int) -> pa.Table:
    """Read the columns of ``schema`` from an Arrow IPC file.

    Args:
        content: The file.
        schema: Names, types and nullability; further columns are left out, nullable ones that are missing are null.
        largest_bytes: Refuse a file whose buffers are larger when unpacked.

    Raises:
        ValueError: it is no such file, or too large.
    """
    try:
        unpacked = unpacked_bytes(content)
        if unpacked > largest_bytes:
            raise ValueError(f"it unpacks to {unpacked:,} bytes, more than {largest_bytes:,}")
        table = pa.ipc.open_file(pa.BufferReader(content)).read_all()
        table.validate(full=True)
        for field in schema:
            if field.nullable and field.name not in table.column_names:
                table = table.append_column(field, pa.nulls(table.num_rows, field.type))
        selected = table.select(schema.names)
    except (pa.ArrowException, struct.error, KeyError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"it is not the Arrow file that belongs here: {str(error).splitlines()[0][:200]}") from error
    for field, column in zip(schema, selected.columns, strict=True):
        if column.type != field.type:
            raise ValueError(f"column {field.name} is of type {str(column.type)[:100]}, not {field.type}")
        if not field.nullable and (column.null_count or _has_null_items(column)):
            raise ValueError(f"column {field.name} has missing values")
    return selected


def unpacked_bytes(content: bytes) -> int:
    """Return the size of all buffers of a file before compression.

    Raises:
        ValueError, struct.error: it is not an Arrow IPC file of plain record batches.
    """
    total = 0
    for offset, metadata_bytes in _batches(content):
        mark, length = struct.unpack_from("<Ii", content, offset)
        if mark != CONTINUATION or not 0 < length <= metadata_bytes:
            raise ValueError("a record batch has no valid header")
        message = _indirect(content, offset + 8)
        (version,) = struct.unpack_from("<h", content, _place(content, message, VERSION))
        (kind,) = struct.unpack_from("<B", content, _place(content, message, HEADER_TYPE))
        if (version, kind) != (VERSION_5, RECORD_BATCH):
            raise ValueError("a message is not a record batch of version 5")
        batch = _indirect(content, _place(content, message, HEADER))
        compressed = _field(content, batch, COMPRESSION) is not None
        body = offset + metadata_bytes
        for start, size in _structs(content, batch, BUFFERS, BUFFER):
            total += _buffer_bytes(content, body + start, size) if compressed else size
    return total


def _batches(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield (offset, bytes of its metadata) of each record batch, none of which overlap."""
    if content[: len(MAGIC)] != MAGIC or content[-len(MAGIC) :] != MAGIC:
        raise ValueError("it is not an Arrow IPC file")
    end = len(content) - len(MAGIC) - 4
    (size,) = struct.unpack_from("<i", content, end)
    if not 0 < size <= end:
        raise ValueError("its footer is too large")
    footer = _indirect(content, end - size)
    if any(True for _ in _structs(content, footer, DICTIONARIES, BLOCK)):
        raise ValueError("it holds dictionaries")
    last = 0
    for offset, metadata_bytes, body_bytes in sorted(_structs(content, footer, BATCHES, BLOCK)):
        if offset < last or metadata_bytes < 0 or body_bytes < 0:
            raise ValueError("its record batches overlap")
        last = offset + metadata_bytes + body_bytes
        yield offset, metadata_bytes


def _buffer_bytes(content: bytes, start: int, size: int) -> int:
    """Return the unpacked size of a compressed buffer: what it states, or -1 if it was left as it is."""
    if size == 0:
        return 0
    if start < 0 or size < 8:
        raise ValueError("a buffer lies outside the file")
    (stated,) = struct.unpack_from("<q", content, start)
    if stated < -1:
        raise ValueError("a buffer states no size")
    return size if stated == -1 else int(stated)


def _indirect(content: bytes, place: int) -> int:
    """Follow an offset that is relative to its own place."""
    if place < 0:
        raise ValueError("a part of its metadata lies outside the file")
    return place + int(struct.unpack_from("<I", content, place)[0])


def _place(content: bytes, table: int, number: int) -> int:
    """Return the place of a table's field, which must be there."""
    place = _field(content, table, number)
    if place is None:
        raise ValueError("a part of its metadata is absent")
    return place


def _field(content: bytes, table: int, number: int) -> int | None:
    """Return the place of a table's field; None if it is absent."""
    vtable = table - struct.unpack_from("<i", content, table)[0]
    if not 0 <= vtable < len(content):
        raise ValueError("a part of its metadata lies outside the file")
    (size,) = struct.unpack_from("<H", content, vtable)
    entry = 4 + 2 * number
    relative = struct.unpack_from("<H", content, vtable + entry)[0] if entry + 2 <= size else 0
    return table + relative if relative else None


def _structs(content: bytes, table: int, number: int, kind: struct.Struct) -> Iterator[tuple[int, ...]]:
    """Yield the structs in a table's vector; none if the vector is absent."""
    place = _field(content, table, number)
    if place is None:
        return
    vector = _indirect(content, place)
    (count,) = struct.unpack_from("<I", content, vector)
    if count * kind.size > len(content):
        raise ValueError("a list in its metadata is too long")
    for item in range(count):
        yield kind.unpack_from(content, vector + 4 + item * kind.size)


def _has_null_items(column: pa.ChunkedArray) -> bool:
    return pa.types.is_list(column.type) and any(chunk.values.null_count for chunk in column.chunks)
