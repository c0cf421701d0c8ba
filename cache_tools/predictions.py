"""What a teacher said at a run of positions, and how it becomes plain integer arrays and back.

``to_arrays`` and ``from_arrays`` are each other's inverse up to the stated quantisation:
sparse targets through the codec, scalars as int32 multiples of a step (a value of -inf is
the smallest int32), hidden states as bfloat16 bits or float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.codec import Arrays, DeltaPower, Targets
from cache_tools.manifest import HiddenSpec, TeacherManifest

SCALARS = ("logsumexp", "entropy", "gold_logprob")
"""Kept at every position, in nats: log-normaliser of the logits, entropy of the
distribution, log-probability of the gold token."""

SCALAR_STEP_NATS = 2.0**-10
MINUS_INFINITY = int(np.iinfo(np.int32).min)


@dataclass(frozen=True)
class Predictions:
    """One teacher's predictions at n positions.

    Attributes:
        targets: Sparse targets, ids in any order when written, ascending when read.
        scalars: (n,) float32 by name, see SCALARS.
        hidden: (n, width) float32 by layer name.
    """

    targets: Targets
    scalars: dict[str, NDArray[np.float32]]
    hidden: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def codec_of(manifest: TeacherManifest) -> DeltaPower:
    """Return the sparse codec that a teacher's manifest names."""
    return DeltaPower.from_dict(manifest.target.codec, manifest.target.k, manifest.vocabulary_size)


def array_types(manifest: TeacherManifest) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return (shape of a row, dtype) of each array of a teacher, by name."""
    types = codec_of(manifest).array_types()
    types |= {name: ((), np.dtype(np.int32)) for name in manifest.scalars}
    types |= {hidden_array(layer): ((spec.width,), _hidden_dtype(spec)) for layer, spec in manifest.hidden.items()}
    return types


def hidden_array(layer: str) -> str:
    """Return the array name of a layer of hidden states."""
    return f"hidden/{layer}"


def to_arrays(manifest: TeacherManifest, predictions: Predictions) -> Arrays:
    """Encode predictions as the arrays named by :func:`array_types`.

    Raises:
        ValueError: a row cannot be stored, see ``DeltaPower.encode``.
    """
    arrays = codec_of(manifest).encode(predictions.targets)
    step = manifest.scalar_step_nats
    arrays |= {name: _to_steps(predictions.scalars[name], step) for name in manifest.scalars}
    for layer, spec in manifest.hidden.items():
        values = predictions.hidden[layer].astype(np.float32, copy=False)
        arrays[hidden_array(layer)] = values if spec.codec == "float32" else to_bfloat16(values)
    return arrays


def scalar_from_steps(steps: NDArray[np.int32], step_nats: float) -> NDArray[np.float32]:
    """Return the scalars, in nats, that stored integers stand for."""
    return np.where(steps == MINUS_INFINITY, -np.inf, steps * step_nats).astype(np.float32)


def hidden_from_stored(stored: NDArray[Any], spec: HiddenSpec) -> NDArray[np.float32]:
    """Return hidden states as float32."""
    return stored if spec.codec == "float32" else from_bfloat16(stored)


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16, to nearest even; return the bits."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    quiet_nan = (bits >> 16) | 0x40
    return np.where(np.isnan(values), quiet_nan, rounded >> 16).astype(np.uint16)


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def statistics(predictions: Predictions, codec_kl_nats: NDArray[np.float64]) -> dict[str, float]:
    """Return the means over positions that a receipt records."""
    kept = np.exp(predictions.targets.log_probs.astype(np.float64)).sum(axis=1)
    return {
        "kept_mass": float(kept.mean()),
        "entropy_nats": float(predictions.scalars["entropy"].mean(dtype=np.float64)),
        "cross_entropy_nats": -float(predictions.scalars["gold_logprob"].mean(dtype=np.float64)),
        "codec_kl_nats": float(codec_kl_nats.mean()),
        "codec_kl_nats_max": float(codec_kl_nats.max()),
    }


def mean_statistics(parts: list[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Combine per-shard statistics, each with its number of positions; maxima stay maxima."""
    positions = sum(n for n, _ in parts)
    if positions == 0:
        return {}
    return {
        name: max(s[name] for _, s in parts)
        if name.endswith("_max")
        else sum(n * s[name] for n, s in parts) / positions
        for name in parts[0][1]
    }


def _hidden_dtype(spec: HiddenSpec) -> np.dtype[Any]:
    return np.dtype(np.float32 if spec.codec == "float32" else np.uint16)


def _to_steps(values: NDArray[np.float32], step_nats: float) -> NDArray[np.int32]:
    steps = np.rint(values.astype(np.float64) / step_nats)
    if not (np.isneginf(steps) | (np.abs(steps) < -MINUS_INFINITY)).all():
        raise ValueError("a per-position scalar is NaN or too large")
    return np.where(np.isneginf(steps), MINUS_INFINITY, steps).astype(np.int32)
