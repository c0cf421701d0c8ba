"""What is measured of a student at the kept positions, and how exact each number is.

====================== ==================================================================================
``cross_entropy_nats`` mean of -log q(gold)
``kl_to_teacher_nats`` mean of KL(teacher || student)
``accuracy``           how often the student's most likely token is the gold one
``top1_agreement``     how often both have the same most likely token; of drawn targets, the one drawn most
``calibration_error``  expected calibration error (Guo et al., arXiv 1706.04599): positions are put into
                       BINS bins of equal width by the student's highest probability; in each, how often that
                       token is the gold one is compared with the mean of those probabilities; the mean of the
                       absolute differences, weighted by positions
``acceptance``         sum of min(p, q), the share of the student's tokens that speculative decoding with
                       this teacher accepts (arXiv 2211.17192); 1 - total variation
====================== ==================================================================================

Over several caches the sums are added, so each position counts once, whichever cache it is of.

``kl_to_teacher_is`` and ``acceptance_is`` say how exact the two are. From the last hidden state, or from targets that
leave no mass out, both are exact. From the likeliest tokens, all others are compared as one outcome: KL is a lower
bound, acceptance an upper bound. From draws the KL is unbiased (cross-entropy against the draws less the stored
entropy), and acceptance is left out: it is not linear in the target, so its mean over draws would be too low. From
draws of a teacher that keeps no entropy, the entropy of the draws themselves takes its place; it is lower on average,
so the KL is an upper bound.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.format import layout
from cache_tools.format.layout import ENTROPY
from cache_tools.format.manifest import TeacherManifest
from cache_tools.store.teacher import CachedTeacher
from trainer.config.student_file import LossConfig
from trainer.data.cached_sequences import Reading
from trainer.evaluation.results import MeanMeasures, ReliabilityBin
from trainer.losses.distillation_loss import DistillationLoss, TeacherRows, own_entropy
from trainer.losses.full import TeacherHead, full_divergence, whole_kl
from trainer.losses.sparse import cross_entropy
from trainer.verdicts.compatibility import TargetSummary, explain

BINS = 15
"""Number of bins of the calibration error, as in its paper."""

UNBIASED, UPPER_BOUND = "unbiased", "upper bound"
"""How exact the KL from draws is: with the teacher's entropy, and without."""

MIXED = "mixed"
"""How exact the KL over several caches is if they differ in more than that some are exact; acceptance is left out."""

Sums = dict[str, Tensor]
"""Sums over positions, by name."""

# N: rows of a chunk, V: vocabulary


def measured_kl(manifest: TeacherManifest, translated: bool = False) -> LossConfig:
    """Return the divergence that is measured: forward KL, from hidden states where the cache keeps the last.

    Of a translated cache from the targets: the teacher's output matrix has its own ids.
    """
    return LossConfig(source="hidden" if "last" in manifest.hidden and not translated else "targets")


def measured_reading(manifest: TeacherManifest, translated: bool = False) -> Reading:
    """Return what the measures read of a cache besides its targets."""
    return Reading.of(manifest, measured_kl(manifest, translated))


