"""The rows of ``benchmarks.quality``: means over paired seeds, with intervals, and the table.

Seeds are paired: the same seed gives every arm the same first weights and the same batches. So the share of the gain
is taken within each seed, ``(text - arm) / (text - live)`` of held-out cross-entropies, and its interval
is Student's t over the seeds' shares. It covers weights and order; not the choice of held-out text, which
all share, nor the draws of the capture, which are made once.
"""

import statistics
from typing import Any

from benchmarks.intervals import t_interval
from benchmarks.quality_arms import ARMS, LIVE, TEXT

Results = dict[str, list[dict[str, Any]]]
"""By arm, the measures of each seed."""


def gaps_nats(results: Results) -> list[float]:
    """Return the gain of the live teacher in each seed: held-out cross-entropy without it minus with it, in nats."""
    pairs = zip(results[TEXT.name], results[LIVE.name], strict=True)
    return [text["cross_entropy_nats"] - live["cross_entropy_nats"] for text, live in pairs]


def gains_percent(results: Results, name: str) -> list[float]:
    """Return how much of that an arm gains, in each seed."""
    seeds = zip(results[TEXT.name], results[name], gaps_nats(results), strict=True)
    return [100 * (text["cross_entropy_nats"] - arm["cross_entropy_nats"]) / gap for text, arm, gap in seeds]


def rows(results: Results, gradients: dict[str, Any], stored_bytes: dict[str, float]) -> list[dict[str, Any]]:
    """Return one row per arm.

    Args:
        results: Of ``quality_runs.run``.
        gradients: Of ``quality_gradients.compare``.
        stored_bytes: Of ``quality_arms.bytes_per_position``.
    """
    return [
        _row(arm.name, results) | {"bytes_per_position": stored_bytes[arm.name]} | gradients[arm.name] for arm in ARMS
    ]


def _row(name: str, results: Results) -> dict[str, Any]:
    measured = results[name]
    losses = [result["cross_entropy_nats"] for result in measured]
    gain, half_width = t_interval(gains_percent(results, name))
    means = ("kl_to_teacher_nats", "calibration_error", "acceptance", "train_seconds", "teacher_cross_entropy_nats")
    return {
        "name": name,
        "seeds": len(measured),
        "cross_entropy_nats": statistics.fmean(losses),
        "cross_entropy_sd_nats": statistics.stdev(losses),
        "cross_entropy_by_seed_nats": losses,
        "gain_percent": gain,
        "gain_interval_percent": half_width,
        **{key: statistics.fmean(result[key] for result in measured) for key in means},
    }


def show(found: list[dict[str, Any]], title: str) -> None:
    """Print the rows as two tables: students, and gradients."""
    from rich.console import Console
    from rich.table import Table

    students, gradients = Table(title=title), Table(title="gradients against the live teacher's")
    for heading in ("", "held-out nats", "% of the gain", "KL nats", "calib. %", "accept. %", "bytes/pos."):
        students.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for heading in ("", *(f"{state}: {what}" for state in ("first", "half-way") for what in ("angle", "all", "norm"))):
        gradients.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for row in found:
        students.add_row(row["name"], *_student_cells(row))
        gradients.add_row(row["name"], *_gradient_cells(row["initial"]), *_gradient_cells(row["half_trained"]))
    console = Console(width=120)
    console.print(students)
    console.print(gradients)


def _student_cells(row: dict[str, Any]) -> tuple[str, ...]:
    fixed = row["name"] in (TEXT.name, LIVE.name)
    gain = f"{row['gain_percent']:.0f}" if fixed else f"{row['gain_percent']:.1f} ± {row['gain_interval_percent']:.1f}"
    return (
        f"{row['cross_entropy_nats']:.4f} (sd {row['cross_entropy_sd_nats']:.4f})",
        gain,
        f"{row['kl_to_teacher_nats']:.4f}",
        f"{100 * row['calibration_error']:.1f}",
        f"{100 * row['acceptance']:.2f}",
        f"{row['bytes_per_position']:.1f}" if row["bytes_per_position"] else "",
    )


def _gradient_cells(found: dict[str, float]) -> tuple[str, ...]:
    return f"{found['angle_degrees']:.2f}°", f"{found['angle_of_all_degrees']:.2f}°", f"{found['norm_ratio']:.3f}"
