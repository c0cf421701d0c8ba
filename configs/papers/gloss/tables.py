"""The recipe's tables: accuracy on glosses, and quality of the language model. Intervals are of 95 %."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from configs.papers.recipes import Interval, over_seeds, over_seeds_and_items

Results = Mapping[str, Sequence[Mapping[str, Any]]]
"""The measurements of ``measure.py`` for each seed, by arm."""


def print_baselines(baselines: Mapping[str, Any]) -> None:
    """Print the baselines, on pairs of held-out synsets."""
    table = Table("baseline", "accuracy", "area", "another's sentence", title="unseen synsets, no language model")
    for name, baseline in baselines.items():
        own, other = (plain(over_seeds_and_items(by_seed([baseline], part))) for part in ("labels", "swapped"))
        table.add_row(name, own, f"{baseline['pairs']['labels']['area']:.3f}", other)
    Console(width=160).print(table)


def print_scores(results: Results, baselines: Mapping[str, Any]) -> None:
    """Print how often the right gloss scored highest, on unseen synsets and on the controls.

    ``minus another's`` is the effect of the sentence: the difference from the same pairs with another sentence.
    """
    chance, lsa = (by_seed([baselines[name]], "labels") for name in ("chance", "LSA"))
    columns = ("student", "accuracy", "minus chance", "minus LSA", "minus another's", "area", "seen synsets")
    title = f"accuracy, {chance.size:,} instances of unseen synsets; {len(results['LMGC'])} seeds"
    table = Table(*columns, title=title)
    for arm, seeds in results.items():
        unseen, others = by_seed(seeds, "labels"), [chance, lsa]
        parts = seeds[0]["pairs"]
        others += [by_seed(seeds, "swapped")] if "swapped" in parts else []
        gains = [str(over_seeds_and_items(unseen - other)) for other in others]
        area = f"{np.mean([seed['pairs']['labels']['area'] for seed in seeds]):.3f}"
        seen = plain(over_seeds_and_items(by_seed(seeds, "seen"))) if "seen" in parts else ""
        table.add_row(arm, plain(over_seeds_and_items(unseen)), *gains, *[""] * (3 - len(gains)), area, seen)
    Console(width=160).print(table)


def print_models(results: Results) -> None:
    """Print the quality of the language model, and the accuracy of the probe."""
    before, columns = results["start"][0], ("student", "text, nats", "minus start", "pairs, nats", "minus start")
    table = Table(
        *columns, "probe", "minus start", title="masked tokens of held-out synsets; lexicographer file by probe"
    )
    for arm in ("start", "LMGC", "LMGC-M"):
        cells: list[str] = []
        for name in ("text_nats", "pairs_nats"):
            values = [seed[name] for seed in results[arm]]
            change = "" if arm == "start" else str(over_seeds([value - before[name] for value in values]))
            cells += [f"{np.mean(values):.3f}", change]
        probes = np.array([seed["probe"] for seed in results[arm]])
        change = "" if arm == "start" else str(over_seeds_and_items(probes - np.array(before["probe"])))
        table.add_row(arm, *cells, f"{probes.mean():.3f}", change)
    Console(width=160).print(table)
    both = [np.array([seed["probe"] for seed in results[arm]]) for arm in ("LMGC-M", "LMGC")]
    Console(width=160).print(f"probe, LMGC-M minus LMGC: {over_seeds_and_items(both[0] - both[1])}")


def by_seed(results: Sequence[Mapping[str, Any]], name: str) -> np.ndarray[Any, Any]:
    """Return hits: (seeds, instances)."""
    return np.array([seed["pairs"][name]["hits"] for seed in results])


def plain(interval: Interval) -> str:
    """Return an interval of something that has no sign."""
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
