"""What a student minimises on some rows of a batch, whatever the cache holds about them.

Three sources meet here in one pair of numbers per position, a divergence and a cross-entropy:

- sparse targets, tempered first if the loss has a temperature,
- sparse targets that were drawn, whose forward KL is that of the draws: right in its gradient,
  too large as a value by what the draws lack of the teacher's entropy. The log gets the corrected
  value, from the stored entropy, which is the divergence from the teacher in expectation; other
  divergences from draws are logged as they are,
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
from trainer.losses.sparse import cross_entropy, loss_terms
from trainer.losses.tails import SparseTargets
from trainer.losses.tempering import at_temperature

LOGGED: dict[Divergence, str] = {
    "forward_kl": "kl_nats",
    "reverse_kl": "reverse_kl_nats",
    "jensen_shannon": "jensen_shannon_nats",
    "total_variation": "total_variation",
}
"""Under which name a divergence is logged, between teacher and student at the temperature of the loss."""

# N: rows of a chunk, P: kept positions of a batch, V: vocabulary, k: slots of a row


@dataclass(frozen=True)
class TeacherRows:
    """What a cache holds about some kept positions, as tensors on the student's device.

    Attributes:
        targets: Sparse targets at temperature 1.
        scalars: (N,) float32 by name, nats; those that the loss uses.
        hidden: (N, width) float32 by layer; those that the loss uses.
        weights: (N,) float32, how much each position counts; None where all count alike.
    """

    targets: SparseTargets
    scalars: Mapping[str, Tensor] = field(default_factory=dict)
    hidden: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None

    @classmethod
    def of(cls, batch: Mapping[str, Any]) -> "TeacherRows":
        """Return all rows of a batch of ``data.collate``."""
        targets = SparseTargets(batch["target_ids"], batch["target_log_probs"], batch["target_log_left_out"])
        return cls(targets, batch.get("scalars") or {}, batch.get("hidden") or {}, batch.get("position_weights"))

    def __getitem__(self, rows: slice | Tensor) -> "TeacherRows":
        """Return some rows: a stretch, or those where a mask (N,) is true."""
        ids, log_probs, log_left_out = self.targets.ids, self.targets.log_probs, self.targets.log_left_out
        return TeacherRows(
            SparseTargets(ids[rows], log_probs[rows], log_left_out[rows]),
            {name: values[rows] for name, values in self.scalars.items()},
            {layer: states[rows] for layer, states in self.hidden.items()},
            None if self.weights is None else self.weights[rows],
        )

    def weighted(self, values_N: Tensor) -> Tensor:
        """Return a number per position, as much as it counts: (N,)."""
        return values_N if self.weights is None else values_N * self.weights


def counted(kept_BL: Tensor, gold_P: Tensor, said: TeacherRows) -> tuple[Tensor, Tensor, TeacherRows]:
    """Return kept positions, gold tokens and rows without the positions that weigh nothing: they need no logits."""
    if said.weights is None:
        return kept_BL, gold_P, said
    weighs_P = said.weights > 0
    return kept_BL.masked_scatter(kept_BL, weighs_P), gold_P[weighs_P], said[weighs_P]


class Objective(nn.Module):
    """``kd_weight * divergence + (1 - kd_weight) * cross-entropy``, summed over rows.

    Args:
        loss: Of a combination that ``compatibility.check_loss`` accepts.
        head: The teacher's output matrix; needed for ``source: hidden``, unless ``kd_weight`` is 0.
    """

    def __init__(self, loss: LossConfig, head: TeacherHead | None = None) -> None:
        super().__init__()
        self.loss, self.head = loss, head

    def forward(self, logits_NV: Tensor, gold_N: Tensor, said: TeacherRows) -> dict[str, Tensor]:
        """Return ``loss``, differentiable once in the logits, and its parts for the log.

        Args:
            logits_NV: (N, V) float32, the student's.
            gold_N: (N,) int64, the token that each position should predict.
            said: What the teacher said there.

        Returns:
            Sums over the rows, each as much as it counts: ``loss``, ``cross_entropy_nats`` and, unless ``kd_weight``
            is 0, the divergence by its name in LOGGED.
        """
        weight = self.loss.kd_weight
        if weight == 0:
            gold = said.weighted(cross_entropy(logits_NV, gold_N)).sum()
            return {"loss": gold, "cross_entropy_nats": gold.detach()}
        value_N, gold_loss_N = self.terms(logits_NV, gold_N, said)
        value, gold = said.weighted(value_N).sum(), said.weighted(gold_loss_N).sum()
        logged_N = value_N.detach() / gradient_scale(self.loss)
        if ENTROPY in said.scalars:
            logged_N = logged_N + own_entropy(said.targets) - said.scalars[ENTROPY]
        return {
            "loss": weight * value + (1 - weight) * gold,
            LOGGED[self.loss.divergence]: said.weighted(logged_N).sum(),
            "cross_entropy_nats": gold.detach(),
        }

    def terms(self, logits_NV: Tensor, gold_N: Tensor, said: TeacherRows) -> tuple[Tensor, Tensor]:
        """Return divergence, scaled as by ``divergences.gradient_scale``, and cross-entropy per row: (N,) float32."""
        if self.loss.source == "hidden":
            assert self.head is not None
            divergence_N = full_divergence(logits_NV, self.head(said.hidden["last"]), self.loss)
            return divergence_N, cross_entropy(logits_NV, gold_N)
        targets = at_temperature(said.targets, logits_NV.shape[1], self.loss, said.scalars or None)
        return loss_terms(logits_NV, targets, gold_N, self.loss)


def own_entropy(targets: SparseTargets) -> Tensor:
    """Return the entropy of each row's own weights, left-out mass as one more outcome: (N,) float32, nats."""
    log_p_Nk = torch.cat([targets.log_probs, targets.log_left_out[:, None]], dim=1)
    return -torch.where(log_p_Nk > -torch.inf, log_p_Nk.exp() * log_p_Nk, 0.0).sum(dim=1)
