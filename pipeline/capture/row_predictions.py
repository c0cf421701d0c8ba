"""Predictions of a teacher that gives rows and no logits.

What a row leaves out is 1 less the sum of its probabilities, each of which was rounded to float32: near 1 that sum
cannot tell a small rest from none. A row that is short of the vocabulary never leaves nothing out; see
``with_possible_rest``. There is no entropy and no log-normaliser: neither follows from k tokens.
"""

import numpy as np

from cache_tools.codecs.rows import LOG_SMALLEST_MASS, Targets, with_possible_rest
from cache_tools.format.layout import GOLD_LOGPROB
from cache_tools.format.sequences import Sequence
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.store.predictions import Predictions
from pipeline.capture.keep import Keep
from pipeline.teachers.teacher import RowTeacher, TopRows


def row_predictions(
    sequences: list[Sequence], teacher: RowTeacher, keep: Keep | None, progress: Advance = ignore
) -> Predictions:
    """Return the predictions at the kept positions of some sequences, in their order.

    Args:
        sequences: At least one.
        teacher: The teacher.
        keep: What is kept of each distribution; always something, because there is nothing else.
        progress: Called with the number of tokens that were read.

    Raises:
        ModelError: the teacher cannot read, or its rows are no distributions.
        IdentityError: another model answers, or it reads other ids.
    """
    assert keep is not None
    rows = teacher.rows.read(sequences, keep.slots(teacher.vocabulary_size), progress)
    return Predictions(targets_of(rows, teacher.vocabulary_size), {GOLD_LOGPROB: rows.gold_log_probs})


def targets_of(rows: TopRows, vocabulary_size: int) -> Targets:
    """Return rows of likeliest tokens with the mass that they leave out."""
    rest = 1 - np.exp(rows.log_probs.astype(np.float64)).sum(axis=1)
    is_stored = rest > np.exp(LOG_SMALLEST_MASS)
    log_rest = np.where(is_stored, np.log(np.where(is_stored, rest, 1)), -np.inf).astype(np.float32)
    return with_possible_rest(Targets(rows.ids, rows.log_probs, log_rest), vocabulary_size)
