"""One document becomes pieces: token ids with byte lengths, cut to length, never cut off.

A document is tokenised once, without special tokens; windows of the result get the
tokenizer's own prefix (BOS, [CLS]) and suffix ([SEP]) back. A window repeats the last
``overlap`` tokens of the one before as context: they are read again but not kept again.

A context that only teachers read (``corpus/context.py``) makes two pieces of one: the teacher's, and in it the
student's. Before plain text the context is tokenised by itself and stands before every window, so that the document's
own tokens are the same in both; a chat is rendered and tokenised twice, and its answers must become the same tokens.

Chats have their template's special tokens and get no others; token ids are read as they are given. Ids have
no text, and none is invented for them: the bytes of a token are not always
those of its decoded form. Their pieces have an empty text and byte lengths of zero.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from cache_tools.errors import CorpusError
from cache_tools.format.sequences import bytes_before
from pipeline.config.encoding import EncodingConfig
from pipeline.corpus.chat import RenderedChat, Spans, render_chat
from pipeline.corpus.context import render_readings
from pipeline.corpus.documents import Document

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
        begins: Whether the window begins where the document does.
        student: The window as a student reads it; None where that is the same.
    """

    input_ids: NDArray[np.uint32]
    trainable: NDArray[np.bool_]
    byte_lengths: NDArray[np.uint32]
    text: str
    begins: bool = True
    student: "Piece | None" = None

    def gold(self) -> NDArray[np.uint32]:
        """Return the tokens that a causal teacher predicts here: (p,) uint32."""
        return self.input_ids[1:][self.trainable[1:]]


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
    """Return the special tokens that the tokenizer puts around a text, found by encoding one."""
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


@dataclass(frozen=True)
class Readable:
    """A document as a tokenizer takes it.

    Attributes:
        document: The document.
        text: Its text, or its chat as rendered; empty for token ids.
        spans: Character spans that an assistant wrote; None where all is trained on.
        turn: Number of the chat's message, from 0, that the text ends with; None if the text is the whole document.
        before: A context that only a teacher reads, before a plain text.
        student: A chat as a student reads it, where a teacher reads a context too.
    """

    document: Document
    text: str
    spans: Spans | None = None
    turn: int | None = None
    before: str = ""
    student: RenderedChat | None = None

    def texts(self) -> list[str]:
        """Return what is tokenised: the text, and a context or the student's chat behind it."""
        if self.document.ids is not None:
            return []
        return [self.text, *([self.before] if self.before else []), *([self.student.text] if self.student else [])]


@dataclass(frozen=True)
class Tokens:
    """The tokens of a whole document.

    Attributes:
        ids: (n,) uint32.
        starts: (n,) int64, each token's first character in the text.
        trainable: (n,) bool, as in a piece.
    """

    ids: NDArray[np.uint32]
    starts: NDArray[np.int64]
    trainable: NDArray[np.bool_]


def readable(document: Document, tokenizer: PreTrainedTokenizerFast) -> list[Readable]:
    """Render a chat, once or once for each turn of the assistant; leave other documents as they are.

    Raises:
        CorpusError: the chat template refuses the chat.
    """
    context = document.context
    if document.messages is None:
        return [Readable(document, document.text or "", before=context.before if context else "")]
    if context is not None:
        readings = render_readings(document.messages, context, tokenizer, document.place, document.tools)
        teachers = ((pair.teacher, pair.student) for pair in readings)
        return [Readable(document, chat.text, chat.spans, chat.turn, student=own) for chat, own in teachers]
    rendered = render_chat(document.messages, tokenizer, document.place, document.tools)
    return [Readable(document, chat.text, chat.spans, chat.turn) for chat in rendered]


