"""What a student minimises on some rows of a batch, for every kind of cached prediction.

Each position gives a divergence and a cross-entropy. The divergence comes from one of three kinds of predictions:

- sparse targets, tempered first if the loss has a temperature,
- sparse targets that were drawn: the gradient of their forward KL is unbiased, but its value is too large by the
  difference between the teacher's entropy and that of the draws. The log gets the value corrected with the stored
  entropy, which is unbiased; other divergences from draws are logged as they are,
- the last hidden state, from which the whole distribution is rebuilt for the rows at hand.

The scale that keeps gradients alike at every temperature is a part of the loss and not of the log.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cache_tools.format.layout import ENTROPY
from trainer.config.student_file import Divergence, LossConfig
from trainer.losses.divergences import gradient_scale
from trainer.losses.full import TeacherHead, full_divergence
from trainer.losses.ranks import rank_distance
from trainer.losses.sparse import cross_entropy, loss_terms
from trainer.losses.tails import SparseTargets
from trainer.losses.tempering import at_temperature

LOGGED: dict[Divergence, str] = {
    "forward_kl": "kl_nats",
    "reverse_kl": "reverse_kl_nats",
    "jensen_shannon": "jensen_shannon_nats",
    "total_variation": "total_variation",
}
"""The name under which a divergence is logged, between teacher and student at the temperature of the loss."""

# N: rows of a chunk, P: kept positions of a batch, V: vocabulary, k: slots of a row


@dataclass(frozen=True)
class TeacherRows:
    """The cached predictions of some kept positions, as tensors on the student's device.

    Attributes:
        targets: Sparse targets at temperature 1.
        scalars: (N,) float32 by name, nats; those that the loss uses.
        hidden: (N, width) float32 by layer; those that the loss uses.
        weights: (N,) float32, weight of each position in the loss; None where all are 1.
        unmapped: (N, k) float32, log-probabilities of the teacher's kept tokens that the student does not have, -inf in
            other slots; their mass is a part of the targets' left-out mass. None where the loss does not use them.
    """

    targets: SparseTargets
    scalars: Mapping[str, Tensor] = field(default_factory=dict)
    hidden: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None
    unmapped: Tensor | None = None

    @classmethod
    def of(cls, batch: Mapping[str, Any]) -> "TeacherRows":
        """Return all rows of a batch of ``data.collate``."""
        targets = SparseTargets(batch["target_ids"], batch["target_log_probs"], batch["target_log_left_out"])
        extras = batch.get("scalars") or {}, batch.get("hidden") or {}
        return cls(targets, *extras, batch.get("position_weights"), batch.get("unmapped_log_probs"))

    def __getitem__(self, rows: slice | Tensor) -> "TeacherRows":
        """Return some rows: a stretch, or those where a mask (N,) is true."""
        ids, log_probs, log_left_out = self.targets.ids, self.targets.log_probs, self.targets.log_left_out
        return TeacherRows(
            SparseTargets(ids[rows], log_probs[rows], log_left_out[rows]),
            {name: values[rows] for name, values in self.scalars.items()},
            {layer: states[rows] for layer, states in self.hidden.items()},
            None if self.weights is None else self.weights[rows],
            None if self.unmapped is None else self.unmapped[rows],
        )

    def weighted(self, values_N: Tensor) -> Tensor:
        """Return values times the weights of their positions: (N,)."""
        return values_N if self.weights is None else values_N * self.weights


def counted(kept_BL: Tensor, gold_P: Tensor, teacher_rows: TeacherRows) -> tuple[Tensor, Tensor, TeacherRows]:
    """Return kept positions, gold tokens and rows without the positions that weigh nothing: they need no logits."""
    if teacher_rows.weights is None:
        return kept_BL, gold_P, teacher_rows
    weighs_P = teacher_rows.weights > 0
    return kept_BL.masked_scatter(kept_BL, weighs_P), gold_P[weighs_P], teacher_rows[weighs_P]


class DistillationLoss(nn.Module):
    """``kd_weight * divergence + (1 - kd_weight) * cross-entropy``, summed over rows.

    Args:
        loss: The loss block; a combination that ``compatibility.check_loss`` accepts.
        head: The teacher's output matrix; needed for ``source: hidden``, unless ``kd_weight`` is 0.
    """

    def __init__(self, loss: LossConfig, head: TeacherHead | None = None) -> None:
        super().__init__()
        self.loss, self.head = loss, head

    def forward(self, logits_NV: Tensor, gold_N: Tensor, teacher_rows: TeacherRows) -> dict[str, Tensor]:
        """Return ``loss``, differentiable once in the logits, and its parts for the log.

        Args:
            logits_NV: (N, V) float32, the student's.
            gold_N: (N,) int64, the token that each position should predict.
            teacher_rows: The teacher's predictions there.

        Returns:
            Weighted sums over the rows: ``loss``, ``cross_entropy_nats`` and, unless ``kd_weight``
            is 0, the divergence by its name in LOGGED.
        """
        weight = self.loss.kd_weight
        if weight == 0:
            gold = teacher_rows.weighted(cross_entropy(logits_NV, gold_N)).sum()
            return {"loss": gold, "cross_entropy_nats": gold.detach()}
        value_N, gold_loss_N = self.terms(logits_NV, gold_N, teacher_rows)
        value, gold = teacher_rows.weighted(value_N).sum(), teacher_rows.weighted(gold_loss_N).sum()
        logged_N = value_N.detach() / gradient_scale(self.loss)
        if ENTROPY in teacher_rows.scalars:
            logged_N = logged_N + own_entropy(teacher_rows.targets) - teacher_rows.scalars[ENTROPY]
        return {
            "loss": weight * value + (1 - weight) * gold,
            LOGGED[self.loss.divergence]: teacher_rows.weighted(logged_N).sum(),
            "cross_entropy_nats": gold.detach(),
        }

    def terms(self, logits_NV: Tensor, gold_N: Tensor, teacher_rows: TeacherRows) -> tuple[Tensor, Tensor]:
        """Return divergence, scaled as by ``divergences.gradient_scale``, and cross-entropy per row: (N,) float32."""
        if self.loss.source == "hidden":
            assert self.head is not None
            divergence_N = full_divergence(logits_NV, self.head(teacher_rows.hidden["last"]), self.loss)
            return divergence_N, cross_entropy(logits_NV, gold_N)
        targets = at_temperature(teacher_rows.targets, logits_NV.shape[1], self.loss, teacher_rows.scalars or None)
        return loss_terms(logits_NV, targets, gold_N, self.loss)


def own_entropy(targets: SparseTargets) -> Tensor:
    """Return the entropy of each row's own weights, left-out mass as one more outcome: (N,) float32, nats."""
    log_p_Nk = torch.cat([targets.log_probs, targets.log_left_out[:, None]], dim=1)
    return -torch.where(log_p_Nk > -torch.inf, log_p_Nk.exp() * log_p_Nk, 0.0).sum(dim=1)


