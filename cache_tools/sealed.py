"""JSON that notices its own damage: one member, ``seal``, is the hash of all the other bytes.

Arrays carry checksums; the small files that say how to read them must too, or one flipped
bit in a number of levels would silently bend every probability of a shard. The seal is the
sha256 of the file's bytes with the seal's own 64 digits replaced by zeros, so it needs no
canonical form of JSON and covers every byte, the last newline included.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

UNSEALED = "0" * 64
"""What a document holds in the place of its seal before it is written."""

_SEAL = re.compile(rb'"seal": "([0-9a-f]{64})"')


def sealed_bytes(document: Mapping[str, Any]) -> bytes:
    """Return the JSON text of a document that holds UNSEALED under one ``seal`` key, sealed."""
    content = (json.dumps(document, indent=1) + "\n").encode()
    (place,) = _SEAL.finditer(content)
    return _with_digits(content, place, hashlib.sha256(content).hexdigest().encode())


def read_sealed(content: bytes) -> Any:
    """Return the document in sealed JSON text.

    Raises:
        ValueError: it is not JSON, has no seal, or is not what was sealed.
    """
    document = json.loads(content)
    places = list(_SEAL.finditer(content))
    if len(places) != 1:
        raise ValueError("it has no seal")
    zeroed = _with_digits(content, places[0], UNSEALED.encode())
    if hashlib.sha256(zeroed).hexdigest().encode() != places[0][1]:
        raise ValueError("its seal is broken, so it is not what was written")
    return document


def _with_digits(content: bytes, place: re.Match[bytes], digits: bytes) -> bytes:
    return content[: place.start(1)] + digits + content[place.end(1) :]
