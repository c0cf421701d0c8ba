"""From rows of a cache to the tables of any format.

``rows`` keeps everything: only the entries that a row has, where they belong, the mass outside, scalars. The formats of
other tools have less room. Each of their rows has exactly k entries by falling probability, and every token has
one. An empty slot gets an unused id with a log-probability of FILLER_NATS, which float32 turns into a probability
of 0; a token without a prediction gets a row that is masked by a label of -100 or a mask of 0, which their trainers
leave out. The mass outside a row has no place there: readers take it as 1 less the sum.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache_tools.codecs.rows import EMPTY_ID
from cache_tools.errors import ConfigError
from cache_tools.row_files import distillkit
from cache_tools.row_files.distillkit import LegacyCodec, PackedCodec
from cache_tools.row_files.formats import FILLER_NATS, LABELS, Columns, FormatName, SourceFormat
from cache_tools.row_files.source_rows import DOCUMENT, LEFT_OUT, ORIGINALS, POSITIONS

IGNORED_LABEL = -100
"""Label of a token that a trainer leaves out."""


@dataclass(frozen=True)
class CacheRows:
    """Some sequences of a cache with one teacher's predictions.

    Attributes:
        tokens: Token ids of each sequence.
        positions: Token at which each prediction of a sequence is made, ascending.
        documents: Document of each sequence.
        originals: Token ids before masking; None if causal.
        ids: (n, k) uint32; EMPTY_ID in empty slots.
        log_probs: (n, k) float32; -inf in empty slots.
        left_out: (n,) float32, log of the mass outside each row.
        scalars: (n,) float32 by name.
    """

    tokens: list[NDArray[np.uint32]]
    positions: list[NDArray[np.int64]]
    documents: list[str]
    originals: list[NDArray[np.uint32]] | None
    ids: NDArray[np.uint32]
    log_probs: NDArray[np.float32]
    left_out: NDArray[np.float32]
    scalars: dict[str, NDArray[np.float32]]


def lossless_format(name: FormatName, k: int, vocabulary_size: int) -> SourceFormat:
    """Return a format that keeps float32 log-probabilities as they are."""
    codec = PackedCodec(d=vocabulary_size, k=k, exact_k=k, delta_encoding=False) if name == "distillkit" else None
    return SourceFormat(name, Columns(), codec)


def table_of(rows: CacheRows, target: SourceFormat) -> pa.Table:
    """Return rows as a table, one row for each sequence.

    Raises:
        ConfigError: the codec stores entries as a curve, and a row has too few.
    """
    if target.name == "rows":
        return _own_table(rows, target)
    extra = 0 if target.name == "axolotl" else 1
    counts = np.array([len(tokens) - extra for tokens in rows.tokens], np.int64)
    starts = np.cumsum(counts) - counts
    own = np.concatenate([start + places for start, places in zip(starts, rows.positions, strict=True)])
    own = own.astype(np.int64)
    k = target.k or rows.ids.shape[1]
    if target.codec is not None and target.codec.exact_k < k:
        _refuse_short(rows, k)
    ids, log_probs = _every_token(rows, int(counts.sum()), own, k)
    kept = np.zeros(int(counts.sum()), np.bool_)
    kept[own] = True
    columns: dict[str, pa.Array] = {target.columns.tokens: _lists(rows.tokens, pa.int64())}
    if target.name == "axolotl":
        columns["attention_mask"] = _lists([np.ones(len(tokens), np.int8) for tokens in rows.tokens], pa.int8())
    if target.name == "axolotl" or not kept.all():
        columns[LABELS] = _lists(_labels(rows), pa.int64())
    columns |= {name: _nested(counts, values) for name, values in _values(ids, log_probs, kept, target).items()}
    return pa.table(columns)


def _refuse_short(rows: CacheRows, k: int) -> None:
    """Refuse rows with fewer than k entries where some of them would come from a fitted curve."""
    if ((rows.log_probs > -np.inf).sum(axis=1) < k).any():
        raise ConfigError(
            f"some predictions have fewer than {k} entries",
            where="--codec",
            expected=f"{k} entries in each row",
            why="empty slots would bend the curve that stands for the others",
            fix="Set exact_k = k in the codec's file, or export without --codec",
        )


def _values(ids: Any, log_probs: Any, kept: Any, target: SourceFormat) -> dict[str, NDArray[Any]]:
    """Return the columns of values by name, one row for each token."""
    if isinstance(target.codec, PackedCodec):
        values = distillkit.encode_values(log_probs, target.codec)
        return {"compressed_logprobs": values, "bytepacked_indices": distillkit.pack_ids(ids, target.codec)}
    if isinstance(target.codec, LegacyCodec):
        words, exact, coefficients = distillkit.encode_legacy(ids, log_probs, target.codec)
        floats = {"exact_values": exact.astype(np.float32), "coeffs": coefficients.astype(np.float32)}
        return {"packed_indices": words, **floats}
    names = target.value_columns
    columns = {names[1]: ids.astype(np.int64), names[0]: log_probs}
    if target.name == "axolotl":
        columns[names[2]] = np.repeat(kept[:, None], ids.shape[1], axis=1).astype(np.int8)
    return columns


def _every_token(rows: CacheRows, count: int, own: Any, k: int) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """Return k entries by falling probability for each token; those without a prediction are sure of token 0."""
    ids = np.tile(np.arange(k, dtype=np.uint32), (count, 1))
    log_probs = np.full((count, k), FILLER_NATS, np.float32)
    log_probs[:, 0] = 0
    order = np.argsort(-rows.log_probs, axis=1, kind="stable")[:, :k]
    ids[own] = _filled_ids(np.take_along_axis(rows.ids, order, axis=1))
    log_probs[own] = np.maximum(np.take_along_axis(rows.log_probs, order, axis=1), np.float32(FILLER_NATS))
    return ids, log_probs


def _filled_ids(ids: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return rows (n, k) whose empty slots hold the lowest ids that the row does not."""
    k = ids.shape[1]
    rows = np.flatnonzero((ids == EMPTY_ID).any(axis=1))
    if not len(rows):
        return ids
    result, part = ids.copy(), ids[rows]
    taken = np.zeros((len(rows), 2 * k), np.bool_)
    row, slot = np.nonzero(part < 2 * k)
    taken[row, part[row, slot]] = True
    free = np.argsort(taken, axis=1, kind="stable")[:, :k]  # the free ids of a row first, ascending
    empty = part == EMPTY_ID
    number = np.cumsum(empty, axis=1) - 1
    result[rows] = np.where(empty, np.take_along_axis(free, np.maximum(number, 0), axis=1), part).astype(np.uint32)
    return result


