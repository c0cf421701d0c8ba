"""One text as two tokenizers cut it, and the sequences of which a student's tokenizer covers least.

A text is drawn as segments: the shortest stretches at whose ends both tokenizers have a boundary. A segment of one
token each is an exact position; one of several teacher tokens and one of the student's is a composed one; in any other,
tokens cross. Tokens that cover no text stand in the segment that ends where they do; those before and behind the text
in segments of their own.

The worst sequences are searched as measures are (``search.py``): a few shards per request, in a random order that is
always the same, so that the coverage of the shards searched so far is that of a sample.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_tools.alignments.coverage import (
    FEWEST_POSITIONS,
    Coverage,
    classes_of,
    counts_of,
    coverage_from,
    least_covered,
)
from cache_tools.alignments.making import cached_spans
from cache_tools.alignments.spans import Ints, TokenBytes
from cache_tools.alignments.stored import AlignedSequence, Alignment
from cache_tools.errors import ConfigError, FormatError
from cache_tools.format.manifest import Split
from cache_tools.format.sequences import Sequence
from cache_tools.inspection.views import judged_tokens, sequence_of
from cache_tools.store.reader import Encoding
from cache_tools.viewer.pages import pictured
from cache_tools.viewer.search import EXCERPT_CHARACTERS, RESULTS, SECONDS, within
from cache_tools.vocabularies.folder import open_tokenizer
from cache_tools.vocabularies.tokenizer_folder import STATE, tokenizer_of

CLASSES = ("exact", "composed", "prefix", "none")
"""Names of the classes of positions, in the order of ``coverage.py``."""

CONTEXT = "context"
"""Name of the class of student tokens that are read and not trained on."""

PREDICTED = "predicted"
"""Name of the teacher's tokens that a row predicts."""

LONGEST_TOKENS = 20_000
"""Tokens of the longest sequence that is drawn, of both tokenizers together."""


@dataclass(frozen=True)
class CutToken:
    """A token of one of the two tokenizers.

    Attributes:
        index: Its place in its sequence; of a predicted token, in the sequence as the teacher reads it.
        text: The text that it covers, harmless; the token's name if it covers none.
        kind: For a student's token one of CLASSES, or CONTEXT; for a teacher's token PREDICTED if a row predicts it,
            or CONTEXT.
    """

    index: int
    text: str
    kind: str


@dataclass(frozen=True)
class Segment:
    """A stretch of text at whose ends both tokenizers have a boundary, and none between.

    Attributes:
        first_byte: Where it begins in the sequence's text.
        teacher: The teacher's tokens.
        student: The student's tokens.
    """

    first_byte: int
    teacher: tuple[CutToken, ...]
    student: tuple[CutToken, ...]


@dataclass(frozen=True)
class AlignedView:
    """A sequence as both tokenizers cut it.

    Attributes:
        alignment: Name of the alignment.
        sequence_id: The sequence.
        document_id: Its document, harmless.
        split: Its split.
        coverage: Its positions by class.
        worst_byte: Where the stretch that is covered least begins; None without a position.
        segments: The text, in order.
    """

    alignment: str
    sequence_id: int
    document_id: str
    split: Split
    coverage: Coverage
    worst_byte: int | None
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class WorstSequence:
    """A sequence in the list of the worst.

    Attributes:
        sequence_id: The sequence.
        document_id: Its document, harmless.
        coverage: Its positions by class.
        worst_byte: Where the stretch that is covered least begins.
        excerpt: The text from there on, harmless.
    """

    sequence_id: int
    document_id: str
    coverage: Coverage
    worst_byte: int
    excerpt: str


@dataclass(frozen=True)
class WorstPage:
    """What one request has found.

    Attributes:
        found: The sequences with the smallest share of exact and composed positions, the worst first.
        coverage: All positions of the shards that this request has searched.
        next: How many shards have been searched, for the next request; None at the end.
        looked: How many shards were searched so far, by this request and earlier ones.
        shards: How many shards there are.
    """

    found: tuple[WorstSequence, ...]
    coverage: Coverage
    next: int | None
    looked: int
    shards: int


def open_alignment(encoding: Encoding, name: str) -> Alignment:
    """Open an alignment.

    Raises:
        FormatError: there is none of this name, or it cannot be read.
    """
    if name not in encoding.alignments:
        raise FormatError(f"there is no alignment {pictured(name[:80])!r}", where=encoding.path)
    return Alignment(encoding, name)


def aligned_view(alignment: Alignment, number: int) -> AlignedView:
    """Return a sequence as both tokenizers cut it.

    Raises:
        ConfigError: there is no such sequence, or it is too long to draw.
        IncompleteError: its shard has not been aligned.
        DamageError: a file is missing or not what was written.
    """
    encoding = alignment.encoding
    shown, shard = sequence_of(encoding, number), encoding.shard_of(number)
    sequence = shown.as_student()
    aligned = alignment.sequences(shard)[number - encoding.shards[shard].first_sequence]
    num_tokens = len(sequence.input_ids) + len(aligned.input_ids)
    if num_tokens > LONGEST_TOKENS:
        raise ConfigError(f"sequence {number} is too long to draw: {num_tokens:,} tokens", where=alignment.path)
    ends = np.cumsum(aligned.byte_lengths.astype(np.int64))
    return AlignedView(
        alignment=alignment.name,
        sequence_id=number,
        document_id=pictured(sequence.document_id),
        split=encoding.shards[shard].split,
        coverage=coverage_from(counts_of(aligned)),
        worst_byte=least_covered(aligned, ends - aligned.byte_lengths) if len(aligned.positions()) else None,
        segments=_segments(alignment, shown, aligned, ends),
    )


