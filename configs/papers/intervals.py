"""Intervals of 95 % over seeds, and over seeds and test items, and the pairing of two students by their seeds.

Over seeds alone an interval is Student's t. Over S seeds and N items, both a sample, the means differ for two reasons:
another seed, which no number of items makes smaller, and other items. The first part enters by Student's t with S - 1
degrees of freedom, the second by its own t with N - 1::

    half width^2 = t(S - 1)^2 * V_seeds + t(N - 1)^2 * max(0, V_items - V_noise)

``V_seeds`` is the squared standard error of the seeds' means, ``V_items`` that of the items' means, and ``V_noise``,
the part of both that is neither seed nor item, is counted once. In a simulation of three seeds that differ by nothing
up to six times as much as the items' standard error, 95 to 98 % of these intervals hold the mean
(``tests/test_papers_shared.py``). Rejected: the bootstrap over seeds and items, which the recipes used before.
Resamples of three seeds differ too little: of its 95 % intervals 90 % held the mean at three times, 80 % at six times,
and of five seeds 89 % at six times. One seed alone has no ``V_seeds``; its interval covers the items, and no other
seed.

Students are paired by the number of their seed, never by their place in a list: a student that is missing would
otherwise shift all that follow.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.intervals import t_interval, t_quantile

Mine = TypeVar("Mine")
Other = TypeVar("Other")

# S: seeds, N: items


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def over_seeds(values: Sequence[float] | NDArray[Any]) -> Interval:
    """Return mean and t-interval of one number per seed; two seeds at least."""
    mean, half_width = t_interval([float(value) for value in values])
    return Interval(mean, mean - half_width, mean + half_width)


def over_seeds_and_items(values_SN: NDArray[Any]) -> Interval:
    """Return mean and interval of a difference that was measured by S seeds on the same N items.

    Args:
        values_SN: (S, N), the paired difference of each seed on each item; two items at least.
    """
    values = np.asarray(values_SN, np.float64)
    seeds, items = values.shape
    mean, seeds_S, items_N = float(values.mean()), values.mean(axis=1), values.mean(axis=0)
    of_items = items_N.var(ddof=1) / items
    squared = t_quantile(items - 1) ** 2 * of_items
    if seeds > 1:
        rest_SN = values - seeds_S[:, None] - items_N + mean
        noise = (rest_SN**2).sum() / ((seeds - 1) * (items - 1)) / (seeds * items)
        of_seeds = seeds_S.var(ddof=1) / seeds
        squared = t_quantile(seeds - 1) ** 2 * of_seeds + t_quantile(items - 1) ** 2 * max(0.0, of_items - noise)
    half_width = float(np.sqrt(squared))
    return Interval(mean, mean - half_width, mean + half_width)


def paired(mine: Mapping[int, Mine], others: Mapping[int, Other]) -> list[tuple[Mine, Other]]:
    """Return what two students measured, side by side, for each seed that both have, in the order of the seeds."""
    return [(mine[seed], others[seed]) for seed in sorted(mine.keys() & others.keys())]


def differences(mine: Mapping[int, Any], others: Mapping[int, Any]) -> NDArray[np.float64]:
    """Return the differences of two students by seed: (S,) of numbers, (S, N) of arrays over N items."""
    return np.array([np.asarray(a, np.float64) - np.asarray(b, np.float64) for a, b in paired(mine, others)])
