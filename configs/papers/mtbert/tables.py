"""Accuracies and cross-entropies of students, teachers, the teachers' ensemble and a bag of words, with intervals.

Intervals are of 95 %, see ``configs/papers/intervals.py``. Differences are of the same test texts and the same seeds,
so the difficulty of a text cancels out. A student is compared with the teachers of its own set.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.table import Table

from configs.papers.intervals import Interval, over_seeds_and_items
from configs.papers.markdown import markdown, show, spread
from configs.papers.mtbert.arms import MT_BERT, NO_HIDDEN, ONE_NOISY, SAME_TOTAL, SEPARATE, WEIGHTED, arms_of, single
from configs.papers.mtbert.scores import Answers, Results

BAG_OF_WORDS = "TF-IDF and logistic regression"
KINDS = ("right", "nats")

BySeed = Mapping[int, Answers]


def print_tables(results: Results, names: Sequence[str], teacher_sets: int) -> None:
    """Print all tables.

    Args:
        results: What was measured.
        names: The teachers' names before they were tuned.
        teacher_sets: Number of sets of teachers, which the seeds take in turn.
    """
    show(accuracies(results, list(arms_of(names))))
    show(differences(results, names, teacher_sets))
    show(corruption(results.students))
    show(weights(results))
    show(agreements(results))


def accuracies(results: Results, arms: Sequence[str]) -> Table:
    """Return a table of accuracy and cross-entropy: of students over seeds, of teachers the mean over their sets."""
    table = markdown("model", "seeds", *("accuracy", "nats"))
    if results.bag_of_words:
        of_words = next(iter(results.bag_of_words.values()))
        table.add_row(BAG_OF_WORDS, "", *(f"{getattr(of_words, kind).mean():.3f}" for kind in KINDS))
    for name in (name for name in arms if results.students.get(name)):
        by_seed = results.students[name]
        table.add_row(name, str(len(by_seed)), *(spread(means(by_seed, kind)) for kind in KINDS))
    shown = {f"teacher {name}": by_set for name, by_set in results.teachers.items() if by_set}
    shown |= {f"ensemble of the teachers tuned {how}": by_set for how, by_set in results.ensembles.items()}
    for name, by_set in shown.items():
        table.add_row(name, "", *(f"{means(by_set, kind).mean():.3f}" for kind in KINDS))
    return table


def differences(results: Results, names: Sequence[str], teacher_sets: int) -> Table:
    """Return a table of the differences between MT-BERT and all others, in points of accuracy and in nats."""
    table = markdown("MT-BERT less", "seeds", "points of accuracy", "nats, below 0 is better")
    mine = results.students.get(MT_BERT, {})
    best = best_single(results.students, names)
    others: dict[str, BySeed] = {
        f"{name} (the best one)" if name == best else name: results.students.get(name, {})
        for name in arms_of(names)
        if name != MT_BERT and not name.endswith(ONE_NOISY)
    }
    for how, by_set in results.ensembles.items():
        of_seeds = {seed: by_set[seed % teacher_sets] for seed in mine if seed % teacher_sets in by_set}
        others[f"ensemble of the teachers tuned {how}"] = of_seeds
    others[BAG_OF_WORDS] = results.bag_of_words
    for shown, other in others.items():
        add_gains(table, shown, [(1, mine), (-1, other)])
    return table


def corruption(students: Mapping[str, BySeed]) -> Table:
    """Return a table of the effect of a noisy teacher: the students' losses, and what weights by sample save."""
    table = markdown("one of the teachers noisy", "seeds", "points of accuracy", "nats")
    for hidden in ("", NO_HIDDEN):
        terms = {
            name: [(-1, students.get(f"{name}{hidden}", {})), (1, students.get(f"{name}{hidden}{ONE_NOISY}", {}))]
            for name in WEIGHTED
        }
        for name, lost in terms.items():
            add_gains(table, f"{name}{hidden}: change", lost)
        saved = [*terms[SEPARATE], *((-sign, by_seed) for sign, by_seed in terms[SAME_TOTAL])]
        add_gains(table, f"MT-BERT's weights less equal ones of the same total{hidden}", saved)
    return table


def weights(results: Results) -> Table:
    """Return a table of the weight of each teacher, a row for each set."""
    names = [name for name, by_set in results.weights.items() if by_set]
    table = markdown("mean weight", *names)
    for number in sorted({number for name in names for number in results.weights[name]}):
        cells = (f"{results.weights[n][number]:.3f}" if number in results.weights[n] else "" for n in names)
        table.add_row(f"set {number}", *cells)
    return table


def agreements(results: Results) -> Table:
    """Return a table of how teachers agree, tuned together and each alone."""
    table = markdown("teachers tuned", "linear CKA", "accuracy, own head", "accuracy, another's head")
    for how, by_set in results.agreements.items():
        table.add_row(how, *(f"{mean:.3f}" for mean in np.mean(list(by_set.values()), axis=0)))
    return table


def best_single(students: Mapping[str, BySeed], names: Sequence[str]) -> str | None:
    """Return the student of one teacher with the highest mean accuracy; chosen on the test texts, in its favour."""
    measured = [name for name in single(names) if students.get(name)]
    return max(measured, key=lambda name: float(means(students[name], "right").mean()), default=None)


def add_gains(table: Table, shown: str, terms: Sequence[tuple[int, BySeed]]) -> None:
    """Add a row of signed sums of models, over the seeds that all of them have; none if there is no such seed."""
    seeds = sorted(set.intersection(*(set(by_seed) for _, by_seed in terms)))
    if seeds:
        table.add_row(shown, str(len(seeds)), *(str(gain(terms, seeds, kind)) for kind in KINDS))


def gain(terms: Sequence[tuple[int, BySeed]], seeds: Sequence[int], kind: str) -> Interval:
    """Return the interval of a signed sum of models, in points for ``right``."""
    factor = 100 if kind == "right" else 1
    values_SN = [sum(sign * getattr(by_seed[seed], kind) for sign, by_seed in terms) for seed in seeds]
    return over_seeds_and_items(factor * np.array(values_SN))


def means(by_number: BySeed, kind: str) -> np.ndarray:
    """Return the mean over texts for each seed or set: (S,)."""
    return np.array([getattr(answers, kind).mean() for answers in by_number.values()])
