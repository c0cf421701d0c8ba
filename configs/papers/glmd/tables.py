"""The recipe's tables; each covers the students that have finished, paired by the numbers of their seeds."""

from collections.abc import Mapping, Sequence

import click
import numpy as np
from numpy.typing import NDArray

from cache_tools.vocabularies.compression import crowding
from cache_tools.vocabularies.folder import read_vocabulary
from cache_tools.vocabularies.manifest import read_manifest
from configs.papers.glmd.arms import (
    FEW_TEXTS,
    LOSSES,
    OF_OTHER_STRUCTURE,
    PUBLISHED,
    SMALL,
    STATES,
    TEMPERATURES,
    UNKNOWN,
    WHOLE_CHAIN,
)
from configs.papers.glmd.bench import Bench
from configs.papers.glmd.measure import Measured, bag_of_words, kept_mass
from configs.papers.intervals import Interval, differences, over_seeds, over_seeds_and_items, paired

BESIDE = (
    (WHOLE_CHAIN, "F1, soft labels"),
    (WHOLE_CHAIN, STATES),
    (f"{OF_OTHER_STRUCTURE}P, soft labels", f"{OF_OTHER_STRUCTURE}soft labels"),
    (f"{OF_OTHER_STRUCTURE}{WHOLE_CHAIN}", f"{OF_OTHER_STRUCTURE}soft labels"),
)
"""Pairs of students of equally few texts whose difference is printed, beside that of each to soft labels."""

BySeed = Mapping[int, Measured]
Results = Mapping[str, BySeed]


def print_lines(of_words: Measured, teacher: Measured) -> None:
    """Print the accuracy of a bag of words and of the fine-tuned teacher, beside which students are to be read."""
    for name, line in (("TF-IDF and logistic regression", of_words), ("the fine-tuned teacher", teacher)):
        accuracy = over_seeds_and_items(100 * line.right[None])
        click.echo(f"\n{name}: {shown(accuracy, 1)} % of {len(line.right):,} held-out texts")
    less = over_seeds_and_items(100 * (teacher.right - of_words.right)[None])
    click.echo(f"\nThe teacher less TF-IDF: {shown(less, 1)} points")


def print_forms(bench: Bench, results: Results) -> None:
    """Print the distance to the teacher's whole distribution for each form and temperature."""
    cache = bench.work / "caches" / PUBLISHED / "pretraining"
    masses = ", ".join(f"{kept_mass(cache, t):.1%} at T = {t}" for t in TEMPERATURES)
    click.echo(f"\nThe kept tokens hold of the teacher's probability: {masses}")
    for t in (1.0, 15.0):
        click.echo(f"\nKL(teacher || student) over the kept tokens at T = {t:g}, nats, held-out text\n")
        row("trained on", *(f"T = {temperature}" for temperature in TEMPERATURES))
        row(*["---"] * (1 + len(TEMPERATURES)))
        row(
            "nothing",
            *[spread([m.kl[t] for m in [*results["no training"].values()][:1] if m.kl], t)] * len(TEMPERATURES),
        )
        for name in LOSSES:
            row(
                name,
                *(
                    spread([m.kl[t] for m in results[f"{name}, T = {temperature}"].values() if m.kl], t)
                    for temperature in TEMPERATURES
                ),
            )
    click.echo("\nMore than the whole distribution at the same temperature, KL at T = 15 in nats, paired by seed\n")
    row("trained on", *(f"T = {temperature}" for temperature in TEMPERATURES))
    row(*["---"] * (1 + len(TEMPERATURES)))
    for name in list(LOSSES)[1:]:
        pairs = [(results[f"{name}, T = {t}"], results[f"whole, T = {t}"]) for t in TEMPERATURES]
        row(
            name,
            *(spread([a.kl[15.0] - b.kl[15.0] for a, b in paired(*pair) if a.kl and b.kl], 15.0) for pair in pairs),
        )


def print_stages(bench: Bench, results: Results) -> None:
    """Print the accuracy of each combination of stages, and how far below all of them it is."""
    accuracies(results, "P, F1, F2")


def print_labels(bench: Bench, results: Results) -> None:
    """Print the accuracy with and without gold labels."""
    accuracies(results, "GLMD: P, F1, F2")
    longer, alone = (results[name] for name in ("P, F1, then soft labels for as long", "soft labels alone"))
    click.echo(f"\nP and F1 before equally many steps on soft labels: {points(longer, alone)} points")


