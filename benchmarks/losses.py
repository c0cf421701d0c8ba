"""Compare the distillation loss with cross-entropy, forward and backward, in seconds of CPU or GPU.

Run: ``python -m benchmarks.losses [DEVICE]``. The first column is the loss that
training uses, ghost and forward KL; the two after it are alternatives that ``trainer/losses/masses.py`` rejects. The
last is the rank distance of students with their own tokenizer, without the cross-entropy that the others compute too.
"""

import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config.student_file import LossConfig
from trainer.losses.ranks import rank_distance
from trainer.losses.sparse import divergence
from trainer.losses.tails import SparseTargets

SHAPES = ((2048, 32_000), (512, 151_936))
K = 64
REPEATS = 3

Loss = Callable[[Tensor, SparseTargets], Tensor]


def main(device: str = "cpu") -> None:
    """Print one row per shape and type."""
    torch.set_num_threads(1)
    losses: dict[str, Loss] = {
        "ours": lambda z, t: divergence(z, t, t.ids[:, 0], LossConfig()),
        "subtraction": subtracted,
        "masked": masked,
        "cross-entropy": lambda z, t: F.cross_entropy(z.float(), t.ids[:, 0], reduction="none"),
    }
    losses |= {
        kind: lambda z, t, kind=kind: divergence(z, t, t.ids[:, 0], LossConfig(divergence=kind))  # type: ignore[misc]
        for kind in ("jensen_shannon", "total_variation")
    }
    losses["ranks"] = lambda z, t: rank_distance(z, t.log_probs, t.log_left_out.exp())
    print(f"{'logits':28}", *(f"{name:>15}" for name in losses))
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            logits = (3 * torch.randn(*shape, device=device)).to(dtype).requires_grad_()
            top = (3 * torch.randn(*shape, device=device)).log_softmax(dim=1).topk(K, dim=1)
            left_out = (1 - top.values.exp().sum(dim=1)).log()
            targets = SparseTargets(top.indices, top.values, left_out)
            seconds = [best_seconds(loss, logits, targets) for loss in losses.values()]
            print(f"{shape!s:16} {str(dtype)[6:]:11}", *(f"{value:15.4f}" for value in seconds), flush=True)


def subtracted(logits: Tensor, targets: SparseTargets) -> Tensor:
    """Return ghost KL with the student's rest as 1 - sum, by autograd."""
    logits = logits.float()
    log_q = logits.gather(1, targets.ids) - logits.logsumexp(dim=1, keepdim=True)
    log_rest = (1 - log_q.exp().sum(dim=1)).clamp(min=1e-7).log()
    return _kl(targets, log_q, log_rest)


def masked(logits: Tensor, targets: SparseTargets) -> Tensor:
    """Return ghost KL with the rest from one masked logsumexp, by autograd."""
    logits = logits.float()
    kept = logits.gather(1, targets.ids)
    rest = logits.scatter(1, targets.ids, -torch.inf).logsumexp(dim=1)
    normaliser = torch.logaddexp(rest, kept.logsumexp(dim=1))
    return _kl(targets, kept - normaliser[:, None], rest - normaliser)


def _kl(targets: SparseTargets, log_q: Tensor, log_rest: Tensor) -> Tensor:
    kept = (targets.log_probs.exp() * (targets.log_probs - log_q)).sum(dim=1)
    return kept + targets.log_left_out.exp() * (targets.log_left_out - log_rest)


def best_seconds(loss: Loss, logits: Tensor, targets: SparseTargets) -> float:
    """Return the fewest seconds of a forward and backward pass; of this process on a CPU, of the clock on a GPU."""
    clock = time.process_time if logits.device.type == "cpu" else time.perf_counter
    taken = []
    for _ in range(REPEATS + 1):
        _wait(logits)
        start = clock()
        torch.autograd.grad(loss(logits, targets).sum(), logits)
        _wait(logits)
        taken.append(clock() - start)
    return min(taken[1:])


def _wait(tensor: Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
