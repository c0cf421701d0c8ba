"""A student's vocabulary: the tokens of several tokenizers, or some tokens of one, and where each of their ids went.

Ids are given in the order of first appearance, tokenizer after tokenizer and id after id. So the first tokenizer's ids
stay what they were (a student may start from that teacher's weights), and a further tokenizer at the end
changes none. A token that several share, see ``tokens.py``, is one id: the one embedding
through which a student can carry over what it learned from one teacher to another's language.

Every map of predictions is injective, so what a teacher said is moved and nothing is added up: each
probability, and with them the kept mass, stays bit for bit what it was. A text may be read through another map, in
which a token that was dropped has a stand-in, see ``compression.py``.
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
"""Where an id without a token goes; no vocabulary reaches it."""

UNKNOWN = Token("special", b"unk")


class IdMaps(NamedTuple):
    """What becomes of the ids of one tokenizer, both (n,) uint32.

    Attributes:
        predicted: Of ids that a teacher predicts: injective; NO_ID where there is no such token.
        read: Of ids in a text: the same, and where a token was dropped the id of its stand-in.
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
        """What a student with this vocabulary must know of it."""
        if self.read:
            ((tokenizer, ids),) = self.read.items()
            return Vocabulary(len(self.names), mapped_fingerprint(tokenizer, ids))
        return Vocabulary(len(self.names), vocabulary_fingerprint({name: i for i, name in enumerate(self.names)}))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of names and maps."""
        document = {"names": self.names, "maps": {key: ids.tolist() for key, ids in self.maps.items()}}
        if self.read:
            document["read"] = {key: ids.tolist() for key, ids in self.read.items()}
        return fingerprint(document)

    def ids_of(self, vocabulary: str, where: object) -> IdMaps:
        """Return the maps of a tokenizer.

        Args:
            vocabulary: Fingerprint of its vocabulary.
            where: What an error names.

        Raises:
            IdentityError: it is not part of this union.
        """
        if vocabulary not in self.maps:
            raise IdentityError(
                "this cache's tokenizer is not part of the vocabulary",
                where=where,
                expected=" or ".join(f"{key[:12]}…" for key in self.maps),
                found=f"{vocabulary[:12]}…",
                why="its ids would be taken for other tokens",
                fix="Make one of all your caches with 'logitcask vocabulary'; new ones at the end change no id",
            )
        return IdMaps(self.maps[vocabulary], self.read.get(vocabulary, self.maps[vocabulary]))


def unite(tokenizers: Mapping[str, Mapping[int, Token]]) -> UnionVocabulary:
    """Return the union of tokenizers, given as ``tokens.tokens_of`` by the fingerprint of their vocabularies."""
    ids: dict[Token, int] = {}
    for tokens in tokenizers.values():
        for token_id in sorted(tokens):
            ids.setdefault(tokens[token_id], len(ids))
    ids.setdefault(UNKNOWN, len(ids))  # what a tokenizer of words must have
    maps = {}
    for key, tokens in tokenizers.items():
        maps[key] = np.full(max(tokens) + 1, NO_ID, np.uint32)
        for token_id, token in tokens.items():
            maps[key][token_id] = ids[token]
    return UnionVocabulary(token_names(list(ids)), maps)


def token_names(tokens: Sequence[Token]) -> tuple[str, ...]:
    """Name tokens as WordPiece does, ``[CLS]``, ``the``, ``##ing``; where that does not serve, as ``<kind:hex>``.

    It does not serve for bytes that are no text, for text that WordPiece would read as something else, and
    for a name that another token has already.

    Raises:
        FormatError: a token's text is the hexadecimal name of another.
    """
    names: dict[Token, str] = {}
    given: set[str] = set()
    for token in sorted(tokens, key=lambda token: token.kind != "special"):  # a role keeps its name
        name = _plain_name(token)
        names[token] = name if name and name not in given else hexadecimal_name(token)
        given.add(names[token])
    if len(given) < len(names):
        raise FormatError("two tokens have the same name", why="a vocabulary's names are unique")
    return tuple(names[token] for token in tokens)


def hexadecimal_name(token: Token) -> str:
    """Return a name that says kind and bytes."""
    return f"<{token.kind}:{token.content.hex()}>"


def _plain_name(token: Token) -> str | None:
    """Return the name as WordPiece would write it, or None if it would read that as something else."""
    try:
        text = token.content.decode()
    except UnicodeDecodeError:
        return None
    if token.kind == "special":
        return f"[{text.upper()}]"
    if token.kind == "inside":
        return f"##{text}" if text else None
    return text if token.kind in ("start", "added") and not text.startswith("##") else None
