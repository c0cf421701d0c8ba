"""JSON that notices its own damage: one member, ``seal``, is the hash of all the other bytes.

Arrays carry checksums; the small files that say how to read them must too, or one flipped
bit in a number of levels would silently bend every probability of a shard. The seal is the
sha256 of the file's bytes with the seal's own 64 digits replaced by zeros, so it needs no
canonical form of JSON and covers every byte, the last newline included.

A seal proves no good will: strangers can seal what they like. So JSON is also checked for what Python's parser lets
pass and what would stop a program later: endless nesting, numbers that are NaN or infinite, halves of characters.
"""

import hashlib
import json
import math
import re
from typing import Any

from cache_tools.limits import DOCUMENT_DEPTH
from cache_tools.mappings import JsonObject

UNSEALED = "0" * 64
"""What a document holds in the place of its seal before it is written."""

_SEAL = re.compile(rb'"seal": "([0-9a-f]{64})"')


def sealed_bytes(document: JsonObject) -> bytes:
    """Return the JSON text of a document that holds UNSEALED under one ``seal`` key, sealed."""
    content = (json.dumps(document, indent=1) + "\n").encode()
    (place,) = _SEAL.finditer(content)
    return _with_digits(content, place, hashlib.sha256(content).hexdigest().encode())


def read_sealed(content: bytes) -> Any:
    """Return the document in sealed JSON text.

    Raises:
        ValueError: it is not JSON, has no seal, or is not what was sealed.
    """
    document = parse_json(content)
    check_seal(content)
    return document


def check_seal(content: bytes) -> None:
    """Raise ValueError unless the bytes of a JSON document are those that were sealed."""
    places = list(_SEAL.finditer(content))
    if len(places) != 1:
        raise ValueError("it has no seal")
    zeroed = _with_digits(content, places[0], UNSEALED.encode())
    if hashlib.sha256(zeroed).hexdigest().encode() != places[0][1]:
        raise ValueError("its seal is broken, so it is not what was written")


def parse_json(content: bytes) -> Any:
    """Return the value in JSON text from an untrusted source.

    Raises:
        ValueError: it is not JSON, is nested more than DOCUMENT_DEPTH deep, or holds a number that is not finite or
            text that is not Unicode.
    """
    try:
        document = json.loads(content, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    marks = content.count(b"{") + content.count(b"[")
    if marks < DOCUMENT_DEPTH and content.isascii() and b"\\u" not in content:
        return document  # too few brackets to be nested deep, and no character that could be half of one
    level = [document]
    for _ in range(DOCUMENT_DEPTH):
        level = [value for item in level for value in _inside(item)]
        if not level:
            return document
    raise ValueError(f"it is nested more than {DOCUMENT_DEPTH} deep")


def _inside(item: Any) -> Any:
    """Return the values inside a JSON value; refuse text with half a character."""
    if isinstance(item, dict):
        return [*item, *item.values()]
    if isinstance(item, str) and not item.isascii():
        item.encode()  # UnicodeEncodeError is a ValueError
    return item if isinstance(item, list) else ()


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number in JSON")


def _with_digits(content: bytes, place: re.Match[bytes], digits: bytes) -> bytes:
    return content[: place.start(1)] + digits + content[place.end(1) :]
