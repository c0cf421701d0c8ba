"""The recipe's tables: accuracy on glosses, and quality of the language model. Intervals are of 95 %.

Students are compared over the seeds that both have, by the numbers of the seeds. The start is one model and is
compared with every seed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from configs.papers.intervals import differences, over_seeds, over_seeds_and_items
from configs.papers.markdown import unsigned

MASKED_WORDS = "masked words"
LANGUAGE_MODELS = ("start", "LMGC", "LMGC-M", MASKED_WORDS)
"""Students whose masked words are measured."""
LINES = ("first sense", "LSA")
"""What each baseline is compared with."""
COSINE = "cosine of the start's states"
"""The baseline that reads no pair: what the start knows before it compares."""
BESIDE = ("chance", *LINES, COSINE)
"""What students are compared with, as far as it was measured."""
COMPARED = (("LMGC-M", MASKED_WORDS), ("LMGC-M", "LMGC"))

BySeed = Mapping[int, Mapping[str, Any]]
Results = Mapping[str, BySeed]
"""The measurements of ``measure.py`` by arm and seed."""

# S: seeds, N: instances


def print_baselines(baselines: Mapping[str, Any]) -> None:
    """Print the baselines, on pairs of held-out synsets, and on those whose candidates all have an example."""
    columns = (
        "baseline",
        "accuracy",
        *(f"minus {name}" for name in LINES),
        "minus another's",
        "area",
        "all with examples",
    )
    table = Table(*columns, title="unseen synsets, nothing trained on pairs")
    mask_N = np.array(baselines["all_with_examples"])
    for name, baseline in baselines["scores"].items():
        own_N, other_N = (np.array(baseline["pairs"][part]["hits"]) for part in ("labels", "swapped"))
        lines = [np.array(baselines["scores"][line]["pairs"]["labels"]["hits"]) for line in LINES]
        gains = [str(over_seeds_and_items((own_N - line_N)[None])) for line_N in (*lines, other_N)]
        own, whole = (unsigned(over_seeds_and_items(x_N[None])) for x_N in (own_N, own_N[mask_N]))
        table.add_row(name, own, *gains, f"{baseline['pairs']['labels']['area']:.3f}", whole)
    Console(width=200).print(table)


def print_scores(results: Results, baselines: Mapping[str, Any]) -> None:
    """Print how often the right gloss scored highest: of all unseen synsets, and where all candidates have examples."""
    mask_N = np.array(baselines["all_with_examples"])
    for shown, where_N in (("unseen synsets", np.ones_like(mask_N)), ("all candidates with examples", mask_N)):
        if where_N.any():
            Console(width=220).print(scores_table(results, baselines["scores"], where_N, shown))


def scores_table(results: Results, baselines: Mapping[str, Any], where_N: NDArray[np.bool_], shown: str) -> Table:
    """Return a table of the accuracy of all students on some instances.

    ``minus another's`` is the effect of the sentence: the difference from the same pairs with another sentence.
    """
    lines = {
        name: np.array(baselines[name]["pairs"]["labels"]["hits"])[where_N] for name in BESIDE if name in baselines
    }
    gains = [f"minus {name}" for name in (*lines, "another's")]
    title = f"accuracy, {int(where_N.sum()):,} instances of unseen synsets ({shown})"
    table = Table("student", "seeds", "accuracy", *gains, "area, all pairs", "seen synsets", title=title)
    for arm, seeds in results.items():
        own, parts = hits(seeds, "labels", where_N), next(iter(seeds.values()))["pairs"]
        cells = [unsigned(over_seeds_and_items(stacked(own)))]
        cells += [str(over_seeds_and_items(stacked(own) - line_N)) for line_N in lines.values()]
        swapped = hits(seeds, "swapped", where_N) if "swapped" in parts else {}
        cells.append(str(over_seeds_and_items(differences(own, swapped))) if swapped else "")
        cells.append(f"{np.mean([seed['pairs']['labels']['area'] for seed in seeds.values()]):.3f}")
        cells.append(unsigned(over_seeds_and_items(stacked(hits(seeds, "seen")))) if "seen" in parts else "")
        table.add_row(arm, str(len(seeds)), *cells)
    return table


def print_models(results: Results) -> None:
    """Print the quality of the language model, and the accuracy of the probe."""
    (before,) = results["start"].values()
    columns = ("student", "seeds", "text, nats", "minus start", "pairs, nats", "minus start", "probe", "minus start")
    table = Table(*columns, title="masked tokens of held-out synsets; lexicographer file by probe")
    for arm in (name for name in LANGUAGE_MODELS if name in results):
        cells: list[str] = []
        for measure in ("text_nats", "pairs_nats"):
            nats = numbers(results[arm], measure)
            change = "" if arm == "start" else change_over_seeds([value - before[measure] for value in nats.values()])
            cells += [f"{np.mean([*nats.values()]):.3f}", change]
        probes_SN = stacked(numbers(results[arm], "probe"))
        change = "" if arm == "start" else str(over_seeds_and_items(probes_SN - np.array(before["probe"])))
        table.add_row(arm, str(len(results[arm])), *cells, f"{probes_SN.mean():.3f}", change)
    Console(width=180).print(table)
    for arm, other in COMPARED:
        if arm in results and other in results:
            Console(width=180).print(comparison(results, arm, other))


def comparison(results: Results, arm: str, other: str) -> str:
    """Return one student minus another, paired by seed: masked words in nats, and the probe."""
    pairs = {name: [numbers(results[a], name) for a in (arm, other)] for name in ("text_nats", "pairs_nats", "probe")}
    text, form = (change_over_seeds(differences(*pairs[name])) for name in ("text_nats", "pairs_nats"))
    probe = over_seeds_and_items(differences(*pairs["probe"]))
    return f"{arm} minus {other}: text {text} nats, pairs {form} nats, probe {probe}"


def change_over_seeds(values: Sequence[float] | NDArray[np.float64]) -> str:
    """Return mean and interval over seeds; one seed alone has no interval."""
    return str(over_seeds(values)) if len(values) > 1 else f"{values[0]:+.3f}"


def numbers(seeds: BySeed, name: str) -> dict[int, Any]:
    """Return a measure by seed."""
    return {seed: measures[name] for seed, measures in seeds.items()}


def hits(seeds: BySeed, part: str, where_N: NDArray[np.bool_] | None = None) -> dict[int, NDArray[np.float64]]:
    """Return by seed which instances were right: (N,)."""
    by_seed = {seed: np.array(measures["pairs"][part]["hits"]) for seed, measures in seeds.items()}
    return by_seed if where_N is None else {seed: hits_N[where_N] for seed, hits_N in by_seed.items()}


def stacked(by_seed: Mapping[int, Any]) -> NDArray[np.float64]:
    """Return arrays of all seeds as one: (S, N)."""
    return np.array(list(by_seed.values()), np.float64)
