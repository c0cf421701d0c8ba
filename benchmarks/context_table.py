"""The table of ``benchmarks.context``: what each student recovered of the change that an example makes."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.intervals import t_interval
from cache_tools.quantities import counted

FIRST_TOKENS = 4
"""Tokens at the beginning of each answer that are measured by themselves."""


@dataclass(frozen=True)
class Measured:
    """One student on the held-out answers.

    Attributes:
        kl_nats: Mean KL of the teacher, with the example, against the student, without.
        first_kl_nats: The same at the first tokens of each answer.
        cross_entropy_nats: Mean of -ln p of the answers' tokens.
        core_seconds: Processor time of its training and its measurement.
    """

    kl_nats: float
    first_kl_nats: float
    cross_entropy_nats: float
    core_seconds: float


@dataclass(frozen=True)
class ArmRow:
    """One arm over all seeds; intervals are half the width of Student's 95 %, and None for a single seed.

    Attributes:
        name: What its teacher had read.
        kl_nats: Mean KL after training.
        kl_interval_nats: Its interval.
        recovered_percent: Mean share of the change that was recovered.
        recovered_interval_percent: Its interval.
        first_recovered_percent: Mean share that was recovered at the first tokens of the answers.
        teacher_percent: Share of the change that the example makes in the teacher itself; None where all of it.
        core_minutes: Mean processor time of a student.
    """

    name: str
    kl_nats: float
    kl_interval_nats: float | None
    recovered_percent: float
    recovered_interval_percent: float | None
    first_recovered_percent: float
    teacher_percent: float | None
    core_minutes: float


@dataclass(frozen=True)
class ContextTable:
    """The result.

    Attributes:
        seeds: Students of each arm.
        answers_in_style: Share of the teacher's answers with the example that begin as the style does, in [0, 1].
        held_out_positions: Positions that are measured.
        before_nats: KL of the teacher with the example against itself without.
        first_before_nats: The same at the first tokens of each answer.
        arms: The arms, the first of which is no control.
    """

    seeds: int
    answers_in_style: float
    held_out_positions: int
    before_nats: float
    first_before_nats: float
    arms: tuple[ArmRow, ...]


def recovered_percent(first_nats: float, last_nats: float) -> float:
    """Return which share of the change was recovered."""
    return 100 * (1 - last_nats / first_nats)


def table(
    first: Measured,
    teachers_nats: Mapping[str, float],
    students: Mapping[str, Sequence[Measured]],
    answers_in_style: float,
    positions: int,
) -> ContextTable:
    """Return the result.

    Args:
        first: The weights that every student starts from.
        teachers_nats: By arm that has another example, KL of the teacher with its own against itself with that one.
        students: Those of each arm, by seed.
        answers_in_style: See :class:`ContextTable`.
        positions: Positions that are measured.
    """
    arms = tuple(_row(arm, first, teachers_nats.get(arm), made) for arm, made in students.items())
    seeds = min(map(len, students.values()))
    return ContextTable(seeds, answers_in_style, positions, first.kl_nats, first.first_kl_nats, arms)


def _row(name: str, first: Measured, teacher_nats: float | None, made: Sequence[Measured]) -> ArmRow:
    return ArmRow(
        name,
        *_interval([last.kl_nats for last in made]),
        *_interval([recovered_percent(first.kl_nats, last.kl_nats) for last in made]),
        first_recovered_percent=statistics.fmean(
            recovered_percent(first.first_kl_nats, last.first_kl_nats) for last in made
        ),
        teacher_percent=None if teacher_nats is None else recovered_percent(first.kl_nats, teacher_nats),
        core_minutes=statistics.fmean(last.core_seconds for last in made) / 60,
    )


def _interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and half the width of its interval, None for a single value."""
    return t_interval(values) if len(values) > 1 else (values[0], None)


def show(result: ContextTable) -> None:
    """Print the result for people."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=f"{counted(result.seeds, 'seed')}, {result.held_out_positions:,} held-out positions")
    first_few = f"of first {FIRST_TOKENS}, %"
    for heading in ("the teacher had read", "KL, nats", "recovered, %", first_few, "in the teacher, %", "core-minutes"):
        shown.add_column(heading, justify="left" if heading == "the teacher had read" else "right")
    shown.add_row("(before training)", f"{result.before_nats:.4f}", "0", "0", "", "")
    for arm in result.arms:
        kl = _cell(arm.kl_nats, arm.kl_interval_nats, 4)
        share = _cell(arm.recovered_percent, arm.recovered_interval_percent, 1)
        in_teacher = "" if arm.teacher_percent is None else f"{arm.teacher_percent:.1f}"
        shown.add_row(arm.name, kl, share, f"{arm.first_recovered_percent:.1f}", in_teacher, f"{arm.core_minutes:.1f}")
    console = Console(width=116)
    console.print(shown)
    console.print("in the teacher: what the other example itself changes towards the document's own")
    console.print(f"before training, at the first {FIRST_TOKENS} tokens: {result.first_before_nats:.4f} nats")
    console.print(f"answers of the teacher with the example in its style: {result.answers_in_style:.1%}")


def _cell(mean: float, half_width: float | None, digits: int) -> str:
    return f"{mean:.{digits}f}" + ("" if half_width is None else f" ± {half_width:.{digits}f}")
