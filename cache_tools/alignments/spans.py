"""The bytes of a text that each token of a sequence covers, for any tokenizer.

A tokenizer says which token it made and at which character it began. That is less than it seems: byte-level BPE cuts
characters, and gives all tokens of a character the same place; it may leave a leading space out of a token's place;
WordPiece drops white space. So the bytes of the tokens themselves decide where they can:

1. If all tokens, written one after another, are the text, each token covers its own bytes. This is so for byte-level
   BPE, and for SentencePiece without a normaliser (whose first space may be one that the tokenizer added).
2. Otherwise the places decide. White space that a tokenizer drops belongs to the token behind it, as the space of
   ``Ġthe`` does. Where several tokens share one character, their own bytes divide it if they add up to it; if they do
   not, the character cannot be divided, and these tokens are not ``usable``.

Invariant: the tokens that cover text cover every byte once, in order (property tests, eight scripts). A token that is
not what the text says, because a normaliser changed it (``the`` for ``The``) or because it is unknown, covers the bytes
that it was made from, and ``spells`` is false.

Cost: about 20 ns per token in the first case, 1 µs in the second. Rejected: ``tokenizer.decode``, which repairs text.
"""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_tools.inspection.decoding import TokenTexts, decoder_kinds

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

WHITE_SPACE = tuple(b" \t\n\r\v\f")


class TokenBytes(NamedTuple):
    """The bytes of a tokenizer's tokens.

    Attributes:
        contents: The bytes of each id, ``b""`` for an id without a token.
        special: (n,) bool, whether the id is a special or added token, which may frame a text and then covers none.
        drops_space: Whether the tokenizer drops white space, so that its tokens do not add up to the text.
    """

    contents: list[bytes]
    special: Bools
    drops_space: bool

    @classmethod
    def of(cls, tokenizer: "Tokenizer") -> "TokenBytes":
        """Return the bytes of a fast tokenizer's tokens."""
        state, texts = json.loads(tokenizer.to_str()), TokenTexts(tokenizer)
        prefix = (state["model"].get("continuing_subword_prefix") or "").encode()
        ids = tokenizer.get_vocab().values()
        added = set(tokenizer.get_added_tokens_decoder())
        contents = [b""] * (max(ids) + 1)
        for i in ids:
            content = texts.token(i)
            contents[i] = content.removeprefix(prefix) if i not in added and content != prefix else content
        special = np.zeros(len(contents), dtype=bool)
        special[list(added)] = True
        kinds = decoder_kinds(state["decoder"])
        return cls(contents, special, bool(prefix) or not kinds & {"ByteLevel", "Metaspace", "Replace"})


class Spans(NamedTuple):
    """The bytes that each token of a sequence covers, all (n,).

    Attributes:
        starts: int64, where a token's bytes begin in the text.
        ends: int64, where they end; equal to the start for a token that covers none.
        usable: bool, false for tokens that share a character which cannot be divided among them.
        spells: bool, whether a token's own bytes are those that it covers.
    """

    starts: Ints
    ends: Ints
    usable: Bools
    spells: Bools


def token_spans(
    ids: NDArray[np.uint32], framing: Bools, text: bytes, tokens: TokenBytes, byte_lengths: Callable[[], Ints]
) -> Spans:
    """Return the bytes that each token of a sequence covers.

    Args:
        ids: (n,) the tokens.
        framing: (n,) whether a token stands around the text and covers none of it.
        text: The text, in UTF-8.
        tokens: The bytes of the tokenizer's tokens.
        byte_lengths: Returns (n,) how many bytes lie between a token's place and the next one's, 0 for tokens around
            the text; called only if the tokens do not add up to the text.
    """
    own = list(map(tokens.contents.__getitem__, ids.tolist()))
    for i in np.flatnonzero(framing).tolist():
        own[i] = b""
    joined = b"".join(own)
    extra = len(joined) - len(text)
    if extra in (0, 1) and joined[extra:] == text and joined[:extra] in (b"", b" "):
        sizes = np.fromiter(map(len, own), np.int64, len(own))
        places = np.maximum(np.cumsum(np.concatenate([np.zeros(1, np.int64), sizes])) - extra, 0)
        return Spans(places[:-1], places[1:], ~framing, ~framing)
    return _spans_by_place(own, framing, byte_lengths(), text, tokens.drops_space)


def _spans_by_place(own: list[bytes], framing: Bools, byte_lengths: Ints, text: bytes, drops_space: bool) -> Spans:
    lengths, divided = _divided_characters(own, framing, byte_lengths)
    ends = np.cumsum(lengths)
    places = starts = ends - lengths
    if drops_space:
        starts, ends = _with_space_before(starts, ends, framing, text)
    spells = [
        content == text[place:end] or _spells(content, text[start:end], drops_space or start == 0)
        for content, place, start, end in zip(own, places.tolist(), starts.tolist(), ends.tolist(), strict=True)
    ]
    return Spans(starts, ends, divided & ~framing, np.array(spells, dtype=bool) & divided & ~framing)


def _divided_characters(own: list[bytes], framing: Bools, lengths: Ints) -> tuple[Ints, Bools]:
    """Divide characters of several tokens by the tokens' own bytes; return byte lengths, and which are certain.

    A tokenizer gives a character to the last of its tokens, and no bytes to those before.
    """
    lengths, certain = lengths.copy(), np.ones(len(own), dtype=bool)
    if lengths[~framing].all():
        return lengths, certain
    shared: list[int] = []
    for i in np.flatnonzero(~framing).tolist():
        shared.append(i)
        if lengths[i] == 0:
            continue
        sizes = [len(own[token]) for token in shared]
        if len(shared) > 1 and all(sizes) and sum(sizes) == lengths[i]:
            lengths[shared] = sizes
        elif len(shared) > 1:
            certain[shared] = False
        shared = []
    certain[shared] = False  # tokens behind the last character
    return lengths, certain


def _with_space_before(starts: Ints, ends: Ints, framing: Bools, text: bytes) -> tuple[Ints, Ints]:
    """Move dropped white space from the token before it to the token behind it; the last keeps what ends the text."""
    covering = np.flatnonzero(~framing & (ends > starts))
    if not len(covering):
        return starts, ends
    content = np.frombuffer(text, np.uint8)
    behind_ink = np.where(np.isin(content, WHITE_SPACE), 0, np.arange(1, len(content) + 1))
    last_ink = np.concatenate([np.zeros(1, np.int64), np.maximum.accumulate(behind_ink)])  # the end of it, by place
    starts, ends, places = starts.copy(), ends.copy(), starts[covering]
    starts[covering] = np.maximum(last_ink[places], np.concatenate([np.zeros(1, np.int64), places[:-1]]))
    ends[covering[:-1]] = starts[covering[1:]]
    return starts, ends


def _spells(content: bytes, covered: bytes, lenient: bool) -> bool:
    """Say whether a token's bytes are those it covers; ``lenient`` ignores white space around them."""
    return content == covered or (lenient and content.strip() != b"" and content.strip() == covered.strip())
