"""Numbers about a sample of positions, as plain dictionaries: what ``inspect`` and ``report`` show.

Pure functions of columns (see ``sample``). Positions at which a teacher said nothing count nowhere, and a number
that has no position or is infinite is None, as JSON wants it.
"""

from bisect import bisect_right
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cache_tools.inspection.sample import Answers, Sample
from cache_tools.inspection.views import finite

BINS = 15
"""Of the calibration, all equally wide; the number that Guo et al. (2017) used, so that figures compare."""

PLACE_EDGES = sorted({0, 1, *(factor << power for factor in (2, 3) for power in range(40))})
"""0, 1, 2, 3, 4, 6, 8, 12, 16, …: what matters at the beginning of a sequence is soon over."""

PASSAGE_TOKENS = 48
"""Tokens of a passage, and where passages begin: at multiples of it."""

By = Literal["folder", "group"]
"""How documents are put together: by what stands before the first slash of their id, or by what is held out whole."""


def calibration(answers: Answers, gold_ids: NDArray[np.uint32]) -> dict[str, Any] | None:
    """Return how well a teacher's confidence fits how often it is right, on the gold tokens.

    Its confidence is the probability of its likeliest token; it is right if that token is the gold one. The expected
    calibration error is the mean over BINS bins of |accuracy - confidence|, weighted by positions (Guo et al. 2017,
    "On Calibration of Modern Neural Networks", equation 5).

    Args:
        answers: Of n positions.
        gold_ids: (n,) uint32.

    Returns:
        ``positions``, ``accuracy``, ``confidence``, ``ece``, and ``bins``: ``above``, ``up_to``, ``positions``,
        ``accuracy`` and ``confidence``, None in an empty bin. None for a teacher that keeps draws, or said nothing.
    """
    if not answers.exact or not answers.said.any():
        return None
    confidence = np.minimum(answers.top1_probabilities[answers.said], 1.0)
    right = (answers.top1_ids == gold_ids)[answers.said]
    numbers = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    count = np.bincount(numbers, minlength=BINS)
    hits, claimed = np.bincount(numbers, right, BINS), np.bincount(numbers, confidence, BINS)
    return {
        "positions": len(right),
        "accuracy": float(right.mean()),
        "confidence": float(confidence.mean()),
        "ece": float(np.abs(hits - claimed).sum() / len(right)),
        "bins": [
            {
                "above": number / BINS,
                "up_to": (number + 1) / BINS,
                "positions": int(count[number]),
                "accuracy": float(hits[number] / count[number]) if count[number] else None,
                "confidence": float(claimed[number] / count[number]) if count[number] else None,
            }
            for number in range(BINS)
        ],
    }


def by_group(sample: Sample, answers: Answers, by: By) -> list[dict[str, Any]]:
    """Return loss and calibration of each group of documents, the largest group first.

    Returns:
        For each ``group`` (as the corpus spells it), ``positions``, ``loss_nats``, ``entropy_nats``, ``perplexity``,
        ``kept_mass``, and of the calibration ``accuracy``, ``confidence`` and ``ece``; None where there is none.
    """
    keys = [_folder(document) if by == "folder" else group for document, group in sample.names]
    names = {name: number for number, name in enumerate(dict.fromkeys(keys))}
    numbers = np.where(answers.said, np.array([names[key] for key in keys], dtype=np.int64)[sample.documents], -1)
    order = np.argsort(numbers, kind="stable")
    _, *members = np.split(order, np.searchsorted(numbers[order], np.arange(len(names))))
    rows = [_group(sample, answers, name, where) for name, where in zip(names, members, strict=True) if len(where)]
    return sorted(rows, key=lambda row: -row["positions"])


