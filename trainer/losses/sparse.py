"""The distillation loss on sparse targets: one pure function, in float32, per position.

A sparse target holds k tokens with their log-probabilities and the mass of all others. The
student enters through its mass on those tokens and on the rest alone (``masses.py``), so this
costs as much as cross-entropy. A tail policy says how the rest is treated (``tails.py``), a divergence
compares outcome by outcome (``divergences.py``), and ``verdicts/compatibility.py`` says which combinations are
exact. For another temperature, temper the targets first (``tempering.py``).

What is not here: the loss against a whole distribution (``full.py``) and on hidden
states (``hidden.py``).
"""

import torch
from torch import Tensor

from trainer.config.student_file import LossConfig
from trainer.losses.divergences import gradient_scale, summands
from trainer.losses.masses import log_masses, log_probs_at
from trainer.losses.tails import SparseTargets, completed

# N: positions of a chunk, V: vocabulary, k: kept tokens


def loss_terms(
    logits_NV: Tensor, targets: SparseTargets, gold_N: Tensor, settings: LossConfig
) -> tuple[Tensor, Tensor]:
    """Return the divergence between teacher and student, and the student's cross-entropy, per position.

    With ghost and forward KL the divergence is, on ``q = (logits / T).softmax(1)`` and targets at temperature T,
    ``T² * (p_kept * log(p_kept / q_kept)).sum(1) + T² * rest * log(rest / (1 - q_kept.sum(1)))``.
    At temperature 1 one pass over the vocabulary gives both.

    Args:
        logits_NV: (N, V), the student's, any floating type.
        targets: The teacher's, already at ``settings.temperature``; ids below V.
        gold_N: (N,) int64, the token that each position should predict.
        settings: The loss block; a combination that ``compatibility.check_loss`` accepts.

    Returns:
        (N,) float32 each, differentiable in the logits, once: nats times T² (a mass times T for total
        variation), and nats.
    """
    if settings.tail in ("uniform", "minimum"):
        scaled_NV = logits_NV.float() / settings.temperature
        return _uniform_forward_kl(scaled_NV, targets) * gradient_scale(settings), cross_entropy(logits_NV, gold_N)
    targets = completed(targets, gold_N, settings.tail)
    log_q_Nk, log_rest_N, cross_entropy_N = student_masses(
        logits_NV, targets.ids, targets.used, gold_N, settings.temperature
    )
    return compared(targets, log_q_Nk, log_rest_N, settings), cross_entropy_N


def student_masses(
    logits_NV: Tensor, ids_Nk: Tensor, used_Nk: Tensor, gold_N: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first two of ``masses.log_masses`` at a temperature, and the cross-entropy (N,) at 1."""
    if temperature == 1:
        log_q_Nk, log_rest_N, log_gold_N = log_masses(logits_NV, ids_Nk, used_Nk, gold_N)
        return log_q_Nk, log_rest_N, -log_gold_N
    log_q_Nk, log_rest_N, _ = log_masses(logits_NV.float() / temperature, ids_Nk, used_Nk, gold_N)
    return log_q_Nk, log_rest_N, cross_entropy(logits_NV, gold_N)


def compared(targets: SparseTargets, log_q_Nk: Tensor, log_rest_N: Tensor, settings: LossConfig) -> Tensor:
    """Return the divergence, scaled for the temperature, between completed targets and a student's masses there.

    Args:
        targets: After ``tails.completed``.
        log_q_Nk: (N, k), the student's on the kept tokens, -inf in empty slots.
        log_rest_N: (N,), the student's on all others together; -inf where there are none.
        settings: Any tail policy but ``uniform`` and ``minimum``.
    """
    value_N = summands(targets.log_probs, log_q_Nk, settings).sum(dim=1)
    if settings.tail != "none":
        # a student without other tokens cannot give the rest anything: there is nothing to compare
        log_left_out_N = torch.where(log_rest_N == -torch.inf, -torch.inf, targets.log_left_out)
        value_N = value_N + summands(log_left_out_N, log_rest_N, settings)
    return value_N * gradient_scale(settings)


def divergence(logits_NV: Tensor, targets: SparseTargets, gold_N: Tensor, settings: LossConfig) -> Tensor:
    """Return the divergence alone, see ``loss_terms``: (N,) float32."""
    return loss_terms(logits_NV, targets, gold_N, settings)[0]


def cross_entropy(logits_NV: Tensor, gold_N: Tensor) -> Tensor:
    """Return -log q(gold) per position: (N,) float32, nats."""
    return -log_probs_at(logits_NV.float(), gold_N[:, None])[:, 0]


def _uniform_forward_kl(logits_NV: Tensor, targets: SparseTargets) -> Tensor:
    """Return KL with the left-out mass m spread over the n unkept tokens, each of which gets m / n.

    Their part, sum m/n (log m/n - log q_v), needs of the student the sum of its logits only.
    """
    log_p_Nk, used_Nk = targets.log_probs, targets.used
    kept_Nk = torch.where(used_Nk, logits_NV.gather(1, targets.ids), 0.0)
    normaliser_N1 = logits_NV.logsumexp(dim=1, keepdim=True)
    others_N = logits_NV.shape[1] - used_Nk.sum(dim=1)
    log_left_out_N = torch.where(others_N == 0, -torch.inf, targets.log_left_out)
    others_N = others_N.clamp(min=1)
    mean_other_N = (logits_NV.sum(dim=1) - kept_Nk.sum(dim=1)) / others_N
    log_each_N = torch.where(log_left_out_N > -torch.inf, log_left_out_N - others_N.log(), 0.0)
    kept_part_Nk = log_p_Nk.exp() * (torch.where(used_Nk, log_p_Nk, 0.0) - (kept_Nk - normaliser_N1))
    other_part_N = log_left_out_N.exp() * (log_each_N - (mean_other_N - normaliser_N1[:, 0]))
    return kept_part_Nk.sum(dim=1) + other_part_N
