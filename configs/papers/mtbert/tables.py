"""Accuracies and cross-entropies of the students of several seeds, as tables with intervals of 95 %.

The intervals are those of ``configs/papers/recipes.py``. Differences are of the same test texts and the same seeds, so
the difficulty of a text cancels out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from configs.papers.mtbert.arms import (
    ALL_TEACHERS,
    ARMS,
    MEAN,
    MT_BERT,
    NOISY_MEAN,
    NOISY_MT_BERT,
    SEPARATE,
    SINGLE,
)
from configs.papers.mtbert.scores import Scores, read_scores
from configs.papers.recipes import Interval, over_seeds, over_seeds_and_items


def print_tables(students: Sequence[Path], teachers: Sequence[Path]) -> None:
    """Print the tables of the seeds and the sets of teachers whose folders are given."""
    scores, teacher_scores, console = read_scores(students), read_scores(teachers), Console(width=140)
    for table in (
        accuracies(scores, teacher_scores),
        differences(scores),
        corruption(scores),
        weights(teacher_scores),
        agreements(teacher_scores),
    ):
        if table.rows:
            console.print(table)


def accuracies(scores: Scores, teacher_scores: Scores) -> Table:
    """Return a table of accuracy and cross-entropy of every model; of teachers the mean over their sets."""
    table = markdown("model", "accuracy", "nats")
    for name in ARMS:
        if f"{name}/right" in scores:
            table.add_row(name, *(spread(scores[f"{name}/{kind}"].mean(axis=1)) for kind in ("right", "nats")))
    for name in (name for name in ALL_TEACHERS if f"{name}/right" in teacher_scores):
        table.add_row(
            f"teacher {name}", *(f"{teacher_scores[f'{name}/{kind}'].mean():.3f}" for kind in ("right", "nats"))
        )
    return table


def differences(scores: Scores) -> Table:
    """Return a table of the differences between MT-BERT and the other students, in points of accuracy and in nats."""
    table = markdown("MT-BERT less", "points of accuracy", "nats, below 0 is better")
    if f"{MT_BERT}/right" not in scores:
        return table
    best = best_single(scores)
    for name in ARMS:
        if name != MT_BERT and f"{name}/right" in scores and name not in (NOISY_MEAN, NOISY_MT_BERT):
            shown = f"{name} (the best one)" if name == best else name
            table.add_row(shown, *(str(gain(scores, [(1, MT_BERT), (-1, name)], kind)) for kind in ("right", "nats")))
    return table


def corruption(scores: Scores) -> Table:
    """Return a table of the effect of a noisy teacher: its weight, and the students' losses in accuracy."""
    table = markdown("one of three teachers noisy", "points of accuracy", "nats")
    compared = (MEAN, NOISY_MEAN, SEPARATE, NOISY_MT_BERT)
    if any(f"{name}/right" not in scores for name in compared):
        return table
    lost = {
        "equal weights lose": [(-1, MEAN), (1, NOISY_MEAN)],
        "MT-BERT's weights lose": [(-1, SEPARATE), (1, NOISY_MT_BERT)],
        "MT-BERT's weights save": [(1, MEAN), (-1, NOISY_MEAN), (-1, SEPARATE), (1, NOISY_MT_BERT)],
    }
    for shown, terms in lost.items():
        table.add_row(shown, *(str(gain(scores, terms, kind)) for kind in ("right", "nats")))
    return table


def weights(teacher_scores: Scores) -> Table:
    """Return a table of the weight of each teacher, a row for each set."""
    names = [name for name in ALL_TEACHERS if f"weight/{name}" in teacher_scores]
    table = markdown("mean weight", *names)
    for number, row in enumerate(zip(*(teacher_scores[f"weight/{name}"] for name in names), strict=True)):
        table.add_row(f"set {number}", *(f"{value:.3f}" for value in row))
    return table


def agreements(teacher_scores: Scores) -> Table:
    """Return a table of how teachers agree, tuned together and each alone."""
    table = markdown("teachers tuned", "linear CKA", "accuracy, own head", "accuracy, another's head")
    for how, shown in (("joint", "together"), ("alone", "each alone")):
        if f"agreement/{how}/cka" not in teacher_scores:
            continue
        values = [teacher_scores[f"agreement/{how}/{key}"].mean() for key in ("cka", "own_head", "other_head")]
        table.add_row(shown, *(f"{value:.3f}" for value in values))
    return table


def best_single(scores: Scores) -> str | None:
    """Return the student of one teacher with the highest mean accuracy; chosen on the test texts, in its favour."""
    measured = [name for name in SINGLE if f"{name}/right" in scores]
    return max(measured, key=lambda name: float(scores[f"{name}/right"].mean()), default=None)


def gain(scores: Scores, terms: Sequence[tuple[int, str]], kind: str) -> Interval:
    """Return the interval of a signed sum of models, in points for ``right``."""
    factor = 100 if kind == "right" else 1
    return over_seeds_and_items(
        factor * np.sum([sign * scores[f"{name}/{kind}"].astype(np.float64) for sign, name in terms], axis=0)
    )


def spread(values_S: NDArray[Any]) -> str:
    """Return a mean over seeds with its interval, if there are several."""
    if len(values_S) == 1:
        return f"{values_S[0]:.3f}"
    interval = over_seeds(values_S.tolist())
    return f"{interval.mean:.3f} ± {interval.high - interval.mean:.3f}"


def markdown(*columns: str, title: str | None = None) -> Table:
    """Return an empty table that is printed as Markdown."""
    return Table(*columns, title=title, title_justify="left", box=box.MARKDOWN)
