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
from pipeline.topk import top_k

# N: positions of a chunk, V: vocabulary, k: slots of a row, S: draws per position

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

    def named(self) -> dict[str, Tensor]:
        """Return all of it by name, ids in half their width."""
        return {
            "ids": self.ids.int(),
            "log_probs": self.log_probs,
            "log_left_out": self.log_left_out,
            **self.scalars,
        }


@dataclass(frozen=True)
class _Softmax:
    """Logits with their softmax taken apart, so that each piece is computed once.

    Attributes:
        highest_N1: Highest logit of each row.
        below_NV: Logits minus the highest.
        probabilities_NV: Their softmax, until ``_scalars`` uses the space for something else.
        log_total_N1: Log of the sum of exp(below).
    """

    highest_N1: Tensor
    below_NV: Tensor
    probabilities_NV: Tensor
    log_total_N1: Tensor

    @classmethod
    def of(cls, logits_NV: Tensor, best_N1: Tensor, scratch_NV: Tensor) -> "_Softmax":
        """Take the softmax of logits apart, in place; ``best_N1`` says where each row's highest stands."""
        highest_N1 = logits_NV.gather(1, best_N1)
        below_NV = logits_NV.sub_(highest_N1)
        torch.softmax(below_NV, dim=1, out=scratch_NV)  # one fused pass, where exp and sum take three
        log_total_N1 = -scratch_NV.gather(1, best_N1).log()  # the highest has exp(0) / total
        return cls(highest_N1, below_NV, scratch_NV, log_total_N1)


def sparse_targets(
    logits_NV: Tensor,
    gold_N: Tensor,
    keep: Keep,
    keys_N: Tensor | None = None,
    scratch_NV: Tensor | None = None,
) -> SparseTargets:
    """Keep what was asked for of each row.

    Args:
        logits_NV: (N, V) float32; overwritten.
        gold_N: (N,) int64, the token that each position should predict.
        keep: What to keep.
        keys_N: (N,) int64 from ``draws.position_keys``; for kinds that draw.
        scratch_NV: (N, V) float32 to work in. Fresh memory of this size costs more than the softmax, so a
            caller with many chunks brings its own.
    """
    vocabulary = logits_NV.shape[1]
    k = {"dense": vocabulary, "sampled": 1}.get(keep.kind, min(keep.k, vocabulary))
    top_Nk, ids_Nk = top_k(logits_NV, k)
    softmax = _Softmax.of(logits_NV, ids_Nk[:, :1], torch.empty_like(logits_NV) if scratch_NV is None else scratch_NV)
    if keep.kind == "sampled":
        ids_Nk, log_probs_Nk = _drawn(softmax.probabilities_NV, keep.draws, keys_N)
        log_left_out_N = torch.full_like(gold_N, -torch.inf, dtype=torch.float32)
    else:
        log_probs_Nk = top_Nk - softmax.highest_N1 - softmax.log_total_N1
        if keep.kind == "topp":
            log_probs_Nk = _up_to_mass(log_probs_Nk, keep.p)
        log_left_out_N = _left_out(log_probs_Nk, everything=k == vocabulary and keep.kind != "topp")
    if keep.kind == "hybrid":
        rest_NV = softmax.probabilities_NV.scatter(1, ids_Nk, 0)
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
    """Return the scalars asked for; the probabilities are overwritten."""
    below_NV, highest_N, log_total_N = softmax.below_NV, softmax.highest_N1[:, 0], softmax.log_total_N1[:, 0]
    work_NV = softmax.probabilities_NV
    gold_N1 = below_NV.gather(1, gold_N[:, None])
    scalars = {
        "logsumexp": highest_N + log_total_N,
        "entropy": log_total_N - work_NV.mul_(below_NV).nansum(dim=1),  # an impossible token: 0 * -inf
        "gold_logprob": gold_N1[:, 0] - log_total_N,
    }
    for temperature in keep.temperatures:
        tempered_N = torch.div(below_NV, temperature, out=work_NV).exp_().sum(dim=1).log()
        scalars[tempered_name(temperature)] = highest_N / temperature + tempered_N
    if "gold_rank" in keep.scalars:
        scalars["gold_rank"] = (below_NV > gold_N1).sum(dim=1).float()
    if any(name.startswith("tail_") for name in keep.scalars):
        tail = _tail(below_NV, highest_N, keep.k)
        scalars |= {name: values for name, values in tail.items() if name in keep.scalars}
    return scalars


def _tail(below_NV: Tensor, highest_N: Tensor, k: int) -> dict[str, Tensor]:
    """Return what TAIL_SCALARS names; 0 where no other token is possible."""
    _, top_Nk = top_k(below_NV, min(k, below_NV.shape[1]))
    outside_NV = torch.isfinite(below_NV).scatter_(1, top_Nk, False)
    any_N, count_N = outside_NV.any(dim=1), outside_NV.sum(dim=1).clamp(min=1)
    mean_N = torch.where(outside_NV, below_NV, 0).sum(dim=1) / count_N
    squares_NV = torch.where(outside_NV, below_NV - mean_N[:, None], 0).square()
    minimum_N = torch.where(outside_NV, below_NV, torch.inf).amin(dim=1)
    mean_N, minimum_N = (torch.where(any_N, values_N + highest_N, 0) for values_N in (mean_N, minimum_N))
    return dict(zip(TAIL_SCALARS, (mean_N, squares_NV.sum(dim=1) / count_N, minimum_N), strict=True))
