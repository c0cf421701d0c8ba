"""Stage two: transformers' Trainer over a cache.

One file says which cache, student and loss; from it this module makes a dataset, a module with the loss inside, a
Trainer (see ``distillation_trainer.py``) and a run folder (see ``run_folder.py``).

Run the same command again after a stop: it continues from the last whole checkpoint, in
the middle of an epoch, with the same batches and the same result.
"""

import os
from contextlib import nullcontext
from pathlib import Path
from time import monotonic

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from cache_tools.progress.lines import open_reporter
from cache_tools.progress.reporter import Reporter
from cache_tools.separate_places import require_outside
from cache_tools.storage import storage_errors
from cache_tools.store.claims import only_process
from cache_tools.torch_models.segments import read_segments
from cache_tools.vocabularies.folder import save_token_map
from trainer.config.model_keys import check_config_keys
from trainer.config.student_file import StudentConfig, StudentModelConfig
from trainer.config.training_arguments import training_arguments
from trainer.data.cached_sequences import CachedSequences
from trainer.data.several_caches import SeveralCaches
from trainer.evaluation.aligned import AlignedSplit
from trainer.evaluation.evaluate import evaluated_sequences
from trainer.loop.distillation import distillation_of
from trainer.loop.inputs import Inputs, open_inputs
from trainer.plots import can_plot
from trainer.run.checkpoints import remove, saving
from trainer.run.curves import draw_curves
from trainer.run.distillation_trainer import DistillationTrainer, step_sequences
from trainer.run.progress import StepProgress
from trainer.run.run_folder import (
    MetricsFile,
    RunFile,
    RunRecord,
    TrainResult,
    check_run,
    final_record,
    is_finished,
    run_record,
    train_result,
)
from trainer.student.cached_loss import vocabulary_size
from trainer.student.checkpoint import FINAL
from trainer.student.finite import check_student
from trainer.student.lora import ADAPTER, merge_adapter
from trainer.student.student import DistilledStudent, build_student, check_length, first_runs
from trainer.tokenizers.cached import student_tokenizer
from trainer.tokenizers.check import check_behaviour
from trainer.tokenizers.student_tokens import KeptTokens, save_student, share_special_tokens, tokenizer_of


def run_training(config: StudentConfig) -> TrainResult:
    """Train a student from a cache, or continue, or return the result of a run that is finished.

    Progress is shown on stderr, by the first of several processes.

    Raises:
        LogitcaskError: Cache, student and configuration do not fit, or another run lies in the output folder.
    """
    began = monotonic()
    arguments = training_arguments(config)
    check_config_keys(config.student.config or {})
    output, first = Path(str(arguments.output_dir)), arguments.process_index == 0
    with open_reporter(arguments.process_index, arguments.world_size) if first else Reporter() as reporter:
        reporter.stage("checking the student file and its caches", None)
        inputs = open_inputs(config)
        for teacher in inputs.teachers:
            require_outside(output, teacher.encoding.path.parent.parent, "training.output_dir")
        record = run_record(config, inputs.teachers, step_sequences(arguments), inputs.union, inputs.alignment)
        check_run(output, record)
        if not is_finished(output):
            _train(config, arguments, inputs, record, reporter)
    return train_result(output, monotonic() - began)


def _train(
    config: StudentConfig, arguments: TrainingArguments, inputs: Inputs, record: RunRecord, reporter: Reporter
) -> None:
    """Make the student, check it, train it and save it."""
    output = Path(str(arguments.output_dir))
    reporter.stage("making the student", None)
    set_seed(arguments.seed)
    student, tokenizer = _make_student(config, inputs)
    trainer = _make_trainer(config, arguments, inputs, student, tokenizer, record)
    with first_runs(student, _source(config)):
        trainer.check_rows(inputs.encoding.manifest.objective, packed=config.packing is not None)
        if config.packing:
            trainer.check_packing(config.packing.row_tokens)
    trainer.add_callback(StepProgress(reporter))
    reporter.stage("checking that the teacher reaches the student", None)
    with first_runs(student, _source(config)):
        trainer.check_signal()
    reporter.stage("loading the first batches", None)
    with only_process(output) if trainer.is_world_process_zero() else nullcontext():
        if is_finished(output):  # by another process, since the first look
            return
        trainer.continue_training()
        with saving(output / FINAL):
            _save_final(trainer, config, inputs, output)