def split_documents(
    batch: Sequence[Readable], tokenizer: PreTrainedTokenizerFast, frame: Frame, config: EncodingConfig
) -> Iterator[tuple[Readable, Iterator[Piece]]]:
    """Yield each text with its pieces that keep at least one position; texts are tokenised together, on all cores.

    A text in which a teacher could predict nothing has no pieces.

    Raises:
        CorpusError: a document has ids that are no tokens, or sequences are too short for any text.
    """
    tokenised = iter(_tokenise([part for text in batch for part in text.texts()], tokenizer))
    special_ids = tokenizer.all_special_ids
    with_ids = any(text.document.ids is not None for text in batch)
    has_token = known_ids(tokenizer) if with_ids else np.zeros(0, dtype=bool)
    for text in batch:
        own_frame = frame if text.document.text is not None else Frame([], [], [])
        _check_room(own_frame, config)
        if text.document.ids is None:
            tokens = _text_tokens(text.text, text.spans, *next(tokenised), own_frame)
        else:
            tokens = _given_tokens(text.document, has_token)
        if config.objective == "masked":  # special tokens in the text itself
            tokens = replace(tokens, trainable=tokens.trainable & ~np.isin(tokens.ids, special_ids))
        if text.before:
            context = _text_tokens(text.before, [], *next(tokenised), Frame([], [], []))
            yield text, _behind_context(text, tokens, context, own_frame, config)
        elif text.student is not None:
            student = _text_tokens(text.student.text, text.student.spans, *next(tokenised), own_frame)
            yield text, _both_readings(text, text.student.text, tokens, student, own_frame, config)
        else:
            yield text, _windows(text.text, tokens, own_frame, config)


def _behind_context(
    text: Readable, tokens: Tokens, context: Tokens, frame: Frame, config: EncodingConfig
) -> Iterator[Piece]:
    """Yield the windows of a plain text, each behind the whole context."""
    length = config.max_length_tokens - len(context.ids)
    least = config.overlap_tokens + len(frame.prefix) + len(frame.suffix)
    if length <= least:
        raise _too_long(text, f"at most {config.max_length_tokens - least - 1} tokens of context", len(context.ids))
    bounds = np.append(np.maximum.accumulate(context.starts), len(text.before))
    bounds[0] = 0
    lengths = np.diff(bytes_before(text.before)[bounds]).astype(np.uint32)
    before = text.before if len(lengths) else ""  # a tokenizer may drop white space
    at = len(frame.prefix)
    for own in _windows(text.text, tokens, frame, config.model_copy(update={"max_length_tokens": length})):
        kept = own.trainable.copy()
        kept[:1] = False  # the student has no position before it
        yield Piece(
            input_ids=np.concatenate([own.input_ids[:at], context.ids, own.input_ids[at:]]),
            trainable=np.concatenate([kept[:at], context.trainable, kept[at:]]),
            byte_lengths=np.concatenate([own.byte_lengths[:at], lengths, own.byte_lengths[at:]]),
            text=before + own.text,
            begins=own.begins,
            student=own,
        )


def _both_readings(
    text: Readable, student_text: str, tokens: Tokens, student: Tokens, frame: Frame, config: EncodingConfig
) -> Iterator[Piece]:
    """Yield a chat with its context, and in it the chat without; neither is split.

    Raises:
        CorpusError: it is longer than a sequence, or its answers become other tokens.
    """
    longest = max(len(tokens.ids), len(student.ids))
    if longest > config.max_length_tokens:
        raise _too_long(text, f"at most {config.max_length_tokens} tokens", longest)
    read = next(_windows(text.text, tokens, frame, config), None)
    own = next(_windows(student_text, student, frame, config), None)
    if read is None and own is None:
        return
    if read is None or own is None or not np.array_equal(read.gold(), own.gold()):
        raise CorpusError(
            "an answer is not the same tokens with the context and without it",
            where=f"{text.document.place} (id {text.document.id!r})",
            why="a prediction would belong to another token than the student's",
            fix="Use a chat template with special tokens around answers, or remove this chat",
        )
    yield replace(read, student=own)


def _too_long(text: Readable, expected: str, found: int) -> CorpusError:
    return CorpusError(
        "a document and its context are longer than one sequence",
        where=f"{text.document.place} (id {text.document.id!r})",
        expected=expected,
        found=found,
        why="the teacher would read answers without the context",
        fix="Raise encoding.max_length_tokens, or shorten the context",
    )


