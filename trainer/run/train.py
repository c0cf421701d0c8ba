"""Stage two: transformers' Trainer over a cache.

One file says which cache, student and loss; from it this module makes a dataset, a module with the loss inside, a
Trainer (see ``distillation_trainer.py``) and a run folder (see ``run_folder.py``).

Run the same command again after a stop: it continues from the last whole checkpoint, in
the middle of an epoch, with the same batches and the same result.
"""

import os
import shutil
from functools import partial
from pathlib import Path

import torch
import transformers
from transformers import TrainingArguments, set_seed

from cache_tools.format.vocabulary import Vocabulary
from cache_tools.inspection.row_check import require_consistent
from cache_tools.progress.lines import open_reporter
from cache_tools.progress.reporter import Reporter
from cache_tools.separate_places import require_outside
from cache_tools.storage import storage_errors
from cache_tools.store.reader import Encoding
from cache_tools.vocabularies.folder import save_token_map
from trainer.config.model_keys import check_config_keys
from trainer.config.student_file import StudentConfig, StudentModelConfig
from trainer.data.cached_sequences import collate
from trainer.data.opening import check_sources, open_teachers
from trainer.data.packing import pack
from trainer.data.translation import open_union, student_ids, student_vocabulary
from trainer.evaluation.evaluate import evaluated_sequences
from trainer.plots import can_plot, draw_curves
from trainer.run.checkpoints import remove, saving
from trainer.run.distillation_trainer import DistillationTrainer, step_sequences
from trainer.run.progress import StepProgress
from trainer.run.run_folder import FINAL, MetricsFile, RunFile, check_run, is_finished, run_record
from trainer.run.sources import objective_of, training_sequences
from trainer.run.training_arguments import training_arguments
from trainer.student.finite import check_student
from trainer.student.lora import ADAPTER, merge_adapter
from trainer.student.student import build_student, distilled, first_runs, vocabulary_size
from trainer.tokenizers.cached import student_tokenizer
from trainer.tokenizers.check import check_behaviour
from trainer.tokenizers.student_tokens import KeptTokens, save_student, share_special_tokens, tokenizer_of


def run_training(config: StudentConfig) -> Path:
    """Train a student from a cache, or continue, and return the folder of the finished student.

    What happens is shown on stderr, by the first of several processes.

    Raises:
        LogitcaskError: cache, student and configuration do not fit, or another run lies in the output folder.
    """
    arguments = training_arguments(config)
    check_config_keys(config.student.config or {})
    first = arguments.process_index == 0
    with open_reporter(arguments.process_index, arguments.world_size) if first else Reporter() as reporter:
        return _run(config, arguments, reporter)


def _run(config: StudentConfig, arguments: TrainingArguments, reporter: Reporter) -> Path:
    reporter.stage("checking the student file and its caches", None)
    output = Path(str(arguments.output_dir))
    teachers = open_teachers(config)
    teacher = teachers[0]
    for cached in teachers:
        require_outside(output, cached.encoding.path.parent.parent, "training.output_dir")
    check_sources(config, teachers)
    if config.loss.kd_weight > 0:
        require_consistent(teachers)
    union = open_union(config.vocabulary, teachers, config.loss)
    vocabulary = student_vocabulary(union, teacher.encoding)
    record = run_record(config, teachers, step_sequences(arguments), union)
    check_run(output, record)
    if is_finished(output):
        return output / FINAL
    reporter.stage("making the student", None)
    set_seed(arguments.seed)
    student = build_student(config.student, teacher.encoding, vocabulary)
    source = config.student.pretrained or "student.config"
    check_student(student, source, "Start from other weights")
    own = config.student
    if own.pretrained is not None:
        expected = student_tokenizer(config.vocabulary, teacher.encoding)
        check_behaviour(own.pretrained, expected, teacher.encoding, own.revision, own.trust_remote_code)
    tokenizer = tokenizer_of(own, config.vocabulary, teacher.encoding)
    share_special_tokens(student, tokenizer, keep_own=config.student.pretrained is not None)
    if arguments.dataloader_num_workers and not isinstance(teacher.path, Path):
        torch.multiprocessing.set_start_method("forkserver", force=True)  # a bucket's client does not survive a fork
    width = vocabulary_size(student)
    measures_on_the_way = arguments.do_eval or arguments.eval_on_start
    objective, ids = objective_of(config, teachers), student_ids(union, teacher.encoding)
    with first_runs(student, source):
        model = distilled(student, config.loss, *teachers, objective=objective, to=ids)
    with storage_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    trainer = DistillationTrainer(
        model=model,
        args=arguments,
        train_dataset=training_sequences(config, teachers, width, union),
        eval_dataset=evaluated_sequences(teacher, "held_out", width, union) if measures_on_the_way else None,
        data_collator=partial(pack, row_tokens=config.packing.row_tokens) if config.packing else collate,
        processing_class=tokenizer,
        callbacks=[RunFile(output, record), MetricsFile(output), KeptTokens(student)],
        window_shards=config.window_shards,
    )
    with first_runs(student, source):
        trainer.check_rows(teacher.encoding.manifest.objective, packed=config.packing is not None)
        if config.packing:
            trainer.check_packing(config.packing.row_tokens)
    trainer.remove_callback(transformers.ProgressCallback)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(StepProgress(reporter))
    reporter.stage("checking that the teacher reaches the student", None)
    with first_runs(student, source):
        trainer.check_signal()
    reporter.stage("loading the first batches", None)
    trainer.continue_training()
    with saving(output / FINAL):
        _save_final(trainer, config, teacher.encoding, vocabulary, output)
    return output / FINAL


def _save_final(
    trainer: DistillationTrainer, config: StudentConfig, encoding: Encoding, vocabulary: Vocabulary, output: Path
) -> None:
    """Write the finished student under a temporary name and rename it; every rank calls this."""
    partial = output / f"{FINAL}.partial"
    if trainer.is_world_process_zero():
        remove(partial)  # of a process that was killed here
    trainer.save_model(str(partial / ADAPTER if config.student.lora else partial))
    if trainer.is_world_process_zero():
        if config.student.lora:
            tokenizer = trainer.processing_class
            assert isinstance(tokenizer, transformers.PreTrainedTokenizerBase)
            _save_merged(config.student, encoding, vocabulary, tokenizer, partial)
        if config.vocabulary is not None:
            save_token_map(config.vocabulary, partial)
        shutil.copy(output / "run.json", partial / "logitcask.json")
        os.replace(partial, output / FINAL)
        if can_plot():
            draw_curves(output)
    trainer.accelerator.wait_for_everyone()


def _save_merged(
    config: StudentModelConfig,
    encoding: Encoding,
    vocabulary: Vocabulary,
    tokenizer: transformers.PreTrainedTokenizerBase,
    folder: Path,
) -> None:
    """Write the student that a pretrained one becomes with the adapter in ``folder / ADAPTER``."""
    pretrained = build_student(config.model_copy(update={"lora": None}), encoding, vocabulary)
    share_special_tokens(pretrained, tokenizer, keep_own=True)
    merge_adapter(pretrained, folder / ADAPTER)
    save_student(pretrained, folder)
    tokenizer.save_pretrained(folder)
