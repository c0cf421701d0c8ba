"""A student's tokenizer: the tokens that it puts around a text, and the sequence that it makes of one.

The student reads the text of each of the teacher's sequences, as its own tokenizer reads it: first the tokens that this
tokenizer puts before any text (BOS), then the text, and its end token where the teacher's sequence ends with one. A
sequence that begins in the middle of a document begins there for the student too.

The text of a chat was rendered by the teacher's template, and the cache holds no other: the student reads the markers
of that template as text. Only the answers, whose positions were kept, have teacher rows and are trained on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding as Tokenised
from tokenizers import Tokenizer

from cache_tools.alignments.spans import Bools, Ints, Spans, TokenBytes, token_spans
from cache_tools.format.sequences import bytes_before
from cache_tools.format.tokenizer_files import SETTINGS
from cache_tools.mappings import JsonObject
from cache_tools.vocabularies.tokenizer_folder import TokenizerFolder, settings_of
from cache_tools.vocabularies.tokens import special_roles


@dataclass(frozen=True)
class StudentTokenizer:
    """What makes a student's sequences.

    Attributes:
        tokenizer: The tokenizer, without truncation and padding.
        tokens: The bytes of its tokens.
        prefix: Ids before each text.
        end: The id that ends a document; None if the tokenizer has no such token.
    """

    tokenizer: Tokenizer
    tokens: TokenBytes
    prefix: NDArray[np.uint32]
    end: int | None

    @classmethod
    def of(cls, folder: TokenizerFolder) -> "StudentTokenizer":
        """Return what a tokenizer's folder describes."""
        tokenizer = Tokenizer.from_str(folder.tokenizer.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        encoded = tokenizer.encode("a", add_special_tokens=True)
        marks = encoded.special_tokens_mask
        first = marks.index(0) if 0 in marks else 0
        prefix = np.array(encoded.ids[:first], np.uint32)
        return cls(tokenizer, TokenBytes.of(tokenizer), prefix, _end_of(tokenizer, settings_of(folder.files[SETTINGS])))


@dataclass(frozen=True)
class StudentText:
    """A text as a student reads it.

    Attributes:
        input_ids: (n,) uint32, tokens around the text included.
        spans: The bytes that each token covers.
    """

    input_ids: NDArray[np.uint32]
    spans: Spans


def student_texts(student: StudentTokenizer, texts: Sequence[str], ends: Sequence[bool]) -> Iterator[StudentText]:
    """Yield texts as a student reads them; all are tokenised together, on all cores.

    Args:
        student: The student's tokenizer.
        texts: The texts.
        ends: For each text whether it ends a document, so that the student's end token follows.
    """
    tokenised = student.tokenizer.encode_batch(list(texts), add_special_tokens=False)
    for text, ended, encoding in zip(texts, ends, tokenised, strict=True):
        end = [student.end] if ended and student.end is not None else []
        ids = np.concatenate([student.prefix, np.array(encoding.ids, np.uint32), np.array(end, np.uint32)])
        framing = np.ones(len(ids), dtype=bool)
        framing[len(student.prefix) : len(ids) - len(end)] = False
        yield StudentText(ids, _spans(ids, framing, text, student.tokens, encoding))


def _spans(ids: NDArray[np.uint32], framing: Bools, text: str, tokens: TokenBytes, encoding: Tokenised) -> Spans:
    def byte_lengths() -> Ints:
        starts = [start for start, _ in encoding.offsets]
        characters = np.append(np.maximum.accumulate(np.array(starts, np.int64)), len(text))
        characters[0] = 0
        lengths = np.zeros(len(ids), np.int64)
        lengths[~framing] = np.diff(bytes_before(text)[characters])
        return lengths

    return token_spans(ids, framing, text.encode(), tokens, byte_lengths)


def _end_of(tokenizer: Tokenizer, settings: JsonObject) -> int | None:
    """Return the id that ends a document: the EOS token, or that which the tokenizer puts behind any text."""
    names = [name for name, role in special_roles(settings).items() if role == "eos"]
    if names:
        end: int | None = tokenizer.token_to_id(names[0])
        return end
    encoded = tokenizer.encode("a", add_special_tokens=True)
    return int(encoded.ids[-1]) if encoded.special_tokens_mask[-1:] == [1] else None
