"""A model of transformers in this process as a teacher's body."""

from collections.abc import Sequence as Several
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from cache_tools.errors import ModelError
from cache_tools.format.sequences import Sequence
from pipeline.teachers.batches import Batch, pack, pad
from pipeline.teachers.body_and_head import check_head, check_packing, run_body
from pipeline.teachers.teacher import Head


@dataclass(frozen=True)
class ModelBody:
    """The body of a model; see ``Body`` for its methods.

    Attributes:
        model: The whole model, in evaluation mode.
        device: Device of its input and output.
        packs: Whether it is given sequences that are packed into one row.
    """

    model: PreTrainedModel
    device: torch.device
    packs: bool = False

    @property
    def software(self) -> str:
        """What runs it, with its version."""
        return f"transformers {transformers.__version__}"

    @property
    def dtype(self) -> str:
        """Type of its activations; embeddings keep their type where matrices are quantised."""
        return str(self.model.get_input_embeddings().weight.dtype).removeprefix("torch.")

    def states(self, batch: Batch, layers: Several[int] = ()) -> tuple[Tensor, dict[int, Tensor]]:
        """Return the states at the batch's kept positions: the last ones (P, D), and each layer's."""
        input_ids = self._on(batch.input_ids)
        assert input_ids is not None
        last_BLD, every_layer = run_body(
            self.model,
            input_ids,
            self._on(batch.attention_mask),
            hidden=bool(layers),
            position_ids=self._on(batch.position_ids),
        )
        kept_P = self._on(batch.kept)
        for layer in layers:
            if not 0 <= layer < len(every_layer):
                raise ModelError(
                    f"{type(self.model).__name__} has no layer {layer}",
                    where="hidden.layers",
                    expected=f"0 (embeddings) to {len(every_layer) - 1}, or last",
                    found=layer,
                )
        return last_BLD.flatten(0, 1)[kept_P], {layer: every_layer[layer].flatten(0, 1)[kept_P] for layer in layers}

    def check(self, head: Head, probe: Batch, first: list[Sequence]) -> None:
        """Compare body and head with the model's own logits, and packed sequences with padded ones if it packs."""
        assert head.model is self.model
        check_head(self.model, probe.input_ids.to(self.device))
        if self.packs:
            check_packing(self.model, *(together(first, list(range(len(first)))) for together in (pad, pack)))

    def _on(self, tensor: Tensor | None) -> Tensor | None:
        """Return a host tensor on the model's device, without waiting for it."""
        return None if tensor is None else tensor.to(self.device, non_blocking=True)
