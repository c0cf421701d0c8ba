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
from transformers import set_seed

from cache_tools.reader import Encoding
from cache_tools.storage import remove_tree
from cache_tools.vocabulary import Vocabulary
from cache_tools.vocabulary_folder import save_token_map
from trainer.checkpoints import saving
from trainer.config import StudentConfig, StudentModelConfig
from trainer.config_keys import check_config_keys
from trainer.data import collate
from trainer.distillation_trainer import DistillationTrainer, step_sequences
from trainer.evaluate import evaluated_sequences
from trainer.finite import check_student
from trainer.lora import ADAPTER, merge_adapter
from trainer.packing import pack
from trainer.plots import can_plot, draw_curves
from trainer.progress import StepProgress
from trainer.run_folder import FINAL, MetricsFile, is_finished, record_run
from trainer.sources import objective_of, training_sequences
from trainer.student import build_student, distilled, student_tokenizer, vocabulary_size
from trainer.teachers import check_sources, open_teachers
from trainer.training_arguments import training_arguments
from trainer.translation import open_union, student_ids, student_vocabulary


def run_training(config: StudentConfig) -> Path:
    """Train a student from a cache, or continue, and return the folder of the finished student.

    Raises:
        LogitcaskError: cache, student and configuration do not fit, or another run lies in the output folder.
    """
    arguments = training_arguments(config)
    check_config_keys(config.student.config or {})
    output = Path(str(arguments.output_dir))
    teachers = open_teachers(config)
    teacher = teachers[0]
    check_sources(config, teachers)
    union = open_union(config.vocabulary, teachers, config.loss)
    vocabulary = student_vocabulary(union, teacher.encoding)
    record_run(output, config, teachers, step_sequences(arguments), union)
    if is_finished(output):
        return output / FINAL
    set_seed(arguments.seed)
    student = build_student(config.student, teacher.encoding, vocabulary)
    check_student(student, config.student.pretrained or "student.config", "Start from other weights")
    tokenizer = student_tokenizer(config.vocabulary, teacher.encoding)
    _share_special_tokens(student, tokenizer)
    if arguments.dataloader_num_workers and not isinstance(teacher.path, Path):
        torch.multiprocessing.set_start_method("forkserver", force=True)  # a bucket's client does not survive a fork
    width = vocabulary_size(student)
    measures_on_the_way = arguments.do_eval or arguments.eval_on_start
    trainer = DistillationTrainer(
        model=distilled(
            student,
            config.loss,
            *teachers,
            objective=objective_of(config, teachers),
            to=student_ids(union, teacher.encoding),
        ),
        args=arguments,
        train_dataset=training_sequences(config, teachers, width, union),
        eval_dataset=evaluated_sequences(teacher, "held_out", width, union) if measures_on_the_way else None,
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
    trainer.continue_training()
    with saving(output / FINAL):
        _save_final(trainer, config, teacher.encoding, vocabulary, output)
    return output / FINAL


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


def _save_final(
    trainer: DistillationTrainer, config: StudentConfig, encoding: Encoding, vocabulary: Vocabulary, output: Path
) -> None:
    """Write the finished student under a temporary name and rename it; every rank calls this."""
    partial = output / f"{FINAL}.partial"
    if trainer.is_world_process_zero():
        remove_tree(partial)  # of a process that was killed here
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
    _share_special_tokens(pretrained, tokenizer)
    merge_adapter(pretrained, folder / ADAPTER)
    pretrained.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
