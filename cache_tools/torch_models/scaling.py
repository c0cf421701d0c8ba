"""How a model turns the products of its output matrix into logits: a scale and a soft cap, measured on the model.

A head is ``logits = softcap * tanh(z / softcap)`` with ``z = scale * (hidden @ weight.T + bias)``, or ``logits = z``
without soft-capping. Neither number is read from the configuration, whose keys do not mean one thing: Granite divides
by ``logits_scaling`` and HyperCLOVA X multiplies with it, Cohere calls its factor ``logit_scale`` and Falcon-H1
``lm_head_multiplier``. The model runs once on three tokens; a hook replaces the output of the matrix by chosen
products, and the logits must be what the formula says, for every token of the vocabulary. A head that does anything
else (a mask over tokens, a bias of its own, a learned factor that is trained) is not described.

Cost: one forward pass of three tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

SMALL, LARGE, ORDINARY = 2.0**-20, 2.0**20, 64.0
"""Products that show the scale (far below any softcap), the softcap (far above it), and the curve between."""

TOLERANCE = 1e-5
"""Largest relative difference from the formula; some models compute their logits in float32 whatever comes in."""

# N: positions of a chunk, V: vocabulary


@dataclass(frozen=True)
class Scaling:
    """From products of the output matrix, bias included, to logits.

    Attributes:
        logit_scale: Factor of the products.
        softcap: Bound on the logits; 0 for none.
    """

    logit_scale: float = 1.0
    softcap: float = 0.0

    def logits(self, products_NV: Tensor) -> Tensor:
        """Turn products into logits, both (N, V); an ordinary head's products are returned as they are."""
        z_NV = products_NV if self.logit_scale == 1 else products_NV * self.logit_scale
        return self.softcap * torch.tanh(z_NV / self.softcap) if self.softcap else z_NV


def measured_scaling(model: PreTrainedModel, device: torch.device) -> Scaling | None:
    """Measure a model's scaling; nothing is changed, and no random number of the caller is drawn.

    Args:
        model: A causal or masked language model.
        device: Where it takes its input.

    Returns:
        None where no scale and softcap reproduce what the model computes.
    """
    matrix = model.get_output_embeddings()
    vocabulary = int(matrix.weight.shape[0])
    precise = torch.float32 if device.type == "mps" else torch.float64  # which has no float64
    products_3V = torch.stack(
        [
            torch.full((vocabulary,), SMALL),
            torch.full((vocabulary,), LARGE),
            torch.linspace(-ORDINARY, ORDINARY, vocabulary),
        ]
    ).to(device, precise)
    logits_3V = _logits_for(model, matrix, products_3V)
    if logits_3V is None:
        return None
    scale, highest = float(logits_3V[0, 0]) / SMALL, float(logits_3V[1, 0])
    scaling = Scaling(scale, highest if abs(highest) < abs(scale) * LARGE / 2 else 0.0)
    fits = torch.allclose(scaling.logits(products_3V), logits_3V, rtol=TOLERANCE, atol=0)
    return scaling if fits else None


def _logits_for(model: PreTrainedModel, matrix: nn.Module, products_3V: Tensor) -> Tensor | None:
    """Return the logits (3, V) that the model computes from the given products, in their type and on their device.

    None if it uses its matrix otherwise than once with all positions, or if something trainable follows it.
    """
    shapes: list[tuple[int, ...]] = []

    def answer(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        shapes.append(tuple(inputs[0].shape[:2]))
        return products_3V[None].to(output.device)

    ids_13 = torch.zeros(1, 3, dtype=torch.long, device=products_3V.device)
    hook = matrix.register_forward_hook(answer)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():  # dropout must not move the run's own draws
            logits_13V = model(input_ids=ids_13, attention_mask=torch.ones_like(ids_13)).logits
    finally:
        hook.remove()
    is_as_described = shapes == [(1, 3)] and logits_13V.shape == (1, *products_3V.shape)
    return logits_13V[0].to(products_3V) if is_as_described and not logits_13V.requires_grad else None