def worst_aligned(alignment: Alignment, after: int, seconds: float = SECONDS) -> WorstPage:
    """List the sequences that are covered least in the shards that this request searches.

    Args:
        alignment: The alignment.
        after: How many shards earlier requests have searched.
        seconds: How long to search.

    Raises:
        DamageError: a table is missing or not what was written.
    """
    shards = sorted(alignment.receipts)
    worst: list[tuple[float, WorstSequence]] = []
    counts, looked = np.zeros(4, np.int64), after
    for shard in within(seconds, np.random.default_rng(0).permutation(shards)[after:].tolist()):
        sequences = alignment.encoding.student_sequences(shard)
        for sequence, aligned in zip(sequences, alignment.sequences(shard), strict=True):
            own = counts_of(aligned)
            counts += own
            if own.sum() >= FEWEST_POSITIONS:
                worst.append((float(own[0] + own[1]) / float(own.sum()), _listed(sequence, aligned)))
        worst = sorted(worst, key=lambda item: (item[0], item[1].sequence_id))[:RESULTS]
        looked += 1
    found = tuple(entry for _, entry in worst)
    return WorstPage(found, coverage_from(counts), looked if looked < len(shards) else None, looked, len(shards))


def _listed(sequence: Sequence, aligned: AlignedSequence) -> WorstSequence:
    starts = np.cumsum(aligned.byte_lengths.astype(np.int64)) - aligned.byte_lengths
    first = least_covered(aligned, starts)
    excerpt = sequence.text.encode()[first:].decode("utf-8", "replace")[:EXCERPT_CHARACTERS]
    coverage = coverage_from(counts_of(aligned))
    return WorstSequence(sequence.sequence_id, pictured(sequence.document_id), coverage, first, pictured(excerpt))


def _segments(alignment: Alignment, shown: Sequence, aligned: AlignedSequence, ends: Ints) -> tuple[Segment, ...]:
    opened, sequence = open_tokenizer(alignment.encoding), shown.as_student()
    spans, text = cached_spans(sequence, TokenBytes.of(opened.tokenizer)), sequence.text.encode()
    starts = ends - aligned.byte_lengths
    own = tokenizer_of(alignment.tokenizer_files().get(STATE, b""), alignment.path)
    teacher = _cut(sequence.input_ids, spans.starts, spans.ends, text, opened.tokenizer.id_to_token)
    student = _cut(aligned.input_ids, starts, ends, text, own.id_to_token)
    readings = (judged_tokens(alignment.encoding, reading) for reading in (sequence, shown))
    predicted = dict(zip(*readings, strict=True))  # places with and without a context that only teachers read
    classes = dict(zip((aligned.positions() + 1).tolist(), classes_of(aligned).tolist(), strict=True))
    bounds = np.union1d(np.intersect1d(spans.ends, ends), len(text))
    above = places_of(spans.starts, spans.ends, bounds, len(text))
    below = places_of(starts, ends, bounds, len(text))
    firsts = np.concatenate([np.zeros(2, np.int64), bounds])  # before the text, and of each segment; behind it
    result = []
    for place in sorted({*above.tolist(), *below.tolist()}):
        mine, its = (np.flatnonzero(side == place).tolist() for side in (above, below))
        result.append(
            Segment(
                int(firsts[place]),
                tuple(
                    CutToken(predicted.get(i, i), teacher[i], PREDICTED if i in predicted else CONTEXT) for i in mine
                ),
                tuple(CutToken(i, student[i], CLASSES[classes[i]] if i in classes else CONTEXT) for i in its),
            )
        )
    return tuple(result)


def places_of(starts: Ints, ends: Ints, bounds: Ints, num_bytes: int) -> Ints:
    """Return the segment of each token: (n,), 0 before the text, 1 to B in it, B + 1 behind it.

    Args:
        starts: (n,) where tokens begin.
        ends: (n,) where they end.
        bounds: (B,) where segments end, ascending; the last is the end of the text.
        num_bytes: Bytes of the text.
    """
    covers = ends > starts
    inside = np.minimum(np.searchsorted(bounds, ends, side="left"), len(bounds) - 1) + 1
    frame = np.where(ends == 0, 0, np.where(starts == num_bytes, len(bounds) + 1, inside))
    result: Ints = np.where(covers, inside, frame)
    return result


def _cut(
    ids: NDArray[np.uint32], starts: Ints, ends: Ints, text: bytes, name: Callable[[int], str | None]
) -> list[str]:
    """Return the text that each token covers; the name of a token that covers none."""
    return [
        pictured(text[start:end]) if end > start else pictured(name(token_id) or f"<{token_id}>")
        for token_id, start, end in zip(ids.tolist(), starts.tolist(), ends.tolist(), strict=True)
    ]
