"""The part of the Trainer that writes and reads checkpoints.

A checkpoint holds the bare student, so that it is an ordinary model folder, the projections between hidden states, the
whole optimizer whatever ranks hold parts of it, and the hashes of all these files (``checkpoints.py``). Weights that
are not finite are not saved, and a file that cannot be read is refused by its name.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import Trainer

from trainer.data.cached_sequences import to_device
from trainer.evaluation.measures import Sums
from trainer.run.checkpoints import reading, remove, remove_oldest, saving, write_hashes
from trainer.run.sharding import WholeOptimizer, check_checkpoint, gathered, gathered_weights, load_whole
from trainer.student.checkpoint import load_student
from trainer.student.finite import first_not_finite, weights_error
from trainer.student.lora import has_adapter, load_adapter
from trainer.student.student import DistilledStudent
from trainer.tokenizers.student_tokens import save_student

PROJECTIONS = "projections.safetensors"
"""In a checkpoint: the projections between hidden states."""


class CheckpointingTrainer(Trainer):
    """Trainer whose checkpoints hold the bare student, a whole optimizer, and the hashes of their files."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._checkpoints_kept, self.args.save_total_limit = self.args.save_total_limit, None  # see _save_checkpoint

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        if resume_from_checkpoint is not None:
            ranks = self.args.world_size if self.is_deepspeed_enabled else 0
            check_checkpoint(Path(resume_from_checkpoint), deepspeed_ranks=ranks)
        prepare: Any = super()._prepare_for_training
        prepared = prepare(max_steps, train_dataloader, resume_from_checkpoint)
        register_fsdp_forward_method(self._distilled(), "over_positions")
        return prepared

    def _check_weights(self) -> None:
        """Refuse to save weights that are not finite, on all processes if on one."""
        name = first_not_finite(self._distilled())
        broken = self._over_ranks({"broken": torch.tensor(float(name is not None), device=self.args.device)})["broken"]
        if broken:
            raise weights_error(
                name or "a part of another process",
                where=f"step {self.state.global_step}",
                fix="Lower training.learning_rate, or raise training.adam_epsilon, in another training.output_dir",
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the bare student, unless its weights are not finite."""
        self._check_weights()
        super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint, finish it with its hashes, and only then delete older ones."""
        output = Path(str(self.args.output_dir))
        folder = output / f"checkpoint-{self.state.global_step}"
        with saving(folder):
            if self.args.should_save:
                remove(folder)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # every process has written the state of its random numbers
            if self.args.should_save:
                write_hashes(folder)
                remove_oldest(output, self._checkpoints_kept, self.state.best_model_checkpoint)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        student = self._bare_student()
        state = gathered_weights(student, keep=self.args.should_save) if self.is_fsdp_enabled else None
        if not self.args.should_save:
            return
        folder = output_dir or str(self.args.output_dir)
        save_student(student, folder, state)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save what only a continued run needs: the projections of hidden states too."""
        with self._optimizer_of_one_process() as pieces:
            if pieces is not None:
                pieces.gather(keep=self.args.should_save)
            super()._save_optimizer_and_scheduler(output_dir)
        match = self._distilled().loss.match
        if match is not None:
            projections = gathered(match.state_dict(), keep=self.args.should_save)
            if self.args.should_save:
                save_file(projections, Path(output_dir) / PROJECTIONS)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with self._optimizer_of_one_process(), reading(Path(str(checkpoint))):
            super()._load_optimizer_and_scheduler(checkpoint)

    @contextmanager
    def _optimizer_of_one_process(self) -> Iterator[WholeOptimizer | None]:
        """Let the Trainer save and load an optimizer in pieces as if it were whole: any other run can go on with it."""
        if not self.is_fsdp_enabled:
            yield None
            return
        assert self.optimizer is not None
        pieces, whole = self.optimizer, WholeOptimizer(self.optimizer)
        self.optimizer, self.is_fsdp_enabled = whole, False  # type: ignore[assignment]
        try:
            yield whole
        finally:
            self.optimizer, self.is_fsdp_enabled = pieces, True

    def _load_scaler(self, checkpoint: str | None) -> None:
        with reading(Path(str(checkpoint))):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(Path(str(checkpoint))):
            super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with reading(Path(resume_from_checkpoint)):
            self._load_weights(resume_from_checkpoint)

    def _load_weights(self, resume_from_checkpoint: str) -> None:
        student = self._bare_student()
        if has_adapter(student):
            load_adapter(student, Path(resume_from_checkpoint))
        else:
            # files do not always name tensors as the module does (experts of a mixture)
            saved = load_student(type(student), resume_from_checkpoint, dtype=student.dtype)
            load_whole(student, saved.state_dict())
        match = self._distilled().loss.match
        if match is not None:
            load_whole(match, load_file(Path(resume_from_checkpoint) / PROJECTIONS))

    def _over_ranks(self, sums: Sums) -> Sums:
        """Add up what each rank counted; every rank must take part, with the same names."""
        if self.args.world_size == 1:
            return sums
        total: Sums = self.accelerator.reduce(to_device(sums, self.args.device))
        return to_device(total, torch.device("cpu"))

    def _bare_student(self) -> transformers.PreTrainedModel:
        return self._distilled().student

    def _distilled(self) -> DistilledStudent:
        module: DistilledStudent = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return module
