"""One run of ``benchmarks.quality``: train a student of one arm and seed, and measure it on held-out text.

Cached arms are trained by ``trainer.run.train.run_training`` from a student file, as ``logitcask train``
does. The arm with the live teacher differs in its loss alone: the same Trainer, sampler, seed and
schedule, and a student whose forward also runs the teacher. Stage two itself can never load one.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel, set_seed

from benchmarks.quality_arms import MEASURED, Arm, Scale, student_config
from cache_tools.json_output import json_object
from cache_tools.storage import write_object
from trainer.config.student_file import LossConfig, StudentConfig
from trainer.config.training_arguments import training_arguments
from trainer.data.binding import IGNORED
from trainer.data.cached_sequences import CachedSequences, collate
from trainer.data.opening import open_teachers
from trainer.evaluation.evaluate import evaluate_folder
from trainer.losses.distillation_loss import DistillationLoss
from trainer.run.distillation_trainer import DistillationTrainer
from trainer.run.train import run_training
from trainer.student import fused_loss
from trainer.student.cached_loss import CachedLoss, vocabulary_size
from trainer.student.checkpoint import FINAL
from trainer.student.student import DistilledStudent, build_student

# P: kept positions of a batch, N: positions of a chunk, V: vocabulary


class LiveStudent(DistilledStudent):
    """A student whose loss is KL(teacher || student) over all logits of a teacher that runs beside it.

    Args:
        student: Trained.
        teacher: Frozen; of the same vocabulary.
    """

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        super().__init__(student, CachedLoss(DistillationLoss(LossConfig())))
        self.teacher = teacher.requires_grad_(False)

    def forward(self, num_items_in_batch: Tensor | int | None = None, **batch: Any) -> dict[str, Tensor]:
        """Return the loss; arguments and result as of ``DistilledStudent``, whose cached predictions are not read."""
        kept = batch["gold_ids"] != IGNORED
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            log_p_PV = self.teacher.eval()(**inputs).logits[kept].float().log_softmax(dim=1)

        def loss_of(logits_NV: Tensor, rows: slice) -> dict[str, Tensor]:
            log_q_NV = logits_NV.log_softmax(dim=1)
            kl = functional.kl_div(log_q_NV, log_p_PV[rows], reduction="sum", log_target=True)
            return {"loss": kl, "kl_nats": kl.detach()}

        sums = fused_loss.over_positions(self.student, self.head, inputs, kept, loss_of)
        positions = len(log_p_PV) if num_items_in_batch is None else num_items_in_batch
        return sums | {"loss": sums["loss"] / positions}


def run(arm: Arm, seed: int, scale: Scale, work: Path) -> dict[str, Any]:
    """Return the measures of one student, made now if they are not there already.

    Returns:
        The fields of ``trainer.evaluation.results.EvaluateResult``, and ``train_seconds``.
    """
    path = work / "results" / f"{arm.name.replace(' ', '-')}-{seed}.json"
    if not path.exists():
        config, started = student_config(arm, seed, scale, work), time.monotonic()
        final = train_live(config, scale) if arm.live else run_training(config).student
        seconds = round(time.monotonic() - started, 1)
        measured = evaluate_folder(final, open_teachers(config)[0].encoding.teacher(MEASURED), "held_out", 32)
        write_object(path, json.dumps(json_object(measured) | {"train_seconds": seconds}).encode())
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def train_live(config: StudentConfig, scale: Scale) -> Path:
    """Train beside a live teacher, or continue, with the batches and first weights of ``run_training``.

    Returns:
        The folder of the finished student.
    """
    arguments = training_arguments(config)
    encoding = open_teachers(config)[0].encoding
    set_seed(arguments.seed)
    student = build_student(config.student, encoding)
    trainer = DistillationTrainer(
        model=LiveStudent(student, load_live(scale)),
        args=arguments,
        train_dataset=CachedSequences(
            encoding.teacher(config.teacher), "train", vocabulary_size(student), config.window_shards
        ),
        data_collator=collate,
        window_shards=config.window_shards,
    )
    trainer.remove_callback(transformers.ProgressCallback)
    trainer.remove_callback(transformers.PrinterCallback)
    output = Path(str(arguments.output_dir))
    trainer.continue_training()
    trainer.save_model(str(output / FINAL))
    encoding.save_tokenizer(output / FINAL)
    return output / FINAL


def load_live(scale: Scale) -> PreTrainedModel:
    """Load the teacher in the precision of the capture."""
    dtype = torch.bfloat16 if scale.is_bfloat16 else torch.float32
    teacher: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        str(scale.teacher), dtype=dtype, use_safetensors=True
    )
    return teacher
