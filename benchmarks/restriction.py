"""What a smaller vocabulary saves behind the teacher's head: ``python -m benchmarks.restriction``.

The logits of all tokens are there, and a target is made of those over the kept ones: from their columns, as a capture
does, and with -inf in the other columns, which is what one would write first. *Scalars* adds two log-normalisers and
the lowest logit, the targets of the recipe in ``configs/papers/glmd``. Random logits; the work does not depend on them.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import click
import torch
from torch import Tensor

from pipeline.capture.keep import Keep, SparseTargets, sparse_targets
from pipeline.teachers.restriction import Restriction

VOCABULARY, POSITIONS = 30_522, 32
TARGETS = {
    "k = 20": Keep(k=20),
    "k = 20, scalars": Keep(k=20, temperatures=(5, 15), scalars=("tail_minimum",)),
}


def microseconds(make: Callable[[], object], repeats: int) -> float:
    """Return the processor time of the fastest of some calls, per position."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        make()
        seconds.append(time.process_time() - start)
    return 1e6 * min(seconds) / POSITIONS


def targets(logits_NV: Tensor, gold_N: Tensor, keep: Keep, room_MV: Tensor) -> SparseTargets:
    """Return what is kept of a copy of the logits."""
    return sparse_targets(logits_NV.clone(), gold_N, keep, None, room_MV)


def targets_with_inf(
    logits_NV: Tensor, gold_N: Tensor, keep: Keep, restriction: Restriction, room_MV: Tensor
) -> SparseTargets:
    """Return the same, with -inf in the columns that a restriction does not keep."""
    return sparse_targets(restriction.logits(logits_NV.clone()), gold_N, keep, None, room_MV)


@click.command()
@click.option("--repeats", default=20, show_default=True, help="Calls, of which the fastest counts.")
def main(repeats: int) -> None:
    """Measure targets over a part of the tokens, per position."""
    torch.set_num_threads(1)
    logits = torch.randn(POSITIONS, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 3
    gold, room = torch.zeros(POSITIONS, dtype=torch.int64), torch.empty(POSITIONS // 2, VOCABULARY)
    click.echo(f"{'target':18} {'kept tokens':>12} {'columns':>12} {'-inf elsewhere':>16}")
    for name, keep in TARGETS.items():
        for share in (1, 2, 4, 16):
            kept = torch.arange(0, VOCABULARY, share)
            part = Restriction("", kept, torch.zeros(VOCABULARY, dtype=torch.int64), "")
            columns = replace(keep, restriction=part) if share > 1 else keep
            emptied = partial(targets_with_inf, logits, gold, keep, part, room)
            taken = microseconds(partial(targets, logits, gold, columns, room), repeats)
            line = f"{name:18} {len(kept):>12,} {taken:>9.0f} us"
            if share > 1:
                line += f" {microseconds(emptied, repeats):>13.0f} us"
            click.echo(line)


if __name__ == "__main__":
    main()
