"""The recipe's tables, in Markdown: means over seeds, and 95 % intervals where there are two seeds or more.

Measures at masked tokens always use the same ten thousand positions of a language, so their intervals cover the seeds
alone. Classification is measured on a few hundred texts, so its intervals resample texts as well as seeds.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from configs.papers.recipes import over_seeds, over_seeds_and_items

MEASURES = {"top1": "top-1", "cross_entropy_nats": "nats"}
ALONE = "text only"

# S: seeds, L: languages, N: texts

Students = dict[str, Any]
"""What was measured of the students of one arm, by seed: see ``run.of_student``."""


def print_tables(results: dict[str, Any], languages: Sequence[str], left_out: str | None) -> None:
    """Print everything that was measured; results as in ``results.json``."""
    students = {arm: seeds for arm, seeds in results["students"].items() if not arm.startswith("k=")}
    main = results | {"students": students}
    show(masked_table(main, languages))
    if ALONE not in students:
        return
    for measure in MEASURES:
        show(gap_table(main, languages, measure))
    show(mean_table(results, languages, f"Mean of {', '.join(languages)}"))
    if left_out:
        show(mean_table(results, [left_out], f"{left_out}, which no teacher covers"))
    if "tfidf" in results:
        show(zero_shot_table(main))


def show(table: Table) -> None:
    """Print a table, its title before it."""
    title, table.title, console = table.title, None, Console(width=240)
    with console.capture() as printed:
        console.print(table)
    click.echo(f"\n{title}\n\n{printed.get().strip()}")


def markdown(title: str, *columns: str) -> Table:
    """Return an empty table."""
    return Table(*columns, title=title, box=box.MARKDOWN)


def grid(students: Students, languages: Sequence[str], measure: str) -> NDArray[np.float64]:
    """Return a measure at masked positions: (S, L)."""
    return np.array([[student["masked"][language][measure] for language in languages] for student in students.values()])


def gap_closed(
    students_SL: NDArray[np.float64], alone_SL: NDArray[np.float64], teacher_L: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the share of the gap between students of text alone and teachers that other students close: (S, L)."""
    return (students_SL - alone_SL) / (teacher_L - alone_SL)


def masked_table(results: dict[str, Any], languages: Sequence[str]) -> Table:
    """Return top-1 and nats of teachers and students by language."""
    students, teachers = results["students"], [results["teachers"][language] for language in languages]
    table = markdown(
        "Held-out top-1 / cross-entropy in nats at the same masked positions; of students the mean over seeds",
        *("language", "positions", "own teacher", "multilingual teacher", *students, "words split otherwise"),
    )
    models = [{"0": {"masked": results["teachers"]}}, {"0": results["multilingual_teacher"]}, *students.values()]
    means = [[grid(model, languages, measure).mean(axis=0) for measure in MEASURES] for model in models]
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
    alone_SL = grids.pop(ALONE)
    columns = {arm: gap_closed(grid_SL, alone_SL, teacher_L) for arm, grid_SL in grids.items()}
    columns |= {f"{arm} / own teacher": grid_SL / teacher_L for arm, grid_SL in grids.items() if arm == "distilled"}
    table = markdown(f"Gap closed, {MEASURES[measure]}", "language", *columns)
    for i, language in enumerate(languages):
        table.add_row(language, *(with_interval(grid_SL[:, i]) for grid_SL in columns.values()))
    table.add_row("mean", *(with_interval(grid_SL.mean(axis=1)) for grid_SL in columns.values()))
    return table


def mean_table(results: dict[str, Any], languages: Sequence[str], title: str) -> Table:
    """Return the mean over some languages by arm, and its differences from text alone and from the distilled arm."""
    against = [arm for arm in (ALONE, "distilled") if arm in results["students"]]
    table = markdown(title, "arm", "top-1", "nats", *(f"nats less those of {arm}" for arm in against))
    of = {
        arm: {measure: grid(seeds, languages, measure).mean(axis=1) for measure in MEASURES}
        for arm, seeds in results["students"].items()
    }
    for arm, means in of.items():
        nats = means["cross_entropy_nats"]
        differences = [
            "" if arm == other else with_interval(nats - of[other]["cross_entropy_nats"]) for other in against
        ]
        table.add_row(arm, f"{means['top1'].mean():.3f}", f"{nats.mean():.3f}", *differences)
    return table


def zero_shot_table(results: dict[str, Any]) -> Table:
    """Return the accuracy of classifiers trained on English by language asked, and differences over all but English."""
    students, tfidf = results["students"], results["tfidf"]
    table = markdown(
        "Sections, learned from English: accuracy by language asked, and differences over all languages but English",
        *("asked", "texts", "commonest", "TF-IDF", "multilingual teacher", *students),
    )
    for language, answers in tfidf.items():
        answers_by_model = [answers, results["multilingual_teacher"]["right"][language]]
        answers_by_model += [[student["right"][language] for student in seeds.values()] for seeds in students.values()]
        cells = [results["commonest_section"][language], *map(np.mean, answers_by_model)]
        table.add_row(language, str(len(answers)), *(f"{student:.3f}" for student in cells))
    right = {arm: answers_abroad([student["right"] for student in seeds.values()]) for arm, seeds in students.items()}
    for name, other in ((f"less {ALONE}", right[ALONE]), ("less TF-IDF", answers_abroad([tfidf]))):
        cells = [
            str(over_seeds_and_items(answers_by_model - other)) if answers_by_model is not other else ""
            for answers_by_model in right.values()
        ]
        table.add_row(name, "", "", "", "", *cells)
    return table


def answers_abroad(right: Iterable[dict[str, list[int]]]) -> NDArray[np.int64]:
    """Return the answers of some models to the texts of all languages but English: (S, N)."""
    return np.array(
        [[answer for name, answers in model.items() if name != "en" for answer in answers] for model in right]
    )


def with_interval(values: NDArray[np.float64]) -> str:
    """Write the mean of one number per seed, with its interval if there is one."""
    return str(over_seeds(values.tolist())) if len(values) > 1 else f"{values[0]:+.3f}"
