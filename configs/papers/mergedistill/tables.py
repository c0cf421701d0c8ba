"""The recipe's tables, in Markdown: means over seeds, and 95 % intervals where there are two seeds or more.

Measures at masked tokens always use the same ten thousand positions of a language, so their intervals cover the seeds
alone. Classification is measured on a few hundred texts, so its intervals cover texts as well as seeds. Arms are
compared over the seeds that both have, by the seeds' numbers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from configs.papers.convergence import Curve, Curves
from configs.papers.intervals import differences, over_seeds, over_seeds_and_items, paired
from configs.papers.markdown import markdown, show

MEASURES = {"top1": "top-1", "cross_entropy_nats": "nats"}
ALONE = "text only"
OF_OWN_TEACHERS = ("distilled", "renormalised")
"""Arms whose students learn from each language's own teacher, and are set beside it."""

# S: seeds, L: languages, N: texts

Students = dict[str, Any]
"""What was measured of the students of one arm, by seed: see ``run.of_student``."""


def print_tables(results: dict[str, Any], languages: Sequence[str], left_out: str | None) -> None:
    """Print everything that was measured; results as in ``results.json``."""
    students = {arm: seeds for arm, seeds in results["students"].items() if not arm.startswith("k=")}
    main = results | {"students": students}
    show(masked_table(main, languages))
    if ALONE in students:
        for measure in MEASURES:
            show(gap_table(main, languages, measure))
    show(mean_table(results, languages, f"Mean of {', '.join(languages)}"))
    if left_out:
        show(mean_table(results, [left_out], f"{left_out}, which no teacher covers"))
    if "tfidf" in results and ALONE in students:
        for how in ("plain", "centred"):
            show(zero_shot_table(main, how))


def grid(students: Students, languages: Sequence[str], measure: str) -> dict[int, NDArray[np.float64]]:
    """Return a measure at masked positions by seed: (L,)."""
    return {
        int(seed): np.array([student["masked"][language][measure] for language in languages])
        for seed, student in students.items()
    }


