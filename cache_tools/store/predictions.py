"""A teacher's predictions at a run of positions, and their form as plain integer arrays.

A teacher's arrays come in groups that are written and committed together: the sparse
target with its scalars, and each layer of hidden states. Encoding a group gives its arrays,
what this shard's decoding needs to know beyond the manifest (the codec may choose its steps
shard by shard), and statistics with the error actually made.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.registry import Arrays, Codec, Targets, codec_from_dict
from cache_tools.codecs.rows import blocks
from cache_tools.errors import FormatError
from cache_tools.format.layout import ENTROPY, GOLD_LOGPROB, temperatures_of
from cache_tools.format.manifest import HiddenSpec, TeacherManifest
from cache_tools.format.receipts import TARGETS
from cache_tools.format.zarr_arrays import ArrayLayout, ArrayType
from cache_tools.hidden_codecs.registry import HIDDEN_CODECS
from cache_tools.hidden_codecs.transform import ErrorOf, Transform
from cache_tools.limits import CHUNK_BYTES, CHUNK_ENTRIES
from cache_tools.mappings import Parameters

SCALAR_STEP_NATS = 2.0**-10
MINUS_INFINITY = int(np.iinfo(np.int32).min)

MEAN_SCALARS = (("entropy_nats", ENTROPY, 1), ("cross_entropy_nats", GOLD_LOGPROB, -1))
"""Statistics of a receipt that are means of a scalar, each with its sign; a teacher that keeps none has none."""


@dataclass(frozen=True)
class Predictions:
    """One teacher's predictions at n positions.

    Attributes:
        targets: Sparse targets, ids in any order when written, ascending when read; None if only
            hidden states are written.
        scalars: (n,) float32 by name, see ``format/layout.py``.
        hidden: (n, width) float32 by layer name.
    """

    targets: Targets | None
    scalars: dict[str, NDArray[np.float32]]
    hidden: dict[str, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """One group of arrays, ready to be stored.

    Attributes:
        arrays: Rows by array name.
        parameters: What decoding needs to know of this shard; plain JSON.
        statistics: Means over the positions.
    """

    arrays: Arrays
    parameters: Parameters
    statistics: dict[str, float]


def codec_of(manifest: TeacherManifest) -> Codec:
    """Return the sparse codec that a teacher's manifest names, for the temperatures whose normalisers are kept.

    A codec with a file knows its arrays and sizes; to encode and decode it needs the file, as ``CachedTeacher.codec``
    has it.
    """
    temperatures = temperatures_of(manifest.scalars)
    return codec_from_dict(manifest.target.codec, manifest.target.k, manifest.vocabulary_size, temperatures)


def possible_tokens(manifest: TeacherManifest) -> int:
    """Return how many tokens a teacher's distributions are over: its vocabulary, or the smaller one asked about."""
    tokens = manifest.target.settings.get("tokens")
    return tokens if type(tokens) is int and 0 < tokens < manifest.vocabulary_size else manifest.vocabulary_size


def tokens_of_whole_row(manifest: TeacherManifest) -> int:
    """Return how many tokens a row must hold to rule out all others; 0 where every row says what it rules out."""
    return possible_tokens(manifest) if manifest.target.kind.is_ranked else 0


def hidden_array(layer: str) -> str:
    """Return the array, and the group, of a layer of hidden states."""
    return f"hidden/{layer}"


def group_layouts(manifest: TeacherManifest, positions_per_shard: int) -> dict[str, dict[str, ArrayLayout]]:
    """Return the layout of each array by name, by group.

    Raises:
        FormatError: the codec is not known, a scalar has the name of one of its arrays, or the chunks do not fill a
            shard or are too large.
    """
    codec = codec_of(manifest)
    targets = {
        name: ArrayType(*t, codec.compression_level(name), by_column=codec.by_column(name))
        for name, t in codec.array_types().items()
    }
    scalar = ArrayType((), np.dtype(np.int32 if manifest.scalar_step_nats else np.float32))
    groups = {TARGETS: targets | dict.fromkeys(manifest.scalars, scalar)}
    groups |= {hidden_array(layer): {hidden_array(layer): _hidden_type(s)} for layer, s in manifest.hidden.items()}
    if not targets.keys().isdisjoint(manifest.scalars):
        raise FormatError("a scalar has the name of an array of the targets", found=", ".join(manifest.scalars))
    if positions_per_shard % manifest.chunk_positions:
        raise FormatError(
            "the chunks of this teacher's arrays do not fill a shard",
            expected=f"chunk_positions that divides {positions_per_shard}",
            found=manifest.chunk_positions,
        )
    if codec.row_entries * manifest.chunk_positions > CHUNK_ENTRIES:
        raise _too_large(f"{codec.row_entries:,} entries", manifest.chunk_positions)
    for name, kind in (item for types in groups.values() for item in types.items()):
        if ArrayLayout(kind, positions_per_shard, manifest.chunk_positions).chunk_bytes > CHUNK_BYTES:
            raise _too_large(f"the array {name}", manifest.chunk_positions)
    return {
        group: {name: ArrayLayout(t, positions_per_shard, manifest.chunk_positions) for name, t in types.items()}
        for group, types in groups.items()
    }


def _too_large(what: str, chunk_positions: int) -> FormatError:
    return FormatError(
        f"chunks of {chunk_positions:,} rows of {what} are too large",
        expected=f"at most {CHUNK_ENTRIES:,} entries and {CHUNK_BYTES:,} bytes",
        why="a reader unpacks a chunk as a whole",
        fix="Capture with a smaller encoding.chunk_positions",
    )


