"""The RMS norm between a language model's last layer and its output matrix, read from a model folder, in numpy.

The norm divides a state x (D numbers) by its length and multiplies each channel by a weight:

    norm(x) = w * x / sqrt(mean(x ** 2) + epsilon)

Dividing the result by w gives x back but for its length, which the norm removes anyway; where epsilon is felt, even the
length can be told. So a cache that keeps the input of the output matrix holds the state before the norm as well, and a
state that did not come from this norm is recognised: its quotient does not have length 1.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import ModelError
from cache_tools.mappings import JsonObject
from cache_tools.models.tensors import find_tensor
from cache_tools.regular_files import read_regular

Floats = NDArray[np.float32]

NAMES = (
    "model.norm.weight",
    "model.language_model.norm.weight",
    "language_model.model.norm.weight",
    "model.text_model.norm.weight",
    "norm.weight",
)
"""Names of the norm's weight in checkpoints of models that draft heads are trained for."""

CONFIG_BYTES = 2**24


@dataclass(frozen=True)
class FinalNorm:
    """An RMS norm.

    Attributes:
        weight: (D,) float32.
        epsilon: What is added to the mean square.
        num_layers: Layers of the model that it belongs to.
    """

    weight: Floats
    epsilon: float
    num_layers: int

    def apply(self, states: Floats) -> Floats:
        """Return the normalised states, both (n, D)."""
        lengths = np.sqrt(_mean_square(states) + np.float32(self.epsilon))
        return np.asarray(states * (self.weight / lengths), np.float32)

    def undo(self, states: Floats) -> Floats:
        """Return states (n, D) whose norm the given ones (n, D) are, of length 1 where epsilon is not felt."""
        inner = states / self.weight
        mean_square = _mean_square(inner)
        felt = np.maximum(1 - mean_square, self.epsilon)  # of a state of length 1, mean_square is 1 / (1 + epsilon)
        return np.asarray(inner * np.sqrt(np.float32(self.epsilon) / felt), np.float32)


def read_final_norm(folder: Path) -> FinalNorm:
    """Read the norm of a model folder.

    Raises:
        ModelError: the folder holds no RMS norm with weights other than 0.
        FormatError: a file of weights is damaged.
    """
    config = _config_of(folder)
    nested = config.get("text_config")
    text = nested if isinstance(nested, dict) else config
    weight = find_tensor(folder, NAMES)
    bias = find_tensor(folder, [name.removesuffix("weight") + "bias" for name in NAMES])
    epsilon, layers = text.get("rms_norm_eps"), text.get("num_hidden_layers")
    is_usable = weight is not None and weight.values.ndim == 1 and bool(np.all(weight.rows() != 0)) and bias is None
    if weight is not None and is_usable and isinstance(epsilon, float) and epsilon > 0 and isinstance(layers, int):
        return FinalNorm(weight.rows(), epsilon, layers)
    raise ModelError(
        "this folder holds no RMS norm before the output matrix",
        where=folder,
        expected=f"a tensor {NAMES[0]} without zeros in *.safetensors, rms_norm_eps and num_hidden_layers in "
        "config.json",
        why="draft heads are trained on states before that norm",
        fix="Name the teacher's folder with --model",
    )


def _config_of(folder: Path) -> JsonObject:
    try:
        config = json.loads(read_regular(folder / "config.json", CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError("this is not a model folder", where=folder, expected="config.json", found=error) from error
    return config if isinstance(config, dict) else {}


def _mean_square(states: Floats) -> Floats:
    return np.asarray(np.mean(np.square(states, dtype=np.float32), axis=-1, keepdims=True, dtype=np.float32))
