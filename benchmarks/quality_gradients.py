"""How far the gradient of each arm of ``benchmarks.quality`` points away from the live teacher's; nothing is trained.

At the same student and on the same batch, angle and ratio of norms show how an arm's step differs from the live
teacher's (the check of arXiv 2503.16870, table 3). The angle of an unbiased arm comes from its draws: on
more positions it falls, as one over their square root. That of a biased arm stays. So each angle is taken
twice, of single batches and of all of them together.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, set_seed

from benchmarks.quality_arms import LIVE, Arm, Scale, half, run_folder, student_config
from benchmarks.quality_runs import LiveStudent, load_live
from cache_tools.storage import write_object
from cache_tools.store.reader import Cache, Encoding
from trainer.data.cached_sequences import CachedSequences, Reading, collate
from trainer.student.cached_loss import vocabulary_size
from trainer.student.student import build_student, distilled

BATCHES = 16

# G: parameters of the student


def compare(scale: Scale, work: Path, arms: Sequence[Arm]) -> dict[str, dict[str, Any]]:
    """Return angles and ratios by arm at the first weights and half-way, computed now if they are not there already.

    Needs the checkpoint of the live teacher's first seed.

    Returns:
        By arm, ``initial`` and ``half_trained``, each as of :func:`differences`.
    """
    path = work / "results" / "gradients.json"
    if not path.exists():
        encoding, teacher = Cache(work / "cache").encoding(), load_live(scale)
        set_seed(0)
        initial = build_student(student_config(LIVE, 0, scale, work).student, encoding)
        checkpoint = run_folder(LIVE, 0, work) / f"checkpoint-{half(scale)}"
        students = {"initial": initial, "half_trained": AutoModelForCausalLM.from_pretrained(str(checkpoint))}
        compared: dict[str, dict[str, Any]] = {arm.name: {} for arm in arms}
        for state, student in students.items():
            live = batch_gradients(LIVE, student, encoding, teacher, scale)
            for arm in arms:
                estimated = live if arm is LIVE else batch_gradients(arm, student, encoding, teacher, scale)
                compared[arm.name][state] = differences(estimated, live)
        write_object(path, json.dumps(compared).encode())
    result: dict[str, dict[str, Any]] = json.loads(path.read_text())
    return result


def batch_gradients(
    arm: Arm, student: PreTrainedModel, encoding: Encoding, teacher: PreTrainedModel, scale: Scale
) -> list[Tensor]:
    """Return the gradient (G,) float64 of an arm's loss on each of BATCHES batches, the same for every arm."""
    cached = encoding.teacher(arm.cached)
    module = LiveStudent(student, teacher) if arm.live else distilled(student, arm.loss, cached)
    reading = Reading.of(cached.manifest, arm.loss)
    dataset = CachedSequences(cached, "train", vocabulary_size(student), len(encoding.shards), reading)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    batches = order[: BATCHES * scale.batch_sequences].split(scale.batch_sequences)  # type: ignore[no-untyped-call]
    return [gradient(module, collate([dataset[int(index)] for index in batch])) for batch in batches]


def gradient(module: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Return the gradient of a module's loss in all that it trains: (G,) float64."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.cat([g.flatten().double() for g in torch.autograd.grad(module(**batch)["loss"], trained)])


def differences(estimated: list[Tensor], live: list[Tensor]) -> dict[str, float]:
    """Compare gradients (G,) with those of the live teacher, batch by batch.

    Returns:
        ``angle_degrees`` and ``norm_ratio``, means over the batches, and ``angle_of_all_degrees`` between the sums.
    """
    pairs = list(zip(estimated, live, strict=True))
    angles = [angle_degrees(a, b) for a, b in pairs]
    return {
        "angle_degrees": sum(angles) / len(angles),
        "norm_ratio": sum(float(a.norm() / b.norm()) for a, b in pairs) / len(pairs),
        "angle_of_all_degrees": angle_degrees(torch.stack(estimated).sum(0), torch.stack(live).sum(0)),
    }


def angle_degrees(a: Tensor, b: Tensor) -> float:
    """Return the angle between two vectors; by their chord, since a cosine cannot tell small angles from 0."""
    chord = float((a / a.norm() - b / b.norm()).norm())
    return math.degrees(2 * math.asin(min(1.0, chord / 2)))
