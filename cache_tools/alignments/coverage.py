"""How much of a student's text an alignment covers, by group of documents, and the sequences that it covers least.

Every position that a student is trained on is one of four:

- ``exact``: its token covers the same bytes as one teacher token, and there is a row;
- ``composed``: its token covers several whole teacher tokens, and each has a row;
- ``prefix``: teacher and student have read the same text, so there is a row, but their next tokens end at other bytes;
- ``none``: there is no row. What is learned there comes from the text alone.

One pass over tables and sequences; memory is that of one shard and four numbers for each group.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_tools.alignments.making import cached_spans
from cache_tools.alignments.matching import COMPOSED, NO_ROW, ONE
from cache_tools.alignments.spans import Ints, TokenBytes
from cache_tools.alignments.stored import AlignedSequence, Alignment
from cache_tools.escaping import printable
from cache_tools.format.sequences import Sequence
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.vocabularies.folder import open_tokenizer

SHOWN_GROUPS = 10
"""Groups that a report lists, those with the largest share of ``none`` first."""

SHOWN_BYTES = 96
"""Bytes of text of an example."""

FEWEST_POSITIONS = 8
"""Shorter sequences are no examples: a single token decides their share."""

EXACT, IN_CHAIN, PREFIX, WITHOUT = range(4)

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Coverage:
    """Numbers of positions that a student is trained on; ``positions`` is the sum of the four others.

    Attributes:
        positions: All of them.
        exact: See the module, like the next three.
        composed: Positions of composed tokens.
        prefix: Positions with a row and another next token.
        none: Positions without a row.
    """

    positions: int
    exact: int
    composed: int
    prefix: int
    none: int


@dataclass(frozen=True)
class GroupCoverage:
    """Coverage of one group of documents.

    Attributes:
        group_id: The group.
        coverage: Its positions.
    """

    group_id: str
    coverage: Coverage


@dataclass(frozen=True)
class AlignedExample:
    """A stretch of a sequence as both tokenizers read it.

    Attributes:
        sequence_id: The sequence.
        document_id: Its document.
        coverage: The positions of the whole sequence.
        first_byte: Where the stretch begins in the sequence's text.
        teacher_tokens: The text that each of the teacher's tokens there covers, escaped for a terminal.
        student_tokens: The same of the student's.
    """

    sequence_id: int
    document_id: str
    coverage: Coverage
    first_byte: int
    teacher_tokens: list[str]
    student_tokens: list[str]


@dataclass(frozen=True)
class AlignmentReport:
    """What ``logitcask align --json`` prints.

    Attributes:
        path: Folder or URL of the alignment.
        encoding: Name of the encoding.
        name: Name of the alignment, for the student file.
        vocabulary: Fingerprint of the student's vocabulary.
        text_bytes: Bytes of text.
        teacher_tokens: Tokens of the encoding.
        student_tokens: Tokens that the student reads.
        longest_tokens: Tokens of the student's longest sequence.
        coverage: All positions that a student is trained on.
        num_groups: Groups of documents.
        groups: The groups with the largest share of positions without a row.
        examples: The sequences with the smallest share of exact and composed positions.
    """

    path: str
    encoding: str
    name: str
    vocabulary: str
    text_bytes: int
    teacher_tokens: int
    student_tokens: int
    longest_tokens: int
    coverage: Coverage
    num_groups: int
    groups: list[GroupCoverage]
    examples: list[AlignedExample]


def report(alignment: Alignment, examples: int = 3, progress: Advance = ignore) -> AlignmentReport:
    """Return what an alignment covers.

    Args:
        alignment: A finished alignment.
        examples: How many sequences to show.
        progress: Called after each shard.

    Raises:
        IncompleteError: a shard has not been aligned.
        DamageError: a file is missing or not what was written.
    """
    tokens = TokenBytes.of(open_tokenizer(alignment.encoding).tokenizer)
    groups: dict[str, Counts] = {}
    worst: list[tuple[float, int]] = []
    sizes = np.zeros(3, np.int64)
    for shard in range(len(alignment.encoding.shards)):
        for sequence, aligned in _pairs(alignment, shard):
            counts = counts_of(aligned)
            groups[sequence.group_id] = groups.get(sequence.group_id, np.zeros(4, np.int64)) + counts
            sizes += (len(sequence.text.encode()), len(sequence.input_ids), len(aligned.input_ids))
            if counts.sum() >= FEWEST_POSITIONS and examples:
                covered = float(counts[EXACT] + counts[IN_CHAIN]) / float(counts.sum())
                heapq.heappush(worst, (-covered, -sequence.sequence_id))
                if len(worst) > examples:
                    heapq.heappop(worst)
        progress(1)
    ranked = sorted(groups.items(), key=lambda item: (-item[1][WITHOUT] / max(item[1].sum(), 1), item[0]))
    return AlignmentReport(
        path=str(alignment.path),
        encoding=alignment.encoding.name,
        name=alignment.name,
        vocabulary=alignment.manifest.vocabulary.fingerprint,
        text_bytes=int(sizes[0]),
        teacher_tokens=int(sizes[1]),
        student_tokens=int(sizes[2]),
        longest_tokens=alignment.longest_tokens,
        coverage=coverage_from(sum(groups.values(), np.zeros(4, np.int64))),
        num_groups=len(groups),
        groups=[GroupCoverage(group, coverage_from(counts)) for group, counts in ranked[:SHOWN_GROUPS]],
        examples=[_example(alignment, -number, tokens) for _, number in sorted(worst, reverse=True)],
    )


def coverage_of(alignment: Alignment, shards: list[int]) -> Coverage:
    """Return what an alignment covers of some shards.

    Raises:
        IncompleteError: one of them has not been aligned.
        DamageError: a table is missing or not what was written.
    """
    counts = [counts_of(aligned) for shard in shards for aligned in alignment.sequences(shard)]
    return coverage_from(sum(counts, np.zeros(4, np.int64)))


def _pairs(alignment: Alignment, shard: int) -> Iterator[tuple[Sequence, AlignedSequence]]:
    yield from zip(alignment.encoding.student_sequences(shard), alignment.sequences(shard), strict=True)


def classes_of(aligned: AlignedSequence) -> Counts:
    """Return the class of each position that a student is trained on: (p,) EXACT, IN_CHAIN, PREFIX or WITHOUT."""
    at = aligned.positions()
    kinds, rows = aligned.kinds[at], aligned.first_rows[at]
    chains = (kinds == COMPOSED) & (aligned.num_rows[at] > 1)
    result: Counts = np.select([rows == NO_ROW, kinds == ONE, chains], [WITHOUT, EXACT, IN_CHAIN], PREFIX)
    return result


def counts_of(aligned: AlignedSequence) -> Counts:
    """Return the number of positions of each class: (4,)."""
    return np.bincount(classes_of(aligned), minlength=4)


def coverage_from(counts: Counts) -> Coverage:
    """Return numbers of positions by class, (4,), by their names."""
    return Coverage(int(counts.sum()), *map(int, counts))


def _example(alignment: Alignment, sequence_id: int, tokens: TokenBytes) -> AlignedExample:
    encoding = alignment.encoding
    shard = encoding.shard_of(sequence_id)
    place = sequence_id - encoding.shards[shard].first_sequence
    sequence, aligned = encoding.student_sequences(shard)[place], alignment.sequences(shard)[place]
    text = sequence.text.encode()
    student_ends = np.cumsum(aligned.byte_lengths.astype(np.int64))
    student_starts = student_ends - aligned.byte_lengths
    first = least_covered(aligned, student_starts)
    spans = cached_spans(sequence, tokens)
    return AlignedExample(
        sequence_id,
        sequence.document_id,
        coverage_from(counts_of(aligned)),
        first,
        _shown(text, spans.starts, spans.ends, first),
        _shown(text, student_starts, student_ends, first),
    )


def least_covered(aligned: AlignedSequence, starts: Ints) -> int:
    """Return the byte at which the stretch with the most positions that are neither exact nor composed begins.

    Args:
        aligned: A sequence with a position at least.
        starts: (n,) the byte at which each of the student's tokens begins.
    """
    begins = starts[aligned.positions() + 1]
    uncovered = begins[classes_of(aligned) >= PREFIX]
    if not len(uncovered):
        return int(begins[0])
    in_stretch = np.searchsorted(uncovered, uncovered + SHOWN_BYTES) - np.arange(len(uncovered))
    return int(uncovered[int(in_stretch.argmax())])


def _shown(text: bytes, starts: Ints, ends: Ints, first: int) -> list[str]:
    """Return the text of the tokens that touch the stretch from a byte on."""
    inside = (ends > first) & (starts < first + SHOWN_BYTES) & (ends > starts)
    return [
        printable(text[start:end]) for start, end in zip(starts[inside].tolist(), ends[inside].tolist(), strict=True)
    ]
