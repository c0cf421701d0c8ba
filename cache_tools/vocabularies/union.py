"""A student's vocabulary: the tokens of several tokenizers, or some tokens of one, and the map of each tokenizer's ids.

Ids are assigned in the order of first appearance, tokenizer after tokenizer and id after id. So the ids of the first
tokenizer do not change (a student may start from that teacher's weights), and adding a tokenizer at the end changes no
id. A token that several tokenizers share (see ``tokens.py``) has one id and one embedding, through which a student can
transfer what it learned from one teacher to the language of another.

Every map of predictions is injective, so probabilities are moved and never added: each probability, and the kept mass,
stays the same to the last bit. Texts may be read through another map, in which a dropped token has a stand-in, see
``compression.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import FormatError, IdentityError
from cache_tools.format.fingerprint import fingerprint
from cache_tools.format.vocabulary import Vocabulary, mapped_fingerprint, vocabulary_fingerprint
from cache_tools.vocabularies.tokens import Token

NO_ID = 0xFFFFFFFE
"""What an id without a token is mapped to; larger than the id of any vocabulary."""

UNKNOWN = Token("special", b"unk")


class IdMaps(NamedTuple):
    """The maps of one tokenizer's ids, both (n,) uint32.

    Attributes:
        predicted: Maps ids that a teacher predicts; injective, NO_ID where there is no such token.
        read: Maps ids in a text: the same, but a dropped token is mapped to its stand-in.
    """

    predicted: NDArray[np.uint32]
    read: NDArray[np.uint32]


@dataclass(frozen=True)
class UnionVocabulary:
    """A union of vocabularies, or a part of one.

    Attributes:
        names: Name of each token, by its id in the union; all different.
        maps: For each tokenizer, by the fingerprint of its vocabulary: (n,) uint32, the id in the union of
            each of its ids; NO_ID where it has no token.
        read: For a tokenizer of which tokens were dropped, the same with stand-ins, by which a text is read. The
            student then has this tokenizer, and its ids pass through this map.
    """

    names: tuple[str, ...]
    maps: dict[str, NDArray[np.uint32]] = field(compare=False)
    read: dict[str, NDArray[np.uint32]] = field(default_factory=dict, compare=False)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Size and fingerprint, as a student with this vocabulary records them."""
        if self.read:
            ((tokenizer, ids),) = self.read.items()
            return Vocabulary(len(self.names), mapped_fingerprint(tokenizer, ids))
        return Vocabulary(len(self.names), vocabulary_fingerprint({name: i for i, name in enumerate(self.names)}))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of names and maps."""
        document = {"names": self.names, "maps": {key: ids.tolist() for key, ids in self.maps.items()}}
        if self.read:
            document["read"] = {key: ids.tolist() for key, ids in self.read.items()}
        return fingerprint(document)

    def ids_of(self, vocabulary: str, where: object) -> IdMaps:
        """Return the maps of a tokenizer.

        Args:
            vocabulary: Fingerprint of its vocabulary.
            where: The place that an error names.

        Raises:
            IdentityError: the tokenizer is not part of this union.
        """
        if vocabulary not in self.maps:
            raise IdentityError(
                "this cache's tokenizer is not part of the vocabulary",
                where=where,
                expected=" or ".join(f"{key[:12]}…" for key in self.maps),
                found=f"{vocabulary[:12]}…",
                why="its ids would be taken for other tokens",
                fix="Run 'logitcask vocabulary' on all your caches; adding caches at the end changes no id",
            )
        return IdMaps(self.maps[vocabulary], self.read.get(vocabulary, self.maps[vocabulary]))


def unite(tokenizers: Mapping[str, Mapping[int, Token]]) -> UnionVocabulary:
    """Return the union of tokenizers, given as ``tokens.tokens_of`` by the fingerprint of their vocabularies."""
    ids: dict[Token, int] = {}
    for tokens in tokenizers.values():
        for token_id in sorted(tokens):
            ids.setdefault(tokens[token_id], len(ids))
    ids.setdefault(UNKNOWN, len(ids))  # WordPiece requires it
    maps = {}
    for key, tokens in tokenizers.items():
        maps[key] = np.full(max(tokens) + 1, NO_ID, np.uint32)
        for token_id, token in tokens.items():
            maps[key][token_id] = ids[token]
    return UnionVocabulary(token_names(list(ids)), maps)


def token_names(tokens: Sequence[Token]) -> tuple[str, ...]:
    """Name tokens as WordPiece does, ``[CLS]``, ``the``, ``##ing``; where that is impossible, as ``<kind:hex>``.

    It is impossible for bytes that are no text, for text that WordPiece would read differently, and for a name that
    another token has already.

    Raises:
        FormatError: a token's text is the hexadecimal name of another.
    """
    names: dict[Token, str] = {}
    used: set[str] = set()
    for token in sorted(tokens, key=lambda token: token.kind != "special"):  # special tokens first
        name = _plain_name(token)
        names[token] = name if name and name not in used else hexadecimal_name(token)
        used.add(names[token])
    if len(used) < len(names):
        raise FormatError("two tokens have the same name", why="a vocabulary's names are unique")
    return tuple(names[token] for token in tokens)


def hexadecimal_name(token: Token) -> str:
    """Return a name that states kind and bytes."""
    return f"<{token.kind}:{token.content.hex()}>"


def _plain_name(token: Token) -> str | None:
    """Return the name as WordPiece writes it; None if WordPiece would read that name differently."""
    try:
        text = token.content.decode()
    except UnicodeDecodeError:
        return None
    if token.kind == "special":
        return f"[{text.upper()}]"
    if token.kind == "inside":
        return f"##{text}" if text else None
    return text if token.kind in ("start", "added") and not text.startswith("##") else None
