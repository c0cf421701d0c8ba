"""The rows of ``benchmarks.quality``: means over paired seeds, with intervals, and the table.

Seeds are paired: the same seed gives every arm the same first weights and the same batches. So the share of the gain
is taken within each seed, ``(text - arm) / (text - live)`` of held-out cross-entropies, and its interval
is Student's t over the seeds' shares. It covers weights and order; not the choice of held-out text, which
all share, nor the draws of the capture, which are made once. ``floor`` is the KL that storing alone adds to what an arm
reads, so the smallest difference in KL that its cache could hide; 0 where every bit is kept.
"""

import statistics
from typing import Any

from benchmarks.intervals import t_interval
from benchmarks.quality_arms import LIVE, TEXT

Results = dict[str, list[dict[str, Any]]]
"""By arm, the measures of each seed."""


def gains_nats(results: Results, name: str) -> list[float]:
    """Return by how many nats of held-out cross-entropy an arm is better than the text alone, in each seed."""
    pairs = zip(results[TEXT.name], results[name], strict=True)
    return [text["cross_entropy_nats"] - arm["cross_entropy_nats"] for text, arm in pairs]


def gains_percent(results: Results, name: str) -> list[float]:
    """Return how much of the live teacher's gain an arm has, in each seed."""
    seeds = zip(gains_nats(results, name), gains_nats(results, LIVE.name), strict=True)
    return [100 * gain / live for gain, live in seeds]


def rows(
    results: Results,
    gradients: dict[str, Any],
    stored_bytes: dict[str, float],
    storing_errors_nats: dict[str, float | None],
) -> list[dict[str, Any]]:
    """Return one row per arm; without the live teacher among them, there are no shares of its gain.

    Args:
        results: Of ``quality_runs.run``.
        gradients: Of ``quality_gradients.compare``, or empty.
        stored_bytes: Of ``quality_arms.bytes_per_position``.
        storing_errors_nats: Of ``quality_arms.storing_errors_nats``.
    """
    return [
        _row(name, results)
        | {"bytes_per_position": stored_bytes[name], "storing_error_nats": storing_errors_nats[name]}
        | gradients.get(name, {})
        for name in results
    ]


def _row(name: str, results: Results) -> dict[str, Any]:
    measured = results[name]
    losses = [result["cross_entropy_nats"] for result in measured]
    gain, gain_half_width = t_interval(gains_nats(results, name))
    share, share_half_width = t_interval(gains_percent(results, name)) if LIVE.name in results else (None, None)
    means = ("kl_to_teacher_nats", "calibration_error", "acceptance", "train_seconds", "teacher_cross_entropy_nats")
    return {
        "name": name,
        "seeds": len(measured),
        "cross_entropy_nats": statistics.fmean(losses),
        "cross_entropy_sd_nats": statistics.stdev(losses),
        "cross_entropy_by_seed_nats": losses,
        "gain_nats": gain,
        "gain_interval_nats": gain_half_width,
        "gain_percent": share,
        "gain_interval_percent": share_half_width,
        **{key: statistics.fmean(result[key] for result in measured) for key in means},
    }


def show(table: list[dict[str, Any]], title: str) -> None:
    """Print the rows as two tables: students and, where they were compared, gradients."""
    from rich.console import Console
    from rich.table import Table

    students, gradients = Table(title=title), Table(title="gradients against the live teacher's")
    for heading in (
        "",
        "held-out nats",
        "gain, nats",
        "% of live",
        "KL nats",
        "floor",
        "calib. %",
        "accept. %",
        "bytes/pos.",
    ):
        students.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for heading in ("", *(f"{state}: {what}" for state in ("first", "half-way") for what in ("angle", "all", "norm"))):
        gradients.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for row in table:
        students.add_row(row["name"], *_student_cells(row))
        if "initial" in row:
            gradients.add_row(row["name"], *_gradient_cells(row["initial"]), *_gradient_cells(row["half_trained"]))
    console = Console(width=132)
    console.print(students)
    if gradients.row_count:
        console.print(gradients)


def _student_cells(row: dict[str, Any]) -> tuple[str, ...]:
    share, half_width = row["gain_percent"], row["gain_interval_percent"]
    return (
        f"{row['cross_entropy_nats']:.4f} (sd {row['cross_entropy_sd_nats']:.4f})",
        "" if row["name"] == TEXT.name else f"{row['gain_nats']:.3f} ± {row['gain_interval_nats']:.3f}",
        "" if share is None or row["name"] in (TEXT.name, LIVE.name) else f"{share:.1f} ± {half_width:.1f}",
        f"{row['kl_to_teacher_nats']:.4f}",
        "" if row["storing_error_nats"] is None else f"{row['storing_error_nats']:.1e}",
        f"{100 * row['calibration_error']:.1f}",
        f"{100 * row['acceptance']:.2f}",
        f"{row['bytes_per_position']:.1f}" if row["bytes_per_position"] else "",
    )


def _gradient_cells(gradient: dict[str, float]) -> tuple[str, ...]:
    return (
        f"{gradient['angle_degrees']:.2f}°",
        f"{gradient['angle_of_all_degrees']:.2f}°",
        f"{gradient['norm_ratio']:.3f}",
    )
