"""Random teachers and students, and the naive float64 losses that the fast ones must equal.

A reference writes every outcome's two probabilities down and compares them one by one. It shares
no line with the code under test, and works on softmax alone.
"""

import math

import torch
from torch import Tensor

from trainer.config.student_file import LossConfig
from trainer.losses.tails import SparseTargets

PAIRS = [
    *(("ghost", d) for d in ("forward_kl", "reverse_kl", "jensen_shannon", "total_variation")),
    *((t, d) for t in ("renormalise", "gold", "none") for d in ("forward_kl", "jensen_shannon", "total_variation")),
    ("uniform", "forward_kl"),
]
"""Every (tail, divergence) that the table does not refuse for topk."""


def random_logits(positions, vocabulary, seed=0, dtype=torch.float32):
    """Return logits (positions, vocabulary) of standard deviation 3."""
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(positions, vocabulary, generator=generator)).to(dtype)


def top_k(logits, k):
    """Return the k most likely tokens of each row as targets; nothing is left out at k = V."""
    log_p = logits.double().log_softmax(dim=1)
    log_probs, ids = log_p.topk(k, dim=1)
    left_out = log_p.scatter(1, ids, -math.inf).logsumexp(dim=1)
    return SparseTargets(ids, log_probs.float(), left_out.float())


def ragged(targets):
    """Empty the last i % k slots of row i, their mass left out; what stands in an empty slot is any legal id."""
    ids, k = targets.ids.clone(), targets.ids.shape[1]
    empty = torch.arange(k) >= k - torch.arange(len(ids))[:, None] % k
    moved = torch.where(empty, targets.log_probs.exp(), 0).sum(dim=1)
    ids[empty] = 0
    log_probs = targets.log_probs.masked_fill(empty, -math.inf)
    return SparseTargets(ids, log_probs, (targets.log_left_out.exp() + moved).log())


def loss(divergence="forward_kl", tail="ghost", **settings):
    """Return a loss block; beta is set for Jensen-Shannon only."""
    return LossConfig(divergence=divergence, **({} if tail is None else {"tail": tail}), **settings)


def with_gradient(function, logits, *arguments):
    """Return (values, gradient of their sum in the logits)."""
    leaf = logits.clone().requires_grad_()
    values = function(leaf, *arguments)
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), gradient


def naive_divergence(logits_NV: Tensor, targets: SparseTargets, gold_N: Tensor, settings: LossConfig) -> Tensor:
    """Return the loss on sparse targets per position, one row after the other; differentiable."""
    rows = zip(logits_NV, targets.ids, targets.log_probs, targets.log_left_out, gold_N.tolist(), strict=True)
    return torch.stack([_naive_row(*row, settings) for row in rows])


def _naive_row(logits, ids, log_probs, log_left_out, gold, settings):
    q = (logits.double() / settings.temperature).softmax(dim=0)
    kept = {i: math.exp(x) for i, x in zip(ids.tolist(), log_probs.tolist(), strict=True) if x > -math.inf}
    others = [token for token in range(len(q)) if token not in kept]
    left_out = math.exp(log_left_out)
    p = torch.zeros(len(q), dtype=torch.float64)
    for token, probability in kept.items():
        p[token] = probability
    if settings.tail in ("ghost", "none") or (settings.tail == "renormalise" and not kept):
        inside = list(kept)
        outcomes_p, outcomes_q = [p[inside]], [q[inside]]
        if settings.tail != "none":
            outcomes_p.append(torch.tensor([left_out], dtype=torch.float64))
            outcomes_q.append(q[others].sum()[None])
        return naive_sum(torch.cat(outcomes_p), torch.cat(outcomes_q), settings)
    if settings.tail == "renormalise":
        p = p / p.sum()
    elif settings.tail == "gold":
        p[gold] += left_out
    elif others:
        p[others] = left_out / len(others)
    return naive_sum(p, q, settings)


def naive_sum(p: Tensor, q: Tensor, settings: LossConfig) -> Tensor:
    """Return the divergence between two lists of probabilities of the same outcomes, scaled for the temperature."""
    factor = settings.temperature if settings.divergence == "total_variation" else settings.temperature**2
    if settings.divergence == "forward_kl":
        return factor * _kl(p, q)
    if settings.divergence == "reverse_kl":
        return factor * _kl(q, torch.where(p > 0, p, 2.0**-24))
    if settings.divergence == "total_variation":
        return factor * 0.5 * (p - q).abs().sum()
    m = settings.beta * p + (1 - settings.beta) * q
    return factor * (settings.beta * _kl(p, m) + (1 - settings.beta) * _kl(q, m))


def _kl(p, q):
    some = p > 0
    return (p[some] * (p[some] / q[some]).log()).sum()
