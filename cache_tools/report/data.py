"""Everything that a report shows: the data behind ``logitcask report``.

Sizes, progress and means over all positions come from manifests and receipts. Distributions, calibration, agreement and
passages come from one sample of positions, the same for every teacher, so that teachers can be compared; the result
states the size of that sample. Memory is the sample's columns, whatever the size of the cache.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from cache_tools.inspection import measures
from cache_tools.inspection.decoding import TokenTexts, token_texts
from cache_tools.inspection.sample import Sample, read_sample
from cache_tools.inspection.sampling import committed_shards
from cache_tools.inspection.summary import (
    EncodingFacts,
    SampleSize,
    TeacherFacts,
    describe_encoding,
    describe_sample,
    describe_teacher,
)
from cache_tools.inspection.views import SequenceView, sequence_view
from cache_tools.json_output import finite
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.store.reader import Cache, Encoding
from cache_tools.store.teacher import CachedTeacher

BEFORE_TOKENS = 16
"""Tokens that are shown before a passage."""

PASSAGES = 8
"""How many passages are shown."""


@dataclass(frozen=True)
class TeacherMeasures:
    """What a sample shows of one teacher; see ``inspection/measures.py``.

    Attributes:
        name: The teacher.
        calibration: Confidence against accuracy; None for draws.
        entropy: Histogram of the entropy, in nats.
        kept_mass: Histogram of the probability of the kept tokens together.
        places: Loss and entropy by place in the sequence.
        groups: Loss and calibration by group of documents.
    """

    name: str
    calibration: measures.Calibration | None
    entropy: measures.Histogram
    kept_mass: measures.Histogram
    places: tuple[measures.Place, ...]
    groups: tuple[measures.DocumentGroup, ...]


@dataclass(frozen=True)
class Passage:
    """A passage of a sequence, with some tokens before it.

    Attributes:
        view: The sequence, with tokens and surprise cut to the passage and the tokens before it.
        first: Index in the sequence of the passage's first token.
        sum_nats: Sum of the surprise over the passage, in the mean over the teachers; None if infinite.
        excess_nats: How much higher that is than usual at its places (see ``measures.surprising``); None if infinite.
    """

    view: SequenceView
    first: int
    sum_nats: float | None
    excess_nats: float | None


@dataclass(frozen=True)
class SampleData:
    """What a sample of positions shows.

    Attributes:
        size: Size of the sample.
        teachers: Its teachers.
        groups_by: How documents are grouped: ``folder``, or ``group`` if no id has a folder.
        agreement: Share of positions at which two teachers have the same likeliest token, a row per teacher.
        passages: The most surprising passages.
    """

    size: SampleSize
    teachers: tuple[TeacherMeasures, ...]
    groups_by: measures.By
    agreement: list[list[float | None]]
    passages: tuple[Passage, ...]


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows; ``sample`` is None if no teacher has a finished shard."""

    path: str
    format: int
    software: str
    encoding: EncodingFacts
    teachers: tuple[TeacherFacts, ...]
    sample: SampleData | None


def report_data(
    cache: Cache,
    encoding: Encoding,
    teachers: list[CachedTeacher],
    positions: int,
    seed: int,
    progress: Advance = ignore,
) -> ReportData:
    """Describe an encoding and some of its teachers.

    Args:
        cache: The cache.
        encoding: One of its encodings.
        teachers: Teachers of this encoding.
        positions: How many positions to sample, from the shards that all teachers with a finished shard have in
            common. Teachers without a finished shard are described without a sample.
        seed: Seed of the random draw of positions.
        progress: Called after each chunk of positions.

    Raises:
        IncompleteError: teachers have finished shards, but none in common.
        DamageError: stored bytes are missing or damaged.
    """
    begun = [teacher for teacher in teachers if len(teacher.missing_shards()) < len(encoding.shards)]
    return ReportData(
        path=str(cache.path),
        format=cache.manifest.format,
        software=cache.manifest.software,
        encoding=describe_encoding(encoding),
        teachers=tuple(describe_teacher(teacher) for teacher in teachers),
        sample=sample_data(encoding, begun, positions, seed, progress) if begun else None,
    )


def sample_data(
    encoding: Encoding, teachers: list[CachedTeacher], positions: int, seed: int, progress: Advance = ignore
) -> SampleData:
    """Describe a random sample of positions; arguments and errors as for ``report_data``."""
    sample = read_sample(encoding, teachers, positions, seed, progress)
    by: measures.By = "folder" if any("/" in document.document_id for document in sample.documents) else "group"
    entropies = np.concatenate([predictions.entropy_nats for predictions in sample.predictions.values()])
    widest = float(np.max(entropies[np.isfinite(entropies)], initial=1.0))
    texts = token_texts(encoding)
    return SampleData(
        size=describe_sample(sample, sum(encoding.shards[shard].positions for shard in committed_shards(teachers))),
        teachers=tuple(_measures(sample, name, widest, by) for name in sample.predictions),
        groups_by=by,
        agreement=measures.agreement(sample),
        passages=tuple(
            passage(encoding, teachers, texts, surprising) for surprising in measures.surprising(sample, PASSAGES)
        ),
    )


def passage(
    encoding: Encoding, teachers: list[CachedTeacher], texts: TokenTexts, surprising: measures.SurprisingPassage
) -> Passage:
    """Return a passage with BEFORE_TOKENS tokens before it; errors as for ``views.sequence_view``."""
    view = sequence_view(encoding, encoding.sequence(surprising.sequence_id), teachers, texts)
    first = surprising.first_token
    shown = slice(max(0, first - BEFORE_TOKENS), first + measures.PASSAGE_TOKENS)
    cut_teachers = tuple(replace(teacher, surprise_nats=teacher.surprise_nats[shown]) for teacher in view.teachers)
    cut_view = replace(view, tokens=view.tokens[shown], teachers=cut_teachers)
    return Passage(cut_view, first, finite(surprising.surprise_nats), finite(surprising.excess_nats))


def _measures(sample: Sample, name: str, widest_nats: float, by: measures.By) -> TeacherMeasures:
    predictions = sample.predictions[name]
    counted = predictions.nonempty
    return TeacherMeasures(
        name=name,
        calibration=measures.calibration(predictions, sample.gold_ids),
        entropy=measures.histogram(predictions.entropy_nats[counted], 0.0, float(math.ceil(widest_nats))),
        kept_mass=measures.histogram(predictions.kept_mass[counted], 0.0, 1.0),
        places=measures.by_place(sample, predictions),
        groups=measures.by_group(sample, predictions, by),
    )
