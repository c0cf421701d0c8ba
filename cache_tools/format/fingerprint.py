"""One number for "the same thing": sha256 over canonical JSON.

Whatever two runs must agree on (corpus, tokenizer, teacher, parameters) is written as a
plain JSON value and hashed. When fingerprints differ, :func:`differences` says in which
keys, because "fingerprint mismatch" alone helps nobody.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def fingerprint(identity: Mapping[str, object]) -> str:
    """Return the hex sha256 of ``identity`` as canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Mapping[str, object], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List the leaf keys in which two identities differ, as ``key: old -> new``."""
    lines = []
    for key in sorted({*old, *new}):
        left, right = old.get(key), new.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            lines += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            lines.append(f"{prefix}{key}: {_short(left)} -> {_short(right)}")
    return lines


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
