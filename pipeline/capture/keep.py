"""Turn logits into what the cache keeps: a sparse target and scalars, in float32.

Masses are computed from the log-normaliser of the full vocabulary, so the left-out mass is exact even when k is small.
It is the sum of all other probabilities, and not 1 minus the sum of the kept ones: 64 float32 probabilities may sum to
1 although other tokens are possible, and a left-out mass of 0 would declare these impossible. Kinds: ``topk`` keeps the
k most likely tokens, ``topp`` the fewest of them that reach a mass p, ``sampled`` N draws with replacement (RS-KD,
arXiv 2503.16870), ``hybrid`` the k most likely exactly and N draws from the rest, ``dense`` all.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cache_tools.format.layout import ENTROPY, GOLD_LOGPROB, GOLD_RANK, LOGSUMEXP, SCALARS, TAIL_SCALARS, tempered_name
from cache_tools.format.manifest import Kind
from pipeline.capture.draws import draw
from pipeline.capture.topk import top_k
from pipeline.teachers.restriction import Restriction

# N: positions of a chunk, M: of a part of it, V: vocabulary, k: slots of a row, S: draws per position


@dataclass(frozen=True)
class Keep:
    """What is kept of a distribution.

    Attributes:
        kind: Kind of the target.
        k: Most likely tokens kept (``topp``: at most); all of a smaller vocabulary.
        p: Mass that ``topp`` keeps.
        draws: Draws per position, for ``sampled`` and ``hybrid``.
        seed: Seed of the random draws.
        temperatures: For each, the log-normaliser of the logits divided by it is kept.
        scalars: Which of ``gold_rank`` and TAIL_SCALARS are kept.
        restriction: The tokens that the distribution is over, if not all.
        common: Which of SCALARS the teacher can give.
    """

    kind: Kind = Kind.TOPK
    k: int = 64
    p: float = 1.0
    draws: int = 0
    seed: int = 0
    temperatures: tuple[float, ...] = ()
    scalars: tuple[str, ...] = ()
    restriction: Restriction | None = None
    common: tuple[str, ...] = field(default_factory=lambda: SCALARS)

    @property
    def scalar_names(self) -> list[str]:
        """Names of all scalars that are kept per position, in the order of the manifest."""
        return [*self.common, *map(tempered_name, self.temperatures), *self.scalars]

    def tokens(self, vocabulary_size: int) -> int:
        """Return how many tokens the distribution is over."""
        return vocabulary_size if self.restriction is None else len(self.restriction.kept)

    def slots(self, vocabulary_size: int) -> int:
        """Return how many entries a row can hold."""
        if self.kind.is_whole:
            return vocabulary_size
        head = min(self.k, self.tokens(vocabulary_size)) if self.kind.has_head else 0
        return head + (self.draws if self.kind.is_drawn else 0)


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


def sparse_targets(
    logits_NV: Tensor,
    gold_N: Tensor,
    keep: Keep,
    keys_N: Tensor | None = None,
    scratch_MV: Tensor | None = None,
) -> SparseTargets:
    """Return what is kept of each row.

    Args:
        logits_NV: (N, V) float32; overwritten.
        gold_N: (N,) int64, the token that each position should predict.
        keep: What to keep.
        keys_N: (N,) int64 from ``draws.position_keys``; for kinds that draw.
        scratch_MV: (M, V) float32 to work in. M rows are processed at a time; with M = N / 2 both arrays
            stay in a CPU's caches. Allocating this much costs more than the softmax, so a caller with many chunks
            passes the same array each time.
    """
    if keep.restriction is not None and not keep.kind.is_whole:
        return _of_kept_tokens(logits_NV, gold_N, keep, keep.restriction, keys_N, scratch_MV)
    if keep.restriction is not None:
        logits_NV, gold_N = keep.restriction.logits(logits_NV), keep.restriction.gold(gold_N)
    vocabulary, tokens = logits_NV.shape[1], keep.tokens(logits_NV.shape[1])
    k = min(keep.k, tokens) if keep.kind.has_head else vocabulary if keep.kind.is_whole else 1
    top_Nk, ids_Nk = top_k(logits_NV, k)
    highest_N1, gold_N1 = top_Nk[:, :1].clone(), logits_NV.gather(1, gold_N[:, None])
    sums = _in_parts(logits_NV, ids_Nk, highest_N1, gold_N1, keys_N, keep, scratch_MV)
    log_total_N1 = -sums.share_of_highest_M.log()[:, None]  # the highest has exp(0) / total
    log_probs_Nk = top_Nk - highest_N1 - log_total_N1
    if keep.kind.has_mass:
        log_probs_Nk = _up_to_mass(log_probs_Nk, keep.p)
    log_left_out_N = _left_out(sums.log_others_M, top_Nk - highest_N1 - log_total_N1, log_probs_Nk)
    scalars = {
        LOGSUMEXP: (highest_N1 + log_total_N1)[:, 0],
        ENTROPY: log_total_N1[:, 0] - sums.mean_below_M,
        GOLD_LOGPROB: (gold_N1 - highest_N1 - log_total_N1)[:, 0],
    }
    if sums.draws is not None:
        head = (ids_Nk, log_probs_Nk, log_left_out_N) if keep.kind.has_head else None
        ids_Nk, log_probs_Nk = _joined(head, sums.draws)
        log_left_out_N = torch.full_like(log_left_out_N, -torch.inf)
    return SparseTargets(ids_Nk, log_probs_Nk, log_left_out_N, scalars | sums.scalars)


def _of_kept_tokens(
    logits_NV: Tensor,
    gold_N: Tensor,
    keep: Keep,
    restriction: Restriction,
    keys_N: Tensor | None,
    scratch_MV: Tensor | None,
) -> SparseTargets:
    """Return what is kept of the distribution over a restriction's n tokens, of their columns alone."""
    columns_n = restriction.columns.to(logits_NV.device)
    kept_Nn, scratch_Mn = logits_NV.index_select(1, columns_n), None
    if scratch_MV is not None:
        rows, n = scratch_MV.numel() // len(columns_n), len(columns_n)
        scratch_Mn = scratch_MV.flatten()[: rows * n].view(rows, n)
    gold_N = restriction.gold_columns(gold_N)
    made = sparse_targets(kept_Nn, gold_N, replace(keep, restriction=None), keys_N, scratch_Mn)
    return replace(made, ids=columns_n[made.ids])


