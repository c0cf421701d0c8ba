"""What each k would keep of a teacher's distributions, and what it would cost: sums over measured rows.

Three numbers describe a choice of k: the mass that the k tokens hold, the bytes that
a position takes, and the KL floor, the divergence from the teacher's distribution to the best that
can be rebuilt from the row (the tokens kept, and the rest spread evenly over all others).

The entries of a row are in order of falling probability, so the k most likely entries are its first k, and the fewest
that reach a mass are its first few: one reading at the largest k serves all. What a narrower row leaves out is the sum
of what was cut, not a difference from 1. Scalars of the tail are those outside the largest k; their size hardly
depends on it.

Standard errors are those of a ratio of sums over sequences, because neighbouring positions are similar. With only a
few dozen sequences they are too small if a few documents differ strongly from the rest.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.registry import Codec, Targets
from cache_tools.format.layout import ENTROPY
from cache_tools.format.zarr_arrays import ArrayLayout, ArrayType
from cache_tools.inspection.divergence import kl_floor_rows
from cache_tools.store.predictions import Predictions, to_steps
from pipeline.capture.keep import Keep
from pipeline.capture.target import SparseTarget

CHOICES = (8, 16, 32, 64, 128, 256)
"""Values of k that are compared, besides the planned one."""

CHUNK_ROWS = 4096
"""Rows of an array's chunk, as captures write them by default."""

FEWEST_SEQUENCES = 10
"""From fewer than these, a standard error would itself be a guess, and none is given."""


@dataclass(frozen=True)
class KChoice:
    """What one value of k keeps and costs.

    Attributes:
        k: Number of kept tokens.
        kept_mass: Mean mass of the kept tokens, in [0, 1].
        kept_mass_standard_error: Its standard error; None from fewer than FEWEST_SEQUENCES.
        kl_floor_nats: Mean KL divergence that no reader of the row can avoid.
        kl_floor_standard_error_nats: Its standard error; None from fewer than FEWEST_SEQUENCES.
        bytes_per_position: Bytes of targets and scalars.
    """

    k: int
    kept_mass: float
    kept_mass_standard_error: float | None
    kl_floor_nats: float
    kl_floor_standard_error_nats: float | None
    bytes_per_position: float


def choices_of(keep: Keep, vocabulary_size: int) -> list[int]:
    """Return the values of k to compare.

    There are none for kinds that are not defined by k, nor of a teacher without entropies, for which no floor follows.
    """
    if not keep.kind.is_ranked or ENTROPY not in keep.common:
        return []
    most = keep.tokens(vocabulary_size)
    return sorted({min(k, most) for k in (*CHOICES, keep.k) if k <= most or k == keep.k})


@dataclass
class Tally:
    """Sums over the measured rows of a sample.

    Attributes:
        target: The planned target.
        vocabulary_size: Width of the teacher's logits.
        ks: The choices of k.
        positions: Number of positions of each sequence.
        sums: For each k, blocks of (sequences, 2) float64: kept mass, and KL floor in nats, summed over a sequence.
        bytes_of_k: For each k, bytes of all rows.
        target_bytes: Bytes of all rows of the planned target.
        scalar_bytes: Bytes of all scalars.
    """

    target: SparseTarget
    vocabulary_size: int
    ks: list[int]
    positions: list[int] = field(default_factory=list)
    sums: dict[int, list[NDArray[np.float64]]] = field(default_factory=dict)
    bytes_of_k: dict[int, int] = field(default_factory=dict)
    target_bytes: int = 0
    scalar_bytes: int = 0

    def add(self, block: Predictions, positions: list[int]) -> None:
        """Count a block of predictions of whole sequences, of so many positions each."""
        assert block.targets is not None
        self.positions += positions
        self.scalar_bytes += scalar_bytes(block, self.target.scalar_step_nats(self.vocabulary_size))
        planned = narrowed(block.targets, self.target.keep) if self.ks else block.targets
        codec = with_learned_file(self.target.codec(self.vocabulary_size), block.targets)
        self.target_bytes += target_bytes(codec, planned)
        starts = np.cumsum([0, *positions[:-1]])
        for k in self.ks:
            targets = first_entries(block.targets, k)
            mass = np.exp(targets.log_probs, dtype=np.float64).sum(axis=1)
            floor = kl_floor_rows(targets, block.scalars["entropy"], self.vocabulary_size)
            of_sequences = np.add.reduceat(np.stack([mass, floor], axis=1), starts)
            self.sums.setdefault(k, []).append(of_sequences)
            size = target_bytes(replace(codec, k=k), targets)
            self.bytes_of_k[k] = self.bytes_of_k.get(k, 0) + size

    def choices(self) -> tuple[KChoice, ...]:
        """Return the table of k."""
        positions = np.array(self.positions, np.float64)
        rows = []
        for k in self.ks:
            (mass, floor), (mass_error, floor_error) = ratios(np.concatenate(self.sums[k]), positions)
            bytes_per_position = (self.bytes_of_k[k] + self.scalar_bytes) / sum(self.positions)
            rows.append(KChoice(k, mass, mass_error, floor, floor_error, bytes_per_position))
        return tuple(rows)


