"""The map from a tokenizer's ids to those of a student that has only some of its tokens: a file beside the tokenizer.

It is copied with the student, because without it the tokenizer's ids denote other tokens. To use such a student:

    ids = load_file("student/token_map.safetensors")
    input_ids = ids["student_ids"][tokenizer(text)["input_ids"]]
    predicted = ids["tokenizer_ids"][logits.argmax(-1)]
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cache_tools.errors import FormatError
from cache_tools.format.vocabulary import mapped_fingerprint
from cache_tools.regular_files import read_regular
from cache_tools.vocabularies.union import NO_ID

TOKEN_MAP = "token_map.safetensors"

LARGEST_BYTES = 2**28
"""Largest size of the file: 16 million ids and as many tokens."""

Ids = NDArray[np.uint32]


def token_map_bytes(student_ids: Ids, tokenizer_ids: Ids) -> bytes:
    """Return the file.

    Args:
        student_ids: (V,) the student's id for each id of the tokenizer; for a dropped token the id of its stand-in,
            NO_ID where there is no token.
        tokenizer_ids: (n,) the tokenizer's id for each id of the student.
    """
    return save({"student_ids": student_ids, "tokenizer_ids": tokenizer_ids})


def read_map(content: bytes, predicted: Ids) -> Ids:
    """Return ``student_ids`` of a file, checked against the map (n,) of predicted ids.

    Raises:
        ValueError: the two maps contradict each other.
        KeyError, SafetensorError: the file is no map.
    """
    ids, kept = load(content)["student_ids"], predicted != NO_ID
    if ids.dtype != np.uint32 or len(ids) < len(kept) or not np.array_equal(ids[: len(kept)][kept], predicted[kept]):
        raise ValueError("a kept token is read as another token")
    if (ids[ids != NO_ID] >= kept.sum()).any():
        raise ValueError("an id of the vocabulary is too large")
    return ids


def mapped(vocabulary: str, folder: Path) -> str:
    """Return the fingerprint of a student's vocabulary, given the fingerprint of its tokenizer's vocabulary.

    Raises:
        FormatError: the student's map cannot be read.
    """
    path = folder / TOKEN_MAP
    if not path.is_file():
        return vocabulary
    try:
        return mapped_fingerprint(vocabulary, load(read_regular(path, LARGEST_BYTES))["student_ids"])
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise FormatError("this is not a student's map of ids", where=path, found=error) from error