class AlignedDistillationLoss(DistillationLoss):
    """``DistillationLoss`` of a student with its own tokenizer, which also counts the positions with a target.

    A position without a row of the teacher has all its mass left out and no divergence, so the mean divergence in the
    log is over more positions than have one. ``aligned_share`` says how many have: the mean divergence there is the
    logged one divided by it.
    """

    def forward(self, logits_NV: Tensor, gold_N: Tensor, teacher_rows: TeacherRows) -> dict[str, Tensor]:
        """Return what ``DistillationLoss`` does, and ``aligned_share``, the number of rows that hold a token."""
        has_target_N = teacher_rows.targets.used.any(dim=1).float()
        return super().forward(logits_NV, gold_N, teacher_rows) | {"aligned_share": has_target_N.sum()}


class RankedDistillationLoss(DistillationLoss):
    """The loss of a student with its own tokenizer that compares sorted probabilities, see ``ranks.py``.

    ``kd_weight * (weight * rank distance + mapped_weight * divergence) + (1 - kd_weight) * cross-entropy``. With
    ``of: all`` there is no divergence, and the rank distance is between all tokens. With ``of: unmapped`` a token has a
    rank if it has no counterpart in the other vocabulary; a composed token has a counterpart, at its position.

    Args:
        loss: The loss block, with ``ranks`` and a ``kd_weight`` above 0.
        mapped_V: (V,) bool, the student's ids that have a token of the teacher's.
    """

    def __init__(self, loss: LossConfig, mapped_V: Tensor) -> None:
        super().__init__(loss)
        self.mapped_V: Tensor
        self.register_buffer("mapped_V", mapped_V, persistent=False)

    def forward(self, logits_NV: Tensor, gold_N: Tensor, teacher_rows: TeacherRows) -> dict[str, Tensor]:
        """Return sums as ``AlignedDistillationLoss`` does, ``rank_distance`` and ``unmapped_mass``.

        ``aligned_share`` counts the positions with a row of the teacher. ``unmapped_mass`` is the probability of the
        teacher's kept tokens that the student does not have.
        """
        ranks, weight = self.loss.ranks, self.loss.kd_weight
        assert ranks is not None
        assert teacher_rows.unmapped is not None
        has_row_N = teacher_rows.targets.used.any(dim=1) | (teacher_rows.unmapped > -torch.inf).any(dim=1)
        shares = {"aligned_share": has_row_N.sum(), "unmapped_mass": teacher_rows.unmapped.exp().sum()}
        distance_N = torch.where(has_row_N, self._distance(logits_NV, teacher_rows), 0.0)
        learned_N, logged = ranks.weight * distance_N, {"rank_distance": distance_N.detach().sum()}
        if ranks.mapped_weight is None:
            gold_loss_N = cross_entropy(logits_NV, gold_N)
        else:
            divergence_N, gold_loss_N = self.terms(logits_NV, gold_N, teacher_rows)
            learned_N = learned_N + ranks.mapped_weight * divergence_N
            logged[LOGGED[self.loss.divergence]] = divergence_N.detach().sum()
        loss = (weight * learned_N + (1 - weight) * gold_loss_N).sum()
        return {"loss": loss, "cross_entropy_nats": gold_loss_N.detach().sum()} | logged | shares

    def _distance(self, logits_NV: Tensor, teacher_rows: TeacherRows) -> Tensor:
        assert self.loss.ranks is not None
        assert teacher_rows.unmapped is not None
        targets, unmapped_Nk = teacher_rows.targets, teacher_rows.unmapped
        left_out_N = (targets.log_left_out.exp() - unmapped_Nk.exp().sum(dim=1)).clamp(min=0)
        if self.loss.ranks.of == "all":
            return rank_distance(logits_NV, torch.cat([targets.log_probs, unmapped_Nk], dim=1), left_out_N)
        kept_NV = torch.zeros_like(logits_NV, dtype=torch.uint8).scatter_reduce_(
            1, targets.ids, targets.used.to(torch.uint8), "amax"
        )
        return rank_distance(logits_NV, unmapped_Nk, left_out_N, self.mapped_V | kept_NV.bool())
