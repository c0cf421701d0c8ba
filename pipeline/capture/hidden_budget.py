"""The error budget of the last hidden state, measured with the teacher's own head on its own device.

``cache_tools.hidden_codecs.transform`` needs two things of a teacher: the Fisher metric, to calibrate the
transform of layer ``last``, and the KL that decoded states lead to, to choose a shard's step.
Both are the computation of ``cache_tools.hidden_codecs.channel_scales``, here with torch. A head's input is
``HeadOutput.last`` of ``body_and_head.run_head``, which is also what layer ``last`` stores.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from cache_tools.hidden_codecs.transform import ErrorOf
from pipeline.teachers.body_and_head import HeadOutput, output_parameters, output_scaling

CHUNK_BYTES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}
"""Size of one chunk of float32 logits by device type; about four such tensors live at a time."""

# N: rows of a chunk, D: width, V: vocabulary


@dataclass(frozen=True)
class OutputHead:
    """Turns the input of the output matrix into logits, as ``head.safetensors`` says.

    In float32 whatever the teacher's dtype: rounding decoded states to bfloat16 would alone cost
    2e-4 nats, and a student multiplies in float32 too.

    Attributes:
        weight: (V, D) float32.
        bias: (V,) float32, or None.
        logit_scale: Factor of the product.
        softcap: Bound of the logits; 0 for none.
    """

    weight: Tensor
    bias: Tensor | None
    logit_scale: float
    softcap: float

    @classmethod
    def of(cls, model: PreTrainedModel, probe: HeadOutput) -> "OutputHead":
        """Return a model's head.

        Args:
            model: The teacher.
            probe: Output of its head on a few positions, to check the scaling with.

        Raises:
            ModelError: the last hidden state does not lead back to the logits.
        """
        weight, bias = output_parameters(model)
        scaling = output_scaling(model, probe)
        return cls(weight.float(), None if bias is None else bias.float(), scaling.logit_scale, scaling.softcap)

    def logits(self, last_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return logits (N, V) float32 and the derivative of the softcap, None where it is 1."""
        z = self.logit_scale * functional.linear(last_ND, self.weight, self.bias)
        if not self.softcap:
            return z, None
        bounded = torch.tanh(z / self.softcap)
        return bounded * self.softcap, 1 - bounded**2

    def chunks(self, rows: int) -> Iterator[slice]:
        """Cut rows into chunks whose logits fit the device."""
        limit = CHUNK_BYTES.get(self.weight.device.type, CHUNK_BYTES["cuda"])
        size = max(1, limit // (4 * len(self.weight)))
        return (slice(start, start + size) for start in range(0, rows, size))


@torch.inference_mode()
def fisher_metric(head: OutputHead, last: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mean metric (D, D) of a head over sample states (n, D); see ``channel_scales``."""
    weight_VD = head.weight
    exact = torch.float32 if weight_VD.device.type == "mps" else torch.float64  # which has no float64
    diagonal_V = torch.zeros(len(weight_VD), dtype=exact, device=weight_VD.device)
    outer_DD = torch.zeros((weight_VD.shape[1],) * 2, dtype=exact, device=weight_VD.device)
    for part in head.chunks(len(last)):
        logits_NV, slope_NV = head.logits(torch.from_numpy(last[part]).to(weight_VD.device))
        p_NV = torch.softmax(logits_NV, dim=-1)
        sp_NV = p_NV if slope_NV is None else p_NV * slope_NV
        diagonal_V += (sp_NV if slope_NV is None else sp_NV * slope_NV).sum(dim=0, dtype=exact)
        means_ND = (sp_NV @ weight_VD).to(exact)
        outer_DD += means_ND.T @ means_ND
    metric_DD = (_weighted_gram(weight_VD, diagonal_V) - outer_DD) * (head.logit_scale**2 / len(last))
    return metric_DD.cpu().double().numpy()


def kl_error(head: OutputHead, temperatures: tuple[float, ...] = ()) -> ErrorOf:
    """Return the function that ``choose_step`` measures layer ``last`` with.

    Args:
        head: The teacher's head.
        temperatures: Temperatures, besides 1, at which the distributions will be used.

    Returns:
        The mean KL in nats at temperature 1, or at one of these where it is larger.
    """

    def error(true: NDArray[np.float32], decoded: NDArray[np.float32]) -> float:
        return max(float(kl_nats(head, true, decoded, t).mean()) for t in {1.0, *temperatures})

    return error


@torch.inference_mode()
def kl_nats(
    head: OutputHead, true: NDArray[np.float32], decoded: NDArray[np.float32], temperature: float = 1.0
) -> NDArray[np.float64]:
    """Return KL(p(true) || p(decoded)) of each row at a temperature: (n,) float64, nats; both sides are (n, D)."""
    rows = [_kl_rows(head, true[part], decoded[part], temperature) for part in head.chunks(len(true))]
    return torch.cat(rows).cpu().double().numpy()


def _kl_rows(head: OutputHead, true: NDArray[np.float32], decoded: NDArray[np.float32], temperature: float) -> Tensor:
    log_p, log_q = (
        torch.log_softmax(head.logits(torch.from_numpy(states).to(head.weight.device))[0] / temperature, dim=-1)
        for states in (true, decoded)
    )
    # The last two terms sum to zero but for rounding; with them each summand is positive and small.
    difference = log_q - log_p
    return (log_p.exp() * (torch.expm1(difference) - difference)).sum(dim=-1)


def _weighted_gram(weight_VD: Tensor, diagonal_V: Tensor) -> Tensor:
    """Return W.T @ diag(d) @ W in the precision of the diagonal, a block of the vocabulary at a time."""
    gram_DD = torch.zeros((weight_VD.shape[1],) * 2, dtype=diagonal_V.dtype, device=weight_VD.device)
    for weight, diagonal in zip(torch.split(weight_VD, 8192), torch.split(diagonal_V, 8192), strict=True):
        block = weight.to(diagonal.dtype)
        gram_DD += block.T @ (block * diagonal[:, None])
    return gram_DD
