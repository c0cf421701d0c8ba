"""A sample of an encoding's positions with its teachers' predictions, as columns of one number per position.

A cache may hold billions of positions, while a mean over a hundred thousand of them is accurate enough to show. So
whole chunks are drawn at random (see ``sampling``) and reduced one at a time: memory is one chunk of targets, and
about forty bytes for each position and teacher. Neighbouring positions resemble each other, so a mean is less certain
than one over as many positions drawn independently. Independent draws were rejected: each costs the decoding of a
whole chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.rows import EMPTY_ID
from cache_tools.format.layout import ENTROPY, GOLD_LOGPROB
from cache_tools.inspection.divergence import likeliest
from cache_tools.inspection.sampling import AT_ONCE, Window, drawn_windows
from cache_tools.inspection.views import judged_tokens
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.requests.in_flight import in_parallel
from cache_tools.store.reader import Encoding
from cache_tools.store.teacher import CachedTeacher


class Document(NamedTuple):
    """The document that a position belongs to."""

    document_id: str
    group_id: str


@dataclass(frozen=True)
class SampledPredictions:
    """One teacher's predictions at n positions.

    Attributes:
        exact: The stored tokens are the teacher's likeliest, not draws.
        top1_ids: (n,) uint32, the likeliest token; EMPTY_ID where the row is empty.
        top1_probabilities: (n,) float64, the probability of that token.
        kept_mass: (n,) float64, probability of all kept tokens together.
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
    def nonempty(self) -> NDArray[np.bool_]:
        """Where the row keeps at least one token: (n,) bool."""
        nonempty: NDArray[np.bool_] = self.top1_ids != EMPTY_ID
        return nonempty

    def at(self, indices: NDArray[np.int64]) -> "SampledPredictions":
        """Return the predictions at some of the positions; ``indices`` is (m,)."""
        return replace(
            self,
            top1_ids=self.top1_ids[indices],
            top1_probabilities=self.top1_probabilities[indices],
            kept_mass=self.kept_mass[indices],
            loss_nats=self.loss_nats[indices],
            entropy_nats=self.entropy_nats[indices],
        )


@dataclass(frozen=True)
class Sample:
    """n positions, ascending by row.

    Attributes:
        seed: Seed of the random draw of chunks.
        windows: Number of chunks that were drawn.
        rows: (n,) int64, the position's row in every array of a teacher.
        sequence_ids: (n,) int64.
        places: (n,) int64, index in its sequence of the token to predict.
        gold_ids: (n,) uint32, that token.
        document_numbers: (n,) int64, index into ``documents``.
        documents: Each document that has a position in the sample.
        predictions: Each teacher's predictions, by the teacher's name.
    """

    seed: int
    windows: int
    rows: NDArray[np.int64]
    sequence_ids: NDArray[np.int64]
    places: NDArray[np.int64]
    gold_ids: NDArray[np.uint32]
    document_numbers: NDArray[np.int64]
    documents: list[Document]
    predictions: dict[str, SampledPredictions]


def read_sample(
    encoding: Encoding,
    teachers: list[CachedTeacher],
    positions: int,
    seed: int,
    progress: Advance = ignore,
) -> Sample:
    """Read a random sample of the shards that all these teachers have committed.

    Args:
        encoding: The encoding.
        teachers: Teachers of this encoding, at least one.
        positions: How many positions to read; rounded up to whole chunks.
        seed: Seed of the random draw of chunks.
        progress: Called after each chunk of positions.

    Raises:
        IncompleteError: there is no such shard.
        DamageError: stored bytes are missing or damaged.
    """
    numbers: dict[Document, int] = {}
    tokens: list[_Tokens] = []
    predictions: dict[str, list[SampledPredictions]] = {teacher.name: [] for teacher in teachers}
    windows = drawn_windows(teachers, positions, seed)

    def read(window: Window) -> tuple[list[tuple[Document, _Tokens]], list[SampledPredictions]]:
        return list(_tokens(encoding, window)), [_predictions(teacher, window) for teacher in teachers]

    for count, (of_window, of_teachers) in enumerate(in_parallel(read, windows, encoding.path, AT_ONCE), 1):
        for document, part_tokens in of_window:
            number = numbers.setdefault(document, len(numbers))
            tokens.append(part_tokens._replace(document_numbers=np.full(len(part_tokens.rows), number)))
        for teacher, part in zip(teachers, of_teachers, strict=True):
            predictions[teacher.name].append(part)
        progress(1, count / len(windows))
    return Sample(
        seed=seed,
        windows=len(windows),
        rows=np.concatenate([part.rows for part in tokens]),
        sequence_ids=np.concatenate([part.sequence_ids for part in tokens]),
        places=np.concatenate([part.places for part in tokens]),
        gold_ids=np.concatenate([part.gold_ids for part in tokens]),
        document_numbers=np.concatenate([part.document_numbers for part in tokens]),
        documents=list(numbers),
        predictions={name: _joined(parts) for name, parts in predictions.items()},
    )


class _Tokens(NamedTuple):
    """What a ``Sample`` says of the positions themselves, for some of them: (m,) each."""

    rows: NDArray[np.int64]
    sequence_ids: NDArray[np.int64]
    places: NDArray[np.int64]
    gold_ids: NDArray[np.uint32]
    document_numbers: NDArray[np.int64]


def _tokens(encoding: Encoding, window: Window) -> Iterator[tuple[Document, _Tokens]]:
    """Yield the positions of a window, sequence by sequence, each with its document, which has no number yet."""
    for sequence in encoding.sequences(window.shard):
        first, end = sequence.rows
        start, stop = max(window.start, first), min(window.stop, end)
        if start < stop:
            part = slice(start - first, stop - first)
            document = Document(sequence.document_id, sequence.group_id)
            yield (
                document,
                _Tokens(
                    rows=np.arange(start, stop),
                    sequence_ids=np.full(stop - start, sequence.sequence_id),
                    places=np.array(judged_tokens(encoding, sequence)[part]),
                    gold_ids=sequence.gold_ids(encoding.manifest.objective)[part],
                    document_numbers=np.zeros(stop - start, np.int64),
                ),
            )


def _predictions(teacher: CachedTeacher, window: Window) -> SampledPredictions:
    targets = teacher.targets(window.start, window.stop)
    top1_ids, top1_probabilities = likeliest(targets)
    return SampledPredictions(
        exact=not teacher.manifest.target.kind.is_drawn,
        top1_ids=top1_ids,
        top1_probabilities=top1_probabilities,
        kept_mass=np.exp(targets.log_probs).sum(axis=1, dtype=np.float64),
        loss_nats=-_scalar(teacher, GOLD_LOGPROB, window),
        entropy_nats=_scalar(teacher, ENTROPY, window),
    )


def _scalar(teacher: CachedTeacher, name: str, window: Window) -> NDArray[np.float64]:
    """Return a scalar of a window's rows: (n,) float64; NaN if the teacher does not keep it."""
    if name not in teacher.manifest.scalars:
        return np.full(window.stop - window.start, np.nan)
    return teacher.scalar(name, window.start, window.stop).astype(np.float64)


def _joined(parts: list[SampledPredictions]) -> SampledPredictions:
    return SampledPredictions(
        exact=parts[0].exact,
        top1_ids=np.concatenate([part.top1_ids for part in parts]),
        top1_probabilities=np.concatenate([part.top1_probabilities for part in parts]),
        kept_mass=np.concatenate([part.kept_mass for part in parts]),
        loss_nats=np.concatenate([part.loss_nats for part in parts]),
        entropy_nats=np.concatenate([part.entropy_nats for part in parts]),
    )
