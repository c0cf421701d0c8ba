r"""Token ids as text, by the tokenizer that the encoding keeps, and text that a terminal can show safely.

A token is a string of bytes, not always of characters: an emoji may be three tokens, none of which is UTF-8. So a token
is first turned into its bytes, and these are escaped when they are shown, see ``escaping.py``.

Rejected: ``tokenizer.decode``, which drops the leading space of a single token (SentencePiece) and returns ``U+FFFD``
for a fragment. transformers is not needed: the library ``tokenizers`` reads the file alone. It is imported when a
tokenizer is opened, so that modules which only print do not need it.
"""

import json
import re
from typing import TYPE_CHECKING

from cache_tools.escaping import printable
from cache_tools.format import layout
from cache_tools.format.sequences import Sequence, read_recorded
from cache_tools.mappings import JsonObject
from cache_tools.store.reader import Encoding

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILE = f"{layout.TOKENIZER}/tokenizer.json"


class TokenTexts:
    """The texts of one encoding's token ids.

    Args:
        tokenizer: The encoding's tokenizer; None if the encoding keeps none, and ids are shown as numbers.
    """

    def __init__(self, tokenizer: "Tokenizer | None") -> None:
        self.tokenizer = tokenizer
        self._added = tokenizer.get_added_tokens_decoder() if tokenizer else {}
        decoder = json.loads(tokenizer.to_str()).get("decoder") if tokenizer else None
        self._kinds = decoder_kinds(decoder)

    def token(self, token_id: int) -> bytes:
        """Return the bytes of a token; ``<id N>`` for an id without a token."""
        piece = self.tokenizer.id_to_token(token_id) if self.tokenizer else None
        if piece is None:
            return f"<id {token_id}>".encode()
        if token_id in self._added:
            return str(self._added[token_id].content).encode()
        return piece_bytes(piece, self._kinds)

    def shown(self, token_id: int) -> str:
        """Return a token as one line for a terminal."""
        return printable(self.token(token_id))

    def surfaces(self, sequence: Sequence) -> list[bytes]:
        """Return the bytes that each token of a sequence covers in its text, (n,); before masking, if it was masked.

        Special tokens cover no text and return their names. If a character consists of several tokens, the last of
        them covers it and the others cover nothing.
        """
        content, surfaces, start = sequence.text.encode(), [], 0
        ids = sequence.input_ids if sequence.original_ids is None else sequence.original_ids
        for token_id, length in zip(ids.tolist(), sequence.byte_lengths.tolist(), strict=True):
            named = length == 0 and (token_id in self._added or not content)
            surfaces.append(self.token(token_id) if named else content[start : start + length])
            start += length
        return surfaces


def token_texts(encoding: Encoding) -> TokenTexts:
    """Open an encoding's tokenizer.

    Raises:
        DamageError: its file is missing or not what was written.
    """
    record = encoding.manifest.files.get(TOKENIZER_FILE)
    if record is None:
        return TokenTexts(None)
    content = read_recorded(encoding.path / TOKENIZER_FILE, record.sha256, record.bytes)
    from tokenizers import Tokenizer

    try:
        return TokenTexts(Tokenizer.from_buffer(content))
    except Exception:  # the library raises no narrower class; a tokenizer that it cannot read is shown as ids
        return TokenTexts(None)


def piece_bytes(piece: str, kinds: frozenset[str]) -> bytes:
    """Return the bytes of a vocabulary's entry.

    Args:
        piece: The entry, such as ``Ġthe`` (byte-level), ``▁the`` or ``<0xE2>`` (SentencePiece).
        kinds: Types of the tokenizer's decoders.
    """
    if "ByteLevel" in kinds and all(char in _BYTE_OF for char in piece):
        return bytes(_BYTE_OF[char] for char in piece)
    if "ByteFallback" in kinds and re.fullmatch("<0x[0-9A-F]{2}>", piece):
        return bytes([int(piece[3:5], 16)])
    return (piece.replace("▁", " ") if kinds & {"Metaspace", "Replace"} else piece).encode()


def decoder_kinds(decoder: JsonObject | None) -> frozenset[str]:
    """Return the types of a tokenizer's decoder; of a sequence of decoders, also those of its parts."""
    if decoder is None:
        return frozenset()
    return frozenset({decoder["type"]}).union(*map(decoder_kinds, decoder.get("decoders", [])))


def _byte_characters() -> dict[str, int]:
    """Return the byte of each character of the byte-level alphabet.

    Printable bytes are their own characters; the others are, in order, U+0100 and up (Radford et al. 2019, GPT-2).
    """
    themselves = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in themselves]
    return {chr(byte): byte for byte in themselves} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_characters()
