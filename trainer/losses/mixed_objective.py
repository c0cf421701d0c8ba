"""What a student minimises with several teachers: the objective of one, on a mixture.

The rows of a batch hold all teachers side by side (``data/several_teachers.py``). Here they are told apart, tempered
each by its own stored normalisers, weighted (``mixture_weights.py``) and mixed (``mixture.py``). The mean weight of
each teacher is logged as ``weight_<name>``, each position as much as it counts. A mixture's KL is logged as it is
minimised: for ``of: losses`` the weighted sum of KLs, with draws too large by what they lack of their teacher's
entropy.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cache_tools.store.teacher import CachedTeacher
from trainer.config.mixture import SCALAR, MixtureConfig
from trainer.config.student_file import LossConfig
from trainer.losses.mixture import mixed_loss_terms, mixed_targets
from trainer.losses.mixture_weights import teacher_weights
from trainer.losses.objective import Objective, TeacherRows
from trainer.losses.sparse import loss_terms
from trainer.losses.tails import SparseTargets
from trainer.losses.tempering import at_temperature
from trainer.verdicts.compatibility import Source

# N: positions of a chunk, T: teachers, K: slots of all teachers together


class MixedObjective(Objective):
    """The objective of several teachers; see ``mixture.py``.

    Args:
        loss: Of a combination that ``mixture_verdict.check_mixture`` accepts.
        mixture: Weights, and what is mixed.
        teachers: Name and slots of each, in the order of ``MixedSequences``.
        tempering: Scalars that each is tempered with, None for those that need none.
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
    def of(cls, loss: LossConfig, mixture: MixtureConfig, teachers: Sequence[CachedTeacher]) -> "MixedObjective":
        """Return the objective for some cached teachers."""
        tempering = [Source.of(teacher.manifest, loss).scalars_for(loss) for teacher in teachers]
        return cls(loss, mixture, [(teacher.name, teacher.codec.k) for teacher in teachers], tempering)

    def forward(self, logits_NV: Tensor, gold_N: Tensor, said: TeacherRows) -> dict[str, Tensor]:
        """Return what ``Objective`` does, and the sum of each teacher's weights as ``weight_<name>``."""
        sums = super().forward(logits_NV, gold_N, said)
        if self.loss.kd_weight == 0:
            return sums
        totals = [said.weighted(weight_N).sum() for weight_N in self.weights(said).unbind(dim=1)]
        return sums | {f"weight_{name}": total for (name, _), total in zip(self.teachers, totals, strict=True)}

    def terms(self, logits_NV: Tensor, gold_N: Tensor, said: TeacherRows) -> tuple[Tensor, Tensor]:
        """Return divergence and cross-entropy per row, as ``Objective.terms``."""
        tokens = logits_NV.shape[1]
        targets = [
            at_temperature(each, tokens, self.loss, None if names is None else self._scalars(said, t, names))
            for t, (each, names) in enumerate(zip(self.targets(said), self.tempering, strict=True))
        ]
        weights_NT = self.weights(said)
        if self.mixture.of == "losses":
            return mixed_loss_terms(logits_NV, targets, weights_NT, gold_N, self.loss)
        return loss_terms(logits_NV, mixed_targets(targets, weights_NT), gold_N, self.loss)

    def targets(self, said: TeacherRows) -> list[SparseTargets]:
        """Return each teacher's targets, at temperature 1."""
        sizes, targets = [slots for _, slots in self.teachers], said.targets
        parts = zip(torch.split(targets.ids, sizes, dim=1), torch.split(targets.log_probs, sizes, dim=1), strict=True)
        return [SparseTargets(ids, x, targets.log_left_out[:, t]) for t, (ids, x) in enumerate(parts)]

    def weights(self, said: TeacherRows) -> Tensor:
        """Return the weight of each teacher at each row: (N, T) float32."""
        spoke_NT = torch.stack([each.used.any(dim=1) for each in self.targets(said)], dim=1)
        given_NT, name, scalar_NT = said.scalars["weights"], SCALAR[self.mixture.weights], None
        if name is not None:
            scalar_NT = torch.stack([said.scalars[f"{t}/{name}"] for t in range(len(self.teachers))], dim=1)
        return teacher_weights(self.mixture.weights, given_NT, spoke_NT, scalar_NT)

    @staticmethod
    def _scalars(said: TeacherRows, teacher: int, names: tuple[str, ...]) -> dict[str, Tensor]:
        return {name: said.scalars[f"{teacher}/{name}"] for name in names}
