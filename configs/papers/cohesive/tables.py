"""The recipe's two tables: the experts' weights, and the students. Intervals are of 95 %."""

from collections.abc import Mapping, Sequence

import click
import numpy as np
from numpy.typing import NDArray

from configs.papers.area import area_under_curve
from configs.papers.cohesive.calibration import Calibration
from configs.papers.cohesive.ngrams import Counted
from configs.papers.cohesive.weights import (
    CALIBRATED,
    GOLD,
    OTHERS,
    RULES,
    Floats,
    Positions,
    by_sequence,
    matching_weight,
    nats,
    sequence_means,
    weights,
)
from configs.papers.convergence import Curves, common_mark
from configs.papers.intervals import Interval, differences, over_seeds, over_seeds_and_items, paired
from configs.papers.markdown import markdown, show

TEXT_ALONE, OWN = "text alone", "the domain's own"
WITHOUT_ANSWER = ("entropy", "sequence entropy", CALIBRATED, OTHERS, OWN)
"""Mixtures that do not use the token to be predicted; they are compared with the uniform one and the one that does."""


def print_weights(sample: Positions, experts: Sequence[str], calibration: Calibration, counted: Counted) -> None:
    """Print, for each expert and rule, the weights, and the mixture's cross-entropy on the gold tokens.

    Args:
        sample: Held-out positions.
        experts: Their names, which are those of their domains.
        calibration: From training text.
        counted: The cross-entropies of counted words, for comparison.
    """
    one_hot = np.eye(len(experts))
    rows: dict[str, Floats] = {
        f"{name} alone": one_hot[np.full_like(sample.matching_N, i)] for i, name in enumerate(experts)
    }
    rows[OWN] = one_hot[sample.matching_N]
    rows |= {name: weights(sample, rule) for name, rule in RULES.items()}
    rows |= {name: calibration.weights(name, sample) for name in calibration.rules}
    columns = ("weights", "own expert's weight is larger", "its mean weight", *experts, "all", "all, minus uniform")
    table = markdown(*columns, title=f"held-out cross-entropy of mixtures, nats; {len(sample.matching_N):,} positions")
    uniform_N = nats(sample, rows["uniform"])
    for name, nats_N in counted._asdict().items():
        table.add_row(f"{name}s of all text", "", "", *by_domain(sample, nats_N, experts))
    for name, weights_NT in rows.items():
        nats_N = nats(sample, weights_NT)
        own_N = matching_weight(sample, weights_NT)
        gain = over_seeds_and_items(by_sequence(sample, nats_N - uniform_N)[None])
        cells = (f"{np.mean(own_N > 1 / len(experts)):.1%}", f"{own_N.mean():.3f}")
        table.add_row(name, *cells, *by_domain(sample, nats_N, experts), str(gain))
    show(table)
    usual = ", ".join(f"{name} {mean:.3f}" for name, mean in zip(experts, calibration.means_T, strict=True))
    click.echo(
        f"\nOn training text: usual entropy in nats {usual}; temperature of its weights {calibration.temperature:g},"
    )
    click.echo(f"of the weights by other positions {calibration.others_temperature:g}")


def print_domains(sample: Positions, experts: Sequence[str]) -> None:
    """Print the experts' entropies and cross-entropies at home and abroad, and how well they tell two domains apart."""
    columns = ("mean over sequences, nats", *(f"{expert} on {domain}" for expert in experts for domain in experts))
    table = markdown(*columns, "area under the curve", title="What the experts know of the domain of a held-out text")
    for shown, name, sign in (("entropy", "entropy", 1), ("cross-entropy", "gold_logprob", -1)):
        means_ST, domain_S = sequence_means(sample, name)
        cells = [
            f"{sign * means_ST[domain_S == domain, expert].mean():.3f}"
            for expert in range(len(experts))
            for domain in range(len(experts))
        ]
        area = area_under_curve(sign * (means_ST[:, 1] - means_ST[:, 0]), domain_S == 0) if len(experts) == 2 else None
        table.add_row(shown, *cells, "" if area is None else f"{area:.3f}")
    show(table)


def by_domain(sample: Positions, nats_N: Floats, experts: Sequence[str]) -> list[str]:
    """Return the cells of a mean over each domain's positions, and over all."""
    means = [nats_N[sample.matching_N == i].mean() for i in range(len(experts))]
    return [f"{mean_nats:.3f}" for mean_nats in (*means, nats_N.mean())]


def print_students(curves: Curves, single: Sequence[str]) -> None:
    """Print where each student ended, and when it passed the mark that all students reached.

    Args:
        curves: The curves by arm and seed. Students are compared over the seeds that both have.
        single: Arms of one expert; the mixtures are compared with the better of these arms.
    """
    every = [curve for by_seed in curves.values() for curve in by_seed.values()]
    mark = common_mark(every)
    final = {arm: {seed: curve.nats[-1] for seed, curve in by_seed.items()} for arm, by_seed in curves.items()}
    steps = {arm: {seed: curve.steps_to(mark) for seed, curve in by_seed.items()} for arm, by_seed in curves.items()}
    best = sorted((arm for arm in single if arm in curves), key=lambda arm: np.mean([*final[arm].values()]))[:1]
    others = [*(arm for arm in curves if arm == TEXT_ALONE), *best]
    table = markdown(
        *("student", "seeds", "nats", *(f"minus {other}" for other in others)),
        *(f"steps to {mark:.3f}", *(f"of {other}'s" for other in others)),
        title=f"held-out cross-entropy after {every[0].steps[-1]} steps",
    )
    for arm in curves:
        gains = [compared(differences(final[arm], final[other])) for other in others]
        shares = [share(steps[arm], steps[other]) if arm != other else "" for other in others]
        means = (np.mean([*final[arm].values()]), np.mean([*steps[arm].values()]))
        table.add_row(arm, str(len(curves[arm])), f"{means[0]:.3f}", *gains, f"{means[1]:.0f}", *shares)
    show(table)
    for name in (name for name in WITHOUT_ANSWER if name in final):
        gaps = [
            f"minus {other}: {compared(differences(final[name], final[other]))}"
            for other in ("uniform", GOLD)
            if other in final
        ]
        if gaps:
            click.echo(f"\n{name}, which does not see the answer, in nats {'; '.join(gaps)}")


def compared(values_S: NDArray[np.float64]) -> str:
    """Return mean and interval of the differences of two arms by seed; one seed alone has no interval."""
    if len(values_S) < 2:
        return f"{values_S[0]:+.3f}" if len(values_S) else ""
    return str(over_seeds(values_S)) if values_S.any() else ""


def share(mine: Mapping[int, float], others: Mapping[int, float]) -> str:
    """Return the ratio of two arms' steps, paired by seed."""
    ratios = [a / b for a, b in paired(mine, others)]
    return percent(over_seeds(ratios)) if len(ratios) > 1 else "".join(f"{ratio:.0%}" for ratio in ratios)


def percent(share: Interval) -> str:
    """Return an interval of a ratio for people."""
    return f"{share.mean:.0%} [{share.low:.0%}, {share.high:.0%}]"
