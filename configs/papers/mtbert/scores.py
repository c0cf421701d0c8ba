"""Scores of models on the held-out texts, weights and agreement of teachers: numbers by name, in ``scores.npz``.

``<model>/right`` and ``<model>/nats`` are (N,) over texts in the cache's order; ``weight/<teacher>`` and
``agreement/<how>/<what>`` are single numbers.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.store.reader import Cache
from configs.papers.mtbert.spaces import agreement
from configs.papers.recipes import label_log_probs, labelled_sequences, token_ids

SCORES = "scores.npz"
Scores = dict[str, NDArray[Any]]


def label_scores(models: Mapping[str, Path], cache: Path, labels: Sequence[str]) -> Scores:
    """Return whether each model is right about each held-out text, and its cross-entropy, among the labels alone."""
    columns = token_ids(next(iter(models.values())), labels)
    gold_N = np.array([columns.index(int(sequence.gold_ids("masked")[0])) for sequence in labelled_sequences(cache)])
    scores: Scores = {}
    for name, model in models.items():
        log_p_NC = label_log_probs(model, cache, labels)
        scores[f"{name}/right"] = log_p_NC.argmax(axis=1) == gold_N
        scores[f"{name}/nats"] = -log_p_NC[np.arange(len(gold_N)), gold_N]
    return scores


def weight_scores(teachers: Iterable[str], cache: Path) -> Scores:
    """Return the mean of 1 / (1 + cross-entropy) over the labels that students are trained on."""
    labels = np.array([sequence.first_position for sequence in labelled_sequences(cache, "train")])
    encoding, scores = Cache(cache).encoding(), {}
    for name in teachers:
        log_gold_N = encoding.teacher(name).scalar("gold_logprob", 0, int(labels.max()) + 1)[labels]
        scores[f"weight/{name}"] = np.array((1 / (1 - log_gold_N)).mean())
    return scores


def agreement_scores(how: str, teachers: Sequence[Path], cache: Path, labels: Sequence[str]) -> Scores:
    """Return how much teachers agree, see ``spaces.py``."""
    measures = agreement(teachers, cache, labels)._asdict()
    return {f"agreement/{how}/{what}": np.array(value) for what, value in measures.items()}


def save_scores(folder: Path, scores: Scores) -> None:
    """Write scores into a folder."""
    np.savez(folder / SCORES, allow_pickle=False, **scores)


def read_scores(folders: Sequence[Path]) -> Scores:
    """Return the scores that all of several folders have, stacked."""
    stored_scores = []
    for folder in folders:
        with np.load(folder / SCORES) as stored:
            stored_scores.append(dict(stored))
    return {
        name: np.stack([scores[name] for scores in stored_scores])
        for name in stored_scores[0]
        if all(name in scores for scores in stored_scores)
    }