def known_ids(tokenizer: PreTrainedTokenizerFast) -> NDArray[np.bool_]:
    """Return for each id up to the highest whether it has a token: (n,) bool; ids may have gaps."""
    ids = list(tokenizer.get_vocab().values())
    has_token = np.zeros(max(ids) + 1, dtype=bool)
    has_token[ids] = True
    return has_token


def _tokenise(
    texts: list[str], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.int64]]]:
    """Yield the ids of each text, (n,) uint32, and their first characters, (n,) int64."""
    if not texts:
        return
    encoded = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )
    for encoding in encoded.encodings or ():  # whose lists are made on demand, for one text at a time
        ids = np.array(encoding.ids, dtype=np.uint32)
        yield ids, np.fromiter(map(itemgetter(0), encoding.offsets), dtype=np.int64, count=len(ids))


def _text_tokens(
    text: str, spans: Spans | None, ids: NDArray[np.uint32], starts: NDArray[np.int64], frame: Frame
) -> Tokens:
    end = len(frame.end)
    ids = np.append(ids, np.array(frame.end, dtype=np.uint32))
    starts = np.append(starts, np.full(end, len(text)))
    return Tokens(ids, starts, np.ones(len(ids), dtype=bool) if spans is None else _inside(starts, spans))


def _given_tokens(document: Document, has_token: NDArray[np.bool_]) -> Tokens:
    """Return the tokens of a document that has ids; ``has_token`` is what :func:`known_ids` returned."""
    assert document.ids is not None
    extremes = (min(document.ids), max(document.ids)) if document.ids else ()
    beyond = next((extreme for extreme in extremes if not 0 <= extreme < len(has_token)), None)
    ids = np.array(document.ids if beyond is None else [], dtype=np.int64)
    gaps = ids[~has_token[ids]]
    if beyond is not None or len(gaps):
        raise CorpusError(
            "a token id is not in the tokenizer's vocabulary",
            where=f"{document.place} (id {document.id!r})",
            expected=f"0 to {len(has_token) - 1}"
            + ("" if has_token.all() else f", {int((~has_token).sum())} of which have no token"),
            found=int(gaps[0]) if beyond is None else beyond,
            fix="Use the tokenizer that made the ids as encoding.tokenizer",
        )
    trained = np.ones(len(document.ids)) if document.mask is None else np.array(document.mask)
    starts = np.zeros(len(document.ids), dtype=np.int64)
    return Tokens(ids.astype(np.uint32), starts, trained.astype(bool))


def _check_room(frame: Frame, config: EncodingConfig) -> None:
    """Refuse sequences that are too short to go forward in a text."""
    least = config.overlap_tokens + len(frame.prefix) + len(frame.suffix)
    if config.max_length_tokens <= least:
        raise CorpusError(
            "sequences are too short to hold text between the special tokens",
            where="encoding.max_length_tokens",
            expected=f"more than {least}",
            found=config.max_length_tokens,
        )


def _windows(text: str, tokens: Tokens, frame: Frame, config: EncodingConfig) -> Iterator[Piece]:
    room = config.max_length_tokens - len(frame.prefix) - len(frame.suffix)
    ids, starts, places = tokens.ids, tokens.starts, bytes_before(text)
    bounds = np.append(np.maximum.accumulate(starts) if len(starts) else starts, len(text))
    first = 0
    while first < len(ids):
        last = min(first + room, len(ids))
        repeated = config.overlap_tokens if first else 0
        kept = tokens.trainable[first:last].copy()
        kept[:repeated] = False
        if _keeps_any(kept, frame, config):
            chars = bounds[first : last + 1].copy()
            chars[0] = 0 if first == 0 else chars[0]
            yield Piece(
                input_ids=np.concatenate([frame.prefix, ids[first:last], frame.suffix]).astype(np.uint32),
                trainable=_framed(kept, frame),
                byte_lengths=_framed(np.diff(places[chars]).astype(np.uint32), frame),
                text=text[chars[0] : chars[-1]],
                begins=first == 0,
            )
        if last == len(ids):
            break
        first = last - config.overlap_tokens


def _keeps_any(kept: NDArray[np.bool_], frame: Frame, config: EncodingConfig) -> bool:
    """Return whether a window keeps a position; a causal teacher cannot predict a window's first token."""
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
