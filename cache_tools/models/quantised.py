"""How the weights of a model folder are stored: what its configuration and the headers of its files say.

A checkpoint with a ``quantization_config`` holds packed integers, scales and 8-bit numbers under names of its method's
own. Nothing here unpacks them. The configuration names the method, and the headers, which are read without a weight,
say how many bytes there are and whether the output matrix is among what is quantised. So this is the same on a machine
that could never run the model.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_tools.models.tensors import TensorEntry, tensor_entries

SETTINGS = ("quantization_config", "compression_config")
"""Keys of a configuration that describe quantised weights, the usual one first."""

ORDINARY = frozenset({"F64", "F32", "F16", "BF16"})
"""Types of safetensors that hold weights as they are."""

HEADS = ("lm_head", "embed_out", "output_projection", "decoder")
"""Last parts of the names of output matrices."""

BITS = ("bits", "w_bit", "num_bits", "nbits", "weight_bits")
GROUPS = ("group_size", "q_group_size", "weight_block_size")

DEQUANTISED_ON_CPU = frozenset({"fp8", "mxfp4"})
"""Methods whose weights transformers turns into ordinary ones where there is no GPU with their kernels."""


@dataclass(frozen=True)
class QuantisedWeights:
    """How quantised weights are stored.

    Attributes:
        method: Name of the method, such as ``fp8``, ``awq``, ``gptq``, ``compressed-tensors`` or ``bitsandbytes``.
        words: The method with its bits and groups, such as ``gptq, 4 bits, groups of 128``.
        output_head: The same of the output matrix; None if it is stored as an ordinary matrix.
        dequantised: Whether the configuration asks for ordinary weights in memory.
        stored_bytes: Size of all tensors in the files; 0 if there are no files.
    """

    method: str
    words: str
    output_head: str | None
    dequantised: bool
    stored_bytes: int


def quantised_weights(folder: Path) -> QuantisedWeights | None:
    """Describe the quantised weights of a model folder; None if its configuration names no quantisation.

    Raises:
        FormatError: A weight file is damaged.
        OSError: The configuration cannot be read.
        ValueError: It is not JSON.
    """
    settings = quantisation_settings(json.loads((folder / "config.json").read_bytes()))
    if settings is None:
        return None
    entries, words = tensor_entries(folder), quantisation_words(settings)
    return QuantisedWeights(
        method=_method(settings),
        words=words,
        output_head=words if head_is_quantised(entries) else None,
        dequantised=bool(settings.get("dequantize")),
        stored_bytes=sum(entry.bytes for entry in entries.values()),
    )


def quantisation_settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the part of a model's configuration that describes its quantised weights; None if there is none."""
    for part in (config, config.get("text_config")):
        for key in SETTINGS:
            settings = part.get(key) if isinstance(part, Mapping) else None
            if isinstance(settings, Mapping) and settings:
                return settings
    return None


def quantisation_words(settings: Mapping[str, Any]) -> str:
    """Return method, format, bits and groups of a ``quantization_config`` as one phrase."""
    weights = _weight_settings(settings)
    words = [_method(settings)]
    words += [str(settings[key]) for key in ("format", "bnb_4bit_quant_type", "quant_type") if settings.get(key)]
    if (bits := _bits(settings, weights)) is not None:
        words.append(f"{bits} bits")
    group = next((value for part in (weights, settings) for key in GROUPS if (value := part.get(key))), None)
    if isinstance(group, list):
        words.append(f"blocks of {' x '.join(map(str, group))}")
    elif isinstance(group, int) and group > 0:
        words.append(f"groups of {group}")
    return ", ".join(words)


def head_is_quantised(entries: Mapping[str, TensorEntry]) -> bool:
    """Return whether the output matrix is among the quantised tensors of a folder.

    A quantised matrix has another type, or other tensors beside it than a weight and a bias, such as scales. A model
    without an output matrix of its own uses its embeddings.
    """
    modules: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in entries.items():
        module, _, kind = name.rpartition(".")
        modules.setdefault(module, {})[kind] = entry
    heads = [parts for module, parts in modules.items() if module.rpartition(".")[2] in HEADS]
    heads = heads or [parts for module, parts in modules.items() if module.endswith("embed_tokens")]
    return any(
        kind not in ("weight", "bias") or entry.dtype not in ORDINARY
        for parts in heads
        for kind, entry in parts.items()
    )


def _method(settings: Mapping[str, Any]) -> str:
    method = settings.get("quant_method")
    if method is None and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        return "bitsandbytes"  # as its first checkpoints were written
    return str(method) if method else "a method without a name"


def _weight_settings(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what compressed-tensors says of the weights of its first group; nothing for other methods."""
    groups = settings.get("config_groups")
    if not isinstance(groups, Mapping):
        return {}
    for group in groups.values():
        if isinstance(group, Mapping) and isinstance(group.get("weights"), Mapping):
            weights: Mapping[str, Any] = group["weights"]
            return weights
    return {}


def _bits(settings: Mapping[str, Any], weights: Mapping[str, Any]) -> int | None:
    for part in (weights, settings):
        for key in BITS:
            if isinstance(part.get(key), int):
                return int(part[key])
    if settings.get("load_in_4bit"):
        return 4
    return 8 if settings.get("load_in_8bit") or _method(settings) == "fp8" else None
