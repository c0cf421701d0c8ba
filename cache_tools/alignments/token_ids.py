"""The student's id of each of a teacher's tokens: by the bytes that a token writes, in whatever notation.

A token is the same if it writes the same bytes and stands at the same kind of place, behind a space or inside a word
(``vocabularies/tokens.py``); special tokens by their role. A byte of a byte fallback and a byte-level token of the same
byte are the same, if the byte is no character by itself. The map is injective: two tokens of one tokenizer never become
one token of the other, so probabilities move and are never added.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cache_tools.alignments.stored import Alignment
from cache_tools.format.tokenizer_files import SETTINGS
from cache_tools.vocabularies.folder import open_tokenizer
from cache_tools.vocabularies.tokenizer_folder import STATE, settings_of, tokenizer_of
from cache_tools.vocabularies.tokens import Token, tokens_of
from cache_tools.vocabularies.union import NO_ID


def student_ids(alignment: Alignment) -> NDArray[np.uint32] | None:
    """Return the student's id of each of the teacher's ids, (n,), NO_ID for none; None if both have one vocabulary.

    Raises:
        DamageError: a tokenizer's file is missing or not what was written.
        FormatError: a tokenizer cannot be read.
    """
    if alignment.manifest.vocabulary.fingerprint == alignment.encoding.manifest.vocabulary.fingerprint:
        return None
    files, opened = alignment.tokenizer_files(), open_tokenizer(alignment.encoding)
    student = tokenizer_of(files.get(STATE, b""), alignment.path)
    theirs = tokens_of(opened.tokenizer, opened.settings)
    return mapped_ids(theirs, tokens_of(student, settings_of(files.get(SETTINGS, b""))))


def mapped_ids(theirs: Mapping[int, Token], own: Mapping[int, Token]) -> NDArray[np.uint32]:
    """Return the id in ``own`` of each id of ``theirs``: (n,), NO_ID for none."""
    ids = {_comparable(token): token_id for token_id, token in own.items()}
    result = np.full(max(theirs) + 1, NO_ID, np.uint32)
    for token_id, token in theirs.items():
        result[token_id] = ids.get(_comparable(token), NO_ID)
    return result


def _comparable(token: Token) -> Token:
    """Return the form in which tokens are compared: a part of a character is one byte, however it is written."""
    is_part = token.kind in ("byte", "inside") and len(token.content) == 1 and token.content[0] >= 0x80
    return Token("inside", token.content) if is_part else token
