"""Which id means which token: the least that a teacher, a student and a cache must share."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_tools.format.fingerprint import fingerprint


@dataclass(frozen=True)
class Vocabulary:
    """What a model must know of a tokenizer.

    Attributes:
        size: Highest id plus one, added tokens included; there may be ids without a token.
        fingerprint: See ``vocabulary_fingerprint``; of a student that reads a tokenizer's ids through a map, see
            ``mapped_fingerprint``.
    """

    size: int
    fingerprint: str


def vocabulary_size(vocabulary: Mapping[str, int]) -> int:
    """Return the highest id of a token-to-id mapping plus one: the logits that a model needs; ids may have gaps."""
    return max(vocabulary.values()) + 1


def vocabulary_fingerprint(vocabulary: Mapping[str, int]) -> str:
    """Return the hash of a token-to-id mapping, added tokens included."""
    return fingerprint(dict(vocabulary))


def mapped_fingerprint(vocabulary: str, ids: NDArray[np.uint32]) -> str:
    """Return the hash of a tokenizer's vocabulary, given by its fingerprint, and of the map (n,) of its ids."""
    return fingerprint({"vocabulary": vocabulary, "ids": ids.tolist()})
