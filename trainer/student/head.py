"""The student's head: an output matrix, and what the model makes of its products.

A head is ``logits = softcap * tanh(z / softcap)`` with ``z = scale * (hidden @ weight.T + bias)``,
or ``logits = z`` without soft-capping. Scale and softcap are measured on the model, not read
from its configuration: there ``logits_scaling`` divides in one architecture and multiplies in
another. The model runs once on three tokens, its output matrix answering with chosen numbers, and
what comes out as logits must be what the formula says, for every token of the vocabulary. A head
that does anything else (a learned scale, a mask over tokens, a bias of its own) is not described.

What happens before the matrix, such as BERT's prediction transform, is the model's own business:
:meth:`StudentHead.run` runs the model up to the matrix and stops the hidden states there.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

SMALL, LARGE, ORDINARY = 2.0**-20, 2.0**20, 64.0
"""Products that show the scale (far below any softcap), the softcap (far above it), and the curve between."""
TOLERANCE = 1e-5
"""Largest relative difference from the formula; some models compute their logits in float32 whatever comes in."""

# B: batch, L: length, N: positions of a chunk, D: width, V: vocabulary


@dataclass(frozen=True)
class StudentHead:
    """How hidden states become logits.

    Attributes:
        matrix: The output matrix, a part of the student; (V, D), perhaps tied to the embeddings, perhaps frozen.
        scale: Factor on its products.
        softcap: Bound on the logits; 0 for none.
    """

    matrix: nn.Linear
    scale: float
    softcap: float

    @classmethod
    def of(cls, student: PreTrainedModel) -> "StudentHead | None":
        """Describe a student's head, or return None where the formula does not reproduce it."""
        matrix = student.get_output_embeddings()
        if type(matrix) is not nn.Linear:  # an adapter or a quantised matrix computes something else
            return None
        V = matrix.out_features
        products_3V = torch.stack(
            [torch.full((V,), SMALL), torch.full((V,), LARGE), torch.linspace(-ORDINARY, ORDINARY, V)]
        ).to(matrix.weight.device, torch.float64)
        logits_3V = _logits_for(student, matrix, products_3V)
        if logits_3V is None:
            return None
        scale, highest = float(logits_3V[0, 0]) / SMALL, float(logits_3V[1, 0])
        head = cls(matrix, scale, softcap=highest if abs(highest) < abs(scale) * LARGE / 2 else 0.0)
        return head if torch.allclose(head.logits(products_3V), logits_3V, rtol=TOLERANCE, atol=0) else None

    def logits(self, products_NV: Tensor) -> Tensor:
        """Turn the matrix' products into logits, both (N, V); a copy of nothing for an ordinary head."""
        z_NV = products_NV if self.scale == 1 else products_NV * self.scale
        return self.softcap * torch.tanh(z_NV / self.softcap) if self.softcap else z_NV

    def run(self, student: PreTrainedModel, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """Run the student up to its output matrix, which then multiplies no position at all.

        Args:
            student: The student whose head this is.
            inputs: Of its forward, by name.

        Returns:
            The input of the matrix (B, L, D), and the student's output, without logits.
        """
        seen: list[Tensor] = []

        def stop(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            seen.append(inputs[0])
            return (inputs[0][:, :0],)

        hook = self.matrix.register_forward_pre_hook(stop)
        try:
            output = student(**inputs)
        finally:
            hook.remove()
        return seen[0], output


def _logits_for(student: PreTrainedModel, matrix: nn.Linear, products_3V: Tensor) -> Tensor | None:
    """Return the logits (3, V) that the model makes of the given products, float64.

    None if it uses its matrix otherwise than once with all positions, or if something learned follows it.
    """
    shapes: list[tuple[int, ...]] = []

    def answer(_: nn.Module, inputs: tuple[Tensor], __: Tensor) -> Tensor:
        shapes.append(tuple(inputs[0].shape))
        return products_3V[None]

    ids_13 = torch.zeros(1, 3, dtype=torch.long, device=products_3V.device)
    hook = matrix.register_forward_hook(answer)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():  # dropout must not move the run's own draws
            logits_13V = student(input_ids=ids_13, attention_mask=torch.ones_like(ids_13)).logits
    finally:
        hook.remove()
    as_described = shapes == [(1, 3, matrix.in_features)] and logits_13V.shape == (1, *products_3V.shape)
    return logits_13V[0].double() if as_described and not logits_13V.requires_grad else None
