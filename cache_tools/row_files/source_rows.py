"""From a batch of any format to rows of ids and log-probabilities, aligned with tokens and checked.

``read_rows`` decodes, ``align`` says which token each row predicts and drops rows that predict none, and
``checked_targets`` refuses what is no distribution, with file and row. Nothing is repaired without being
counted: rows of a lossy format whose probabilities exceed 1 by its rounding are scaled to 1, and ``Marks`` say
which and by how much.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache_tools.codecs.rows import EMPTY_ID, MASS_TOLERANCE, Targets
from cache_tools.errors import FormatError
from cache_tools.row_files import distillkit
from cache_tools.row_files.arrow_lists import Nested, Place, flat_lists, nested
from cache_tools.row_files.distillkit import LegacyCodec, PackedCodec
from cache_tools.row_files.formats import FILLER_NATS, LABELS, SourceFormat

DOCUMENT, POSITIONS, ORIGINALS, LEFT_OUT = "document_id", "positions", "original_ids", "left_out"
"""Columns that only our own exports have."""

ROUNDING = 2.0**-24
"""Half a step of float32 at 1: a mass that misses 1 by less than this for each entry cannot be told from 1."""


@dataclass(frozen=True)
class SourceRows:
    """Rows of predictions of some consecutive rows of a file.

    Attributes:
        place: Where they lie.
        counts: (s,) rows of predictions of each row of the file.
        ids: (n, k) int64, without meaning in unused slots.
        log_probs: (n, k) float32, natural log; -inf in unused slots.
        masked: (n,) bool, rows that the file itself rules out.
        left_out: (n,) float32, log of the mass outside each row; None where the file does not say.
        scalars: (n,) float32 by name.
    """

    place: Place
    counts: NDArray[np.int64]
    ids: NDArray[np.int64]
    log_probs: NDArray[np.float32]
    masked: NDArray[np.bool_]
    left_out: NDArray[np.float32] | None
    scalars: dict[str, NDArray[np.float32]]

    def select(self, kept: NDArray[np.bool_]) -> "SourceRows":
        """Return the rows of predictions (n,) that are chosen."""
        row_of = np.repeat(np.arange(len(self.counts)), self.counts)
        return SourceRows(
            self.place,
            np.bincount(row_of[kept], minlength=len(self.counts)),
            self.ids[kept],
            self.log_probs[kept],
            self.masked[kept],
            None if self.left_out is None else self.left_out[kept],
            {name: values[kept] for name, values in self.scalars.items()},
        )

    def refuse(self, broken: Any, problem: str, values: NDArray[Any] | None = None, **parts: Any) -> None:
        """Raise FormatError if any row of predictions (n,) is broken, naming its file, row and place."""
        if broken.any():
            at = int(np.flatnonzero(broken)[0])
            ends = np.cumsum(self.counts)
            row = int(np.searchsorted(ends, at, side="right"))
            number = at - int(ends[row] - self.counts[row])
            detail = "" if values is None else f"; {values[at]:g}"
            raise self.place.refuse(row, problem, found=f"prediction {number} of this row{detail}", **parts)


def columns_to_read(source: SourceFormat, schema: pa.Schema, values: bool = True) -> list[str]:
    """Return the columns that importing needs; without the values, those that tell tokens and numbers of rows."""
    names = [source.columns.tokens]
    names += source.value_columns if values else source.value_columns[:1]
    own = [DOCUMENT, POSITIONS, ORIGINALS, *([LEFT_OUT, *source.note.scalars] if source.note and values else [])]
    mask = source.value_columns[2:] if source.name == "axolotl" else (LABELS,)
    own += [name for name in mask if name in schema.names and source.name != "rows"]
    return list(dict.fromkeys([*names, *(name for name in own if name in schema.names)]))


def read_rows(batch: pa.RecordBatch, place: Place, source: SourceFormat) -> SourceRows:
    """Decode the predictions of a batch.

    Raises:
        FormatError: a column has another type than the format asks for, or a row another length.
    """
    columns = [nested(batch.column(name), place, name) for name in source.value_columns]
    for name, column in zip(source.value_columns[1:], columns[1:], strict=True):
        _refuse_different(columns[0].counts, column.counts, place, source.value_columns[0], name)
    masked = np.zeros(len(columns[0].lengths), np.bool_)
    if isinstance(source.codec, PackedCodec):
        ids, log_probs = _packed(columns, place, source.codec)
    elif isinstance(source.codec, LegacyCodec):
        ids, log_probs = _legacy(columns, place, source.codec)
    else:
        ids, log_probs = _plain(columns, place, source)
        if source.name == "axolotl":
            counted = columns[2].matrix(max(1, int(columns[2].lengths.max(initial=0))), 0)
            masked = ~(counted != 0).any(axis=1)
    names = [LEFT_OUT, *(source.note.scalars if source.note else [])]
    own = {name: _per_prediction(batch, name, columns[0], place) for name in names if name in batch.schema.names}
    left_out = own.pop(LEFT_OUT, None)
    return SourceRows(place, columns[0].counts, ids, log_probs, masked, left_out, own)


def _packed(columns: list[Nested], place: Place, codec: PackedCodec) -> tuple[Any, NDArray[np.float32]]:
    values = _fixed(columns[0], codec.value_bytes, np.uint8, place, "compressed_logprobs")
    packed = _fixed(columns[1], codec.id_bytes, np.uint8, place, "bytepacked_indices")
    return distillkit.unpack_ids(packed, codec).astype(np.int64), distillkit.decode_values(values, codec)


def _legacy(columns: list[Nested], place: Place, codec: LegacyCodec) -> tuple[Any, NDArray[np.float32]]:
    words = _fixed(columns[0], codec.num_words, np.int64, place, "packed_indices").view(np.uint64)
    exact = _fixed(columns[1], codec.exact_k, np.float64, place, "exact_values")
    coefficients = _fixed(columns[2], codec.num_terms, np.float64, place, "coeffs")
    ids, log_probs = distillkit.decode_legacy(words, exact, coefficients, codec)
    return ids.astype(np.int64), log_probs


def _plain(columns: list[Nested], place: Place, source: SourceFormat) -> tuple[Any, NDArray[np.float32]]:
    values, ids, names = columns[0], columns[1], source.value_columns
    for name, column in zip(names[1:], columns[1:], strict=True):
        if not np.array_equal(values.lengths, column.lengths):
            row = int(values.row_of[np.flatnonzero(values.lengths != column.lengths)[0]])
            raise place.refuse(row, f"a prediction has different numbers of entries in {names[0]!r} and {name!r}")
    if source.name == "axolotl" and not values.lengths.all():  # a token without a prediction has entries, all masked
        raise place.refuse(int(values.row_of[np.flatnonzero(values.lengths == 0)[0]]), "a prediction has no entry")
    width = max(1, int(values.lengths.max(initial=0)))
    if ids.values.dtype.kind not in "iu" and len(ids.values):
        raise FormatError(f"the column {source.value_columns[1]!r} holds no whole numbers", where=place.file)
    return ids.matrix(width, 0).astype(np.int64), values.matrix(width, -np.inf).astype(np.float32)


def _fixed(column: Nested, width: int, dtype: Any, place: Place, name: str) -> NDArray[Any]:
    """Return a column whose rows of predictions all have the width that the codec states."""
    if (column.lengths != width).any():
        at = int(np.flatnonzero(column.lengths != width)[0])
        raise place.refuse(
            int(column.row_of[at]),
            f"a prediction has another length in {name!r} than the codec's settings ask for",
            expected=width,
            found=int(column.lengths[at]),
            why="the same bytes mean other numbers with other settings",
            fix="Name the YAML file that the data was written with by --codec",
        )
    values = column.values if column.values.dtype == np.uint64 else column.values.astype(dtype)
    return values.view(dtype).reshape(-1, width) if values.dtype == np.uint64 else values.reshape(-1, width)


def _per_prediction(batch: pa.RecordBatch, name: str, rows: Nested, place: Place) -> NDArray[np.float32]:
    lists = flat_lists(batch.column(name), place, name)
    _refuse_different(rows.counts, np.array([len(values) for values in lists]), place, "rows of predictions", name)
    return np.concatenate([*lists, np.zeros(0)]).astype(np.float32)


def _refuse_different(first: Any, second: Any, place: Place, name: str, other: str) -> None:
    if not np.array_equal(first, second):
        row = int(np.flatnonzero(np.asarray(first) != np.asarray(second))[0])
        raise place.refuse(row, f"{name!r} and {other!r} have different numbers of predictions")


@dataclass(frozen=True)
class Marks:
    """What was met in n rows, one value for each.

    Attributes:
        short: (n,) bool, it has fewer entries than a row can hold.
        renormalised: (n,) bool, it sums to 1 although it holds less than the whole vocabulary.
        rise_nats: (n,) by how much a value exceeds the one before, where the format promises falling order; 0 if none.
        excess: (n,) by how much its mass exceeded 1, and was scaled to 1; 0 if float32 explains it.
        kept_mass: (n,) the mass of its entries.
    """

    short: NDArray[np.bool_]
    renormalised: NDArray[np.bool_]
    rise_nats: NDArray[np.float64]
    excess: NDArray[np.float64]
    kept_mass: NDArray[np.float64]

    def statistics(self) -> dict[str, float]:
        """Return the statistics of a receipt: counts, maxima and means."""
        return {
            "kept_mass": float(self.kept_mass.mean()),
            "short_positions": float(self.short.sum()),
            "renormalised_positions": float(self.renormalised.sum()),
            "rising_positions": float((self.rise_nats > 0).sum()),
            "rise_nats_max": float(self.rise_nats.max()),
            "rescaled_positions": float((self.excess > 0).sum()),
            "excess_mass_max": float(self.excess.max()),
        }


def checked_targets(
    rows: SourceRows, source: SourceFormat, k: int, vocabulary_size: int, mass_tolerance: float
) -> tuple[Targets, Marks]:
    """Return rows as targets, and what was met in them.

    Args:
        rows: Aligned rows, none of which is masked.
        source: Their format.
        k: Entries that a row can hold.
        vocabulary_size: Ids are below this.
        mass_tolerance: How far the probabilities of a row may exceed 1.

    Raises:
        FormatError: a row is no distribution: NaN, mass above 1, an id twice or outside the vocabulary, no entry.
    """
    log_probs = rows.log_probs.astype(np.float64)
    rows.refuse(np.isnan(log_probs).any(axis=1), "a log-probability is not a number")
    rise = np.zeros(len(log_probs))
    if source.promises_order:
        rise = np.diff(log_probs, axis=1).max(axis=1, initial=0)
    used = log_probs > FILLER_NATS
    log_probs[~used] = -np.inf
    rows.refuse(used.sum(axis=1) > k, f"a prediction has more than {k} entries")
    given = rows.left_out
    silent = np.zeros(len(used), np.bool_) if given is None else given == 0  # a teacher whose logits were no numbers
    rows.refuse(~used.any(axis=1) & ~silent, "a prediction has no entry")
    ids = np.where(used, rows.ids, EMPTY_ID)
    outside = ((ids < 0) | (ids >= vocabulary_size)) & used
    rows.refuse(outside.any(axis=1), f"an id is not below the vocabulary size {vocabulary_size}")
    in_order = np.sort(ids, axis=1)
    twice = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] != EMPTY_ID)
    rows.refuse(twice.any(axis=1), "an id occurs twice in a prediction")
    with np.errstate(over="ignore"):
        mass = np.exp(log_probs).sum(axis=1)
    fix = "Correct this row; if the format rounds so coarsely, allow it with --mass-tolerance"
    rows.refuse(~(mass <= 1 + mass_tolerance), "the probabilities of a prediction add up to more than 1", mass, fix=fix)
    if given is not None:
        whole = mass + np.exp(given.astype(np.float64))
        rows.refuse(
            ~(np.abs(whole - 1) <= MASS_TOLERANCE), "a prediction and its left-out mass do not add up to 1", whole
        )
    excess = np.where(mass > 1 + MASS_TOLERANCE, mass - 1, 0)
    log_probs -= np.log1p(excess)[:, None]
    entries = used.sum(axis=1)
    left_out = _log_rest(mass, entries) if given is None else given
    renormalised = np.isneginf(left_out) & (entries < vocabulary_size)
    marks = Marks(entries < k, renormalised, rise, excess, np.minimum(mass, 1))
    return Targets(*_slots(ids, log_probs, used, k), left_out.astype(np.float32)), marks


def _slots(ids: Any, log_probs: Any, used: Any, k: int) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """Return ids and log-probabilities (n, k), whatever the width of the source's rows."""
    width = ids.shape[1]
    if width > k:  # every row has at most k entries, but not in the first k slots
        first = np.argsort(~used, axis=1, kind="stable")[:, :k]
        ids, log_probs = np.take_along_axis(ids, first, axis=1), np.take_along_axis(log_probs, first, axis=1)
    elif width < k:
        ids = np.pad(ids, ((0, 0), (0, k - width)), constant_values=EMPTY_ID)
        log_probs = np.pad(log_probs, ((0, 0), (0, k - width)), constant_values=-np.inf)
    return ids.astype(np.uint32), log_probs.astype(np.float32)


def _log_rest(mass: NDArray[np.float64], entries: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the log of the mass outside each row: (n,); -inf where rounding hides whether there is any."""
    rest = 1 - mass
    hidden = rest <= ROUNDING * entries
    logs: NDArray[np.float64] = np.log(np.where(hidden, 1, rest))
    return np.where(hidden, -np.inf, logs)