def print_few(bench: Bench, results: Results) -> None:
    """Print what word prediction adds to equally many steps on the soft labels of few texts."""
    for texts in FEW_TEXTS:
        of_texts = {name: seeds for name, seeds in results.items() if seeds and name.endswith(f"; {texts:,} texts")}
        if not of_texts:
            continue
        cache = bench.cache(f"labels@{texts}", SMALL)
        of_words = bag_of_words(bench.some_texts("task.yaml", texts), cache, bench.work)
        line = shown(over_seeds_and_items(100 * of_words.right[None]), 1)
        click.echo(f"\nTF-IDF and logistic regression on the gold labels of {texts:,} texts: {line} %")
        accuracies(of_texts, f"soft labels; {texts:,} texts")
        for one, other in BESIDE:
            pair = [of_texts.get(f"{name}; {texts:,} texts", {}) for name in (one, other)]
            if all(pair):
                click.echo(f"\n{one}, less {other}: {points(*pair)} points")


def print_vocabularies(bench: Bench, results: Results) -> None:
    """Print what each vocabulary saves, covers and costs."""
    click.echo("\nVocabularies: accuracy on held-out texts, and the difference to the whole vocabulary in points\n")
    columns = ("kept share", "seeds", "tokens", "embedding parameters", "kept of held-out text", "stand-ins")
    row(*columns, "accuracy", "difference")
    row(*["---"] * 8)
    results = {name: seeds for name, seeds in results.items() if seeds}
    for name, seeds in results.items():
        made, spread_of = read_manifest(bench.vocabulary(name)), crowding(read_vocabulary(bench.vocabulary(name)))
        covered = (made.coverage or {}).get("held_out", float("nan"))
        sizes = (f"{made.size:,}", f"{made.size * bench.width:,}", f"{covered:.1%}", f"{spread_of.num_tokens:,}")
        row(name, str(len(seeds)), *sizes, percent(seeds), "" if name == "1" else points(seeds, results.get("1", {})))
    for share in (name.removesuffix(f"-{UNKNOWN}") for name in results if name.endswith(UNKNOWN)):
        for name in (name for name in results if name.partition("-")[0] == share and not name.endswith(UNKNOWN)):
            how = name.partition("-")[2] or "dot product"
            difference = points(results[name], results[f"{share}-{UNKNOWN}"])
            click.echo(f"\nBy {how} of embeddings rather than as unknown, at {share}: {difference} points")


def accuracies(results: Results, reference: str) -> None:
    """Print accuracies, and differences to one student in points."""
    click.echo("\nAccuracy on held-out texts, and the difference to one student in points\n")
    row("student", "seeds", "accuracy", f"difference to {reference}")
    row("---", "---", "---", "---")
    for name, seeds in results.items():
        row(
            name,
            str(len(seeds)),
            percent(seeds),
            "" if name == reference else points(seeds, results.get(reference, {})),
        )


def percent(seeds: BySeed) -> str:
    """Return the mean accuracy over seeds."""
    return f"{np.mean([student.accuracy for student in seeds.values()]):.1%}" if seeds else "-"


def points(seeds: BySeed, others: BySeed) -> str:
    """Return the difference of two students' accuracies, in points, with its interval over seeds and texts.

    A note is added where the interval covers one seed, and so the texts alone.
    """
    values_SN = 100 * differences(_right(seeds), _right(others))
    if not len(values_SN):
        return "-"
    return shown(over_seeds_and_items(values_SN), 1) + (" (1 seed)" if len(values_SN) == 1 else "")


def _right(seeds: BySeed) -> dict[int, NDArray[np.float64]]:
    return {seed: student.right for seed, student in seeds.items()}


def spread(values: Sequence[float], temperature: float) -> str:
    """Return mean and interval over seeds; one seed alone has none."""
    digits = 5 if temperature > 1 else 3
    if not values:
        return "-"
    return f"{values[0]:.{digits}f}" if len(values) < 2 else shown(over_seeds(values), digits)


def shown(interval: Interval, digits: int) -> str:
    """Return an interval with so many digits."""
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def row(*cells: str) -> None:
    """Print a row of a Markdown table."""
    click.echo(f"| {' | '.join(cells)} |")
