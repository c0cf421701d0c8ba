"""Scores of glosses: by instance, whether the right candidate scored highest; by pair, the area under the curve."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from configs.papers.area import area_under_curve


class Scored(NamedTuple):
    """Pairs with a score, those of an instance side by side."""

    instances: list[str]
    """(P,) which instance a pair belongs to."""
    right_P: NDArray[np.bool_]
    """Whether the gloss is that of the sense."""
    scores_P: NDArray[np.float64]
    """The higher, the more likely."""


def scored(ids: Iterable[str], right: Iterable[bool], scores: Iterable[float]) -> Scored:
    """Return pairs with their scores; an id is that of a ``corpora.Pair``."""
    return Scored(
        [pair_id.partition("|")[0] for pair_id in ids], np.array(list(right)), np.array(list(scores), np.float64)
    )


def hits(pairs: Scored) -> NDArray[np.float64]:
    """Return for each instance, in order, whether its right candidate scored highest; ties share the hit: (N,)."""
    rows_of: dict[str, list[int]] = {}
    for row, instance in enumerate(pairs.instances):
        rows_of.setdefault(instance, []).append(row)
    return np.array([_share(pairs.scores_P[rows], pairs.right_P[rows]) for rows in rows_of.values()])


def _share(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    best = scores == scores.max()
    return float((best & right).sum() / best.sum())


def summary(pairs: Scored) -> dict[str, Any]:
    """Return ``hits`` by instance and ``area``, as they are kept in files."""
    return {"hits": hits(pairs).tolist(), "area": area_under_curve(pairs.scores_P, pairs.right_P)}
