"""Numbers about a sample of positions: what ``inspect`` and ``report`` show.

Pure functions of columns (see ``sample``). Positions whose row is empty are left out of every number. A number over no
position, or an infinite one, is None: JSON has neither NaN nor infinity.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cache_tools.inspection.sample import Sample, SampledPredictions
from cache_tools.json_output import finite

BINS = 15
"""Bins of the calibration, all equally wide; as many as in Guo et al. (2017), so that figures compare."""

PLACE_EDGES = sorted({0, 1, *(factor << power for factor in (2, 3) for power in range(40))})
"""0, 1, 2, 3, 4, 6, 8, 12, 16, …: narrow bins where the loss changes fast, at the beginning of a sequence."""

PASSAGE_TOKENS = 48
"""Tokens of a passage; passages begin at multiples of it."""

LARGEST_EXPONENT = 700.0
"""exp of a larger number overflows a float; the loss exceeds it if gold tokens have the probability 0."""

By = Literal["folder", "group"]
"""How documents are grouped: by what precedes the first slash of their id, or by the group that is held out whole."""


@dataclass(frozen=True)
class CalibrationBin:
    """The positions whose confidence lies between two bounds.

    Attributes:
        above: Lower bound of the confidence, in [0, 1); not included.
        up_to: Upper bound, in (0, 1]; included.
        positions: Number of positions.
        accuracy: Share of positions whose likeliest token is the gold token; None in an empty bin.
        confidence: Mean probability of the likeliest token; None in an empty bin.
    """

    above: float
    up_to: float
    positions: int
    accuracy: float | None
    confidence: float | None


@dataclass(frozen=True)
class Calibration:
    """How well a teacher's confidence matches its accuracy on gold tokens.

    Attributes:
        positions: Positions that were measured.
        accuracy: Share of them at which the likeliest token is the gold token, in [0, 1].
        confidence: Mean probability of the likeliest token.
        ece: Expected calibration error, in [0, 1].
        bins: BINS bins of equal width.
    """

    positions: int
    accuracy: float
    confidence: float
    ece: float
    bins: tuple[CalibrationBin, ...]


@dataclass(frozen=True)
class DocumentGroup:
    """The positions of one group of documents.

    Attributes:
        group: Name of the group, as the corpus spells it.
        positions: How many of its positions are in the sample.
        loss_nats: Mean loss on the gold token.
        entropy_nats: Mean entropy of the teacher's distribution.
        perplexity: exp of the mean loss.
        kept_mass: Mean probability of the kept tokens together.
        accuracy: As in ``Calibration``; like the next two None where there is no calibration.
        confidence: As in ``Calibration``.
        ece: As in ``Calibration``.
    """

    group: str
    positions: int
    loss_nats: float | None
    entropy_nats: float | None
    perplexity: float | None
    kept_mass: float | None
    accuracy: float | None
    confidence: float | None
    ece: float | None


@dataclass(frozen=True)
class Place:
    """The positions whose gold token has an index from ``first`` to ``last`` in its sequence; the first token has 0."""

    first: int
    last: int
    positions: int
    loss_nats: float | None
    entropy_nats: float | None


@dataclass(frozen=True)
class Histogram:
    """Shares of values in bins of equal width: ``edges`` (bins + 1,) and ``shares`` (bins,), which sum to 1 or 0."""

    edges: list[float]
    shares: list[float]


@dataclass(frozen=True)
class SurprisingPassage:
    """PASSAGE_TOKENS tokens of a sequence from ``first_token`` on.

    Attributes:
        sequence_id: The sequence.
        first_token: Index of the passage's first token in the sequence.
        surprise_nats: Sum of the surprise over the passage, in the mean over the teachers.
        excess_nats: How much higher that is than the mean surprise of all positions at the same places.
    """

    sequence_id: int
    first_token: int
    surprise_nats: float
    excess_nats: float


def calibration(predictions: SampledPredictions, gold_ids: NDArray[np.uint32]) -> Calibration | None:
    """Return how well a teacher's confidence matches its accuracy on the gold tokens.

    Its confidence is the probability of its likeliest token; it is right if that token is the gold token. The expected
    calibration error is the mean over BINS bins of |accuracy - confidence|, weighted by positions (Guo et al. 2017,
    "On Calibration of Modern Neural Networks", equation 5).

    Args:
        predictions: The teacher's predictions at n positions.
        gold_ids: (n,) uint32.

    Returns:
        None for a teacher whose targets are draws, or whose rows are all empty.
    """
    if not predictions.exact or not predictions.nonempty.any():
        return None
    confidence = np.minimum(predictions.top1_probabilities[predictions.nonempty], 1.0)
    right = (predictions.top1_ids == gold_ids)[predictions.nonempty]
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    hits, confidences = np.bincount(bins, right, BINS), np.bincount(bins, confidence, BINS)
    return Calibration(
        positions=len(right),
        accuracy=float(right.mean()),
        confidence=float(confidence.mean()),
        ece=float(np.abs(hits - confidences).sum() / len(right)),
        bins=tuple(_bin(number, counts[number], hits[number], confidences[number]) for number in range(BINS)),
    )


def by_group(sample: Sample, predictions: SampledPredictions, by: By) -> tuple[DocumentGroup, ...]:
    """Return loss and calibration of each group of documents, the largest group first."""
    keys = [_folder(document.document_id) if by == "folder" else document.group_id for document in sample.documents]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(keys))}
    groups = np.array([numbers[key] for key in keys], dtype=np.int64)[sample.document_numbers]
    groups = np.where(predictions.nonempty, groups, -1)
    order = np.argsort(groups, kind="stable")
    _, *members = np.split(order, np.searchsorted(groups[order], np.arange(len(numbers))))
    rows = [_group(sample, predictions, name, at) for name, at in zip(numbers, members, strict=True) if len(at)]
    return tuple(sorted(rows, key=lambda row: -row.positions))


def by_place(sample: Sample, predictions: SampledPredictions) -> tuple[Place, ...]:
    """Return the loss by the index of the gold token in its sequence, for each bin of PLACE_EDGES with positions."""
    rows = []
    for first, behind in pairwise(PLACE_EDGES[: bisect_right(PLACE_EDGES, int(sample.places.max(initial=0))) + 1]):
        at = np.flatnonzero(predictions.nonempty & (sample.places >= first) & (sample.places < behind))
        if len(at):
            loss_nats, entropy_nats = _mean(predictions.loss_nats[at]), _mean(predictions.entropy_nats[at])
            rows.append(Place(first, behind - 1, len(at), loss_nats, entropy_nats))
    return tuple(rows)


def histogram(values: NDArray[np.float64], low: float, high: float, bins: int = 50) -> Histogram:
    """Return the shares of the finite values in equal bins; values outside are counted in the outermost bins."""
    counts, edges = np.histogram(np.clip(values[np.isfinite(values)], low, high), bins, (low, high))
    return Histogram(edges.tolist(), (counts / max(counts.sum(), 1)).tolist())


def agreement(sample: Sample) -> list[list[float | None]]:
    """Return the share of positions at which two teachers have the same likeliest token, for each pair of teachers.

    None where the targets of one of the two are draws, or no position has a row of both.
    """
    teachers = list(sample.predictions.values())
    return [[_same_top1(a, b) for b in teachers] for a in teachers]


def surprising(sample: Sample, count: int) -> list[SurprisingPassage]:
    """Return the passages that are more surprising than usual at their places, at most one of a document.

    A sequence is cut at multiples of PASSAGE_TOKENS; of a passage, the positions in the sample contribute. Passages are
    ranked by ``excess_nats``, the largest first. Rejected: to rank by the surprise itself, because the beginnings of
    sequences win, where every teacher lacks context; and by a mean instead of a sum, because the short last passage of
    a sequence wins by one unusual token.
    """
    losses = np.mean([predictions.loss_nats for predictions in sample.predictions.values()], axis=0)
    counted = np.all([predictions.nonempty for predictions in sample.predictions.values()], axis=0) & ~np.isnan(losses)
    if not counted.any():
        return []
    excess = losses[counted] - _usual_losses(losses[counted], sample.places[counted])
    sequences, passages = sample.sequence_ids[counted], sample.places[counted] // PASSAGE_TOKENS
    documents = sample.document_numbers[counted]
    starts = np.flatnonzero(np.diff(sequences, prepend=-1) | np.diff(passages, prepend=-1))  # rows ascend
    sums, excesses = np.add.reduceat(losses[counted], starts), np.add.reduceat(excess, starts)
    best: dict[int, SurprisingPassage] = {}
    for number in np.argsort(-excesses, kind="stable").tolist():
        row = starts[number]
        first_token = int(passages[row]) * PASSAGE_TOKENS
        passage = SurprisingPassage(int(sequences[row]), first_token, float(sums[number]), float(excesses[number]))
        best.setdefault(int(documents[row]), passage)
        if len(best) == count:
            break
    return list(best.values())


def _usual_losses(losses: NDArray[np.float64], places: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean finite loss of the positions in the same bin of PLACE_EDGES, for each position: (n,) float64."""
    bins, is_finite = np.searchsorted(PLACE_EDGES, places, side="right"), np.isfinite(losses)
    counts = np.bincount(bins[is_finite], minlength=len(PLACE_EDGES) + 1)
    sums = np.bincount(bins[is_finite], losses[is_finite], len(PLACE_EDGES) + 1)
    means: NDArray[np.float64] = sums / np.maximum(counts, 1)
    return means[bins]


