"""What is trained on: one cached teacher, several of one encoding, or several caches.

Everything that depends on which of the three it is, is here and in ``opening.py``; who trains asks for a dataset, an
order and a loss, whatever they are made from.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cache_tools.alignments.stored import Alignment
from cache_tools.alignments.token_ids import student_ids as aligned_ids
from cache_tools.errors import ConfigError, IncompleteError
from cache_tools.format.layout import ENTROPY
from cache_tools.format.manifest import Split
from cache_tools.store.teacher import CachedTeacher
from cache_tools.vocabularies.union import NO_ID, UnionVocabulary
from trainer.config.mixture import SCALAR
from trainer.config.student_file import DistillationConfig
from trainer.data.aligned_sequences import AlignedSequences
from trainer.data.cached_sequences import CachedSequences, Reading
from trainer.data.position_weights import PositionWeights
from trainer.data.sampler import ShardWindowSampler
from trainer.data.several_caches import MixedOrder, SeveralCaches
from trainer.data.several_teachers import MixedSequences, mixed_reading
from trainer.data.translation import student_ids
from trainer.losses.distillation_loss import AlignedDistillationLoss, DistillationLoss, RankedDistillationLoss
from trainer.losses.mixed_loss import MixedDistillationLoss

TrainingSequences = CachedSequences | MixedSequences | SeveralCaches


def training_sequences(
    config: DistillationConfig,
    teachers: Sequence[CachedTeacher],
    student_vocabulary_size: int,
    union: UnionVocabulary | None = None,
    split: Split = "train",
    alignment: Alignment | None = None,
) -> TrainingSequences:
    """Return the sequences of a split that a student file trains on, with the student's ids.

    Raises:
        IncompleteError: a capture is not finished, or one of several caches holds no training sequence.
        ConfigError: the caches' predictions cannot be in one batch.
    """
    size, window = student_vocabulary_size, config.window_shards
    weights = [PositionWeights.of(teacher.encoding, split, config.loss) for teacher in teachers]
    if config.teachers:
        return mixed_sequences(config, teachers, size, weights[0], split)
    if alignment is not None:
        return _aligned(config, teachers[0], alignment, size, split)
    reading = common_reading([Reading.of(teacher.manifest, config.loss) for teacher in teachers])
    parts = [
        CachedSequences(
            teacher, split, size, window, reading, student_ids(union, teacher.encoding), is_control(config), given
        )
        for teacher, given in zip(teachers, weights, strict=True)
    ]
    if not config.caches:
        return parts[0]
    for part in parts:
        if not len(part):
            raise IncompleteError(f"this cache has no sequence in its {split} split", where=part.encoding.path)
    shares = [entry.share for entry in config.caches if entry.share is not None]
    return SeveralCaches(parts, shares or None)


def mixed_sequences(
    config: DistillationConfig,
    teachers: Sequence[CachedTeacher],
    student_vocabulary_size: int,
    weights: PositionWeights | None,
    split: Split,
) -> MixedSequences:
    """Return the sequences of a split with several teachers' predictions."""
    readings = [mixed_reading(config.loss, config.mixture, teacher) for teacher in teachers]
    by_sequence = config.mixture.per != "position" and config.loss.kd_weight > 0
    return MixedSequences(
        teachers,
        config.teachers,
        readings,
        student_vocabulary_size,
        config.window_shards,
        weights,
        split,
        mean_of=SCALAR[config.mixture.weights] if by_sequence else None,
        per=config.mixture.per,
        other_positions=is_control(config),
    )


def is_control(config: DistillationConfig) -> bool:
    """Return whether positions are given the predictions of others."""
    return config.control == "other_positions"


def _aligned(
    config: DistillationConfig, teacher: CachedTeacher, alignment: Alignment, size: int, split: Split
) -> AlignedSequences:
    reading = Reading.of(teacher.manifest, config.loss)
    if not alignment.is_same:  # the entropy is that of the teacher's tokens, and not of the rows that were mapped
        reading = replace(reading, scalars=tuple(scalar for scalar in reading.scalars if scalar != ENTROPY))
    ranks = config.loss.ranks if config.loss.kd_weight > 0 else None
    composed = config.loss.temperature == 1 and not teacher.manifest.target.kind.is_drawn
    composed = composed and (ranks is None or ranks.of == "unmapped")  # a rank is one of the teacher's own tokens
    return AlignedSequences(
        *(teacher, alignment, split, size, config.window_shards, reading, is_control(config), composed),
        keep_unmapped=ranks is not None,
    )


def common_reading(readings: Sequence[Reading]) -> Reading:
    """Return what is read of each of several caches: the entropy, which only the log uses, of all or none.

    Raises:
        ConfigError: the loss needs other numbers of one than of another.
    """
    if len(set(readings)) > 1:
        readings = [replace(reading, scalars=tuple(s for s in reading.scalars if s != ENTROPY)) for reading in readings]
    if len(set(readings)) > 1:
        raise ConfigError(
            "this loss needs different scalars from these caches",
            where="caches",
            found=" and ".join(", ".join(reading.scalars) or "no scalars" for reading in readings),
            why="rows of one batch would be tempered in different ways",
            fix="Set loss.temperature: 1",
        )
    return readings[0]


def order_of(
    dataset: TrainingSequences, window_shards: int, seed: int, step_items: int
) -> ShardWindowSampler | MixedOrder:
    """Return the sampler of training sequences; a step takes ``step_items`` of them, over all ranks."""
    if isinstance(dataset, SeveralCaches):
        sizes = [part.shard_sizes for part in dataset.parts]
        return MixedOrder(sizes, dataset.per_epoch, window_shards, seed, step_items)
    return ShardWindowSampler(dataset.shard_sizes, window_shards, seed, step_items)


def loss_of(
    config: DistillationConfig,
    teachers: Sequence[CachedTeacher],
    alignment: Alignment | None = None,
    student_vocabulary_size: int = 0,
) -> DistillationLoss | None:
    """Return the loss on several teachers, or through an alignment; None for others, which need nothing else."""
    if alignment is not None and config.loss.ranks is not None and config.loss.kd_weight > 0:
        return RankedDistillationLoss(config.loss, _mapped(alignment, student_vocabulary_size))
    if alignment is not None:
        return AlignedDistillationLoss(config.loss)
    return MixedDistillationLoss.of(config.loss, config.mixture, teachers) if config.teachers else None


def _mapped(alignment: Alignment, student_vocabulary_size: int) -> Tensor:
    """Return which of the student's ids have a token of the teacher's: (V,) bool."""
    ids = aligned_ids(alignment)
    if ids is None:
        return torch.ones(student_vocabulary_size, dtype=torch.bool)
    mapped = torch.zeros(student_vocabulary_size, dtype=torch.bool)
    mapped[torch.from_numpy(ids[ids != NO_ID].astype("int64"))] = True
    return mapped
