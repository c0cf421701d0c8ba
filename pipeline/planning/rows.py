"""Rows that a teacher was measured on: narrower targets from the widest, and their bytes in a cache.

Rows stand by falling probability, so the k most likely entries of a row are its first k, and the fewest that reach a
mass are its first few. What is left out of a narrower row is the sum of what was cut, not a difference from 1.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.registry import Codec, Targets
from cache_tools.format.sequences import Sequence
from cache_tools.format.zarr_arrays import ArrayLayout, ArrayType
from cache_tools.store.predictions import SCALAR_STEP_NATS, Predictions, to_steps
from pipeline.config import TargetConfig

CHUNK_ROWS = 4096
"""Rows of an array's chunk, as captures write them by default."""


class Block:
    """Predictions that wait until they are enough to be compressed together, as they would stand in a cache."""

    def __init__(self) -> None:
        self.rows, self._parts, self._sequences = 0, list[Predictions](), list[Sequence]()

    def add(self, predictions: Predictions, sequences: list[Sequence]) -> None:
        """Let the predictions of some more sequences wait."""
        self.rows += sum(sequence.num_positions for sequence in sequences)
        self._parts.append(predictions)
        self._sequences += sequences

    def take(self) -> tuple[Predictions, list[int]]:
        """Return all that wait, in the order of the corpus, with each sequence's positions; and begin again.

        Neighbours in a corpus are alike and compress better together than strangers.
        """
        parts, sequences = self._parts, self._sequences
        self.rows, self._parts, self._sequences = 0, [], []
        positions = [sequence.num_positions for sequence in sequences]
        starts = np.cumsum([0, *positions])
        order = sorted(range(len(sequences)), key=lambda i: sequences[i].sequence_id)
        rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in order])
        return _joined(parts, rows), [positions[i] for i in order]


def as_asked(widest: Targets, target: TargetConfig) -> Targets:
    """Return the target asked for, ``topk`` or ``topp``, from the most likely entries of each row."""
    targets = first_entries(widest, target.k)
    if not target.kind.has_mass:
        return targets
    assert target.p is not None
    reached = np.exp(targets.log_probs, dtype=np.float64).cumsum(axis=1)
    before = np.concatenate([np.zeros_like(reached[:, :1]), reached[:, :-1]], axis=1)
    return _emptied(targets, before >= target.p)


def first_entries(targets: Targets, k: int) -> Targets:
    """Return the k most likely entries; rows stand by falling probability."""
    logs = targets.log_probs
    if k >= logs.shape[1]:
        return targets
    left_out = _log_sum(logs[:, k:], targets.log_left_out)
    return Targets(targets.ids[:, :k], logs[:, :k], left_out)


def _emptied(targets: Targets, empty: NDArray[np.bool_]) -> Targets:
    """Return targets with some entries left out."""
    left_out = _log_sum(np.where(empty, targets.log_probs, -np.inf), targets.log_left_out)
    return Targets(targets.ids, np.where(empty, np.float32(-np.inf), targets.log_probs), left_out)


def _log_sum(logs: NDArray[Any], log_rest: NDArray[Any]) -> NDArray[np.float32]:
    """Return the log of the mass of some entries of each row and of the rest."""
    with np.errstate(divide="ignore"):
        sums: NDArray[np.float64] = np.log(np.exp(logs, dtype=np.float64).sum(axis=1) + np.exp(log_rest))
    return sums.astype(np.float32)


def _joined(parts: list[Predictions], rows: NDArray[np.int64]) -> Predictions:
    """Return these rows of predictions one behind the other."""
    targets = [part.targets for part in parts if part.targets is not None]
    joined = Targets(
        np.concatenate([part.ids for part in targets])[rows],
        np.concatenate([part.log_probs for part in targets])[rows],
        np.concatenate([part.log_left_out for part in targets])[rows],
    )
    scalars = {name: np.concatenate([part.scalars[name] for part in parts])[rows] for name in parts[0].scalars}
    return Predictions(joined, scalars)


def target_bytes(codec: Codec, targets: Targets) -> int:
    """Return the bytes of a target, compressed as a cache compresses it; the last chunk is cut to its rows."""
    encoded, types = codec.encode(targets), codec.array_types()
    size, rows = 0, len(targets.ids)
    for name, values in encoded.arrays.items():
        array_type = ArrayType(*types[name], codec.compression_level(name))
        size += len(ArrayLayout(array_type, _whole_chunks(rows), CHUNK_ROWS).encode(values))
    return size


def scalar_bytes(block: Predictions) -> int:
    """Return the same of the scalars."""
    rows = len(block.scalars["entropy"])
    layout = ArrayLayout(ArrayType((), np.dtype(np.int32)), _whole_chunks(rows), CHUNK_ROWS)
    return sum(len(layout.encode(to_steps(values, SCALAR_STEP_NATS))) for values in block.scalars.values())


def _whole_chunks(rows: int) -> int:
    return -(-rows // CHUNK_ROWS) * CHUNK_ROWS
