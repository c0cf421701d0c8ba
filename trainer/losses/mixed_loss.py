"""What a student minimises with several teachers: the loss of one teacher, on a mixture.

The rows of a batch hold all teachers side by side (``data/several_teachers.py``). Here they are separated, tempered
each by its own stored normalisers, weighted (``mixture_weights.py``) and mixed (``mixture.py``). The mean weight of
each teacher is logged as ``weight_<name>``, with the weights of positions. A mixture's KL is logged as it is
minimised: for ``of: losses`` the weighted sum of KLs, which draws make too large by the difference between their
teacher's entropy and their own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cache_tools.store.teacher import CachedTeacher
from trainer.config.mixture import MixtureConfig
from trainer.config.student_file import LossConfig
from trainer.losses.distillation_loss import DistillationLoss, TeacherRows
from trainer.losses.mixture import mixed_loss_terms, mixed_targets
from trainer.losses.mixture_weights import teacher_weights
from trainer.losses.sparse import loss_terms
from trainer.losses.tails import SparseTargets
from trainer.losses.tempering import at_temperature
from trainer.verdicts.compatibility import TargetSummary

# N: positions of a chunk, T: teachers, K: slots of all teachers together


class MixedDistillationLoss(DistillationLoss):
    """The loss on several teachers; see ``mixture.py``.

    Args:
        loss: The loss block; a combination that ``verdicts.mixture.check_mixture`` accepts.
        mixture: The rule of the weights, and whether losses or distributions are mixed.
        teachers: Name and number of slots of each teacher, in the order of ``MixedSequences``.
        tempering: For each teacher the scalars that its targets are tempered with; None if it needs none.
    """

    def __init__(
        self,
        loss: LossConfig,
        mixture: MixtureConfig,
        teachers: Sequence[tuple[str, int]],
        tempering: Sequence[tuple[str, ...] | None],
    ) -> None:
        super().__init__(loss)
        self.mixture, self.teachers, self.tempering = mixture, tuple(teachers), tuple(tempering)

    @classmethod
    def of(cls, loss: LossConfig, mixture: MixtureConfig, teachers: Sequence[CachedTeacher]) -> "MixedDistillationLoss":
        """Return the loss on some cached teachers."""
        tempering = [TargetSummary.of(teacher.manifest, loss).scalars_for(loss) for teacher in teachers]
        return cls(loss, mixture, [(teacher.name, teacher.codec.k) for teacher in teachers], tempering)

    def forward(self, logits_NV: Tensor, gold_N: Tensor, teacher_rows: TeacherRows) -> dict[str, Tensor]:
        """Return what ``DistillationLoss`` does, and the sum of each teacher's weights as ``weight_<name>``."""
        sums = super().forward(logits_NV, gold_N, teacher_rows)
        if self.loss.kd_weight == 0:
            return sums
        totals = [teacher_rows.weighted(weight_N).sum() for weight_N in self.weights(teacher_rows).unbind(dim=1)]
        return sums | {f"weight_{name}": total for (name, _), total in zip(self.teachers, totals, strict=True)}

    def terms(self, logits_NV: Tensor, gold_N: Tensor, teacher_rows: TeacherRows) -> tuple[Tensor, Tensor]:
        """Return divergence and cross-entropy per row, as ``DistillationLoss.terms``."""
        tokens = logits_NV.shape[1]
        targets = [
            at_temperature(sparse, tokens, self.loss, None if names is None else self._scalars(teacher_rows, t, names))
            for t, (sparse, names) in enumerate(zip(self.targets(teacher_rows), self.tempering, strict=True))
        ]
        weights_NT = self.weights(teacher_rows)
        if self.mixture.of == "losses":
            return mixed_loss_terms(logits_NV, targets, weights_NT, gold_N, self.loss)
        return loss_terms(logits_NV, mixed_targets(targets, weights_NT), gold_N, self.loss)

    def targets(self, teacher_rows: TeacherRows) -> list[SparseTargets]:
        """Return each teacher's targets, at temperature 1."""
        sizes, targets = [slots for _, slots in self.teachers], teacher_rows.targets
        parts = zip(torch.split(targets.ids, sizes, dim=1), torch.split(targets.log_probs, sizes, dim=1), strict=True)
        return [SparseTargets(ids, x, targets.log_left_out[:, t]) for t, (ids, x) in enumerate(parts)]

    def weights(self, teacher_rows: TeacherRows) -> Tensor:
        """Return the weight of each teacher at each row: (N, T) float32."""
        has_targets_NT = torch.stack([sparse.used.any(dim=1) for sparse in self.targets(teacher_rows)], dim=1)
        given_NT, name, scalar_NT = teacher_rows.scalars["weights"], self.mixture.column, None
        if name is not None:
            scalar_NT = torch.stack([teacher_rows.scalars[f"{t}/{name}"] for t in range(len(self.teachers))], dim=1)
        return teacher_weights(
            self.mixture.weights, given_NT, has_targets_NT, scalar_NT, temperature=self.mixture.temperature
        )

    @staticmethod
    def _scalars(teacher_rows: TeacherRows, teacher: int, names: tuple[str, ...]) -> dict[str, Tensor]:
        return {name: teacher_rows.scalars[f"{teacher}/{name}"] for name in names}