def _bin(number: int, positions: int, hits: float, confidences: float) -> CalibrationBin:
    return CalibrationBin(
        above=number / BINS,
        up_to=(number + 1) / BINS,
        positions=int(positions),
        accuracy=float(hits / positions) if positions else None,
        confidence=float(confidences / positions) if positions else None,
    )


def _folder(document_id: str) -> str:
    folder, slash, _ = document_id.partition("/")
    return folder + slash


def _group(sample: Sample, predictions: SampledPredictions, name: str, at: NDArray[np.int64]) -> DocumentGroup:
    judged = calibration(predictions.at(at), sample.gold_ids[at])
    loss_nats = _mean(predictions.loss_nats[at])
    return DocumentGroup(
        group=name,
        positions=len(at),
        loss_nats=loss_nats,
        entropy_nats=_mean(predictions.entropy_nats[at]),
        perplexity=None if loss_nats is None else finite(math.exp(min(loss_nats, LARGEST_EXPONENT))),
        kept_mass=_mean(predictions.kept_mass[at]),
        accuracy=judged.accuracy if judged else None,
        confidence=judged.confidence if judged else None,
        ece=judged.ece if judged else None,
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    return finite(float(values.mean()))


def _same_top1(a: SampledPredictions, b: SampledPredictions) -> float | None:
    both = a.nonempty & b.nonempty
    if not (a.exact and b.exact and both.any()):
        return None
    return float((a.top1_ids == b.top1_ids)[both].mean())
