"""Which id means which token: the least that a teacher, a student and a cache must share."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_tools.format.fingerprint import fingerprint
from cache_tools.mappings import JsonObject

BEHAVIOUR_ROLES = ("bos", "eos", "cls", "sep", "mask")
"""Roles of special tokens; their ids belong to a tokenizer's behaviour."""

TRANSIENT = ("version", "truncation", "padding")
"""Parts of a tokenizer's file that do not change the ids of a text."""


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


def file_behaviour(content: bytes, settings: JsonObject, vocabulary: Mapping[str, int]) -> str:
    """Return the hash of all that determines the ids of a text, as an encoding's identity records it.

    Args:
        content: A ``tokenizer.json``.
        settings: The ``tokenizer_config.json`` beside it.
        vocabulary: Its ids by token.
    """
    tokenizer = {key: value for key, value in json.loads(content).items() if key not in TRANSIENT}
    special = {role: settings.get(f"{role}_token") for role in BEHAVIOUR_ROLES}
    names = {role: token.get("content") if isinstance(token, dict) else token for role, token in special.items()}
    # A role without a token has no id; "None" is a token of many vocabularies.
    ids = {role: vocabulary.get(name) if isinstance(name, str) else None for role, name in names.items()}
    return fingerprint({"tokenizer": tokenizer, "special": ids})
