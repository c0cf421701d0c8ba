"""transformers' Trainer for a student that learns from a cache.

The Trainer's loop is used for devices, distribution, precision, accumulation and schedules. Overridden here: the order
of the sequences, the log (the parts of the loss, and the waits for data), the evaluation (against the cached teacher),
and a stop at a loss that is not finite (``student/finite.py``). ``checkpointing_trainer.py`` overrides what is saved.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import DistributedType, broadcast_object_list  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainingArguments

from cache_tools.format.manifest import Objective
from trainer.config.training_arguments import argument_errors
from trainer.data.cached_sequences import Batch, CachedSequences
from trainer.data.sampler import ShardWindowSampler
from trainer.data.several_caches import MixedOrder, SeveralCaches
from trainer.data.sources import TrainingSequences, order_of
from trainer.evaluation.aligned import AlignedMeasures, AlignedSplit
from trainer.evaluation.evaluate import measures_of
from trainer.evaluation.measures import Measures, pooled
from trainer.evaluation.passes import measured, shared_batches
from trainer.run.checkpointing_trainer import CheckpointingTrainer
from trainer.run.checkpoints import broadcast_choice
from trainer.run.sharding import (
    check_sharding,
    keep_sharding,
    prepare_fsdp,
)
from trainer.run.stall import StallClock
from trainer.student.finite import (
    MAX_SKIPPED_STEPS,
    StepWatch,
    check_measures,
)
from trainer.student.neftune import noisy_embeddings
from trainer.student.packing_check import check_packing
from trainer.student.probe import check_rows
from trainer.student.signal_check import check_teacher_reaches_student
from trainer.student.student import DistilledStudent

AnyMeasures = TypeVar("AnyMeasures", Measures, AlignedMeasures)


def step_sequences(arguments: TrainingArguments) -> int:
    """Return the sequences of an optimizer step, over all ranks and micro-batches."""
    return int(arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size)


class DistillationTrainer(CheckpointingTrainer):
    """Trainer with the cache's sampler, and the parts of the loss and the waits for data in its log."""

    def __init__(self, *arguments: Any, window_shards: int, **named: Any) -> None:
        super().__init__(*arguments, **named)
        check_sharding(self.accelerator)
        if self.is_fsdp_enabled:
            prepare_fsdp(self.accelerator)
            nn.Module.to(self._distilled(), self.args.device)  # checks before the first step run where training will
        assert isinstance(self.train_dataset, TrainingSequences)
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        self._sampler = order_of(self.train_dataset, window_shards, seed, step_sequences(self.args))
        self.add_callback(EpochOrder(self._sampler))
        self._stall = StallClock()
        self.add_callback(self._stall)
        self._sums: dict[str, Tensor] = {}
        self._num_positions = 0
        self._watch = StepWatch(self._over_ranks)
        self.neftune_noise_alpha = None  # the Trainer would look for embeddings in the wrapper, see neftune.py

    def create_accelerator_and_postprocess(self) -> None:
        """Make accelerate's object; also on CPUs one that shards, if the arguments set FSDP."""
        with argument_errors():
            super().create_accelerator_and_postprocess()
        keep_sharding(self.accelerator, self.args.fsdp_plugin_args)
        self.is_fsdp_enabled = self.accelerator.distributed_type == DistributedType.FSDP

    def continue_training(self) -> None:
        """Train to the end, from the newest undamaged checkpoint if there is one.

        Raises:
            DamageError: there are checkpoints, and all of them are damaged.
            ModelError: the student or its loss is not finite.
            StorageError: the disk is full or refuses.
        """
        output = Path(str(self.args.output_dir))
        checkpoint = broadcast_choice(output, self.args.process_index, broadcast_object_list)
        with noisy_embeddings(self._bare_student(), self.args.neftune_noise_alpha):
            self.train(resume_from_checkpoint=checkpoint)

    def _run_epoch(self, *arguments: Any, **named: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # continued after its last step, before it was finished
            self.control.should_training_stop = True
        else:
            run: Any = super()._run_epoch
            run(*arguments, **named)

    def create_optimizer(self, model: Any = None) -> Any:
        """Make the optimizer; values that it does not accept are reported as wrong arguments."""
        with argument_errors("training.optim"):
            return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the schedule; values that it does not accept are reported as wrong arguments."""
        with argument_errors("training.lr_scheduler_kwargs"):
            return super().create_scheduler(num_training_steps, optimizer)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self._sampler

    def check_packing(self, row_tokens: int | None) -> None:
        """Refuse a student that mixes packed sequences; here, because device and precision are the Trainer's."""
        assert isinstance(self.model, DistilledStudent)
        with self.accelerator.autocast():
            check_packing(self.model.student, self.model.head, row_tokens)

    def check_rows(self, objective: Objective, packed: bool) -> None:
        """Refuse a student whose rows depend on later tokens, padding or other sequences, see ``student/probe.py``."""
        dataset = self.train_dataset
        assert isinstance(self.model, DistilledStudent)
        assert isinstance(dataset, TrainingSequences)
        examples = (dataset[index] for index in self._sampler)
        with self.accelerator.autocast():
            check_rows(self.model.student, self.model.head, examples, objective, packed)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Take the batches of a step, and measure how long this takes."""
        return super().get_batch_samples(self._stall.timed(epoch_iterator), num_batches, device)

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Any:
        """Return the kept positions of a step; the Trainer counts them in a column named ``labels``."""
        counted: Any = super()._get_num_items_in_batch
        return counted([{"labels": batch["gold_ids"]} for batch in batch_samples], device)

    def compute_loss(self, model: nn.Module, inputs: Batch, *arguments: Any, **named: Any) -> Any:
        """Add up the parts of the loss for the log."""
        named["return_outputs"] = True
        loss, parts = super().compute_loss(model, inputs, *arguments, **named)
        self._watch.add(loss)
        self._num_positions += len(inputs["target_ids"])
        for name in parts.keys() - {"loss"}:
            self._sums[name] = self._sums.get(name, 0) + parts[name]
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return the norm of a step's gradient; the last moment before the weights move, see ``student/finite.py``."""
        measured_norm: Any = super()._get_grad_norm
        norm, scaled = measured_norm(model, grad_norm), getattr(self.accelerator, "scaler", None) is not None
        patience = min(MAX_SKIPPED_STEPS, self.state.max_steps) if scaled else 1
        self._watch.check(norm, self.state.global_step + 1, patience, self._get_learning_rate(), self._distilled())
        return norm

    def check_signal(self) -> None:
        """Refuse a student whose gradient ignores the teacher, see ``student/signal_check.py``."""
        dataset = self.train_dataset
        assert isinstance(dataset, TrainingSequences)
        with self.compute_loss_context_manager():
            check_teacher_reaches_student(self._distilled(), (dataset[index] for index in self._sampler))

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Measure the student on the held-out split as ``logitcask evaluate`` does; ranks share the split.

        Several caches are measured one after another, and their positions count alike.
        """
        dataset = self.eval_dataset
        assert isinstance(dataset, CachedSequences | SeveralCaches | AlignedSplit)
        device = self._distilled().student.device
        measures: Measures | AlignedMeasures
        if isinstance(dataset, AlignedSplit):
            measures = self._measured(dataset, AlignedMeasures.of(dataset))
        else:
            parts = dataset.parts if isinstance(dataset, SeveralCaches) else (dataset,)
            measures = pooled(self._measured(part, measures_of(part, device)) for part in parts)
        measures.totals = self._over_ranks(measures.totals)
        means = {name: value for name, value in vars(measures.means()).items() if value is not None}
        metrics: dict[str, float] = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        check_measures(metrics, f"step {self.state.global_step}")
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _measured(self, dataset: CachedSequences | AlignedSplit, measures: AnyMeasures) -> AnyMeasures:
        """Add this rank's share of some sequences to measures, and return them."""
        module, arguments = self._distilled(), self.args
        shared = shared_batches(len(dataset), arguments.eval_batch_size, arguments.process_index, arguments.world_size)
        module.eval()
        with self.compute_loss_context_manager():
            measured(module.over_positions, measures, dataset, shared, module.student.device)
        return measures

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the mean of each part over all positions since the last log, and this rank's waits for data."""
        if "loss" in logs and self._sums:
            sums = self._over_ranks(self._sums | {"positions": torch.tensor(self._num_positions)})
            positions = max(int(sums.pop("positions")), 1)
            logs |= self._stall.drain() | {name: float(total) / positions for name, total in sorted(sums.items())}
            self._sums, self._num_positions = {}, 0
        super().log(logs, start_time)


class EpochOrder(TrainerCallback):
    """Tells the sampler the epoch: accelerate's ``set_epoch`` misses it when several ranks continue in mid-epoch.

    Args:
        sampler: Whose order it is.
    """

    def __init__(self, sampler: ShardWindowSampler | MixedOrder) -> None:
        self._sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set the epoch in which a new or continued run stands."""
        self._sampler.set_epoch(int(state.epoch))
