"""Reading a cache whose tokenizer is not the student's: each of its ids becomes the student's id of the same token.

The map is a table of the cache's vocabulary (``cache_tools/vocabularies/union.py``), so translating is one look-up
for each token of the text and each kept entry. Maps of predictions are injective: probabilities move and are never
added, and the loss is that of a student whose rows are permuted. Ids beyond the tokenizer's, the padding of a teacher's
vocabulary, have no token; their mass is left out, as in ``cached_sequences.fit_vocabulary``. So is the mass of tokens
that a smaller vocabulary has dropped; in a text, and as gold tokens, these are replaced by kept tokens.

On one core that is 0.3 microseconds for a position of 64 slots, at 152,000 ids, a third of what decoding it costs.
Rejected: translating once and storing the result, which
takes a second cache for each student's vocabulary; permuting the student's rows instead, which
cannot serve two caches at once.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.registry import EMPTY_ID, Targets
from cache_tools.errors import ConfigError, IdentityError
from cache_tools.format.vocabulary import Vocabulary
from cache_tools.storage import StorePath
from cache_tools.store.reader import Encoding
from cache_tools.store.teacher import CachedTeacher
from cache_tools.vocabularies.folder import read_vocabulary
from cache_tools.vocabularies.union import NO_ID, IdMaps, UnionVocabulary
from trainer.config.student_file import LossConfig
from trainer.verdicts.compatibility import TargetSummary


def open_union(folder: StorePath | None, teachers: Sequence[CachedTeacher], loss: LossConfig) -> UnionVocabulary | None:
    """Read the vocabulary of a student file; None if it names none.

    Raises:
        FormatError: it cannot be read.
        DamageError: it is not what was written.
        IdentityError: it has no map for one of the caches.
        ConfigError: the loss needs the student's rows in the teacher's order.
    """
    union = None if folder is None else read_vocabulary(folder)
    for teacher in teachers:
        check_vocabulary(union, teacher)
    if union is not None and loss.source == "hidden" and loss.kd_weight > 0 and len(union.maps) > 1:
        raise ConfigError(
            "source: hidden cannot be used with a union of vocabularies",
            where="vocabulary",
            expected="loss.source: targets",
            found="loss.source: hidden",
        )
    return union


def check_vocabulary(union: UnionVocabulary | None, teacher: CachedTeacher) -> None:
    """Refuse a vocabulary that does not fit a cached teacher.

    Raises:
        IdentityError: it has no map for the cache's tokenizer; or the teacher's distributions are over the tokens of
            another vocabulary (``target.vocabulary`` of the capture).
    """
    to = student_ids(union, teacher.encoding)
    captured, given = teacher.manifest.target.settings.get("vocabulary"), union.fingerprint if union else None
    if captured not in (None, given):
        raise IdentityError(
            f"teacher {teacher.name!r} was captured over the tokens of another vocabulary",
            where=teacher.path,
            expected=f"vocabulary {captured[:12]}…, as target.vocabulary of the capture",
            found=f"{given[:12]}…" if given else "none",
            why="the student would learn that all other tokens are impossible",
            fix="Name the vocabulary of the capture file as vocabulary",
        )
    whole = TargetSummary.of(teacher.manifest, LossConfig()).family == "whole"
    if whole and captured is None and to is not None and not np.array_equal(to.predicted, to.read):
        raise IdentityError(
            f"teacher {teacher.name!r} was captured over tokens that the vocabulary has dropped",
            where=teacher.path,
            why="its rows would be treated as complete although the dropped tokens are missing",
            fix="Capture it with this folder as target.vocabulary",
        )


def student_ids(union: UnionVocabulary | None, encoding: Encoding) -> IdMaps | None:
    """Return the student's ids of those of an encoding; None if they are the same.

    Raises:
        IdentityError: the union has no map for its tokenizer.
    """
    return None if union is None else union.ids_of(encoding.manifest.vocabulary.fingerprint, encoding.path)


def student_separator(union: UnionVocabulary | None, encoding: Encoding) -> int | None:
    """Return the student's id of the token behind which a second segment begins; None if there are no segments."""
    separator, to = encoding.manifest.separator, student_ids(union, encoding)
    if separator is None or to is None:
        return separator
    return int(translated_ids(np.array([separator], np.uint32), to)[0])


def student_vocabulary(union: UnionVocabulary | None, encoding: Encoding) -> Vocabulary:
    """Return what a student of this encoding must know."""
    return encoding.manifest.vocabulary if union is None else union.vocabulary


def teacher_ids(to: IdMaps | None, student_vocabulary_size: int) -> NDArray[np.int64] | None:
    """Return the teacher's id of each of a student's ids, (n,); None if they are the same.

    Args:
        to: A student's ids, each of which has a token of the teacher's.
        student_vocabulary_size: Width of its logits; ids beyond its vocabulary are padding and have none.
    """
    if to is None:
        return None
    with_token = np.flatnonzero(to.predicted != NO_ID)
    result = np.empty(len(with_token), np.int64)
    result[to.predicted[with_token]] = with_token
    return result[:student_vocabulary_size]


def translated_ids(ids: NDArray[np.uint32], to: IdMaps) -> NDArray[np.uint32]:
    """Return the student's ids of a text: (n,) uint32.

    Raises:
        IdentityError: an id has no token, so it means nothing.
    """
    translated = _looked_up(ids, to.read)
    if (translated == NO_ID).any():
        raise IdentityError(
            "a text holds an id for which its tokenizer has no token",
            found=int(ids[translated == NO_ID][0]),
            why="the student has no token for it",
        )
    return translated


def translated_targets(targets: Targets, to: IdMaps) -> Targets:
    """Return targets with the student's ids, in the slots they had; NO_ID where there is none."""
    ids = np.where(targets.ids == EMPTY_ID, np.uint32(EMPTY_ID), _looked_up(targets.ids, to.predicted))
    return Targets(ids, targets.log_probs, targets.log_left_out)


def predicted_ids(ids: NDArray[np.uint32], to: IdMaps) -> NDArray[np.uint32]:
    """Return the student's ids of tokens that a teacher predicts: (n,) uint32, NO_ID where there is none."""
    return _looked_up(ids, to.predicted)


def _looked_up(ids: NDArray[np.uint32], to: NDArray[np.uint32]) -> NDArray[np.uint32]:
    inside = ids < len(to)
    result: NDArray[np.uint32] = np.where(inside, to[np.where(inside, ids, 0)], np.uint32(NO_ID))
    return result
