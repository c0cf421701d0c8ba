"""Stage two: transformers' Trainer over a cache.

The Trainer does what it does well (devices, distribution, precision, accumulation,
schedules, checkpoints); this module gives it a dataset, a sampler, a module with the loss
inside, and a run folder (see ``run_folder.py``).

Run the same command again after a stop: it continues from the last whole checkpoint, in
the middle of an epoch, with the same batches and the same result.
"""

import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments, set_seed

from cache_tools.errors import ConfigError
from cache_tools.reader import Cache
from trainer.compatibility import check_loss
from trainer.config import StudentConfig
from trainer.data import CachedSequences, Reading, collate
from trainer.evaluate import evaluated_sequences, measure
from trainer.packing import check_packing, pack
from trainer.progress import StepProgress
from trainer.run_folder import FINAL, MetricsFile, last_checkpoint, record_run
from trainer.sampler import ShardWindowSampler
from trainer.self_test import check_teacher_reaches_student
from trainer.stall import StallClock
from trainer.student import DistilledStudent, build_student, distilled, vocabulary_size

PROJECTIONS = "projections.safetensors"
"""In a checkpoint: the projections between hidden states."""

NOT_SUPPORTED = {
    "label_smoothing_factor": "the teacher's distribution takes the place of smoothed labels",
    "train_sampling_strategy": "the order of training comes from the cache's own sampler",
    "load_best_model_at_end": "the finished student is the one that a run without a stop ends with",
    "save_only_model": "a stopped run could not go on as if it had never stopped",
}
"""Training arguments that must keep their defaults, and why."""


def run_training(config: StudentConfig) -> Path:
    """Train a student from a cache, or continue, and return the folder of the finished student.

    Raises:
        LogitcaskError: cache, student and configuration do not fit, or another run lies in the output folder.
    """
    arguments = training_arguments(config)
    output = Path(str(arguments.output_dir))
    teacher = Cache(config.cache).encoding(config.encoding).teacher(config.teacher)
    check_loss(teacher.manifest, config.loss)
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    record_run(output, config, teacher, batch)
    if (output / FINAL).exists():
        return output / FINAL
    set_seed(arguments.seed)
    student = build_student(config.student, teacher.encoding)
    with TemporaryDirectory() as folder:  # the cache may lie in a bucket
        teacher.encoding.save_tokenizer(Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    _share_special_tokens(student, tokenizer)
    if arguments.dataloader_num_workers and not isinstance(teacher.path, Path):
        torch.multiprocessing.set_start_method("forkserver", force=True)  # a bucket's client does not survive a fork
    reading, width = Reading.of(teacher.manifest, config.loss), vocabulary_size(student)
    trainer = DistillationTrainer(
        model=distilled(student, config.loss, teacher),
        args=arguments,
        train_dataset=CachedSequences(teacher, "train", width, config.window_shards, reading),
        eval_dataset=evaluated_sequences(teacher, "held_out", width) if arguments.do_eval else None,
        data_collator=partial(pack, row_tokens=config.packing.row_tokens) if config.packing else collate,
        processing_class=tokenizer,
        callbacks=[MetricsFile(output)],
        window_shards=config.window_shards,
    )
    if config.packing:
        trainer.check_packing(config.packing.row_tokens)
    trainer.remove_callback(transformers.ProgressCallback)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(StepProgress())
    trainer.check_signal()
    trainer.train(resume_from_checkpoint=last_checkpoint(output))
    _save_final(trainer, output)
    return output / FINAL


def training_arguments(config: StudentConfig) -> TrainingArguments:
    """Build ``TrainingArguments`` from the ``training:`` block.

    Defaults that differ from transformers': no reporting to outside services, and the
    columns of a batch are ours, so none is removed.

    Raises:
        ConfigError: an argument is unknown or has a wrong value.
    """
    defaults: dict[str, Any] = {
        "report_to": [],
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": 10,
        "include_num_input_tokens_seen": "non_padding",
    }
    try:
        arguments = TrainingArguments(**{**defaults, **config.training, "remove_unused_columns": False})
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(
            "these arguments are not transformers' TrainingArguments",
            where="training",
            found=str(error).splitlines()[0],
        ) from error
    _refuse_unsupported(arguments)
    arguments._n_gpu = min(arguments.n_gpu, 1)  # nn.DataParallel would cut predictions apart from their sequences
    return arguments


def _refuse_unsupported(arguments: TrainingArguments) -> None:
    for name, reason in NOT_SUPPORTED.items():
        if getattr(arguments, name) != TrainingArguments.__dataclass_fields__[name].default:
            raise ConfigError(
                "this argument has no place here",
                where=f"training.{name}",
                found=getattr(arguments, name),
                why=reason,
                fix="Leave it out",
            )


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
        assert isinstance(self.train_dataset, CachedSequences)
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        self._sampler = ShardWindowSampler(self.train_dataset.shard_sizes, window_shards, seed)
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
        assert isinstance(dataset, CachedSequences)
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
        # through from_pretrained, because files do not always name tensors as the module does (experts of a mixture)
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

    def __init__(self, sampler: ShardWindowSampler) -> None:
        self._sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set the epoch in which a new or continued run stands."""
        self._sampler.set_epoch(int(state.epoch))


def _share_special_tokens(
    student: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase
) -> None:
    """Give the student's configurations the tokenizer's special ids, as the Trainer would with a warning.

    After the model is made: a padding id in its first configuration would freeze that token's embedding.
    """
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for config in (student.config, getattr(student, "generation_config", None)):
            if config is not None:
                setattr(config, name, getattr(tokenizer, name))


def _save_final(trainer: DistillationTrainer, output: Path) -> None:
    """Write the finished student under a temporary name and rename it; every rank calls this."""
    partial = output / f"{FINAL}.partial"
    trainer.save_model(str(partial))
    if trainer.is_world_process_zero():
        shutil.copy(output / "run.json", partial / "logitcask.json")
        os.replace(partial, output / FINAL)
    trainer.accelerator.wait_for_everyone()
