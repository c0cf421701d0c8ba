"""Hidden states as the trainers of draft heads read them, one file for each sequence.

A draft head such as EAGLE-3's learns from three auxiliary layers of the target model what its last state would be. Two
trainers read such files, and they differ in what they do with the last state:

============  ===================================  ==============================================================
trainer       a sequence of L tokens, width D      the last state
============  ===================================  ==============================================================
speculators   ``hidden_states/hs_<i>.safetensors`` before the final norm, which the trainer applies itself:
              and row i of an Arrow dataset        ``hidden_states`` (L, 4, D), the last layer behind the others
specforge     ``rows_<a>-<b>/data_<i>.ckpt``       behind the final norm, as the output matrix takes it:
                                                   ``aux_hidden_state`` (1, L, 3 D), ``hidden_state`` (1, L, D)
============  ===================================  ==============================================================

A last state on the wrong side of the norm trains without any failure. States are bfloat16, the type in which both
train. Layers are counted as in transformers' ``hidden_states``: 0 is the embedding, i the output of the i-th layer.
Speculators counts like that too; SpecForge counts from the first layer's output, so its numbers are lower by one.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache_tools.mappings import JsonObject
from cache_tools.row_files.torch_files import TorchTensor, integers_file, tensors_file

Trainer = Literal["speculators", "specforge"]
AUXILIARY_LAYERS = 3
GROUP_FILES = 2000
"""Files of one folder in SpecForge's layout."""

WORD_BYTES = 8

SPECFORGE_SHIFT = 1
"""By how much SpecForge's number of a layer is lower than transformers'."""


@dataclass(frozen=True)
class DraftSample:
    """The states of one sequence.

    Attributes:
        tokens: (L,) token ids.
        auxiliary: (L, 3, D) bits of bfloat16, uint16, by rising layer.
        last: (L, D) bits of bfloat16, on the side of the final norm that the trainer expects.
    """

    tokens: NDArray[np.int64]
    auxiliary: NDArray[np.uint16]
    last: NDArray[np.uint16]


def sample_name(trainer: Trainer, split: str, number: int) -> str:
    """Return the name of a sequence's file, relative to the export.

    Args:
        trainer: Who reads it.
        split: ``train`` or ``test``; speculators splits a dataset itself, so its names do not have it.
        number: Number of the sequence: for speculators in the export, for SpecForge in the split.
    """
    if trainer == "speculators":
        return f"hidden_states/hs_{number}.safetensors"
    first = number // GROUP_FILES * GROUP_FILES
    return f"{split}/rows_{first}-{first + GROUP_FILES}/data_{number}.ckpt"


def sample_file(trainer: Trainer, sample: DraftSample) -> bytes:
    """Return the content of a sequence's file."""
    if trainer == "speculators":
        states = np.concatenate([sample.auxiliary, sample.last[:, None]], axis=1)
        return _safetensors({"token_ids": ("I64", sample.tokens), "hidden_states": ("BF16", states)})
    ones = np.ones(len(sample.tokens), np.int64)
    return tensors_file(
        {
            "input_ids": TorchTensor("int64", sample.tokens),
            "loss_mask": TorchTensor("int64", ones),
            "aux_hidden_state": TorchTensor("bfloat16", sample.auxiliary.reshape(1, len(ones), -1)),
            "hidden_state": TorchTensor("bfloat16", sample.last[None]),
        }
    )


def dataset_part(sequences: Iterable[NDArray[np.int64]]) -> bytes:
    """Return some rows of the dataset of tokens that speculators opens with ``load_from_disk``."""
    tokens = [np.asarray(ids, np.int64) for ids in sequences]
    lengths = np.array([len(ids) for ids in tokens], np.int64)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    flat = np.concatenate(tokens) if tokens else np.zeros(0, np.int64)
    columns = {
        "input_ids": pa.ListArray.from_arrays(offsets, pa.array(flat)),
        "loss_mask": pa.ListArray.from_arrays(offsets, pa.array(np.ones(len(flat), np.int64))),
        "seq_len": pa.array(lengths),
    }
    table, sink = pa.table(columns), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def dataset_index(parts: list[str], identity: str) -> dict[str, bytes]:
    """Return the two files that make a dataset of its parts, by name.

    Args:
        parts: Names of the files that ``dataset_part`` makes.
        identity: Hex hash of the rows, by which ``datasets`` tells datasets apart.
    """
    number, numbers = {"dtype": "int64", "_type": "Value"}, {"feature": {"dtype": "int64", "_type": "Value"}}
    features = {name: {**numbers, "_type": "List"} for name in ("input_ids", "loss_mask")} | {"seq_len": number}
    information = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
    state: JsonObject = {
        "_data_files": [{"filename": name} for name in parts],
        "_fingerprint": identity[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": "torch",
        "_output_all_columns": False,
        "_split": None,
    }
    return {"dataset_info.json": _json(information), "state.json": _json(state)}


def token_counts_file(counts: NDArray[np.int64]) -> bytes:
    """Return ``token_freq.pt``, from which speculators chooses a smaller vocabulary: how often each id (V,) occurs."""
    return integers_file({int(token): int(counts[token]) for token in np.flatnonzero(counts)})


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _safetensors(tensors: Mapping[str, tuple[str, NDArray[Any]]]) -> bytes:
    """Return a safetensors file; the header fills whole words, and the widest type comes first, so all is aligned."""
    entries, parts, offset = {}, [], 0
    for name, (kind, values) in tensors.items():
        parts.append(np.ascontiguousarray(values).tobytes())
        stop = offset + len(parts[-1])
        entries[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [offset, stop]}
        offset = stop
    header = json.dumps(entries, separators=(",", ":")).encode()
    header = header.ljust(-(-len(header) // WORD_BYTES) * WORD_BYTES)
    return b"".join([len(header).to_bytes(WORD_BYTES, "little"), header, *parts])
