"""What a token of any tokenizer is, said in one way, so that two tokenizers can be compared token by token.

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

Within one tokenizer no two ids become the same token, so what is said about tokens can be carried back and forth.
Between tokenizers the same token is the same string of bytes at the same kind of place; that they mean
the same is an assumption: WordPiece takes ``d`` after an apostrophe for a start, byte-level BPE does not.
Nothing is lower-cased: ``The`` and ``the`` are two tokens. Rejected: comparing the vocabularies' own strings, which
makes nearly everything of two families different, and ``ing`` the same although it is a word in one of them.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from cache_tools.errors import FormatError
from cache_tools.inspection.decoding import decoder_kinds, piece_bytes

ROLES = ("mask", "cls", "sep", "bos", "eos", "pad", "unk")
"""Special tokens; one with several roles has the first of them here."""


class Token(NamedTuple):
    """A token, whatever tokenizer it is of.

    Attributes:
        kind: See the module.
        content: Its bytes; a special token's role.
    """

    kind: str
    content: bytes


def tokens_of(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> dict[int, Token]:
    """Return every id of a tokenizer and the token that it stands for, by ascending id; no token twice.

    Args:
        tokenizer: A fast tokenizer.
        settings: Its ``tokenizer_config.json``.

    Raises:
        FormatError: its tokens are written in a way that is not known here.
    """
    state = json.loads(tokenizer.to_str())
    roles, added = special_roles(settings), tokenizer.get_added_tokens_decoder()
    found: dict[int, Token] = {}
    seen: set[Token] = set()
    for name, token_id in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if name in roles:
            token = Token("special", roles[name].encode())
        elif token_id in added:
            token = Token("added", name.encode())
        else:
            token = _ordinary(name, state["model"], decoder_kinds(state["decoder"]))
        found[token_id] = token if token not in seen else Token("other", name.encode())
        seen.add(found[token_id])
    return found


def special_roles(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the role of each special token by its name."""
    roles: dict[str, str] = {}
    for role in ROLES:
        token = settings.get(f"{role}_token")
        name = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(name, str):
            roles.setdefault(name, role)
    return roles


def _ordinary(name: str, model: Mapping[str, Any], kinds: frozenset[str]) -> Token:
    if model.get("end_of_word_suffix"):
        raise FormatError(
            "this tokenizer marks ends of words",
            expected="WordPiece, SentencePiece or byte-level tokens, which mark where a word begins or goes on",
            found=f"suffix {model['end_of_word_suffix']!r}",
            fix="Leave this cache out",
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
