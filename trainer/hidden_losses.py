"""Losses between hidden states of teacher and student, through a learned projection.

Student and teacher have other widths and other bases, so each pair of layers gets a linear map
from the student's to the teacher's width; it is trained with the student and thrown away after.
Where widths are equal it begins as the identity. ``mse`` is the mean square over channels, which
few channels of huge values dominate in many language models; ``cosine``, 1 - cos, looks at
directions only.

This adds to what the student learns from the predictions; it is no divergence between distributions,
so ``compatibility.py`` says nothing about it.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.config import HiddenPair

# B: batch, L: length, P: kept positions of the batch, D: width of the student, E: width of a teacher's layer


class HiddenMatch(nn.Module):
    """Pairs of (student layer, teacher layer), each with a projection and a weight.

    Args:
        pairs: The layer map.
        student_width: D, of every hidden state of the student.
        teacher_widths: E by layer name, from the teacher's manifest.
    """

    def __init__(self, pairs: Sequence[HiddenPair], student_width: int, teacher_widths: Mapping[str, int]) -> None:
        super().__init__()
        self.pairs = tuple(pairs)
        self.projections = nn.ModuleList(_projection(student_width, teacher_widths[pair.layer]) for pair in pairs)

    def forward(self, student_BLD: Sequence[Tensor], kept_BL: Tensor, teacher_PE: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum over pairs, per kept position.

        Args:
            student_BLD: (B, L, D) by layer, 0 being the embeddings: transformers' ``hidden_states``.
            kept_BL: (B, L) bool, true at the P kept positions.
            teacher_PE: (P, E) by layer name, in the order in which ``kept_BL`` lists them.

        Returns:
            (P,) float32.
        """
        total_P = torch.zeros(int(kept_BL.sum()), device=kept_BL.device)
        for pair, projection in zip(self.pairs, self.projections, strict=True):
            projected_PE = projection(student_BLD[pair.student_layer][kept_BL])
            total_P = total_P + pair.weight * _distance(projected_PE.float(), teacher_PE[pair.layer].float(), pair)
        return total_P


def _distance(student_PE: Tensor, teacher_PE: Tensor, pair: HiddenPair) -> Tensor:
    if pair.kind == "mse":
        return (student_PE - teacher_PE).square().mean(dim=1)
    return 1 - functional.cosine_similarity(student_PE, teacher_PE, dim=1)


def _projection(student_width: int, teacher_width: int) -> nn.Linear:
    linear = nn.Linear(student_width, teacher_width, bias=False)
    if student_width == teacher_width:
        nn.init.eye_(linear.weight)
    return linear
