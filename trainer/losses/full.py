"""Distillation on the teacher's whole distribution, rebuilt from its last hidden state.

A vocabulary of 151,936 logits is a linear function of a few thousand numbers. Where a cache keeps
those (layer ``last``) and the output matrix (``head.safetensors``, once), the student learns
from every token, at any temperature, without the teacher: exact, up to the error that
the hidden state was stored with. It costs the teacher's output matrix in memory and a multiplication
with it per position; cut positions into chunks, since (N, V) logits of both sides exist for a chunk.

Vocabulary padding: models of one tokenizer pad their vocabulary by different amounts. The teacher is
compared over the ids that the student has too; the mass of its other ids, which is padding, is
renormalised away, exactly if it is 0. The student keeps its own normaliser: its other ids
form one outcome with probability 0 under the teacher, so the loss grows with the mass that the student puts there.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cache_tools.torch_models.head_file import read_head
from trainer.config.student_file import LossConfig
from trainer.losses.divergences import LOWEST, gradient_scale, summands

# N: positions of a chunk, D: width of the teacher, U: ids of the teacher that are compared, V: student's vocabulary


class TeacherHead(nn.Module):
    """A cached teacher's output matrix, frozen and left out of checkpoints.

    Args:
        content: The file ``head.safetensors`` (see FORMAT.md), checked against its hash by the reader.
        student_vocabulary_size: V; rows of the matrix behind it are dropped.
        dtype: Of matrix and product. bfloat16 halves the memory and costs about 2e-4 nats.
        ids: (U,) the teacher's id of each of the student's, where its vocabulary is a part of the teacher's; then only
            these are compared, and the teacher's distribution is the one over them.

    Raises:
        FormatError: the file does not hold an output matrix.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        content: bytes,
        student_vocabulary_size: int,
        dtype: torch.dtype = torch.float32,
        ids: NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__()
        head = read_head(content)
        shared = slice(student_vocabulary_size) if ids is None else torch.from_numpy(ids)
        self.scaling = head.scaling
        self.register_buffer("weight", head.weight[shared].to(dtype, copy=True), persistent=False)
        bias = None if head.bias is None else head.bias[shared].to(dtype, copy=True)
        self.register_buffer("bias", bias, persistent=False)

    @torch.no_grad()
    def forward(self, last_ND: Tensor) -> Tensor:
        """Return the teacher's logits of the shared ids.

        Mixed precision is switched off here: it would round the logits to bfloat16.

        Args:
            last_ND: (N, D), the stored states of layer ``last``.

        Returns:
            (N, U) float32, U = min(teacher's vocabulary, V).
        """
        with torch.autocast(last_ND.device.type, enabled=False):
            z_NU = functional.linear(last_ND.to(self.weight.dtype), self.weight, self.bias).float()
        return self.scaling.logits(z_NU)


def full_divergence(logits_NV: Tensor, teacher_logits_NU: Tensor, settings: LossConfig) -> Tensor:
    """Return the divergence between teacher and student over the whole vocabulary, per position.

    With forward KL, U = V and T = 1 this is ``kl_div(student.log_softmax(1), teacher.log_softmax(1),
    log_target=True, reduction="none").sum(1)``.

    Args:
        logits_NV: (N, V), the student's, any floating type.
        teacher_logits_NU: (N, U) float32 from :class:`TeacherHead`, U <= V; not tempered yet.
        settings: ``divergence``, ``beta`` and ``temperature``; a tail policy has no meaning here.

    Returns:
        (N,) float32, as ``losses.divergence``.
    """
    shared = teacher_logits_NU.shape[1]
    log_p_NU = (teacher_logits_NU / settings.temperature).log_softmax(dim=1)
    log_q_NV = (logits_NV.float() / settings.temperature).log_softmax(dim=1)
    value_N = summands(log_p_NU, log_q_NV[:, :shared], settings).sum(dim=1)
    if shared < logits_NV.shape[1]:
        log_padding_N = log_q_NV[:, shared:].logsumexp(dim=1)
        nothing_N = torch.full_like(log_padding_N, -torch.inf)
        value_N = value_N + summands(nothing_N, log_padding_N, settings)
    return value_N * gradient_scale(settings)


def whole_kl(logits_NV: Tensor, teacher_logits_NU: Tensor) -> Tensor:
    """Return forward KL between teacher and student over the whole vocabulary, for reading and not for training.

    The same value as :func:`full_divergence`, never below 0, and exact where both nearly agree. With d = log q - log p,
    the sum of p (-d) equals that of p (exp(d) - 1 - d), as p and q both sum to 1. Each summand of the second is about
    p d² / 2, so an error of the normalisers, 1e-6 nats in float32, enters only as its square.

    Args:
        logits_NV: (N, V), the student's, any floating type.
        teacher_logits_NU: (N, U), U <= V.

    Returns:
        (N,) float32, nats.
    """
    shared = teacher_logits_NU.shape[1]
    log_p_NU = teacher_logits_NU.float().log_softmax(dim=1).clamp(min=LOWEST)
    log_q_NV = logits_NV.float().log_softmax(dim=1).clamp(min=LOWEST)
    d_NU, p_NU = log_q_NV[:, :shared] - log_p_NU, log_p_NU.exp()
    far_NU = log_q_NV[:, :shared].exp() - p_NU - p_NU * d_NU  # exp(d) would overflow
    value_N = torch.where(d_NU.abs() < 1, p_NU * (torch.expm1(d_NU) - d_NU), far_NU).sum(dim=1)
    return value_N + log_q_NV[:, shared:].exp().sum(dim=1)
