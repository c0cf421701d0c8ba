"""The loss of a student with its own tokenizer: that of one teacher, with the share of positions that have a target.

A position without a row of the teacher has all its mass left out and no divergence, so the mean divergence in the log
is over more positions than have one. ``aligned_share`` says how many have: the mean divergence there is the logged one
divided by it.
"""

from torch import Tensor

from trainer.losses.distillation_loss import DistillationLoss, TeacherRows


class AlignedDistillationLoss(DistillationLoss):
    """``DistillationLoss`` that also counts the positions with a target."""

    def forward(self, logits_NV: Tensor, gold_N: Tensor, teacher_rows: TeacherRows) -> dict[str, Tensor]:
        """Return what ``DistillationLoss`` does, and ``aligned_share``, the number of rows that hold a token."""
        has_target_N = teacher_rows.targets.used.any(dim=1).float()
        return super().forward(logits_NV, gold_N, teacher_rows) | {"aligned_share": has_target_N.sum()}
