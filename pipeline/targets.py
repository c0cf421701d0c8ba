"""From logits to what the cache keeps: a sparse target of the kind asked for, and scalars, in float32.

Masses come from the full-vocabulary log-normaliser, not from what was kept, so the left-out
mass is known exactly even when k is small. Kinds: ``topk`` keeps the k most likely tokens,
``topp`` the fewest of them that reach a mass p, ``sampled`` N draws with replacement (RS-KD,
arXiv 2503.16870), ``hybrid`` the k most likely exactly and N draws from the rest, ``dense`` all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cache_tools.manifest import Kind
from pipeline.draws import draw

# N: positions of a chunk, V: vocabulary, k: slots of a row, S: draws per position

LOWEST = -1e4
"""Logits are compared with the highest; below this the weight is zero in float32 anyway."""

TAIL_SCALARS = ("tail_mean", "tail_variance", "tail_minimum")
"""Of the logits outside the k most likely, for temperatures at which those matter."""


@dataclass(frozen=True)
class Keep:
    """What is kept of a distribution.

    Attributes:
        kind: Of the target.
        k: Most likely tokens kept (``topp``: at most); all of a smaller vocabulary.
        p: Mass that ``topp`` keeps.
        draws: Of ``sampled`` and ``hybrid``.
        seed: Of the draws.
        temperatures: For each, the log-normaliser of the logits divided by it is kept.
        scalars: Which of ``gold_rank`` and TAIL_SCALARS are kept.
    """

    kind: Kind = "topk"
    k: int = 64
    p: float = 1.0
    draws: int = 0
    seed: int = 0
    temperatures: tuple[float, ...] = ()
    scalars: tuple[str, ...] = ()

    def slots(self, vocabulary_size: int) -> int:
        """Return how many entries a row can hold."""
        if self.kind == "dense":
            return vocabulary_size
        head = 0 if self.kind == "sampled" else min(self.k, vocabulary_size)
        return head + (self.draws if self.kind in ("sampled", "hybrid") else 0)


@dataclass(frozen=True)
class SparseTargets:
    """Kept predictions of N positions, on the teacher's device.

    Attributes:
        ids: (N, k) int64.
        log_probs: (N, k) float32, log weights; -inf in slots that hold nothing.
        log_left_out: (N,) float32, log of the mass outside the row; -inf for none.
        scalars: (N,) float32 by name: logsumexp, entropy, gold_logprob and those asked for.
    """

    ids: Tensor
    log_probs: Tensor
    log_left_out: Tensor
    scalars: dict[str, Tensor]


@dataclass(frozen=True)
class _Softmax:
    """Logits with their softmax taken apart, so that each piece is computed once.

    Attributes:
        logits_NV: (N, V) float32.
        highest_N1: Highest logit of each row.
        below_NV: Logits minus the highest, finite, so that 0 * below is 0.
        weights_NV: exp of it.
        log_total_N1: Log of its sum.
    """

    logits_NV: Tensor
    highest_N1: Tensor
    below_NV: Tensor
    weights_NV: Tensor
    log_total_N1: Tensor

    @classmethod
    def of(cls, logits_NV: Tensor) -> "_Softmax":
        highest_N1 = logits_NV.amax(dim=1, keepdim=True)
        below_NV = (logits_NV - highest_N1).clamp_(min=LOWEST)
        weights_NV = below_NV.exp()
        return cls(logits_NV, highest_N1, below_NV, weights_NV, weights_NV.sum(dim=1, keepdim=True).log())

    def log_probs(self, logits_Nm: Tensor) -> Tensor:
        """Return log-probabilities of some logits of each row; in this order, exact for logits of any size."""
        return logits_Nm - self.highest_N1 - self.log_total_N1


def sparse_targets(logits_NV: Tensor, gold_N: Tensor, keep: Keep, keys_N: Tensor | None = None) -> SparseTargets:
    """Keep what was asked for of each row.

    Args:
        logits_NV: (N, V) float32.
        gold_N: (N,) int64, the token that each position should predict.
        keep: What to keep.
        keys_N: (N,) int64 from ``draws.position_keys``; for kinds that draw.
    """
    softmax = _Softmax.of(logits_NV)
    if keep.kind == "sampled":
        ids_Nk, log_probs_Nk = _drawn(softmax.weights_NV, keep.draws, keys_N)
        log_left_out_N = torch.full_like(gold_N, -torch.inf, dtype=torch.float32)
    else:
        k = logits_NV.shape[1] if keep.kind == "dense" else min(keep.k, logits_NV.shape[1])
        top = logits_NV.topk(k, dim=1)
        ids_Nk, log_probs_Nk = top.indices, softmax.log_probs(top.values)
        if keep.kind == "topp":
            log_probs_Nk = _up_to_mass(log_probs_Nk, keep.p)
        log_left_out_N = _left_out(log_probs_Nk, everything=k == logits_NV.shape[1] and keep.kind != "topp")
    if keep.kind == "hybrid":
        rest_NV = softmax.weights_NV.scatter(1, ids_Nk, 0)
        drawn_ids, drawn_logs = _drawn(rest_NV, keep.draws, keys_N)
        drawn_logs = torch.where(rest_NV.any(dim=1)[:, None], drawn_logs + log_left_out_N[:, None], -torch.inf)
        ids_Nk, log_probs_Nk = torch.cat([ids_Nk, drawn_ids], dim=1), torch.cat([log_probs_Nk, drawn_logs], dim=1)
        log_left_out_N = torch.full_like(log_left_out_N, -torch.inf)
    return SparseTargets(ids_Nk, log_probs_Nk, log_left_out_N, _scalars(softmax, gold_N, keep))


def tempered_name(temperature: float) -> str:
    """Return the scalar that holds the log-normaliser of the logits divided by a temperature."""
    return f"logsumexp_t{temperature:g}"


def _left_out(log_probs_Nk: Tensor, everything: bool) -> Tensor:
    left_out_N = (1 - log_probs_Nk.exp().sum(dim=1)).clamp(min=0)
    return torch.zeros_like(left_out_N).log() if everything else left_out_N.log()


def _up_to_mass(log_probs_Nk: Tensor, mass: float) -> Tensor:
    """Empty the slots behind the first that reaches a mass; the rows' probabilities fall."""
    reached_Nk = log_probs_Nk.exp().cumsum(dim=1)
    before_Nk = torch.cat([torch.zeros_like(reached_Nk[:, :1]), reached_Nk[:, :-1]], dim=1)
    return log_probs_Nk.masked_fill(before_Nk >= mass, -torch.inf)


