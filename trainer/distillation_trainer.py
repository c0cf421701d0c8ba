"""transformers' Trainer for a student that learns from a cache.

The Trainer does what it does well (devices, distribution, precision, accumulation, schedules, checkpoints). Added here:
the cache's order, the parts of the loss and the waits for data in the log, measuring against the cached teacher, and
checkpoints of the bare student, so that every one of them is an ordinary model folder.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback

from cache_tools.errors import ConfigError
from trainer.data import CachedSequences
from trainer.evaluate import measure
from trainer.lora import has_adapter, load_adapter
from trainer.packing import check_packing
from trainer.sampler import ShardWindowSampler
from trainer.self_test import check_teacher_reaches_student
from trainer.several import MixedOrder
from trainer.sources import TrainingSequences, order_of
from trainer.stall import StallClock
from trainer.student import DistilledStudent

PROJECTIONS = "projections.safetensors"
"""In a checkpoint: the projections between hidden states."""


class DistillationTrainer(Trainer):
    """Trainer with the cache's sampler, per-part losses in its log, and checkpoints of the bare student."""

    def __init__(self, *arguments: Any, window_shards: int, **named: Any) -> None:
        super().__init__(*arguments, **named)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ConfigError(
                "FSDP and DeepSpeed are not supported yet",
                where="training",
                why="checkpoints of a sharded student would not hold all of it",
                fix="Start several GPUs with torchrun alone",
            )
        assert isinstance(self.train_dataset, TrainingSequences)
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        self._sampler = order_of(self.train_dataset, window_shards, seed)
        self.add_callback(EpochOrder(self._sampler))
        self._stall = StallClock()
        self.add_callback(self._stall)
        self._sums: dict[str, Tensor] = {}
        self._num_positions = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self._sampler

    def check_packing(self, row_tokens: int | None) -> None:
        """Refuse a student that mixes packed sequences; here, because device and precision are the Trainer's."""
        assert isinstance(self.model, DistilledStudent)
        with self.accelerator.autocast():
            check_packing(self.model.student, self.model.head, row_tokens)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Take the batches of a step, and measure how long they take to come."""
        return super().get_batch_samples(self._stall.timed(epoch_iterator), num_batches, device)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **named: Any) -> Any:
        """Add up the parts of the loss for the log."""
        named["return_outputs"] = True
        loss, parts = super().compute_loss(model, inputs, *arguments, **named)
        self._num_positions += len(inputs["target_ids"])
        for name in parts.keys() - {"loss"}:
            self._sums[name] = self._sums.get(name, 0) + parts[name]
        return loss

    def check_signal(self) -> None:
        """Refuse a student that what the teacher said would not reach, see ``self_test.py``."""
        dataset = self.train_dataset
        assert isinstance(dataset, TrainingSequences)
        with self.compute_loss_context_manager():
            check_teacher_reaches_student(self._distilled(), (dataset[index] for index in self._sampler))

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Measure the student on the held-out split as ``logitcask evaluate`` does; every rank measures all of it."""
        assert isinstance(self.eval_dataset, CachedSequences)
        with self.compute_loss_context_manager():
            measures = measure(self._bare_student(), self.eval_dataset, self.args.eval_batch_size)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in measures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the mean of each part over this rank's positions since the last log, and its waits for data."""
        if "loss" in logs and self._num_positions:
            logs |= self._stall.drain()
            logs |= {name: float(total) / self._num_positions for name, total in sorted(self._sums.items())}
            self._sums, self._num_positions = {}, 0
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        folder = output_dir or str(self.args.output_dir)
        self._bare_student().save_pretrained(folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save what only a continued run needs: the projections of hidden states too."""
        super()._save_optimizer_and_scheduler(output_dir)
        match = self._distilled().match
        if match is not None and self.args.should_save:
            save_file(match.state_dict(), Path(output_dir) / PROJECTIONS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        student = self._bare_student()
        if has_adapter(student):
            load_adapter(student, Path(resume_from_checkpoint))
        else:
            # files do not always name tensors as the module does (experts of a mixture)
            saved = type(student).from_pretrained(resume_from_checkpoint, dtype=student.dtype, use_safetensors=True)
            student.load_state_dict(saved.state_dict())
        match = self._distilled().match
        if match is not None:
            match.load_state_dict(load_file(Path(resume_from_checkpoint) / PROJECTIONS))

    def _bare_student(self) -> transformers.PreTrainedModel:
        return self._distilled().student

    def _distilled(self) -> DistilledStudent:
        module: DistilledStudent = self.accelerator.unwrap_model(self.model)
        return module


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
