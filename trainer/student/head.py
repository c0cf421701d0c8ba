"""The student's head: an output matrix, and what the model computes from its products.

The scaling of the products is measured on the model, see ``cache_tools/torch_models/scaling.py``. What happens before
the matrix, such as BERT's prediction transform, is the model's own business: :meth:`StudentHead.run` runs the model up
to the matrix and stops the hidden states there.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from cache_tools.mappings import ModelInputs
from cache_tools.torch_models.scaling import Scaling, measured_scaling

# B: batch, L: length, N: positions of a chunk, D: width, V: vocabulary


@dataclass(frozen=True)
class StudentHead:
    """How hidden states become logits.

    Attributes:
        matrix: The output matrix, a part of the student; (V, D), perhaps tied to the embeddings, perhaps frozen.
        scaling: From its products to logits.
    """

    matrix: nn.Linear
    scaling: Scaling

    @classmethod
    def of(cls, student: PreTrainedModel) -> "StudentHead | None":
        """Describe a student's head, or return None where no scaling reproduces it."""
        matrix = student.get_output_embeddings()
        if type(matrix) is not nn.Linear:  # an adapter or a quantised matrix computes something else
            return None
        scaling = measured_scaling(student, matrix.weight.device)
        return None if scaling is None else cls(matrix, scaling)

    def logits(self, products_NV: Tensor) -> Tensor:
        """Turn the matrix' products into logits, both (N, V)."""
        return self.scaling.logits(products_NV)

    def run(self, student: PreTrainedModel, inputs: ModelInputs) -> tuple[Tensor, Any]:
        """Run the student up to its output matrix, which then multiplies no position at all.

        Args:
            student: The student whose head this is.
            inputs: Arguments of its forward, by name.

        Returns:
            The input of the matrix (B, L, D), and the student's output, without logits.
        """
        matrix_inputs: list[Tensor] = []

        def stop(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            matrix_inputs.append(inputs[0])
            return (inputs[0][:, :0],)

        hook = self.matrix.register_forward_pre_hook(stop)
        try:
            output = student(**inputs)
        finally:
            hook.remove()
        return matrix_inputs[0], output
