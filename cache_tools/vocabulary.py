"""Which id means which token: the least that a teacher, a student and a cache must share."""

from collections.abc import Mapping
from dataclasses import dataclass

from cache_tools.fingerprint import fingerprint


@dataclass(frozen=True)
class Vocabulary:
    """What a model must know of a tokenizer.

    Attributes:
        size: Number of ids, added tokens included.
        fingerprint: See ``vocabulary_fingerprint``.
    """

    size: int
    fingerprint: str


def vocabulary_fingerprint(vocabulary: Mapping[str, int]) -> str:
    """Return the hash of a token-to-id mapping, added tokens included."""
    return fingerprint(dict(vocabulary))
