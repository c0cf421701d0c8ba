"""The recipe's two tables: the experts' weights, and the students. Intervals are of 95 %."""

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from configs.papers.cohesive.convergence import Curve, common_mark
from configs.papers.cohesive.weights import (
    RULES,
    Floats,
    HeldOut,
    by_sequence,
    matching_weight,
    nats,
    over_sequences,
    weights,
)
from configs.papers.recipes import Interval, over_seeds, over_seeds_and_items

TEXT_ALONE = "text alone"


def print_weights(sample: HeldOut, experts: Sequence[str]) -> None:
    """Print, for each expert and rule, the weights, and the mixture's cross-entropy on the gold tokens."""
    one_hot = np.eye(len(experts))
    rows: dict[str, Floats] = {
        f"{name} alone": one_hot[np.full_like(sample.matching_N, i)] for i, name in enumerate(experts)
    }
    rows["the domain's own"] = one_hot[sample.matching_N]
    rows |= {name: weights(sample, rule) for name, rule in RULES.items()}
    rows["entropy, mean of the sequence"] = weights(over_sequences(sample), "entropy")
    columns = ("weights", "own expert's weight is larger", "its mean weight", *experts, "all", "all, minus uniform")
    table = Table(*columns, title=f"held-out cross-entropy of mixtures, nats; {len(sample.matching_N):,} positions")
    uniform_N = nats(sample, rows["uniform"])
    for name, weights_NT in rows.items():
        nats_N = nats(sample, weights_NT)
        own_N = matching_weight(sample, weights_NT)
        means = [nats_N[sample.matching_N == i].mean() for i in range(len(experts))]
        gain = over_seeds_and_items(by_sequence(sample, nats_N - uniform_N)[None])
        cells = (f"{np.mean(own_N > 1 / len(experts)):.1%}", f"{own_N.mean():.3f}")
        table.add_row(name, *cells, *(f"{mean_nats:.3f}" for mean_nats in (*means, nats_N.mean())), str(gain))
    Console(width=140).print(table)


def print_students(curves: dict[str, list[Curve]], single: Sequence[str]) -> None:
    """Print where each student ended, and when it passed the mark that all students reached.

    Args:
        curves: By arm, one of each seed.
        single: Arms of one expert; the mixtures are compared with the better of these arms.
    """
    mark = common_mark([curve for arm in curves.values() for curve in arm])
    final = {arm: np.array([curve.nats[-1] for curve in arm_curves]) for arm, arm_curves in curves.items()}
    steps = {arm: np.array([curve.steps_to(mark) for curve in arm_curves]) for arm, arm_curves in curves.items()}
    best = min(single, key=lambda arm: final[arm].mean())
    columns = ("student", "nats", f"minus {TEXT_ALONE}", f"minus {best}", f"steps to {mark:.3f}", f"of {TEXT_ALONE}'s")
    seeds = len(final[TEXT_ALONE])
    table = Table(
        *columns, title=f"held-out cross-entropy after {curves[TEXT_ALONE][0].steps[-1]} steps; {seeds} seeds"
    )
    for arm in curves:
        gains = [over_seeds(final[arm] - final[other]) for other in (TEXT_ALONE, best)]
        share = over_seeds(steps[arm] / steps[TEXT_ALONE])
        table.add_row(arm, f"{final[arm].mean():.3f}", *map(str, gains), f"{steps[arm].mean():.0f}", percent(share))
    Console(width=140).print(table)
    gap = over_seeds(final["entropy"] - final["gold likelihood"])
    Console(width=140).print(f"entropy, which sees no gold token, minus gold likelihood: {gap} nats")


def percent(share: Interval) -> str:
    """Return an interval of a ratio for people."""
    return f"{share.mean:.0%} [{share.low:.0%}, {share.high:.0%}]"