def _labels(rows: CacheRows) -> list[NDArray[np.int64]]:
    """Return each sequence's token ids, and IGNORED_LABEL where no prediction is made."""
    labels = []
    for tokens, places in zip(rows.tokens, rows.positions, strict=True):
        own = np.full(len(tokens), IGNORED_LABEL, np.int64)
        own[places] = tokens[places]
        labels.append(own)
    return labels


def _own_table(rows: CacheRows, target: SourceFormat) -> pa.Table:
    names, used = target.columns, rows.log_probs > -np.inf
    counts = np.array([len(places) for places in rows.positions], np.int64)
    order = np.argsort(-rows.log_probs, axis=1, kind="stable")
    lengths, used = used.sum(axis=1), np.take_along_axis(used, order, axis=1)
    columns: dict[str, pa.Array] = {
        DOCUMENT: pa.array(rows.documents, pa.string()),
        names.tokens: _lists(rows.tokens, pa.uint32()),
        POSITIONS: _lists(rows.positions, pa.uint32()),
        names.ids: _ragged(counts, lengths, np.take_along_axis(rows.ids, order, axis=1)[used]),
        names.log_probs: _ragged(counts, lengths, np.take_along_axis(rows.log_probs, order, axis=1)[used]),
        LEFT_OUT: _flat(counts, rows.left_out),
    }
    if rows.originals is not None:
        columns[ORIGINALS] = _lists(rows.originals, pa.uint32())
    columns |= {name: _flat(counts, values) for name, values in rows.scalars.items()}
    return pa.table(columns).replace_schema_metadata(target.note.metadata() if target.note else None)


def _offsets(lengths: NDArray[np.int64]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def _flat(counts: NDArray[np.int64], values: NDArray[Any]) -> pa.Array:
    """Return a column with ``counts`` numbers in each row."""
    return pa.ListArray.from_arrays(_offsets(counts), pa.array(values))


def _lists(lists: list[Any], kind: pa.DataType) -> pa.Array:
    lengths = np.array([len(values) for values in lists], np.int64)
    flat = np.concatenate([np.asarray(values) for values in lists]) if lists else np.zeros(0)
    return pa.ListArray.from_arrays(_offsets(lengths), pa.array(flat, kind))


def _ragged(counts: NDArray[np.int64], lengths: NDArray[np.int64], values: NDArray[Any]) -> pa.Array:
    """Return a column of lists of lists: ``counts`` lists in each row, with ``lengths`` values each."""
    inner = pa.ListArray.from_arrays(_offsets(lengths), pa.array(values))
    return pa.ListArray.from_arrays(_offsets(counts), inner)


def _nested(counts: NDArray[np.int64], values: NDArray[Any]) -> pa.Array:
    """Return a column with ``counts`` lists in each row, each a row of a matrix."""
    lengths = np.full(len(values), values.shape[1], np.int64)
    return _ragged(counts, lengths, np.ascontiguousarray(values).reshape(-1))
