"""Which teacher rows belong to which student positions, and in what way: pure functions over byte spans.

A student position p predicts the student's token p + 1. The teacher's row of a token predicts that token from the text
before it. Both predict from the same text if both tokens begin at the same byte: then the student position has this
row. How the predicted token relates to the teacher's tokens is its *kind*:

========== === ========================================== ==================================================
kind       no. the student's token                        rows
========== === ========================================== ==================================================
outside    0   lies where no prediction is kept, or the   none
               position is the last
one        1   covers the bytes of one teacher token      that token's
composed   2   covers the bytes of several teacher tokens those tokens', if consecutive; else the first's
inside     3   lies inside one teacher token              that token's, if both begin at the same byte
crossing   4   begins or ends inside teacher tokens, and  the first's, if both begin at the same byte
               touches several
none       5   is not what the text says (a normaliser    none
               changed it, or it is unknown), shares a
               character that cannot be divided, or is a
               special token that the teacher does not
               have
========== === ========================================== ==================================================

"The same text" is the text of the sequence, read from its first byte. Tokens around it (BOS) differ between two
tokenizers, and a normalising student reads less than the text: the alignment says which rows belong to which bytes, and
not that two models read the same.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_tools.alignments.spans import Bools, Ints, Spans

OUTSIDE, ONE, COMPOSED, INSIDE, CROSSING, NONE = range(6)
KINDS = ("outside", "one", "composed", "inside", "crossing", "none")
"""Names of the kinds, by number."""

NO_ROW = -1


class Matches(NamedTuple):
    """The correspondence of a student's tokens, all (n,); entry i is about the prediction of token i.

    Attributes:
        kinds: uint8, see the module.
        first_rows: int32, the teacher's row that predicts from the same text, counted from the sequence's first;
            NO_ROW for none.
        num_rows: uint16, how many consecutive rows from there on belong to the token: 1, of a composed token as many as
            it has teacher tokens; 0 where there is none.
    """

    kinds: NDArray[np.uint8]
    first_rows: NDArray[np.int32]
    num_rows: NDArray[np.uint16]


def teacher_rows(position_mask: Bools) -> Ints:
    """Return which of a causal sequence's rows predicts each token, (n,); NO_ROW for tokens without a prediction."""
    rows = np.where(position_mask, np.cumsum(position_mask) - 1, NO_ROW)
    return np.concatenate([np.full(1, NO_ROW, np.int64), rows[:-1]])


def match(
    student: Spans, teacher: Spans, rows: Ints, student_special: NDArray[np.int64], teacher_special: NDArray[np.int64]
) -> Matches:
    """Return the correspondence between a student's tokens and a teacher's rows.

    Args:
        student: The student's tokens.
        teacher: The teacher's tokens.
        rows: (m,) the row that predicts each of the teacher's tokens, see ``teacher_rows``.
        student_special: (n,) a number for each special or added token that equals that of the same token of the
            teacher; 0 for ordinary tokens.
        teacher_special: (m,) likewise.
    """
    kinds = np.zeros(len(student.starts), np.uint8)
    first_rows, num_rows = np.full(len(kinds), NO_ROW, np.int32), np.zeros(len(kinds), np.uint16)
    theirs, own = np.flatnonzero(teacher.ends > teacher.starts), np.flatnonzero(student.ends > student.starts)
    if not len(theirs) or not len(own):
        return Matches(kinds, first_rows, num_rows)
    starts, ends = teacher.starts[theirs], teacher.ends[theirs]
    first = theirs[np.searchsorted(starts, student.starts[own], side="right") - 1]
    last = theirs[np.searchsorted(ends, student.ends[own], side="left")]
    begins, stops = teacher.starts[first] == student.starts[own], teacher.ends[last] == student.ends[own]
    within = first == last
    kind = np.select([begins & stops & within, begins & stops, within], [ONE, COMPOSED, INSIDE], CROSSING)
    foreign = (student_special[own] != 0) & ~((kind == ONE) & (student_special[own] == teacher_special[first]))
    kind[~(student.usable & student.spells)[own] | foreign] = NONE
    kind[rows[first] == NO_ROW] = OUTSIDE
    row = np.where(begins & teacher.usable[first] & (kind != NONE) & (kind != OUTSIDE), rows[first], NO_ROW)
    chain = (
        (kind == COMPOSED)
        & (row != NO_ROW)
        & teacher.usable[last]
        & (rows[last] - row == _between(theirs, first, last))
    )
    kinds[own], first_rows[own] = kind, row
    num_rows[own] = np.where(row == NO_ROW, 0, np.where(chain, rows[last] - row + 1, 1))
    return Matches(kinds, first_rows, num_rows)


def at_positions(matches: Matches) -> Matches:
    """Return the correspondence of a student's positions: position p predicts token p + 1, the last one nothing."""
    return Matches(
        np.append(matches.kinds[1:], np.uint8(OUTSIDE)),
        np.append(matches.first_rows[1:], np.int32(NO_ROW)),
        np.append(matches.num_rows[1:], np.uint16(0)),
    )


def _between(theirs: Ints, first: Ints, last: Ints) -> Ints:
    """Return how many covering tokens lie between two."""
    return np.searchsorted(theirs, last) - np.searchsorted(theirs, first)