def encode_targets(manifest: TeacherManifest, codec: Codec, predictions: Predictions) -> Group:
    """Encode sparse targets and scalars.

    Args:
        manifest: The teacher's.
        codec: The teacher's codec, with its file.
        predictions: All rows of a shard, with at least the scalars that the manifest lists.

    Raises:
        ValueError: a row cannot be stored, see ``codecs/registry.py``, or a scalar is NaN.
    """
    assert predictions.targets is not None
    encoded = codec.encode(predictions.targets)
    arrays = dict(encoded.arrays)
    for name in manifest.scalars:
        arrays[name] = to_steps(predictions.scalars[name], manifest.scalar_step_nats)
    log_probs = predictions.targets.log_probs
    parts = [np.exp(log_probs[rows], dtype=np.float64).sum(axis=1) for rows in blocks(len(log_probs))]
    kept = np.concatenate(parts)  # a block at a time: all in float64 would be the largest array of a capture
    empty = (predictions.targets.log_probs == -np.inf).all(axis=1)  # skipped: the teacher predicted nothing there
    predicted = slice(None) if empty.all() else ~empty
    statistics = {"skipped_positions": float(empty.sum())} if empty.any() else {}
    statistics["kept_mass"] = float(kept[predicted].mean())
    for statistic, name, sign in MEAN_SCALARS:
        if name in manifest.scalars:
            statistics[statistic] = sign * float(predictions.scalars[name][predicted].mean(dtype=np.float64))
    statistics |= {
        "codec_kl_nats": float(encoded.kl_nats.mean()),
        "codec_kl_nats_max": float(encoded.kl_nats.max()),
    }
    statistics |= {name: value for name, value in encoded.statistics.items() if value}
    statistics |= {f"codec_kl_nats_t{t:g}": float(kl.mean()) for t, kl in encoded.tempered_kl_nats.items()}
    return Group(arrays, dict(encoded.parameters), statistics)


def encode_hidden(
    layer: str, spec: HiddenSpec, states: NDArray[np.float32], transform: Transform | None, error_of: ErrorOf | None
) -> Group:
    """Encode one layer of hidden states.

    Args:
        layer: Its name.
        spec: How it is kept.
        states: (n, width) float32.
        transform: Basis of the codec ``transform``; None for the others.
        error_of: Measures the error that the budget is stated in; relative error by default.

    Raises:
        ValueError: a value is not finite.
    """
    name, states = hidden_array(layer), states.astype(np.float32, copy=False)
    if not np.isfinite(
        [states.min(initial=0), states.max(initial=0)]
    ).all():  # NaN if one is, without an array of flags
        raise ValueError(f"a hidden state of layer {layer} is not finite")
    encoded = HIDDEN_CODECS[spec.codec].encode(states, transform, error_of, spec.budget)
    unit = "kl_nats" if layer == "last" else "relative_error"
    statistics = {} if encoded.error is None else {f"hidden_{layer}_{unit}": encoded.error}
    return Group({name: encoded.values}, encoded.parameters, statistics)


def decode_hidden(
    spec: HiddenSpec, stored: NDArray[Any], transform: Transform | None, parameters: Parameters
) -> NDArray[np.float32]:
    """Return stored hidden states as (n, width) float32."""
    return HIDDEN_CODECS[spec.codec].decode(stored, transform, parameters)


def to_steps(values: NDArray[np.float32], step_nats: float) -> NDArray[Any]:
    """Return scalars as int32 multiples of a step, -inf as the smallest int32; as they are for a step of 0.

    Raises:
        ValueError: a value is NaN, +inf or too large.
    """
    if step_nats == 0:
        if np.isnan(values).any():
            raise ValueError("a per-position scalar is NaN")
        return values.astype(np.float32)
    steps = np.rint(values.astype(np.float64) / step_nats)
    if not (np.isneginf(steps) | (np.abs(steps) < -MINUS_INFINITY)).all():
        raise ValueError("a per-position scalar is NaN or too large")
    return np.where(np.isneginf(steps), MINUS_INFINITY, steps).astype(np.int32)


def from_steps(stored: NDArray[Any], step_nats: float) -> NDArray[np.float32]:
    """Return the scalars, in nats, that stored values stand for."""
    if step_nats == 0:
        return stored
    return np.where(stored == MINUS_INFINITY, -np.inf, stored * step_nats).astype(np.float32)


class StatisticsSum:
    """Adds up per-shard statistics, each with its number of positions; maxima stay maxima, counts add up.

    A name that some shards lack is averaged over those that have it. Memory is one number or two for each name.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._positions: dict[str, int] = {}

    def add(self, positions: int, statistics: Mapping[str, float]) -> None:
        """Add those of one shard."""
        for name, value in statistics.items():
            if name.endswith("_max"):
                self._sums[name] = max(self._sums.get(name, -math.inf), value)
            else:
                weight = 1 if name.endswith("_positions") else positions
                self._sums[name] = self._sums.get(name, 0) + weight * value
                self._positions[name] = self._positions.get(name, 0) + positions

    def means(self) -> dict[str, float]:
        """Return the means, maxima and counts of all shards so far."""
        return {
            name: total if name.endswith(("_max", "_positions")) else total / max(self._positions[name], 1)
            for name, total in self._sums.items()
        }


def mean_statistics(parts: Iterable[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Combine the statistics of several shards, see ``StatisticsSum``."""
    total = StatisticsSum()
    for positions, statistics in parts:
        total.add(positions, statistics)
    return total.means()


def _hidden_type(spec: HiddenSpec) -> ArrayType:
    codec = HIDDEN_CODECS[spec.codec]
    columns = codec.chunk_columns if codec.chunk_columns and spec.width > codec.chunk_columns else None
    return ArrayType((spec.width,), codec.dtype, codec.compression_level, columns)
