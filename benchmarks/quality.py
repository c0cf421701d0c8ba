"""Share of full distillation's gain that a cached teacher keeps: ``python -m benchmarks.quality``.

The published table (arXiv 2503.16870) at small scale. A teacher of ten times the student's size reads a corpus once for
every kind of target; then a student is trained per arm and seed, and measured on held-out text. The arms of a
seed differ only in what they learn from: first weights, batches, order and schedule are the same. The result is the
share of the gain that a cache keeps; the gain is that of a student of the live teacher, with all logits at every step,
over a student of the text alone. The gain is measured first: if it is not larger than its error, no share can be
stated, and the command exits 1.

Then, without training, the gradient of each arm is compared with the live teacher's (see ``quality_gradients.py``).
With ``--real``, the teacher is SmolLM2-135M-Instruct and the student six of its layers, as in the real demo;
gradients are not compared there, since 32 of them in float64 would take 13 GB.

Half an hour on one core. Stopped and started again, it continues: what is in the work folder is not made again, so a
larger ``--seeds`` adds to a finished table. Every arm has ``kd_weight: 1``; those that are biased say
so in their loss. Rejected as the default: recorded text with a teacher of 32,768 tokens, whose steps are too
slow for 27 students on one core, and recorded text with the demo's teacher, which is a nat worse on it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from transformers.utils.logging import disable_progress_bar

from benchmarks.intervals import t_interval
from benchmarks.quality_arms import (
    LIVE,
    TEXT,
    Arm,
    Scale,
    arms_of,
    bytes_per_position,
    capture,
    real_scale,
    storing_errors_nats,
)
from benchmarks.quality_gradients import compare
from benchmarks.quality_runs import run
from benchmarks.quality_table import Results, gains_nats, rows, show
from benchmarks.work_folder import check_work_folder
from cache_tools.errors import LogitcaskError


def train_all(arms: Sequence[Arm], scale: Scale, work: Path, seeds: int) -> Results:
    """Train and measure every arm in every seed; the two that make the live teacher's gain first.

    Raises:
        ClickException: that gain is not larger than its error.
    """
    results: Results = {arm.name: [] for arm in arms}
    first = [arm for arm in arms if arm in (TEXT, LIVE)]
    for group in (first, [arm for arm in arms if arm not in first]):
        for seed in range(seeds):
            for arm in group:
                results[arm.name].append(run(arm, seed, scale, work))
                click.echo(f"seed {seed}, {arm.name}: {results[arm.name][-1]['cross_entropy_nats']:.4f} nats", err=True)
        if group is first and LIVE in first:
            gain, error = t_interval(gains_nats(results, LIVE.name))
            click.echo(f"gain of the live teacher: {gain:.4f} ± {error:.4f} nats", err=True)
            if gain <= error:
                raise click.ClickException("that is not larger than its error; more --steps or --seeds are needed")
    return results


def measure(arms: Sequence[Arm], scale: Scale, work: Path, seeds: int) -> tuple[list[dict[str, Any]], str]:
    """Return the rows and what stands above them; makes all that is not there yet."""
    check_work_folder(asdict(scale), work)
    cache = capture(scale, work)
    results = train_all(arms, scale, work, seeds)
    is_compared = scale.student is None and LIVE in arms
    gradients = compare(scale, work, arms) if is_compared else {}
    table = rows(results, gradients, bytes_per_position(cache, arms), storing_errors_nats(cache, arms))
    return (
        table,
        f"{seeds} seeds; held-out loss of the teacher itself {table[0]['teacher_cross_entropy_nats']:.4f} nats",
    )


def selected_arms(scale: Scale, names: Sequence[str]) -> tuple[Arm, ...]:
    """Return the arms with these names, and the text alone; without names, all arms.

    Raises:
        UsageError: there is no arm of that name.
    """
    arms = arms_of(scale)
    if unknown := set(names) - {arm.name for arm in arms}:
        raise click.UsageError(f"no arm is named {sorted(unknown)[0]!r}; there are {', '.join(a.name for a in arms)}")
    return tuple(arm for arm in arms if not names or arm is TEXT or arm.name in names)


@click.command()
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/quality"), show_default=True)
@click.option("--seeds", type=click.IntRange(2, 10), default=3, show_default=True, help="Number of students per arm.")
@click.option("--steps", type=click.IntRange(1), help="Steps per student; default: 240, or 120 with --real.")
@click.option("--learning-rate", type=float, help="Highest learning rate; default: 4e-3, or 1e-3 with --real.")
@click.option("--tokens", type=click.IntRange(1), help="Tokens that are captured, held-out ones too; default: 270,000.")
@click.option("--teacher", type=click.Path(exists=True, path_type=Path), help="Model folder; default: the toy demo's.")
@click.option(
    "--corpus",
    type=click.Path(exists=True, path_type=Path),
    help="JSON lines with 'text', or .gz; default: the demo's.",
)
@click.option(
    "--real",
    type=click.Path(exists=True, path_type=Path),
    help="Finished folder of 'logitcask demo --real': its teacher, first weights, corpus and settings.",
)
@click.option("--arm", "names", multiple=True, help="Arm to train beside the text alone; repeatable; default: all.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per row.")
def main(
    work: Path,
    seeds: int,
    steps: int | None,
    learning_rate: float | None,
    tokens: int | None,
    teacher: Path | None,
    corpus: Path | None,
    real: Path | None,
    names: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure how much of the gain of a live teacher each kind of cache keeps."""
    disable_progress_bar()
    base = real_scale(real) if real else Scale()
    sizes = replace(
        base,
        tokens=tokens or base.tokens,
        steps=steps or base.steps,
        learning_rate=learning_rate or base.learning_rate,
    )
    scale = replace(sizes, teacher=teacher or base.teacher, corpus=corpus or base.corpus)
    try:
        table, title = measure(selected_arms(scale, names), scale, work, seeds)
    except LogitcaskError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        for row in table:
            click.echo(json.dumps(row))
    else:
        show(table, title)


if __name__ == "__main__":
    main()
