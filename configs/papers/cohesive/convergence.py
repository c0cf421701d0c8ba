"""Speed of convergence: held-out cross-entropy by step, and the step at which it falls below a mark."""

import json
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple


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
