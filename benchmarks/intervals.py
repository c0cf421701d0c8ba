"""Student's t intervals of means over seeds, for any number of seeds.

The probability that |T| stays below t has a closed form for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and
26.7.4): with ``theta = atan(t / sqrt(freedom))`` it is a sum of about ``freedom / 2`` powers of ``cos(theta)``. Its
inverse is found by bisection. Rejected: typed tables, which end somewhere; scipy, a dependency for one function.
"""

import math
import statistics
from collections.abc import Sequence
from functools import cache

BISECTIONS = 60
"""Halvings of an interval of angles; float64 has no more digits."""


def central_probability(theta: float, freedom: int) -> float:
    """Return the probability that |T| is below ``sqrt(freedom) * tan(theta)``.

    Args:
        theta: Angle in [0, pi / 2].
        freedom: Degrees of freedom, at least 1.
    """
    sine, cosine = math.sin(theta), math.cos(theta)
    is_odd = freedom % 2 == 1
    term = cosine if is_odd else 1.0
    total = 0.0
    for power in range(2 if is_odd else 1, freedom, 2):
        total += term
        term *= cosine**2 * power / (power + 1)
    return 2 / math.pi * (theta + sine * total) if is_odd else sine * total


@cache
def t_quantile(freedom: int, level: float = 0.95) -> float:
    """Return how many standard errors a two-sided interval reaches to each side.

    Args:
        freedom: Degrees of freedom: one less than the number of values, at least 1.
        level: Probability that the interval holds the mean, in (0, 1).

    Raises:
        ValueError: There are no degrees of freedom.
    """
    if freedom < 1:
        raise ValueError("an interval needs at least two values")
    low, high = 0.0, math.pi / 2
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if central_probability(middle, freedom) < level else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of two values or more, and half the width of its 95 % interval."""
    standard_error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), t_quantile(len(values) - 1) * standard_error