def _drawn(weights_NV: Tensor, draws: int, keys_N: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return drawn ids (N, S) and the log of their share of the draws; -inf in unused slots."""
    assert keys_N is not None
    ids_NS, counts_NS = draw(weights_NV, keys_N, draws)
    return ids_NS, (counts_NS.float() / draws).log()


def _scalars(softmax: _Softmax, gold_N: Tensor, keep: Keep) -> dict[str, Tensor]:
    below_NV, weights_NV, log_total_N1 = softmax.below_NV, softmax.weights_NV, softmax.log_total_N1
    gold_logits_N1 = softmax.logits_NV.gather(1, gold_N[:, None])
    scalars = {
        "logsumexp": (softmax.highest_N1 + log_total_N1)[:, 0],
        "entropy": log_total_N1[:, 0] - torch.linalg.vecdot(weights_NV, below_NV) / weights_NV.sum(dim=1),
        "gold_logprob": softmax.log_probs(gold_logits_N1)[:, 0],
    }
    for temperature in keep.temperatures:
        tempered_N = ((softmax.logits_NV - softmax.highest_N1) / temperature).exp().sum(dim=1).log()
        scalars[tempered_name(temperature)] = softmax.highest_N1[:, 0] / temperature + tempered_N
    if "gold_rank" in keep.scalars:
        scalars["gold_rank"] = (softmax.logits_NV > gold_logits_N1).sum(dim=1).float()
    if any(name.startswith("tail_") for name in keep.scalars):
        scalars |= {name: values for name, values in _tail(softmax.logits_NV, keep.k).items() if name in keep.scalars}
    return scalars


def _tail(logits_NV: Tensor, k: int) -> dict[str, Tensor]:
    """Return what TAIL_SCALARS names; 0 where no other token is possible."""
    top_Nk = logits_NV.topk(min(k, logits_NV.shape[1]), dim=1).indices
    outside_NV = torch.isfinite(logits_NV).scatter_(1, top_Nk, False)
    count_N = outside_NV.sum(dim=1).clamp(min=1)
    mean_N = torch.where(outside_NV, logits_NV, 0).sum(dim=1) / count_N
    squares_NV = torch.where(outside_NV, logits_NV - mean_N[:, None], 0).square()
    minimum_N = torch.where(outside_NV, logits_NV, torch.inf).amin(dim=1)
    lowest_N = torch.where(outside_NV.any(dim=1), minimum_N, 0)
    return dict(zip(TAIL_SCALARS, (mean_N, squares_NV.sum(dim=1) / count_N, lowest_N), strict=True))
