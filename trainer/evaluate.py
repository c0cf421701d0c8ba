"""How good is a student, measured from the cache alone: no teacher is loaded.

- cross-entropy: mean of -log q(gold),
- KL to the teacher: over the kept tokens and the rest as one outcome, which is a lower
  bound of the full divergence and exact for k = vocabulary,
- top-1 agreement: how often student and teacher have the same most likely token.

The teacher's own cross-entropy on the same positions comes from the stored gold
log-probabilities, for comparison.
"""

from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from cache_tools.cached_teacher import CachedTeacher
from cache_tools.errors import IncompleteError, ModelError
from cache_tools.manifest import Split
from trainer.config import LossConfig
from trainer.data import IGNORED, CachedSequences, collate
from trainer.losses import divergence
from trainer.student import LOADING_ERRORS, check_tokenizer, check_vocabulary_size, vocabulary_size
from trainer.tails import SparseTargets


def evaluate_folder(
    folder: Path,
    teacher: CachedTeacher,
    split: Split,
    batch_size: int = 8,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Evaluate the student in a model folder on a split of a cache.

    Args:
        folder: An ordinary transformers model folder with its tokenizer.
        teacher: The cached teacher to compare with.
        split: ``held_out`` or ``train``.
        batch_size: Sequences per forward pass.
        device: Where to run.
        progress: Told how many tokens were read.

    Returns:
        ``positions``, ``cross_entropy_nats``, ``kl_to_teacher_nats``, ``top1_agreement``,
        ``teacher_cross_entropy_nats``.

    Raises:
        ModelError: the folder holds no model that can be loaded.
        IdentityError: its tokenizer is not the cache's.
    """
    objective = teacher.encoding.manifest.objective
    auto = AutoModelForCausalLM if objective == "causal" else AutoModelForMaskedLM
    try:
        if not folder.is_dir():  # transformers would take it for a model on the hub
            raise NotADirectoryError("no such folder")
        check_tokenizer(str(folder), teacher.encoding)
        model = auto.from_pretrained(str(folder), dtype=torch.float32, use_safetensors=True)
    except LOADING_ERRORS as error:
        raise ModelError(
            "no student can be loaded from here",
            where=folder,
            found=shorten(str(error), 300),
            fix="Give the folder of a finished student, such as <output_dir>/final",
        ) from error
    check_vocabulary_size(model, teacher.encoding)
    torch.nn.Module.to(model, device)
    return evaluate(model, teacher, split, batch_size, progress)


@torch.inference_mode()
def evaluate(
    model: PreTrainedModel,
    teacher: CachedTeacher,
    split: Split,
    batch_size: int = 8,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Evaluate a loaded student; arguments and result as for :func:`evaluate_folder`."""
    model.eval()
    dataset = CachedSequences(teacher, split, vocabulary_size(model))
    if not len(dataset):
        raise IncompleteError(
            f"the {split} split is empty",
            where=teacher.encoding.path,
            fix="Capture with a larger corpus.held_out_fraction, or evaluate another --split",
        )
    sums = torch.zeros(3, dtype=torch.float64)
    positions = 0
    for batch in DataLoader(dataset, batch_size=batch_size, collate_fn=collate):
        on_device = {name: tensor.to(model.device) for name, tensor in batch.items()}
        sums += _batch_sums(model, on_device).cpu()
        positions += len(batch["target_ids"])
        progress(int(batch["attention_mask"].sum()))
    cross_entropy, kl, agreement = (sums / positions).tolist()
    return {
        "split": split,
        "positions": positions,
        "cross_entropy_nats": cross_entropy,
        "kl_to_teacher_nats": kl,
        "top1_agreement": agreement,
        "teacher_cross_entropy_nats": _teacher_cross_entropy(teacher, split),
    }


def _batch_sums(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Return the sums over a batch's positions of (cross-entropy, KL, agreement): (3,) float64."""
    logits_BLV = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    kept = batch["labels"] != IGNORED
    logits_PV = logits_BLV[kept].float()
    cross_entropy = F.cross_entropy(logits_PV, batch["labels"][kept], reduction="none")
    targets = SparseTargets(batch["target_ids"], batch["target_log_probs"], batch["target_log_left_out"])
    kl = divergence(logits_PV, targets, batch["labels"][kept], LossConfig())
    best = batch["target_log_probs"].argmax(dim=1, keepdim=True)
    agreement = logits_PV.argmax(dim=1) == batch["target_ids"].gather(1, best)[:, 0]
    return torch.stack([part.double().sum() for part in (cross_entropy, kl, agreement)])


def _teacher_cross_entropy(teacher: CachedTeacher, split: Split) -> float:
    total, positions = 0.0, 0
    for shard in teacher.encoding.split_shards(split):
        values = teacher.scalar("gold_logprob", *teacher.shard_rows(shard))
        total, positions = total - float(values.sum(dtype="float64")), positions + len(values)
    return total / positions
