"""One document becomes pieces: token ids with byte lengths, cut to length, never cut off.

The document is tokenised once, without special tokens; windows of the result get the
tokenizer's own prefix (BOS, [CLS]) and suffix ([SEP]) back. A window repeats the last
``overlap`` tokens of the one before as context: they are read again but not kept again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from cache_tools.errors import CorpusError
from pipeline.chat import render_chat
from pipeline.config import EncodingConfig
from pipeline.documents import Document

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class Piece:
    """A window of a document as a teacher will read it.

    Attributes:
        input_ids: (n,) uint32, special tokens included.
        trainable: (n,) bool: the token may be predicted: it is not special, not repeated
            from the piece before, and in a chat it belongs to an assistant's turn.
        byte_lengths: (n,) uint32, UTF-8 bytes of ``text`` per token.
        text: The text that the window covers.
    """

    input_ids: NDArray[np.uint32]
    trainable: NDArray[np.bool_]
    byte_lengths: NDArray[np.uint32]
    text: str


@dataclass(frozen=True)
class Frame:
    """Special tokens around every piece of plain text.

    Attributes:
        prefix: Ids before the text.
        suffix: Ids after the text; masked only, since nothing that a causal teacher reads comes after them.
        end: Ids that end a document, in its last piece; causal only.
    """

    prefix: list[int]
    suffix: list[int]
    end: list[int]


def frame_of(tokenizer: PreTrainedTokenizerFast, config: EncodingConfig) -> Frame:
    """Find which special tokens the tokenizer puts around a text, by asking it."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
    if config.objective == "masked" and tokenizer.mask_token_id is None:
        raise CorpusError(
            "the tokenizer has no mask token", where="encoding.objective", expected="a masked LM's tokenizer"
        )
    if all(special):
        return Frame([], [], [])
    first, last = special.index(0), len(special) - 1 - special[::-1].index(0)
    prefix, suffix = ids[:first], ids[last + 1 :]
    if config.objective == "masked":
        return Frame(prefix, suffix, [])
    eos = tokenizer.eos_token_id
    end = suffix or ([] if eos is None else [eos])
    return Frame(prefix, [], end if config.append_eos else [])


def split_document(
    document: Document, tokenizer: PreTrainedTokenizerFast, frame: Frame, config: EncodingConfig
) -> Iterator[Piece]:
    """Yield the pieces of a document that keep at least one position.

    Raises:
        CorpusError: the document has no token that a teacher could predict.
    """
    if document.messages is None:
        assert document.text is not None
        text, spans = document.text, None
    else:
        text, spans = render_chat(document.messages, tokenizer, document.place)
        frame = Frame([], [], [])
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    starts = np.array([start for start, _ in encoded["offset_mapping"]] + [len(text)] * len(frame.end), dtype=np.int64)
    ids = np.array(encoded["input_ids"] + frame.end, dtype=np.uint32)
    trainable = np.ones(len(ids), dtype=bool) if spans is None else _inside(starts, spans)
    if config.objective == "masked":  # special tokens that stand in the text itself
        trainable &= ~np.isin(ids, tokenizer.all_special_ids)
    found = False
    for piece in _windows(text, ids, starts, trainable, frame, config):
        found = True
        yield piece
    if not found:
        raise CorpusError(
            "this document has no token that a teacher could predict",
            where=f"{document.place} (id {document.id!r})",
            found=f"{len(encoded['input_ids'])} tokens"
            + (", none in an assistant's turn" if spans is not None else ""),
            fix="Remove the document",
        )


def _windows(
    text: str,
    ids: NDArray[np.uint32],
    starts: NDArray[np.int64],
    trainable: NDArray[np.bool_],
    frame: Frame,
    config: EncodingConfig,
) -> Iterator[Piece]:
    room = config.max_length_tokens - len(frame.prefix) - len(frame.suffix)
    if room <= config.overlap_tokens:
        raise CorpusError(
            "no room for text between the special tokens",
            where="encoding.max_length_tokens",
            expected=f"more than {config.overlap_tokens + len(frame.prefix) + len(frame.suffix)}",
            found=config.max_length_tokens,
        )
    bytes_before = _bytes_before(text)
    bounds = np.append(np.maximum.accumulate(starts) if len(starts) else starts, len(text))
    first = 0
    while first < len(ids):
        last = min(first + room, len(ids))
        repeated = config.overlap_tokens if first else 0
        kept = trainable[first:last].copy()
        kept[:repeated] = False
        if _keeps_any(kept, frame, config):
            chars = bounds[first : last + 1].copy()
            chars[0] = 0 if first == 0 else chars[0]
            yield Piece(
                input_ids=np.concatenate([frame.prefix, ids[first:last], frame.suffix]).astype(np.uint32),
                trainable=_framed(kept, frame),
                byte_lengths=_framed(np.diff(bytes_before[chars]).astype(np.uint32), frame),
                text=text[chars[0] : chars[-1]],
            )
        if last == len(ids):
            break
        first = last - config.overlap_tokens


def _keeps_any(kept: NDArray[np.bool_], frame: Frame, config: EncodingConfig) -> bool:
    """Say whether a window keeps a position; a causal teacher cannot predict a window's first token."""
    return bool(kept.any() if config.objective == "masked" or frame.prefix else kept[1:].any())


def _framed(values: NDArray[T], frame: Frame) -> NDArray[T]:
    """Pad per-token values with zeros for the frame's special tokens."""
    return np.pad(values, (len(frame.prefix), len(frame.suffix)))


def _inside(starts: NDArray[np.int64], spans: list[tuple[int, int]]) -> NDArray[np.bool_]:
    """Return which tokens begin inside one of the character spans."""
    inside = np.zeros(len(starts), dtype=bool)
    for begin, end in spans:
        inside |= (starts >= begin) & (starts < end)
    return inside


def _bytes_before(text: str) -> NDArray[np.int64]:
    """Return, for each character index 0..len(text), the UTF-8 bytes before it."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    lengths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
