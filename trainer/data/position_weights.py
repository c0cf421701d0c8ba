"""How much a label counts beside the other positions of its sequence.

In a labelled encoding every sequence has one position that predicts its class, the first one kept, and perhaps many
that predict tokens. With a mean over all positions the class would count little in long sequences. Given
``loss.label_weight`` and ``loss.token_weight``, what is minimised is

    label_weight * (mean over labels) + token_weight * (mean over all other kept positions)

for the distillation loss and the cross-entropy alike. Hidden states are compared at all kept positions as before.

It is done by weighting positions: with S sequences and P positions in the split, a label gets ``label_weight * P / S``
and every other position ``token_weight * P / (P - S)``, and the loss stays a mean over positions. So the sum holds
over an epoch, not for each batch; ranks, accumulation and packing need to know nothing of it. Rejected: two means for
each batch, whose counts every rank would have to agree on before its first backward pass.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import ConfigError
from cache_tools.format.manifest import Split
from cache_tools.store.reader import Encoding
from trainer.config.student_file import LossConfig


@dataclass(frozen=True)
class PositionWeights:
    """The weights of a split's positions; their mean over the split is ``label_weight + token_weight``.

    Attributes:
        label: Weight of the first kept position of a sequence.
        token: Weight of every other position.
    """

    label: float
    token: float

    @classmethod
    def of(cls, encoding: Encoding, split: Split, loss: LossConfig) -> "PositionWeights | None":
        """Return the weights that a loss sets; None if all positions have the same weight.

        Raises:
            ConfigError: the loss weights labels, and the encoding has none; or nothing is left that weighs anything.
        """
        if loss.label_weight is None and loss.token_weight is None:
            return None
        if not encoding.manifest.labelled:
            raise ConfigError(
                "the loss sets a weight for labels, but these documents have no labels",
                where="loss.label_weight" if loss.label_weight is not None else "loss.token_weight",
                expected="an encoding captured with corpus.label_field",
                found=encoding.path,
                fix="Leave it out, or capture an encoding with labels",
            )
        totals = encoding.manifest.splits[split]
        others = totals.positions - totals.sequences
        label, token = (1.0 if weight is None else weight for weight in (loss.label_weight, loss.token_weight))
        if not others and label == 0:
            raise ConfigError(
                "labels have weight 0, and no other position of these documents was kept",
                where="loss.label_weight",
                found=encoding.path,
                fix="Set label_weight above 0, or capture with encoding.masking.keep: all",
            )
        return cls(
            label * totals.positions / max(totals.sequences, 1), token * totals.positions / others if others else 0.0
        )

    def of_sequence(self, num_positions: int) -> NDArray[np.float32]:
        """Return the weights of a sequence's kept positions: (p,)."""
        weights = np.full(num_positions, self.token, np.float32)
        weights[:1] = self.label
        return weights
