"""Everything that a report shows, as one plain dictionary: the data behind ``logitcask report``.

Sizes, progress and means over everything come from manifests and receipts. Distributions, calibration, agreement
and passages come from one sample of positions, the same for every teacher, so that teachers can be compared; the
sample says how many of how many it is. Memory is the sample's columns, whatever the size of the cache.
"""

import math
from typing import Any

import numpy as np

from cache_tools.inspection import measures
from cache_tools.inspection.decoding import TokenTexts, token_texts
from cache_tools.inspection.sample import Answers, Sample, read_sample
from cache_tools.inspection.sampling import committed_shards
from cache_tools.inspection.summary import describe_encoding, describe_sample, describe_teacher
from cache_tools.inspection.views import finite, sequence_view
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.store.reader import Cache, Encoding
from cache_tools.store.teacher import CachedTeacher

BEFORE_TOKENS = 16
"""Tokens that are shown before a passage."""

PASSAGES = 8


def report_data(
    cache: Cache,
    encoding: Encoding,
    teachers: list[CachedTeacher],
    positions: int,
    seed: int,
    progress: Advance = ignore,
) -> dict[str, Any]:
    """Describe an encoding and some of its teachers.

    Args:
        cache: The cache.
        encoding: One of its encodings.
        teachers: Of this encoding.
        positions: To sample, of the shards that all these teachers have committed; those that have none are
            described without it.
        seed: Of the sample.
        progress: Told of each chunk of positions of the sample.

    Returns:
        ``path``, ``format``, ``software``, ``encoding`` (see ``summary.describe_encoding``), ``teachers`` (see
        ``summary.describe_teacher``), ``sample`` (see ``sample_data``; None if no teacher has a finished shard).

    Raises:
        IncompleteError: teachers have finished shards, but none in common.
        DamageError: stored bytes are missing or damaged.
    """
    begun = [teacher for teacher in teachers if len(teacher.missing_shards()) < len(encoding.shards)]
    return {
        "path": str(cache.path),
        "format": cache.manifest.format,
        "software": cache.manifest.software,
        "encoding": describe_encoding(encoding),
        "teachers": [describe_teacher(teacher) for teacher in teachers],
        "sample": sample_data(encoding, begun, positions, seed, progress) if begun else None,
    }


def sample_data(
    encoding: Encoding, teachers: list[CachedTeacher], positions: int, seed: int, progress: Advance = ignore
) -> dict[str, Any]:
    """Describe a sample of positions.

    Returns:
        ``positions``, ``of_positions``, ``windows`` and ``seed``; ``teachers``: for each its ``name``,
        ``calibration``, ``entropy`` and ``kept_mass`` (histograms), ``places`` and ``groups``, see ``measures``;
        ``groups_by`` (``folder``, or ``group`` if no id has a folder), ``agreement`` and ``passages``.
    """
    sample = read_sample(encoding, teachers, positions, seed, progress)
    by: measures.By = "folder" if any("/" in document for document, _ in sample.names) else "group"
    entropies = np.concatenate([answers.entropy_nats for answers in sample.answers.values()])
    widest = float(np.max(entropies[np.isfinite(entropies)], initial=1.0))
    texts = token_texts(encoding)
    return {
        **describe_sample(sample, sum(encoding.shards[shard].positions for shard in committed_shards(teachers))),
        "teachers": [_teacher(sample, name, answers, widest, by) for name, answers in sample.answers.items()],
        "groups_by": by,
        "agreement": measures.agreement(sample),
        "passages": [
            passage(encoding, teachers, texts, sequence_id, first, nats)
            for sequence_id, first, nats in measures.surprising(sample, PASSAGES)
        ],
    }


def passage(
    encoding: Encoding, teachers: list[CachedTeacher], texts: TokenTexts, sequence_id: int, first: int, nats: float
) -> dict[str, Any]:
    """Return a piece of a sequence as ``views.sequence_view`` does, with some tokens before it.

    Returns:
        The view with ``tokens`` and ``surprise_nats`` cut to the piece, ``first`` (index of its first token, behind
        those before it) and ``sum_nats``, its surprise in the mean over the teachers; None if infinite.
    """
    view = sequence_view(encoding, encoding.sequence(sequence_id), teachers, texts)
    piece = slice(max(0, first - BEFORE_TOKENS), first + measures.PASSAGE_TOKENS)
    for teacher in view["teachers"]:
        teacher["surprise_nats"] = teacher["surprise_nats"][piece]
    return view | {"tokens": view["tokens"][piece], "first": first, "sum_nats": finite(nats)}


def _teacher(sample: Sample, name: str, answers: Answers, widest_nats: float, by: measures.By) -> dict[str, Any]:
    said = answers.said
    return {
        "name": name,
        "calibration": measures.calibration(answers, sample.gold_ids),
        "entropy": measures.histogram(answers.entropy_nats[said], 0.0, float(math.ceil(widest_nats))),
        "kept_mass": measures.histogram(answers.kept_mass[said], 0.0, 1.0),
        "places": measures.by_place(sample, answers),
        "groups": measures.by_group(sample, answers, by),
    }