@dataclass(frozen=True)
class _Draws:
    """Drawn tokens of M rows.

    Attributes:
        ids_MS: (M, S) int64.
        log_shares_MS: (M, S) float32, log of each token's share of the draws; -inf in slots and rows without any.
    """

    ids_MS: Tensor
    log_shares_MS: Tensor


@dataclass(frozen=True)
class _RowSums:
    """Quantities that are computed from whole rows.

    Attributes:
        share_of_highest_M: (M,) probability of the likeliest token.
        log_others_M: (M,) log of the mass of the tokens that are not among the k likeliest.
        mean_below_M: (M,) mean of the logits less the highest, under the distribution.
        draws: Drawn tokens, for kinds that draw.
        scalars: (M,) each, those that the target names, by name.
    """

    share_of_highest_M: Tensor
    log_others_M: Tensor
    mean_below_M: Tensor
    draws: _Draws | None
    scalars: dict[str, Tensor]


def _concatenated(parts: list[_RowSums]) -> _RowSums:
    draws = [part.draws for part in parts if part.draws is not None]
    return _RowSums(
        torch.cat([part.share_of_highest_M for part in parts]),
        torch.cat([part.log_others_M for part in parts]),
        torch.cat([part.mean_below_M for part in parts]),
        _Draws(torch.cat([d.ids_MS for d in draws]), torch.cat([d.log_shares_MS for d in draws])) if draws else None,
        {name: torch.cat([part.scalars[name] for part in parts]) for name in parts[0].scalars},
    )


def _left_out(log_others_N: Tensor, log_top_Nk: Tensor, log_probs_Nk: Tensor) -> Tensor:
    """Return the log of the mass outside a row: of the tokens behind the k likeliest, and of emptied slots."""
    emptied_Nk = log_top_Nk.masked_fill(log_probs_Nk > -torch.inf, -torch.inf)
    return torch.cat([emptied_Nk, log_others_N[:, None]], dim=1).logsumexp(dim=1)


def _up_to_mass(log_probs_Nk: Tensor, mass: float) -> Tensor:
    """Empty the slots behind the first that reaches a mass; the rows' probabilities fall."""
    reached_Nk = log_probs_Nk.exp().cumsum(dim=1)
    before_Nk = torch.cat([torch.zeros_like(reached_Nk[:, :1]), reached_Nk[:, :-1]], dim=1)
    return log_probs_Nk.masked_fill(before_Nk >= mass, -torch.inf)


def _joined(head: tuple[Tensor, Tensor, Tensor] | None, draws: _Draws) -> tuple[Tensor, Tensor]:
    """Return the ids and log weights of draws, after those of a head whose left-out mass the draws share."""
    if head is None:
        return draws.ids_MS, draws.log_shares_MS
    ids_Nk, log_probs_Nk, log_left_out_N = head
    log_weights_NS = draws.log_shares_MS + log_left_out_N[:, None]
    return torch.cat([ids_Nk, draws.ids_MS], dim=1), torch.cat([log_probs_Nk, log_weights_NS], dim=1)


