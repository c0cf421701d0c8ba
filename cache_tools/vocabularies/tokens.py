"""The tokens of any tokenizer in one notation, so that two tokenizers can be compared token by token.

============== =========================== ================================================
kind           content                     written by WordPiece, SentencePiece, byte-level BPE
============== =========================== ================================================
``start``      the text behind a space     ``the``, ``▁the``, ``Ġthe``
``inside``     text within a word          ``##ing``, ``ing``, ``ing``
``special``    its role                    ``[CLS]`` or ``<s>``: both are ``cls``
``added``      its text                    ``<|user|>``
``byte``       one byte of a byte fallback ``<0xE2>``
``other``      its own name                two names for one text; then the second
============== =========================== ================================================

Within one tokenizer no two ids become the same token, so ids and tokens can be mapped in both directions. Tokens of two
tokenizers are equal if they have the same bytes and the same kind; that they have the same meaning is an assumption:
WordPiece treats ``d`` after an apostrophe as a start, byte-level BPE does not. Nothing is lower-cased: ``The`` and
``the`` are two tokens. Rejected: comparing the vocabularies' own strings, by which almost all tokens of two tokenizer
families differ, and ``ing`` is equal although it is a whole word in one of them.
"""

import json
from collections.abc import Mapping
from typing import NamedTuple

from tokenizers import Tokenizer

from cache_tools.errors import FormatError
from cache_tools.inspection.decoding import decoder_kinds, piece_bytes
from cache_tools.mappings import JsonObject

ROLES = ("mask", "cls", "sep", "bos", "eos", "pad", "unk")
"""Roles of special tokens; a token with several roles gets the first of them."""


class Token(NamedTuple):
    """A token of any tokenizer.

    Attributes:
        kind: One of the kinds that the module describes.
        content: Its bytes; for a special token its role.
    """

    kind: str
    content: bytes


def tokens_of(tokenizer: Tokenizer, settings: JsonObject) -> dict[int, Token]:
    """Return every id of a tokenizer with its token, by ascending id; no token occurs twice.

    Args:
        tokenizer: A fast tokenizer.
        settings: Its ``tokenizer_config.json``.

    Raises:
        FormatError: its tokens are written in an unknown way.
    """
    state = json.loads(tokenizer.to_str())
    roles, added = special_roles(settings), tokenizer.get_added_tokens_decoder()
    tokens: dict[int, Token] = {}
    seen: set[Token] = set()
    for name, token_id in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if name in roles:
            token = Token("special", roles[name].encode())
        elif token_id in added:
            token = Token("added", name.encode())
        else:
            token = _ordinary(name, state["model"], decoder_kinds(state["decoder"]))
        tokens[token_id] = token if token not in seen else Token("other", name.encode())
        seen.add(tokens[token_id])
    return tokens


def special_roles(settings: JsonObject) -> dict[str, str]:
    """Return the role of each special token by its name."""
    roles: dict[str, str] = {}
    for role in ROLES:
        token = settings.get(f"{role}_token")
        name = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(name, str):
            roles.setdefault(name, role)
    return roles


def _ordinary(name: str, model: JsonObject, kinds: frozenset[str]) -> Token:
    if model.get("end_of_word_suffix"):
        raise FormatError(
            "this tokenizer marks ends of words",
            expected="WordPiece, SentencePiece or byte-level tokens, which mark the beginning or the inside of a word",
            found=f"suffix {model['end_of_word_suffix']!r}",
            fix="Run the command without this cache",
        )
    prefix = model.get("continuing_subword_prefix")
    if prefix and name.startswith(prefix) and name != prefix:
        return Token("inside", name[len(prefix) :].encode())
    if "ByteFallback" in kinds and len(name) == 6 and name.startswith("<0x"):
        return Token("byte", piece_bytes(name, kinds))
    if prefix or not kinds & {"ByteLevel", "Metaspace", "Replace"}:
        return Token("start", name.encode())
    content = piece_bytes(name, kinds)
    return Token("start", content[1:]) if content.startswith(b" ") else Token("inside", content)
