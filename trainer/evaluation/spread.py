"""How a divergence spreads over positions: its mean with an interval, and its percentiles.

A mean hides what users of a quantised model notice: the few positions at which it predicts something else. So the
values of all positions are kept, 4 bytes each, and the percentiles are exact, with linear interpolation between
neighbours as ``numpy.quantile`` has it.

The interval is a bootstrap over groups of documents, which are held out as a whole: positions of one document are not
independent, and an interval over positions would be too narrow. It covers the choice of documents and nothing else.
Rejected: a normal interval, because divergences have a long tail and documents are often few.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.results import Spread

DRAWS = 2_000
"""Number of bootstrap resamplings; the ends of a 95 % interval then vary by a few per cent of its width."""

BLOCK_ENTRIES = 2**22
"""Document numbers drawn at a time, so that memory stays bounded for any number of documents."""

# P: positions, D: groups of documents


def spread_of(values_P: NDArray[np.float64], groups: Sequence[tuple[str, int]]) -> Spread:
    """Return how values spread.

    Args:
        values_P: (P,) float64, P > 0, nats; one value of each position.
        groups: Group of documents and number of positions of each run of values, in the order of the values.
    """
    middle, *upper = np.quantile(values_P, [0.5, 0.9, 0.95, 0.99, 0.999, 1.0]).tolist()
    sums_D, positions_D = group_sums(values_P, groups)
    low, high = interval(sums_D, positions_D) if len(sums_D) > 1 else (None, None)
    return Spread(float(values_P.mean()), low, high, len(sums_D), middle, *upper)


def group_sums(
    values_P: NDArray[np.float64], groups: Sequence[tuple[str, int]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sum of the values and the number of positions of each group of documents, (D,) float64 each."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in groups))}
    group_P = np.repeat([numbers[name] for name, _ in groups], [positions for _, positions in groups])
    counts = np.bincount(group_P, minlength=len(numbers))
    has_positions = counts > 0
    sums: NDArray[np.float64] = np.bincount(group_P, weights=values_P, minlength=len(numbers)).astype(np.float64)
    return sums[has_positions], counts[has_positions].astype(np.float64)


def interval(sums_D: NDArray[np.float64], positions_D: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of a mean over positions, by drawing D groups with replacement from a fixed seed.

    Args:
        sums_D: (D,) sum of the values of each group, D > 1.
        positions_D: (D,) number of positions of each group, above 0.
    """
    random, means = np.random.default_rng(0), list[NDArray[np.float64]]()
    block = max(1, BLOCK_ENTRIES // len(sums_D))
    for start in range(0, DRAWS, block):
        drawn = random.integers(len(sums_D), size=(min(block, DRAWS - start), len(sums_D)))
        means.append(sums_D[drawn].sum(axis=1) / positions_D[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975]).tolist()
    return low, high
