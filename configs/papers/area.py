"""The area under the curve of a score that is to tell two kinds of items apart."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def area_under_curve(scores_N: NDArray[Any], is_positive_N: NDArray[np.bool_]) -> float:
    """Return how likely a positive item scores above a negative one; ties count half.

    It is the Mann-Whitney statistic of the positive items' ranks, divided by the number of pairs.

    Args:
        scores_N: (N,), of any real type.
        is_positive_N: (N,); at least one item of each kind.
    """
    order = np.argsort(scores_N, kind="stable")
    _, inverse, counts = np.unique(scores_N[order], return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks_N = ((ends - counts + 1 + ends) / 2)[inverse]  # ties have their mean rank
    positive_N = is_positive_N[order]
    positives, negatives = int(positive_N.sum()), int((~positive_N).sum())
    return float((ranks_N[positive_N].sum() - positives * (positives + 1) / 2) / (positives * negatives))
