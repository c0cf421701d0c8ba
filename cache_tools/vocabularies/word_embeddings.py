"""The word embeddings in a model folder, read without a model library: one matrix of one safetensors file.

A safetensors file begins with the length of its header, 8 bytes, and the header, JSON: for each tensor its dtype, shape
and place. The library's numpy reader is not used because numpy has no bfloat16.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import ModelError
from cache_tools.format.sealed import parse_json
from cache_tools.hidden_codecs.bfloat16 import from_bfloat16
from cache_tools.limits import DOCUMENT_BYTES
from cache_tools.mappings import JsonObject
from cache_tools.models.files import weight_files
from cache_tools.regular_files import open_regular

ENDINGS = ("word_embeddings.weight", "embed_tokens.weight", "tok_embeddings.weight", "wte.weight")
"""What transformers calls the matrix, in most models."""

DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def word_embeddings(folder: Path, tokens: int) -> NDArray[np.float32]:
    """Return the word embeddings of a model: (V, D) float32.

    Args:
        folder: A model folder with safetensors weights.
        tokens: Number of ids of the tokenizer; V is at least as large.

    Raises:
        ModelError: there is no such matrix, there are several, or it has too few rows.
    """
    matrices = []
    try:
        for path in weight_files(folder):
            with open_regular(path) as (file, size):
                length = int.from_bytes(file.read(8), "little")
                if length > min(DOCUMENT_BYTES, size):
                    raise ValueError("its header is too long")
                header = parse_json(file.read(length))
            places = (name for name in header if name.endswith(ENDINGS) and len(header[name]["shape"]) == 2)
            matrices += [(path, header[name], 8 + length) for name in places]
        if len(matrices) != 1:
            raise ValueError(f"{len(matrices)} such matrices")
        matrix = _matrix(*matrices[0])
        if len(matrix) < tokens:
            raise ValueError(f"{len(matrix)} rows for {tokens} tokens")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ModelError(
            "no word embeddings can be read from this folder",
            where=folder,
            expected=f"one matrix with a name ending in {' or '.join(ENDINGS)}, with a row for each token",
            found=error,
            fix="Give the folder of the teacher's model, or leave --embeddings out",
        ) from error
    return matrix


def _matrix(path: Path, entry: JsonObject, data: int) -> NDArray[np.float32]:
    """Read one tensor; the file's tensors begin at byte ``data``."""
    start, stop = entry["data_offsets"]
    content = np.memmap(path, np.uint8, "r")[data + start : data + stop]
    values = content.view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    matrix: NDArray[np.float32] = from_bfloat16(values) if entry["dtype"] == "BF16" else values.astype(np.float32)
    return matrix
