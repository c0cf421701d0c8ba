"""Speed of convergence: held-out cross-entropy by step, and the step at which it falls below a mark.

The curves are what runs with ``eval_strategy: steps`` wrote. Where a learning rate falls to 0 at the end, an early
point of a curve is not where a shorter run would have ended: compare curves of equally many steps, point by point.
"""

import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from configs.papers.measures import finished_seeds, folder_name


class Curve(NamedTuple):
    """Held-out cross-entropy of one student by step."""

    steps: list[int]
    nats: list[float]

    @classmethod
    def read(cls, run_folder: Path) -> "Curve":
        """Read what a run with ``eval_strategy: steps`` measured."""
        lines = (run_folder / "metrics.jsonl").read_text().splitlines()
        measured = [record for record in map(json.loads, lines) if "eval_cross_entropy_nats" in record]
        return cls([record["step"] for record in measured], [record["eval_cross_entropy_nats"] for record in measured])

    def at(self, step: int) -> float:
        """Return the cross-entropy that was measured at a step."""
        return self.nats[self.steps.index(step)]

    def steps_to(self, mark: float) -> float:
        """Return the step at which the cross-entropy first reached a mark, interpolated linearly between measurements.

        Raises:
            ValueError: it never did.
        """
        if self.nats[0] <= mark:
            return self.steps[0]
        for (before, high), (step, low) in pairwise(zip(self.steps, self.nats, strict=True)):
            if low <= mark:
                return before + (step - before) * (high - mark) / (high - low)
        raise ValueError(f"never came down to {mark} nats")


def common_mark(curves: list[Curve]) -> float:
    """Return the lowest cross-entropy that every one of some students reached."""
    return max(min(curve.nats) for curve in curves)


Curves = Mapping[str, Mapping[int, Curve]]
"""By arm and seed."""


def read_curves(students: Path, arms: Iterable[str]) -> Curves:
    """Return the curves of all students that have finished; none of an arm that measured nothing while it trained."""
    runs = {
        arm: {s: students / f"{folder_name(arm)}-{s}" for s in finished_seeds(students, folder_name(arm))}
        for arm in arms
    }
    read = {arm: {seed: Curve.read(run) for seed, run in by_seed.items()} for arm, by_seed in runs.items()}
    measured = {arm: {seed: curve for seed, curve in by_seed.items() if curve.steps} for arm, by_seed in read.items()}
    return {arm: by_seed for arm, by_seed in measured.items() if by_seed}