def _in_parts(
    logits_NV: Tensor,
    ids_Nk: Tensor,
    highest_N1: Tensor,
    gold_N1: Tensor,
    keys_N: Tensor | None,
    keep: Keep,
    scratch_MV: Tensor | None,
) -> _RowSums:
    """Return what ``_whole_rows`` computes, for as many rows at a time as there is memory for."""
    scratch_MV = torch.empty_like(logits_NV) if scratch_MV is None else scratch_MV
    size, count, parts = len(scratch_MV), len(logits_NV), []
    for start in range(0, count, size):
        part = slice(start, min(start + size, count))
        keys_M = None if keys_N is None else keys_N[part]
        rows = (logits_NV[part], ids_Nk[part], highest_N1[part], gold_N1[part], keys_M)
        parts.append(_whole_rows(*rows, keep, scratch_MV))
    return parts[0] if len(parts) == 1 else _concatenated(parts)


def _whole_rows(
    logits_MV: Tensor,
    ids_Mk: Tensor,
    highest_M1: Tensor,
    gold_M1: Tensor,
    keys_M: Tensor | None,
    keep: Keep,
    room_MV: Tensor,
) -> _RowSums:
    """Return all that takes whole rows to compute; each logit is replaced by its difference from the highest."""
    below_MV, work_MV = logits_MV.sub_(highest_M1), room_MV[: len(logits_MV)]
    torch.exp(below_MV, out=work_MV)  # weights of any sum will do: softmax takes two more passes
    total_M = work_MV.sum(dim=1)  # of the whole row, so that it does not depend on k
    kept_Mk, kept_below_Mk = work_MV.gather(1, ids_Mk), below_MV.gather(1, ids_Mk)
    draws = _drawn(work_MV, keep.draws, keys_M) if keep.kind.is_drawn and not keep.kind.has_head else None
    work_MV.scatter_(1, ids_Mk, 0)
    log_others_M = _log_others(work_MV.sum(dim=1) / total_M, below_MV, kept_below_Mk)
    if keep.kind.is_drawn and keep.kind.has_head:
        draws = _drawn(work_MV, keep.draws, keys_M)
    kept_below_M = (kept_Mk * kept_below_Mk).nansum(dim=1)  # an impossible token: 0 * -inf
    mean_below_M = (kept_below_M + work_MV.mul_(below_MV).nansum(dim=1)) / total_M
    scalars = _further_scalars(below_MV, highest_M1, gold_M1, keep, work_MV)
    return _RowSums(kept_Mk[:, 0] / total_M, log_others_M, mean_below_M, draws, scalars)


def _further_scalars(
    below_MV: Tensor, highest_M1: Tensor, gold_M1: Tensor, keep: Keep, work_MV: Tensor
) -> dict[str, Tensor]:
    """Return the scalars that a target names, (M,) each, by name."""
    scalars = {}
    for temperature in keep.temperatures:
        tempered_M = torch.div(below_MV, temperature, out=work_MV).exp_().sum(dim=1).log()
        scalars[tempered_name(temperature)] = highest_M1[:, 0] / temperature + tempered_M
    if GOLD_RANK in keep.scalars:
        scalars[GOLD_RANK] = (below_MV > gold_M1 - highest_M1).sum(dim=1).float()
    if set(TAIL_SCALARS) & set(keep.scalars):
        tail = _tail(below_MV, highest_M1[:, 0], keep.k)
        scalars |= {name: values for name, values in tail.items() if name in keep.scalars}
    return scalars


def _log_others(others_M: Tensor, below_MV: Tensor, kept_below_Mk: Tensor) -> Tensor:
    """Return the log of the other tokens' mass (M,), -inf only if none of them is possible.

    Where their probabilities underflow it is the smallest that float32 holds, or as much as that many tokens can
    have that are no likelier than the last kept one.
    """
    log_others_M = others_M.log()
    underflow_M = others_M == 0
    if others_M.device.type == "cpu" and not underflow_M.any():  # elsewhere asking would wait for the device
        return log_others_M
    possible_M = torch.isfinite(below_MV).sum(dim=1) - torch.isfinite(kept_below_Mk).sum(dim=1)
    most_M = possible_M.log() + kept_below_Mk.amin(dim=1)
    return torch.where(underflow_M, most_M.clamp(max=math.log(torch.finfo(torch.float32).tiny)), log_others_M)


def _drawn(weights_MV: Tensor, draws: int, keys_M: Tensor | None) -> _Draws:
    assert keys_M is not None
    ids_MS, counts_MS = draw(weights_MV, keys_M, draws)
    shares_MS = (counts_MS.float() / draws).log()
    return _Draws(ids_MS, torch.where(weights_MV.any(dim=1)[:, None], shares_MS, -torch.inf))


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