def by_place(sample: Sample, answers: Answers) -> list[dict[str, Any]]:
    """Return the loss by how far into its sequence a token stands.

    Returns:
        For each bin of PLACE_EDGES that is not empty ``first`` and ``last`` (indices of tokens, the sequence's first
        being 0), ``positions``, ``loss_nats`` and ``entropy_nats``.
    """
    rows = []
    for first, behind in pairwise(PLACE_EDGES[: bisect_right(PLACE_EDGES, int(sample.places.max(initial=0))) + 1]):
        where = np.flatnonzero(answers.said & (sample.places >= first) & (sample.places < behind))
        if len(where):
            rows.append({"first": first, "last": behind - 1, "positions": len(where)} | _means(answers, where))
    return rows


def histogram(values: NDArray[np.float64], low: float, high: float, bins: int = 50) -> dict[str, list[float]]:
    """Return the shares of the finite values in equal bins; values outside count in the outermost.

    Returns:
        ``edges`` (bins + 1) and ``shares`` (bins), which sum to 1 unless there is no value.
    """
    counts, edges = np.histogram(np.clip(values[np.isfinite(values)], low, high), bins, (low, high))
    return {"edges": edges.tolist(), "shares": (counts / max(counts.sum(), 1)).tolist()}


def agreement(sample: Sample) -> list[list[float | None]]:
    """Return the share of positions at which each two teachers think the same token likeliest, in their order.

    None where one of the two keeps draws, or they nowhere both said something.
    """
    return [[_same_top1(a, b) for b in sample.answers.values()] for a in sample.answers.values()]


def surprising(sample: Sample, count: int) -> list[tuple[int, int, float]]:
    """Return the passages of PASSAGE_TOKENS tokens that surprised most, at most one of a document.

    Passages are the pieces between multiples of PASSAGE_TOKENS; only what the sample holds of one counts. Their rank
    is the sum of the surprise, in the mean over the teachers, so a short rest does not win by one odd token.

    Returns:
        For each its ``sequence_id``, the index of its first token and its surprise in nats, the highest first.
    """
    losses = np.mean([answers.loss_nats for answers in sample.answers.values()], axis=0)
    said = np.all([answers.said for answers in sample.answers.values()], axis=0) & ~np.isnan(losses)
    if not said.any():
        return []
    sequences, pieces = sample.sequence_ids[said], sample.places[said] // PASSAGE_TOKENS
    documents = sample.documents[said]
    starts = np.flatnonzero(np.diff(sequences, prepend=-1) | np.diff(pieces, prepend=-1))  # rows ascend
    sums = np.add.reduceat(losses[said], starts)
    best: dict[int, tuple[int, int, float]] = {}
    for number in np.argsort(-sums, kind="stable").tolist():
        row = starts[number]
        passage = (int(sequences[row]), int(pieces[row]) * PASSAGE_TOKENS, float(sums[number]))
        best.setdefault(int(documents[row]), passage)
        if len(best) == count:
            break
    return list(best.values())


def _folder(document_id: str) -> str:
    folder, slash, _ = document_id.partition("/")
    return folder + slash


def _group(sample: Sample, answers: Answers, name: str, where: NDArray[np.int64]) -> dict[str, Any]:
    found = calibration(_chosen(answers, where), sample.gold_ids[where]) or {}
    judged = {key: found.get(key) for key in ("accuracy", "confidence", "ece")}
    means = _means(answers, where)
    loss, kept_mass = means["loss_nats"], finite(float(answers.kept_mass[where].mean()))
    with np.errstate(over="ignore"):  # a stranger's losses may be of any size
        perplexity = None if loss is None else finite(float(np.exp(loss)))
    return {"group": name, "positions": len(where), **means, "perplexity": perplexity, "kept_mass": kept_mass} | judged


def _chosen(answers: Answers, where: NDArray[np.int64]) -> Answers:
    exact, *columns = vars(answers).values()
    return Answers(exact, *(column[where] for column in columns))


def _means(answers: Answers, where: NDArray[np.int64]) -> dict[str, float | None]:
    return {name: finite(float(getattr(answers, name)[where].mean())) for name in ("loss_nats", "entropy_nats")}


def _same_top1(a: Answers, b: Answers) -> float | None:
    both = a.said & b.said
    if not (a.exact and b.exact and both.any()):
        return None
    return float((a.top1_ids == b.top1_ids)[both].mean())