def _source(config: StudentConfig) -> str:
    """Return where the student comes from, for errors."""
    return config.student.source or "student.config"


def _make_student(config: StudentConfig, inputs: Inputs) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Make or load the student and the tokenizer that it is saved with."""
    own, encoding = config.student, inputs.encoding
    student = build_student(own, encoding, inputs.vocabulary)
    read_segments(student, inputs.separator)
    check_student(student, _source(config), "Start from other weights")
    if inputs.alignment is not None:
        check_length(student, inputs.alignment.longest_tokens, _source(config))
    if own.source is not None:
        expected = student_tokenizer(config.vocabulary, encoding, inputs.alignment)
        check_behaviour(own.source, expected, encoding, own.revision, own.trust_remote_code)
    tokenizer = tokenizer_of(own, config.vocabulary, encoding, inputs.alignment)
    share_special_tokens(student, tokenizer, keep_own=own.pretrained is not None)
    return student, tokenizer


def _make_trainer(
    config: StudentConfig,
    arguments: TrainingArguments,
    inputs: Inputs,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    record: RunRecord,
) -> DistillationTrainer:
    """Wrap the student with its loss, and give it to a Trainer with its data."""
    output, teachers = Path(str(arguments.output_dir)), inputs.teachers
    if arguments.dataloader_num_workers and not isinstance(teachers[0].path, Path):
        torch.multiprocessing.set_start_method("forkserver", force=True)  # a bucket's client does not survive a fork
    with first_runs(student, _source(config)):
        parts = distillation_of(config, inputs, student)
        model = DistilledStudent(student, parts.loss)
    with storage_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    width, is_measured = vocabulary_size(student), arguments.do_eval or arguments.eval_on_start
    trainer = DistillationTrainer(
        model=model,
        args=arguments,
        train_dataset=parts.dataset,
        eval_dataset=_measured_sequences(config, inputs, width) if is_measured else None,
        data_collator=parts.collate,
        processing_class=tokenizer,
        callbacks=[RunFile(output, record), MetricsFile(output), KeptTokens(student)],
        window_shards=parts.window_shards,
    )
    trainer.remove_callback(transformers.ProgressCallback)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _measured_sequences(
    config: StudentConfig, inputs: Inputs, student_vocabulary_size: int
) -> CachedSequences | SeveralCaches | AlignedSplit:
    """Return the held-out splits with all that the measures of this student need: of all caches that have one."""
    if inputs.alignment is not None:
        return AlignedSplit(inputs.teachers[0], inputs.alignment, "held_out", student_vocabulary_size)
    first = inputs.teachers[:1]
    with_split = [teacher for teacher in inputs.teachers if teacher.encoding.split_shards("held_out")]
    teachers = (with_split or first) if config.caches else first
    parts = [evaluated_sequences(teacher, "held_out", student_vocabulary_size, inputs.union) for teacher in teachers]
    return SeveralCaches(parts) if config.caches else parts[0]


def _save_final(trainer: DistillationTrainer, config: StudentConfig, inputs: Inputs, output: Path) -> None:
    """Write the finished student under a temporary name and rename it; every rank calls this."""
    partial_folder = output / f"{FINAL}.partial"
    if trainer.is_world_process_zero():
        remove(partial_folder)  # of a process that was killed here
    trainer.save_model(str(partial_folder / ADAPTER if config.student.lora else partial_folder))
    if trainer.is_world_process_zero():
        if config.student.lora:
            tokenizer = trainer.processing_class
            assert isinstance(tokenizer, PreTrainedTokenizerBase)
            _save_merged(config.student, inputs, tokenizer, partial_folder)
        if config.vocabulary is not None:
            save_token_map(config.vocabulary, partial_folder)
        (partial_folder / "logitcask.json").write_bytes(final_record(output, trainer.state.global_step))
        os.replace(partial_folder, output / FINAL)
        if can_plot():
            draw_curves(output)
    trainer.accelerator.wait_for_everyone()


def _save_merged(config: StudentModelConfig, inputs: Inputs, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the student that a pretrained one becomes with the adapter in ``folder / ADAPTER``."""
    pretrained = build_student(config.model_copy(update={"lora": None}), inputs.encoding, inputs.vocabulary)
    share_special_tokens(pretrained, tokenizer, keep_own=True)
    merge_adapter(pretrained, folder / ADAPTER)
    save_student(pretrained, folder)
    tokenizer.save_pretrained(folder)