@dataclass
class Measures:
    """Sums over the positions seen so far.

    Attributes:
        kl: Forward KL to the teacher.
        variation: Total variation from it.
        is_kl: How exact the KL is: ``exact``, ``lower bound``, ``unbiased``, ``upper bound`` or ``mixed``.
        totals: float64, on the CPU.
        kl_values: The KL of each position in the order of reading, by chunk; None where only means are needed.
    """

    kl: DistillationLoss
    variation: DistillationLoss
    is_kl: str
    totals: Sums = field(default_factory=dict)
    kl_values: list[Tensor] | None = None

    @classmethod
    def of(
        cls,
        teacher: CachedTeacher,
        student_vocabulary_size: int,
        device: torch.device,
        translated: bool = False,
        per_position: bool = False,
    ) -> "Measures":
        """Begin to measure students against a cached teacher; ``per_position`` keeps the KL of each position."""
        loss, head = measured_kl(teacher.manifest, translated), None
        if loss.source == "hidden":
            head = torch.nn.Module.to(TeacherHead(teacher.file(layout.HEAD), student_vocabulary_size), device)
        variation = loss.model_copy(update={"divergence": "total_variation"})
        level: str = explain(TargetSummary.of(teacher.manifest, loss), loss).level
        if level == UNBIASED and ENTROPY not in teacher.manifest.scalars:
            level = UPPER_BOUND
        return cls(
            DistillationLoss(loss, head),
            DistillationLoss(variation, head),
            level,
            kl_values=[] if per_position else None,
        )

    def sums(self, logits_NV: Tensor, gold_N: Tensor, teacher_rows: TeacherRows) -> Sums:
        """Return the sums of some rows: scalars, and (BINS,) for what is counted by bin."""
        compared = self._compared(logits_NV, gold_N, teacher_rows)
        if self.kl_values is not None:
            self.kl_values.append(compared.kl_N.double().cpu())
        confidence_N, top1_N = logits_NV.softmax(dim=1).max(dim=1)
        bins_N = (confidence_N * BINS).long().clamp(0, BINS - 1)  # NaN, which the means show, has no bin
        binned = {
            "confidence": confidence_N,
            "correct": (top1_N == gold_N).float(),
            "counted": torch.ones_like(confidence_N),
        }
        return {
            "loss": compared.kl_N.sum(),  # the name that every chunked sum must have
            "cross_entropy": compared.cross_entropy_N.sum(),
            "variation": compared.variation_N.sum(),
            "agreement": (top1_N == compared.teacher_top1_N).sum(),
        } | {name: _by_bin(x, bins_N) for name, x in binned.items()}

    def add(self, sums: Sums) -> None:
        """Count the sums of a batch."""
        for name, value in sums.items():
            self.totals[name] = self.totals.get(name, 0) + value.double().cpu()

    def means(self) -> MeanMeasures:
        """Return the measures over all positions counted."""
        totals = self.totals
        positions = totals["counted"].sum()
        error = (totals["correct"] - totals["confidence"]).abs().sum() / positions
        has_acceptance = self.is_kl not in (UNBIASED, UPPER_BOUND, MIXED)
        acceptance_is = "upper bound" if self.is_kl == "lower bound" else self.is_kl
        return MeanMeasures(
            positions=int(positions),
            cross_entropy_nats=float(totals["cross_entropy"] / positions),
            kl_to_teacher_nats=float(totals["loss"] / positions),
            kl_to_teacher_is=self.is_kl,
            accuracy=float(totals["correct"].sum() / positions),
            top1_agreement=float(totals["agreement"] / positions),
            calibration_error=float(error),
            acceptance=float(1 - totals["variation"] / positions) if has_acceptance else None,
            acceptance_is=acceptance_is if has_acceptance else None,
        )

    def reliability(self) -> tuple[ReliabilityBin, ...]:
        """Return the bins from which the calibration error is computed, those with positions."""
        counted, confidence, correct = (self.totals[name].tolist() for name in ("counted", "confidence", "correct"))
        return tuple(
            ReliabilityBin(confidence=probability / count, accuracy=right / count, positions=int(count))
            for count, probability, right in zip(counted, confidence, correct, strict=True)
            if count
        )

    def values(self) -> NDArray[np.float64]:
        """Return the KL of each position in the order of reading: (P,) float64, nats."""
        assert self.kl_values is not None
        kl_P: NDArray[np.float64] = torch.cat(self.kl_values).numpy()
        return kl_P

    def _compared(self, logits_NV: Tensor, gold_N: Tensor, teacher_rows: TeacherRows) -> "_Compared":
        if self.kl.head is not None:
            teacher_logits_NU = self.kl.head(teacher_rows.hidden["last"])
            return _Compared(
                whole_kl(logits_NV, teacher_logits_NU),
                cross_entropy(logits_NV, gold_N),
                full_divergence(logits_NV, teacher_logits_NU, self.variation.loss),
                teacher_logits_NU.argmax(dim=1),
            )
        kl_N, cross_entropy_N = self.kl.terms(logits_NV, gold_N, teacher_rows)
        if self.is_kl == UNBIASED:
            kl_N = kl_N + own_entropy(teacher_rows.targets) - teacher_rows.scalars[ENTROPY]
        variation_N, _ = self.variation.terms(logits_NV, gold_N, teacher_rows)
        best_N1 = teacher_rows.targets.log_probs.argmax(dim=1, keepdim=True)
        return _Compared(kl_N, cross_entropy_N, variation_N, teacher_rows.targets.ids.gather(1, best_N1)[:, 0])


def pooled(parts: Iterable[Measures]) -> Measures:
    """Return the measures over the positions of all parts together; at least one part.

    Parts may be made while this iterates; only the first, with its teacher's head, is kept until the end.
    """
    others = iter(parts)
    first = next(others)
    total, levels = replace(first, totals=dict(first.totals), kl_values=None), {first.is_kl}
    for part in others:
        total.add(part.totals)
        levels.add(part.is_kl)
    inexact = levels - {"exact"}
    return replace(total, is_kl=MIXED if len(inexact) > 1 else "".join(inexact) or "exact")


@dataclass(frozen=True)
class _Compared:
    """Student and teacher at some positions.

    Attributes:
        kl_N: (N,) forward KL, nats.
        cross_entropy_N: (N,) -ln q(gold token) of the student.
        variation_N: (N,) total variation.
        teacher_top1_N: (N,) int64, the teacher's most likely token.
    """

    kl_N: Tensor
    cross_entropy_N: Tensor
    variation_N: Tensor
    teacher_top1_N: Tensor


def _by_bin(values_N: Tensor, bins_N: Tensor) -> Tensor:
    return torch.zeros(BINS, device=values_N.device).index_add_(0, bins_N, values_N)
