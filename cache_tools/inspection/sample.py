"""Some positions of an encoding and what its teachers said there, as columns of one number a position.

A cache may hold billions of positions, and a mean or a share over a hundred thousand of them tells the same. So
whole chunks are drawn by a seed (see ``sampling``) and reduced one at a time: memory is one chunk of targets, and
some forty bytes a position and teacher. Neighbours are alike, so a mean is as uncertain as one over far fewer
positions drawn singly; those would each cost a chunk to decode, which is why they are not.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.rows import EMPTY_ID
from cache_tools.format.layout import ENTROPY, GOLD_LOGPROB
from cache_tools.format.manifest import DRAWN_KINDS
from cache_tools.inspection.divergence import likeliest
from cache_tools.inspection.sampling import Window, drawn_windows
from cache_tools.inspection.views import judged_tokens
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.store.reader import Encoding
from cache_tools.store.teacher import CachedTeacher

Columns = tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class Answers:
    """What one teacher said at n positions.

    Attributes:
        exact: The likeliest tokens are the teacher's own, not draws.
        top1_ids: (n,) uint32, the likeliest token; EMPTY_ID where the teacher said nothing.
        top1_probabilities: (n,) float64, its probability.
        kept_mass: (n,) float64, probability of all tokens that are kept.
        loss_nats: (n,) float64, minus the log-probability of the gold token; NaN if the teacher keeps none.
        entropy_nats: (n,) float64 of the whole distribution; NaN if the teacher keeps none.
    """

    exact: bool
    top1_ids: NDArray[np.uint32]
    top1_probabilities: NDArray[np.float64]
    kept_mass: NDArray[np.float64]
    loss_nats: NDArray[np.float64]
    entropy_nats: NDArray[np.float64]

    @property
    def said(self) -> NDArray[np.bool_]:
        """Where the teacher said something: (n,) bool."""
        said: NDArray[np.bool_] = self.top1_ids != EMPTY_ID
        return said


@dataclass(frozen=True)
class Sample:
    """n positions, ascending by row.

    Attributes:
        seed: That they were drawn by.
        windows: Number of chunks that were drawn.
        rows: (n,) int64, row in every array of a teacher.
        sequence_ids: (n,) int64.
        places: (n,) int64, index in its sequence of the token to predict.
        gold_ids: (n,) uint32, that token.
        documents: (n,) int64 into ``names``.
        names: Id and group of each document that was met.
        answers: Of each teacher, by name.
    """

    seed: int
    windows: int
    rows: NDArray[np.int64]
    sequence_ids: NDArray[np.int64]
    places: NDArray[np.int64]
    gold_ids: NDArray[np.uint32]
    documents: NDArray[np.int64]
    names: list[tuple[str, str]]
    answers: dict[str, Answers]


def read_sample(
    encoding: Encoding,
    teachers: list[CachedTeacher],
    positions: int,
    seed: int,
    progress: Advance = ignore,
) -> Sample:
    """Read about so many positions of the shards that all these teachers have committed.

    Args:
        encoding: The encoding.
        teachers: Of this encoding, at least one.
        positions: Rounded up to whole chunks.
        seed: Of the draw.
        progress: Told of each chunk of positions.

    Raises:
        IncompleteError: there is no such shard.
        DamageError: stored bytes are missing or damaged.
    """
    names: dict[tuple[str, str], int] = {}
    told: list[Columns] = []
    said: list[list[Columns]] = []
    windows = drawn_windows(teachers, positions, seed)
    for count, window in enumerate(windows, 1):
        told.append(tuple(_joined(_tokens(encoding, window, names))))
        said.append([_answers(teacher, window) for teacher in teachers])
        progress(1, count / len(windows))
    answers = {
        teacher.name: Answers(teacher.manifest.target.kind not in DRAWN_KINDS, *_joined(parts))
        for teacher, parts in zip(teachers, zip(*said, strict=True), strict=True)
    }
    rows, sequence_ids, places, gold_ids, documents = _joined(told)
    return Sample(seed, len(windows), rows, sequence_ids, places, gold_ids, documents, list(names), answers)


def _tokens(encoding: Encoding, window: Window, names: dict[tuple[str, str], int]) -> Iterable[Columns]:
    """Yield the columns of a window, sequence by sequence; new documents get the next number in ``names``."""
    for sequence in encoding.sequences(window.shard):
        first, end = sequence.rows
        start, stop = max(window.start, first), min(window.stop, end)
        if start < stop:
            part = slice(start - first, stop - first)
            document = names.setdefault((sequence.document_id, sequence.group_id), len(names))
            yield (
                np.arange(start, stop),
                np.full(stop - start, sequence.sequence_id),
                np.array(judged_tokens(encoding, sequence)[part]),
                sequence.gold_ids(encoding.manifest.objective)[part],
                np.full(stop - start, document),
            )


def _answers(teacher: CachedTeacher, window: Window) -> Columns:
    """Return the columns of ``Answers`` over a window."""
    targets = teacher.targets(window.start, window.stop)
    kept = np.exp(targets.log_probs).sum(axis=1, dtype=np.float64)
    return *likeliest(targets), kept, -_scalar(teacher, GOLD_LOGPROB, window), _scalar(teacher, ENTROPY, window)


def _scalar(teacher: CachedTeacher, name: str, window: Window) -> NDArray[np.float64]:
    if name not in teacher.manifest.scalars:
        return np.full(window.stop - window.start, np.nan)
    return teacher.scalar(name, window.start, window.stop).astype(np.float64)


def _joined(parts: Iterable[Columns]) -> list[NDArray[Any]]:
    return [np.concatenate(column) for column in zip(*parts, strict=True)]
