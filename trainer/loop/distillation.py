"""Dataset, collator and loss that belong together: made in one call, for one student.

A loss alone does not know which numbers its batch must hold; a dataset alone does not know how wide the student's
logits are. So they are made together, and each refuses what was made for another.
"""

from dataclasses import dataclass

from transformers import PreTrainedModel

from cache_tools.errors import ConfigError
from cache_tools.format.manifest import Split
from trainer.config.student_file import DistillationConfig
from trainer.data.sampler import ShardWindowSampler
from trainer.data.several_caches import MixedOrder
from trainer.data.sources import TrainingSequences, loss_of, order_of, training_sequences
from trainer.data.translation import student_ids
from trainer.loop.collator import Collator
from trainer.loop.inputs import Inputs
from trainer.loop.projection_start import fit_projections
from trainer.losses.hidden import HiddenMatch
from trainer.student.cached_loss import CachedLoss, StudentShape, cached_loss
from trainer.student.head import StudentHead


@dataclass(frozen=True)
class Distillation:
    """What a training loop needs to train a student from a cache.

    Attributes:
        dataset: Map-style dataset: one item is a cached sequence with the teacher's predictions.
        collate: Makes a batch of items: for ``DataLoader(collate_fn=...)`` or a trainer's ``data_collator``.
        loss: Called with a batch and what the student made of it; a module, which must be on the student's device.
        head: The student's output matrix, for a loss on hidden states; None if the student was given as a shape, or if
            its head is unknown.
        window_shards: Shards whose sequences :meth:`sampler` shuffles together.
    """

    dataset: TrainingSequences
    collate: Collator
    loss: CachedLoss
    head: StudentHead | None
    window_shards: int

    def sampler(self, seed: int, step_sequences: int = 1) -> ShardWindowSampler | MixedOrder:
        """Return the order of ``logitcask train``, for ``DataLoader(sampler=...)``; call ``set_epoch`` in each epoch.

        ``shuffle=True`` gives a correct order too, but on a large cache a slow one: it reads a shard for almost every
        sequence, where this order reads each shard once in an epoch.

        Args:
            seed: With the epoch, determines the order.
            step_sequences: Sequences of an optimizer step; an epoch is a whole number of steps.
        """
        return order_of(self.dataset, self.window_shards, seed, step_sequences)


def distillation_of(
    config: DistillationConfig, inputs: Inputs, student: PreTrainedModel | StudentShape, split: Split = "train"
) -> Distillation:
    """Make dataset, collator and loss for a student.

    Args:
        config: The configuration.
        inputs: What it names, opened and checked.
        student: The student, or what the loss must know of it.
        split: The split whose sequences the dataset holds.

    Raises:
        IncompleteError: A capture is not finished, or one of several caches holds no sequence of the split.
        ConfigError: The loss names a layer that the student does not have, or starts projections at a solution and
            there is only the student's shape; or the caches cannot be in one batch.
        DamageError: The teacher's output matrix is missing or not what was written.
    """
    shape = student if isinstance(student, StudentShape) else StudentShape.of(student, config.loss)
    dataset = training_sequences(config, inputs.teachers, shape.vocabulary_size, inputs.union, split, inputs.alignment)
    objective = loss_of(config, inputs.teachers, inputs.alignment, shape.vocabulary_size)
    ids = student_ids(inputs.union, inputs.encoding)
    loss = cached_loss(shape, config.loss, inputs.teachers, objective, ids, dataset.binding)
    head = None if isinstance(student, StudentShape) else StudentHead.of(student)
    made = Distillation(dataset, Collator(dataset, config.packing), loss, head, config.window_shards)
    if loss.match is not None and any(pair.start == "ridge" for pair in loss.match.pairs):
        _start_projections(made, loss.match, student)
    return made


def _start_projections(made: Distillation, match: HiddenMatch, student: PreTrainedModel | StudentShape) -> None:
    if isinstance(student, StudentShape):
        raise ConfigError(
            "projections cannot start at their solution without the student",
            where="loss.hidden",
            expected="a model of transformers, which start: ridge runs on the first sequences",
            found="the shape of a student",
            fix="Give the model itself, or leave start out",
        )
    order = made.sampler(seed=0)
    fit_projections(student, match, (made.dataset[index] for index in order))