def ratios(sums_NM: NDArray[np.float64], positions_N: NDArray[np.float64]) -> tuple[list[float], list[float | None]]:
    """Return means over positions and their standard errors, from sums over N sequences drawn at random.

    Args:
        sums_NM: Sums of M quantities over each sequence.
        positions_N: Number of positions of each sequence.

    Returns:
        M means, and their M standard errors; None from fewer than FEWEST_SEQUENCES.
    """
    total, count = positions_N.sum(), len(positions_N)
    means_M = sums_NM.sum(axis=0) / total
    if count < FEWEST_SEQUENCES:
        return means_M.tolist(), [None] * len(means_M)
    squares_M = np.square(sums_NM - positions_N[:, None] * means_M).sum(axis=0)
    return means_M.tolist(), (np.sqrt(squares_M * count / (count - 1)) / total).tolist()


def narrowed(widest: Targets, keep: Keep) -> Targets:
    """Return a target of kind ``topk`` or ``topp`` from the most likely entries of each row."""
    targets = first_entries(widest, keep.k)
    if not keep.kind.has_mass:
        return targets
    reached = np.exp(targets.log_probs, dtype=np.float64).cumsum(axis=1)
    before = np.concatenate([np.zeros_like(reached[:, :1]), reached[:, :-1]], axis=1)
    return _emptied(targets, before >= keep.p)


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


def with_learned_file(codec: Codec, targets: Targets) -> Codec:
    """Return a codec with the file that it needs, if any, learned from every second row: the others are new to it."""
    if codec.file is None:
        return codec
    sample = Targets(targets.ids[::2], targets.log_probs[::2], targets.log_left_out[::2])
    return codec.with_file(codec.learned_file(sample))


def target_bytes(codec: Codec, targets: Targets) -> int:
    """Return the bytes of a target, compressed as a cache compresses it; the last chunk is cut to its rows."""
    encoded, types = codec.encode(targets), codec.array_types()
    size, rows = 0, len(targets.ids)
    for name, values in encoded.arrays.items():
        array_type = ArrayType(*types[name], codec.compression_level(name))
        size += len(ArrayLayout(array_type, _whole_chunks(rows), CHUNK_ROWS).encode(values))
    return size


def scalar_bytes(block: Predictions, step_nats: float) -> int:
    """Return the bytes of the scalars, compressed as a cache compresses them; a step of 0 stands for float32."""
    assert block.targets is not None
    rows = len(block.targets.ids)
    layout = ArrayLayout(
        ArrayType((), np.dtype(np.int32 if step_nats else np.float32)), _whole_chunks(rows), CHUNK_ROWS
    )
    stored = (to_steps(values, step_nats) if step_nats else values for values in block.scalars.values())
    return sum(len(layout.encode(values)) for values in stored)


def _whole_chunks(rows: int) -> int:
    return -(-rows // CHUNK_ROWS) * CHUNK_ROWS
