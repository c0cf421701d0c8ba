"""What a card states of a cache: what manifests and receipts say, and the KL floor of a sample."""

from dataclasses import dataclass

import numpy as np

from cache_tools.errors import FormatError
from cache_tools.format.layout import ENTROPY
from cache_tools.format.manifest import EncodingManifest
from cache_tools.inspection.divergence import kl_floor_rows
from cache_tools.inspection.sampling import drawn_windows
from cache_tools.inspection.summary import EncodingFacts, TeacherFacts, describe_encoding, describe_teacher
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.store.predictions import StatisticsSum
from cache_tools.store.reader import Cache
from cache_tools.store.teacher import CachedTeacher

FLOOR_POSITIONS = 4096
"""Positions on which the KL floor is measured."""


@dataclass(frozen=True)
class TeacherCard:
    """What is stated of a teacher.

    Attributes:
        facts: What its manifest and receipts state.
        means: Means over all captured positions, by the names that receipts use.
        kl_floor_nats: Divergence that no reader of the rows can avoid, see ``inspection.divergence``; None if unknown.
    """

    facts: TeacherFacts
    means: dict[str, float]
    kl_floor_nats: float | None


@dataclass(frozen=True)
class EncodingCard:
    """What is stated of an encoding.

    Attributes:
        facts: What its manifest and shard table state.
        contents_fingerprint: SHA-256 of what determines its sequences, and of the sequences.
        tokenizer_fingerprint: SHA-256 of its tokenizer's vocabulary; None if none is recorded.
        teachers: Its teachers.
    """

    facts: EncodingFacts
    contents_fingerprint: str
    tokenizer_fingerprint: str | None
    teachers: tuple[TeacherCard, ...]


@dataclass(frozen=True)
class CacheCard:
    """What is stated of a cache."""

    encodings: tuple[EncodingCard, ...]

    @property
    def positions(self) -> int:
        """Captured positions of all teachers."""
        return sum(teacher.facts.positions for encoding in self.encodings for teacher in encoding.teachers)


def card_facts(cache: Cache, advance: Advance = ignore) -> CacheCard:
    """Return what the card of a cache states.

    Args:
        cache: The cache.
        advance: Called with the number of receipts that were read.

    Raises:
        DamageError: something of it is missing or damaged.
    """
    encodings = []
    for encoding in map(cache.encoding, cache.encodings):
        manifest = encoding.manifest
        encodings.append(
            EncodingCard(
                describe_encoding(encoding),
                manifest.contents_fingerprint,
                _tokenizer_fingerprint(manifest),
                tuple(_teacher(encoding.teacher(name), advance) for name in encoding.teachers),
            )
        )
    return CacheCard(tuple(encodings))


def _tokenizer_fingerprint(manifest: EncodingManifest) -> str | None:
    try:
        return manifest.vocabulary.fingerprint
    except FormatError:
        return None


def receipts_to_read(cache: Cache) -> int:
    """Return how many receipts :func:`card_facts` reads, those that are not there yet included."""
    encodings = map(cache.encoding, cache.encodings)
    return sum(len(encoding.shards) * len(encoding.teachers) for encoding in encodings)


def _teacher(teacher: CachedTeacher, advance: Advance) -> TeacherCard:
    facts, sums = describe_teacher(teacher), StatisticsSum()
    for receipt in teacher.receipts():
        sums.add(receipt.positions, receipt.statistics)
        advance(1)
    means = sums.means()
    return TeacherCard(facts, means, sampled_kl_floor(teacher, FLOOR_POSITIONS) if facts.positions else None)


def sampled_kl_floor(teacher: CachedTeacher, positions: int, seed: int = 0) -> float | None:
    """Return the mean KL floor over a random sample of a teacher's positions, in nats.

    Args:
        teacher: The teacher.
        positions: Positions to sample, rounded up to whole chunks.
        seed: Seed of the draw.

    Returns:
        The mean over rows that keep a token; None if the rows are draws, or no entropies or no such rows are stored.

    Raises:
        IncompleteError: no shard is finished.
    """
    if teacher.manifest.target.kind.is_drawn or ENTROPY not in teacher.manifest.scalars:
        return None
    floors = []
    for window in drawn_windows([teacher], positions, seed):
        targets = teacher.targets(window.start, window.stop)
        entropy = teacher.scalar(ENTROPY, window.start, window.stop)
        keeps = (targets.log_probs > -np.inf).any(axis=1)
        floors.append(kl_floor_rows(targets, entropy, teacher.manifest.vocabulary_size)[keeps])
    rows = np.concatenate(floors)
    return float(rows.mean()) if len(rows) else None