def gap_closed(
    students_SL: NDArray[np.float64], alone_SL: NDArray[np.float64], teacher_L: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the share of the gap between students of text alone and teachers that other students close: (S, L)."""
    return (students_SL - alone_SL) / (teacher_L - alone_SL)


def masked_table(results: dict[str, Any], languages: Sequence[str]) -> Table:
    """Return top-1 and nats of teachers and students by language."""
    students, teachers = results["students"], [results["teachers"][language] for language in languages]
    table = markdown(
        *("language", "positions", "own teacher", "multilingual teacher", *students, "words split otherwise"),
        title="Held-out top-1 / cross-entropy in nats at the same masked positions; of students the mean over seeds",
    )
    models = [{"0": {"masked": results["teachers"]}}, {"0": results["multilingual_teacher"]}, *students.values()]
    means = [[np.mean([*grid(model, languages, m).values()], axis=0) for m in MEASURES] for model in models]
    for i, language in enumerate(languages):
        cells = [f"{top1[i]:.3f} / {nats[i]:.3f}" for top1, nats in means]
        table.add_row(
            language, f"{teachers[i]['positions']:,}", *cells, f"{results['words_split_otherwise'][language]:.1%}"
        )
    return table


def gap_table(results: dict[str, Any], languages: Sequence[str], measure: str) -> Table:
    """Return the gap closed by language and arm, and how large the students' measure is beside the teachers'."""
    grids = {arm: grid(seeds, languages, measure) for arm, seeds in results["students"].items()}
    teacher_L = np.array([results["teachers"][language][measure] for language in languages])
    alone = grids.pop(ALONE)
    columns: dict[str, NDArray[np.float64]] = {}
    for arm, by_seed in grids.items():
        pairs: NDArray[np.float64] = np.array(paired(by_seed, alone))  # (S, 2, L)
        if len(pairs):
            columns[arm] = gap_closed(pairs[:, 0], pairs[:, 1], teacher_L)
    for arm in (name for name in OF_OWN_TEACHERS if name in grids):
        columns[f"{arm} / own teacher"] = np.array([*grids[arm].values()]) / teacher_L
    table = markdown("language", *columns, title=f"Gap closed, {MEASURES[measure]}")
    for i, language in enumerate(languages):
        table.add_row(language, *(with_interval(grid_SL[:, i]) for grid_SL in columns.values()))
    table.add_row("mean", *(with_interval(grid_SL.mean(axis=1)) for grid_SL in columns.values()))
    return table


def mean_table(results: dict[str, Any], languages: Sequence[str], title: str) -> Table:
    """Return the mean over some languages by arm, and its differences from text alone and from the distilled arm."""
    against = [arm for arm in (ALONE, "distilled") if arm in results["students"]]
    table = markdown("arm", "top-1", "nats", *(f"nats less those of {arm}" for arm in against), title=title)
    for arm, seeds in results["students"].items():
        top1, nats = (np.mean([*grid(seeds, languages, measure).values()]) for measure in MEASURES)
        gaps = ["" if arm == other else nats_less(results, languages, arm, other) for other in against]
        table.add_row(arm, f"{top1:.3f}", f"{nats:.3f}", *gaps)
    return table


def nats_less(results: dict[str, Any], languages: Sequence[str], arm: str, other: str) -> str:
    """Return the mean over languages of one arm's nats less another's, paired by seed."""
    grids = [grid(results["students"][name], languages, "cross_entropy_nats") for name in (arm, other)]
    return with_interval(differences(*grids).mean(axis=1)) if grids[0].keys() & grids[1].keys() else ""


def curve_table(curves: Curves) -> Table:
    """Return held-out cross-entropy by step: of each arm, less that of text alone, and when text alone is as far.

    Args:
        curves: By arm and seed; their common steps are shown. Students are compared over the seeds that both have.
    """
    others = [arm for arm in curves if arm != ALONE and ALONE in curves]
    table = markdown(
        *("steps", *(f"{arm}, nats" for arm in curves), *(f"{arm} less {ALONE}" for arm in others)),
        *(f"{ALONE} is as far as {arm} after" for arm in others),
        title="Held-out cross-entropy by step, all languages together",
    )
    every = [set(curve.steps) for by_seed in curves.values() for curve in by_seed.values()]
    for step in sorted(set.intersection(*every)) if every else ():
        at = {arm: {seed: curve.at(step) for seed, curve in by_seed.items()} for arm, by_seed in curves.items()}
        means = [f"{np.mean([*nats.values()]):.3f}" for nats in at.values()]
        gaps = [with_interval(differences(at[arm], at[ALONE])) for arm in others]
        table.add_row(f"{step:,}", *means, *gaps, *(caught_up(curves[ALONE], at[arm]) for arm in others))
    return table


def caught_up(alone: Mapping[int, Curve], nats: Mapping[int, float]) -> str:
    """Return, as a cell, after how many steps text alone has these cross-entropies; the mean over seeds."""
    pairs = paired(alone, nats)
    if any(min(curve.nats) > mark for curve, mark in pairs):
        return f"more than {pairs[0][0].steps[-1]:,}"
    return f"{np.mean([curve.steps_to(mark) for curve, mark in pairs]):,.0f}"


def zero_shot_table(results: dict[str, Any], how: str) -> Table:
    """Return the accuracy of classifiers trained on English by language asked, and differences over all but English.

    Args:
        results: What was measured.
        how: ``plain``, or ``centred``: each language's features moved by its own mean.
    """
    students, tfidf = results["students"], results["tfidf"][how]
    whole = results["tfidf_of_whole_texts"][how]
    table = markdown(
        *("asked", "texts", "commonest", "TF-IDF", "TF-IDF of whole texts", "multilingual teacher", *students),
        title="Sections, learned from English: accuracy by language asked, and differences over all languages but "
        f"English; features {'of each language centred' if how == 'centred' else 'as they are'}",
    )
    teacher = results["multilingual_teacher"]["right"][how]
    for language, answers in tfidf.items():
        by_model = [answers, whole[language], teacher[language]]
        by_model += [[student["right"][how][language] for student in seeds.values()] for seeds in students.values()]
        cells = [results["commonest_section"][language], *map(np.mean, by_model)]
        table.add_row(language, str(len(answers)), *(f"{cell:.3f}" for cell in cells))
    right = {
        arm: {int(seed): answers_abroad(student["right"][how]) for seed, student in seeds.items()}
        for arm, seeds in students.items()
    }
    of_words = answers_abroad(tfidf)
    against = {f"less {ALONE}": right.get(ALONE, {}), "less TF-IDF": {s: of_words for a in right.values() for s in a}}
    for name, other in against.items():
        gaps = {arm: differences(by_seed, other) for arm, by_seed in right.items()}
        cells = [str(over_seeds_and_items(gap_SN)) if gap_SN.any() else "" for gap_SN in gaps.values()]
        table.add_row(name, *[""] * 5, *cells)
    return table


def answers_abroad(right: dict[str, list[int]]) -> NDArray[np.int64]:
    """Return a model's answers to the texts of all languages but English: (N,)."""
    return np.array([answer for name, answers in right.items() if name != "en" for answer in answers])


def with_interval(values: NDArray[np.float64]) -> str:
    """Write the mean of one number per seed, with its interval if there is one."""
    return str(over_seeds(values)) if len(values) > 1 else f"{values[0]:+.3f}"
