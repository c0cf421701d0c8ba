"""Positions as a table for notebooks: a row per prediction, with its token, its scalars and its alternatives.

::

    teacher = Cache("runs/demo/cache").encoding().teacher("toy")
    table = to_arrow(teacher, sequences=range(100))     # a pyarrow.Table, which polars and duckdb read directly
    frame = to_pandas(teacher, rows=(0, 10_000))        # needs pandas, which is no dependency

The table needs about 12 bytes of memory for each kept token of each position. Text is not escaped; escape it before
printing it to a terminal (see ``escaping.printable``).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache_tools.codecs.rows import EMPTY_ID, Targets
from cache_tools.format.sequences import Sequence
from cache_tools.inspection.decoding import TokenTexts, token_texts
from cache_tools.inspection.divergence import likeliest
from cache_tools.store.teacher import CachedTeacher


def to_arrow(
    teacher: CachedTeacher, sequences: Iterable[int] | None = None, rows: tuple[int, int] | None = None
) -> pa.Table:
    """Return a teacher's predictions as a table of positions.

    Args:
        teacher: The teacher.
        sequences: Ids of sequences, in the order of the table's rows.
        rows: Instead of sequences: rows ``[start, stop)`` of the teacher's arrays; rows without a position are skipped.

    Returns:
        A table with the columns ``sequence_id`` (int64), ``document_id``, ``group_id`` (strings), ``position`` (int64,
        index of the token), ``token_id``, ``gold_id`` (uint32), ``gold_text`` (string), each scalar of the teacher
        (float32, nats; ``gold_logprob`` and ``entropy`` among them, ``gold_rank`` a count), ``top1_id`` (uint32; null
        where nothing was kept), ``top1_text``, ``top1_prob`` and ``kept_mass`` (float32), ``ids`` (list of uint32, the
        likeliest first) and ``log_probs`` (list of float32, nats, aligned with it).

    Raises:
        ValueError: neither or both of ``sequences`` and ``rows`` are given.
        IndexError: there is no such sequence or row.
        IncompleteError: a row is not captured yet.
    """
    if (sequences is None) == (rows is None):
        raise ValueError("give sequences or rows, not both")
    texts = token_texts(teacher.encoding)
    parts = (
        _parts_of_rows(teacher, *rows) if rows else [(teacher.encoding.sequence(i), 0, None) for i in sequences or ()]
    )
    tables = [_table(teacher, sequence, start, stop, texts) for sequence, start, stop in parts]
    return pa.concat_tables([_schema(teacher).empty_table(), *tables])


def to_pandas(
    teacher: CachedTeacher, sequences: Iterable[int] | None = None, rows: tuple[int, int] | None = None
) -> Any:
    """Return ``to_arrow`` as a pandas DataFrame.

    Raises:
        ImportError: pandas is not installed.
    """
    return to_arrow(teacher, sequences, rows).to_pandas()


def _parts_of_rows(teacher: CachedTeacher, start: int, stop: int) -> list[tuple[Sequence, int, int | None]]:
    """Return the sequences that own rows ``[start, stop)``, each with a range ``[start, end)`` of its positions."""
    size, shards = teacher.encoding.manifest.positions_per_shard, len(teacher.encoding.shards)
    if not 0 <= start <= stop <= size * shards:
        raise IndexError(f"rows {start} to {stop} of {size * shards}")
    parts: list[tuple[Sequence, int, int | None]] = []
    for shard in range(start // size, -(-stop // size)):
        for sequence in teacher.encoding.sequences(shard):
            first, behind = max(start, sequence.rows[0]), min(stop, sequence.rows[1])
            if first < behind:
                parts.append((sequence, first - sequence.first_position, behind - sequence.first_position))
    return parts


def _table(teacher: CachedTeacher, sequence: Sequence, start: int, stop: int | None, texts: TokenTexts) -> pa.Table:
    """Return positions ``[start, stop)`` of a sequence, counted among its kept ones."""
    positions = sequence.positions()[start:stop]
    gold = sequence.gold_ids(teacher.encoding.manifest.objective)[start:stop]
    n, rows = len(positions), (sequence.first_position + start, sequence.first_position + start + len(positions))
    targets = teacher.targets(*rows)
    top_ids, top = likeliest(targets)
    empty = top_ids == EMPTY_ID
    columns = {
        "sequence_id": np.full(n, sequence.sequence_id),
        "document_id": [sequence.document_id] * n,
        "group_id": [sequence.group_id] * n,
        "position": positions,
        "token_id": sequence.input_ids[positions],
        "gold_id": gold,
        "gold_text": _texts(gold, texts),
        **{name: teacher.scalar(name, *rows) for name in teacher.manifest.scalars},
        "top1_id": pa.array(top_ids, mask=empty),
        "top1_text": [None if nothing else text for text, nothing in zip(_texts(top_ids, texts), empty, strict=True)],
        "top1_prob": top.astype(np.float32),
        "kept_mass": np.exp(targets.log_probs, dtype=np.float64).sum(axis=1).astype(np.float32),
    }
    return pa.table(columns | _lists(targets), schema=_schema(teacher))


def _lists(targets: Targets) -> dict[str, pa.Array]:
    """Return each row's kept tokens, the likeliest first, as lists of different lengths."""
    order = np.argsort(-targets.log_probs, axis=1, kind="stable")
    logs = np.take_along_axis(targets.log_probs, order, axis=1)
    kept = logs > -np.inf
    ends = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32)
    values = {"ids": np.take_along_axis(targets.ids, order, axis=1)[kept], "log_probs": logs[kept]}
    return {name: pa.ListArray.from_arrays(ends, flat) for name, flat in values.items()}


def _texts(ids: NDArray[np.uint32], texts: TokenTexts) -> list[str]:
    return [texts.token(token_id).decode("utf-8", "backslashreplace") for token_id in ids.tolist()]


def _schema(teacher: CachedTeacher) -> pa.Schema:
    return pa.schema(
        [
            ("sequence_id", pa.int64()),
            ("document_id", pa.string()),
            ("group_id", pa.string()),
            ("position", pa.int64()),
            ("token_id", pa.uint32()),
            ("gold_id", pa.uint32()),
            ("gold_text", pa.string()),
            *((name, pa.float32()) for name in teacher.manifest.scalars),
            ("top1_id", pa.uint32()),
            ("top1_text", pa.string()),
            ("top1_prob", pa.float32()),
            ("kept_mass", pa.float32()),
            ("ids", pa.list_(pa.uint32())),
            ("log_probs", pa.list_(pa.float32())),
        ]
    )
