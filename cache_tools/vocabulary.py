"""Which id means which token: the least that a teacher, a student and a cache must share."""

from collections.abc import Mapping

from cache_tools.fingerprint import fingerprint


def vocabulary_fingerprint(vocabulary: Mapping[str, int]) -> str:
    """Return the hash of a token-to-id mapping, added tokens included."""
    return fingerprint(dict(vocabulary))
