"""Losses between hidden states of teacher and student, through a learned projection.

Student and teacher differ in width and basis, so each pair of layers gets a linear map from the width of one to that
of the other; it is trained with the student and discarded afterwards. Where widths are equal it starts as the identity,
or with ``start: ridge`` as the best linear map (``loop/projection_start.py``).
``mse`` is the mean square over channels, which a few channels with huge values dominate in many language models;
``cosine``, 1 - cos, compares directions only.

By default the student's states are mapped, and must contain everything that the teacher's contain. ``project: teacher``
maps the teacher's states, as MT-BERT does (Wu et al., Findings of ACL 2021): each matrix keeps what the student can
reproduce. Nothing keeps that matrix from shrinking: with small states of the student, W -> 0 makes ``mse`` small. So
the mean norm of the projections is logged, as ``projection_norm``.

These terms are added to the loss on predictions. They are not divergences between distributions, so
``verdicts/compatibility.py`` has no verdict on them.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.config.student_file import HiddenPair

# B: batch, L: length, P: kept positions of the batch, D: width of the student, E: width of a teacher's layer,
# C: the width at which they are compared


class HiddenMatch(nn.Module):
    """Pairs of (student layer, teacher layer), each with a projection and a weight.

    Args:
        pairs: The layer map.
        student_width: D, of every hidden state of the student.
        teacher_widths: E by ``HiddenPair.state``, from the teachers' manifests.
    """

    def __init__(self, pairs: Sequence[HiddenPair], student_width: int, teacher_widths: Mapping[str, int]) -> None:
        super().__init__()
        self.pairs = tuple(pairs)
        self.projections = nn.ModuleList(
            _projection(student_width, teacher_widths[pair.state], pair.project) for pair in pairs
        )

    def forward(self, student_BLD: Sequence[Tensor], kept_BL: Tensor, teacher_PE: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum over pairs, per kept position.

        Args:
            student_BLD: (B, L, D) by layer, 0 being the embeddings: transformers' ``hidden_states``.
            kept_BL: (B, L) bool, true at the P kept positions.
            teacher_PE: (P, E) by ``HiddenPair.state``, in the order in which ``kept_BL`` lists them.

        Returns:
            (P,) float32.
        """
        total_P = torch.zeros(int(kept_BL.sum()), device=kept_BL.device)
        for pair, projection in zip(self.pairs, self.projections, strict=True):
            student, teacher = student_BLD[pair.student_layer][kept_BL], teacher_PE[pair.state]
            if pair.project == "student":
                student = projection(student)
            else:
                teacher = projection(teacher.to(student.dtype))
            total_P = total_P + pair.weight * _distance(student.float(), teacher.float(), pair)
        return total_P

    def norm(self) -> Tensor:
        """Return the mean Frobenius norm of the projections, for the log."""
        return torch.stack([matrix.detach().float().norm() for matrix in self.parameters()]).mean()


def _distance(student_PC: Tensor, teacher_PC: Tensor, pair: HiddenPair) -> Tensor:
    if pair.kind == "mse":
        return (student_PC - teacher_PC).square().mean(dim=1)
    return 1 - functional.cosine_similarity(student_PC, teacher_PC, dim=1)


def _projection(student_width: int, teacher_width: int, side: str) -> nn.Linear:
    widths = (student_width, teacher_width) if side == "student" else (teacher_width, student_width)
    linear = nn.Linear(*widths, bias=False)
    if student_width == teacher_width:
        nn.init.eye_(linear.weight)
    return linear
