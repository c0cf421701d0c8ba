"""Documents become sequences, a batch at a time.

The tokenizer takes many texts at once and spreads them over all cores, so documents are read ahead
until :data:`BATCH_CHARACTERS` are together. Order and bytes are those of one document after
another; memory is bounded by a batch, or by the longest document.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from cache_tools.errors import CorpusError
from cache_tools.format.sequences import Sequence, StudentReading
from pipeline.config.encoding import EncodingConfig
from pipeline.corpus.documents import Document
from pipeline.encoding.labels import label_id, label_position
from pipeline.encoding.masking import draw_mask
from pipeline.encoding.pieces import Frame, Piece, Readable, frame_of, readable, split_documents

logger = logging.getLogger(__name__)

T = TypeVar("T")

SKIPPED = (
    "%d documents were skipped, because they have no token that a teacher could predict; the first is %s. "
    "Empty texts, texts of a single token and chats without an assistant's answer are such documents"
)

BATCH_CHARACTERS = 2**18
"""Enough to keep many cores busy and little to hold. On two cores anything from 2**16 to 2**20 measured alike."""

DOCUMENT_CHARACTERS = 256
"""Characters that a document counts in addition to its text, so that a batch of tiny documents is bounded too."""


class EncodedSequence(NamedTuple):
    """A sequence, before its id and rows are assigned.

    Attributes:
        document: The document that it is a piece of.
        sequence: The sequence.
        without_beginning: Whether it begins in the middle of a chat, so that the prompt or a part of it is not read.
    """

    document: Document
    sequence: Sequence
    without_beginning: bool = False


@dataclass
class SkippedDocuments:
    """Counts documents, or turns of a chat, that have no token a teacher could predict: they become no sequence.

    Attributes:
        count: How many there are.
        first: Where the first one is.
    """

    count: int = 0
    first: str = ""

    def add(self, document: Document) -> None:
        """Count one more."""
        self.first = self.first or f"{document.place} (id {document.id!r})"
        self.count += 1

    def warn(self) -> None:
        """Log how many were skipped, if any were."""
        if self.count:
            logger.warning(SKIPPED, self.count, self.first)


def encode_documents(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerFast,
    config: EncodingConfig,
    skipped: SkippedDocuments | None = None,
) -> Iterator[EncodedSequence]:
    """Yield the sequences of all documents; ids and rows are assigned when a shard is written.

    Args:
        documents: The documents.
        tokenizer: The encoding's tokenizer.
        config: The ``encoding:`` block.
        skipped: Counts documents that have no token a teacher could predict.

    Raises:
        CorpusError: a document has token ids that do not exist, or a label that is not a token, or a pair is longer
            than a sequence.
    """
    skipped = SkippedDocuments() if skipped is None else skipped
    rules = _Rules.of(tokenizer, config)
    texts = (text for document in documents for text in readable(document, tokenizer))
    for batch in batches_of(texts, _characters):
        for text, pieces in split_documents(batch, tokenizer, rules.frame, config):
            number = -1
            for number, piece in enumerate(pieces):
                for sequence in _sequences(text, number, piece, rules):
                    yield EncodedSequence(text.document, sequence, text.spans is not None and not piece.begins)
            if number < 0:
                skipped.add(text.document)


def batches_of(items: Iterable[T], characters: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield lists of consecutive items that reach ``BATCH_CHARACTERS``, and one with the rest."""
    batch: list[T] = []
    size = 0
    for item in items:
        batch.append(item)
        size += characters(item) + DOCUMENT_CHARACTERS
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@dataclass(frozen=True)
class _Rules:
    """What turns pieces into sequences, looked up once."""

    config: EncodingConfig
    frame: Frame
    mask_id: int | None
    random_ids: NDArray[np.uint32]
    vocabulary: dict[str, int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, config: EncodingConfig) -> "_Rules":
        frame = frame_of(tokenizer, config)
        return cls(config, frame, tokenizer.mask_token_id, ordinary_ids(tokenizer), tokenizer.get_vocab())


def _sequences(text: Readable, number: int, piece: Piece, rules: _Rules) -> Iterator[Sequence]:
    """Yield a piece as the teacher reads it: once, or as differently masked copies."""
    document = text.document
    if rules.config.objective == "causal":
        yield _sequence(text, piece, piece.input_ids, np.append(piece.trainable[1:], False), None)
        return
    assert rules.mask_id is not None
    if number and rules.config.segments:
        raise CorpusError(
            "a pair is longer than one sequence",
            where=f"{document.place} (id {document.id!r})",
            expected=f"at most {rules.config.max_length_tokens} tokens, special tokens included",
            why="a piece of it would be read as the first side",
            fix="Raise encoding.max_length_tokens, or shorten the text",
        )
    original_ids, masking = piece.input_ids.copy(), rules.config.masking
    kept = np.full(len(original_ids), masking.keep == "all") & piece.trainable
    if document.label is not None:
        position = label_position(piece.input_ids, rules.frame, rules.mask_id)
        original_ids[position] = label_id(document, rules.vocabulary, rules.frame, number)
        kept[position] = True
    for copy in range(masking.copies):
        key = f"{document.id}\0{number}\0{copy}" + ("" if text.turn is None else f"\0{text.turn}")
        shown, slots = draw_mask(piece.input_ids, piece.trainable, rules.mask_id, rules.random_ids, masking, key)
        yield _sequence(text, piece, shown, kept | slots, original_ids)


def _sequence(
    text: Readable,
    piece: Piece,
    input_ids: NDArray[np.uint32],
    position_mask: NDArray[np.bool_],
    original_ids: NDArray[np.uint32] | None,
) -> Sequence:
    unassigned = -1
    return Sequence(
        unassigned,
        text.document.id,
        text.document.group,
        unassigned,
        input_ids,
        position_mask,
        original_ids,
        piece.text,
        piece.byte_lengths,
        text.turn,
        None if piece.student is None else _student_reading(piece.student),
    )


def _student_reading(piece: Piece) -> StudentReading:
    mask = np.append(piece.trainable[1:], False)
    return StudentReading(piece.input_ids, mask, piece.text, piece.byte_lengths)


def _characters(text: Readable) -> int:
    return sum(map(len, text.texts())) + len(text.document.ids or ())


def ordinary_ids(tokenizer: PreTrainedTokenizerFast) -> NDArray[np.uint32]:
    """Return every id that is not a special token: (m,) uint32, ascending."""
    ids = np.fromiter(tokenizer.get_vocab().values(), np.uint32)  # there may be gaps between them
    return np.setdiff1d(ids, np.array(tokenizer.all_special_ids, np.uint32))
