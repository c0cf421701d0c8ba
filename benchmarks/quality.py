"""Share of full distillation's gain that a cached teacher keeps: ``python -m benchmarks.quality``.

The published table (arXiv 2503.16870) at small scale. A teacher of ten times the student's size reads a corpus once for
every kind of target; then a student is trained per arm and seed, and measured on held-out text. The arms of a
seed differ only in what they learn from: first weights, batches, order and schedule are the same. The result is the
share of the gain that a cache keeps; the gain is that of a student of the live teacher, with all logits at every step,
over a student of the text alone. The gain is measured first: if it is not larger than its error, no share can be
stated, and the command exits 1.

Then, without training, the gradient of each arm is compared with the live teacher's (see ``quality_gradients.py``).

Half an hour on one core. Stopped and started again, it continues: what is in the work folder is not made again, so a
larger ``--seeds`` adds to a finished table. Every arm has ``kd_weight: 1``; those that are biased say
so in their loss. Rejected as the default: recorded text with a teacher of 32,768 tokens, whose steps are too
slow for 27 students on one core, and recorded text with the demo's teacher, which is a nat worse on it.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from transformers.utils.logging import disable_progress_bar

from benchmarks.intervals import t_interval
from benchmarks.quality_arms import ARMS, LIVE, TEXT, Scale, bytes_per_position, capture
from benchmarks.quality_gradients import compare
from benchmarks.quality_runs import run
from benchmarks.quality_table import Results, gaps_nats, rows, show
from cache_tools.errors import IdentityError, LogitcaskError
from cache_tools.format.fingerprint import differences
from cache_tools.storage import write_object


def check_work_folder(scale: Scale, work: Path) -> None:
    """Write down what a work folder is for, or refuse one that was made for something else.

    Raises:
        IdentityError: it was.
    """
    path, wanted = work / "settings.json", json.loads(json.dumps(asdict(scale), default=str))
    if not path.exists():
        write_object(path, json.dumps(wanted, indent=2).encode())
    elif (found := json.loads(path.read_text())) != wanted:
        raise IdentityError(
            "another table is being made in this folder",
            where=path,
            expected="the same settings",
            found="; ".join(differences(found, wanted)),
            why="its students would be mixed with these",
            fix="Choose another --work, or delete this one",
        )


def train_all(scale: Scale, work: Path, seeds: int) -> Results:
    """Train and measure every arm in every seed; the two that make the gain first.

    Raises:
        ClickException: the gain is not larger than its error.
    """
    results: Results = {arm.name: [] for arm in ARMS}
    rest = [arm for arm in ARMS if arm not in (TEXT, LIVE)]
    for arms in ((TEXT, LIVE), rest):
        for seed in range(seeds):
            for arm in arms:
                results[arm.name].append(run(arm, seed, scale, work))
                click.echo(f"seed {seed}, {arm.name}: {results[arm.name][-1]['cross_entropy_nats']:.4f} nats", err=True)
        if arms is not rest:
            gap, error = t_interval(gaps_nats(results))
            click.echo(f"gain of the live teacher: {gap:.4f} ± {error:.4f} nats", err=True)
            if gap <= error:
                raise click.ClickException("that is not larger than its error; more --steps or --seeds are needed")
    return results


def measure(scale: Scale, work: Path, seeds: int) -> tuple[list[dict[str, Any]], str]:
    """Return the rows and what stands above them; makes all that is not there yet."""
    check_work_folder(scale, work)
    cache = capture(scale, work)
    results = train_all(scale, work, seeds)
    found = rows(results, compare(scale, work), bytes_per_position(cache))
    gap, error = t_interval(gaps_nats(results))
    teacher_nats = found[0]["teacher_cross_entropy_nats"]
    return found, f"gain of the live teacher {gap:.4f} ± {error:.4f} nats; the teacher itself {teacher_nats:.4f} nats"


@click.command()
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/quality"), show_default=True)
@click.option("--seeds", type=click.IntRange(2, 10), default=3, show_default=True, help="Number of students per arm.")
@click.option("--steps", default=Scale.steps, show_default=True, help="Steps per student.")
@click.option("--tokens", default=Scale.tokens, show_default=True, help="Tokens that are captured, held-out ones too.")
@click.option(
    "--teacher", type=click.Path(exists=True, path_type=Path), default=Scale.teacher, help="Default: the demo's."
)
@click.option(
    "--corpus",
    type=click.Path(exists=True, path_type=Path),
    help="JSON lines with 'text', or .gz; default: the demo's.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per row.")
def main(work: Path, seeds: int, steps: int, tokens: int, teacher: Path, corpus: Path | None, as_json: bool) -> None:
    """Measure how much of the gain of a live teacher each kind of cache keeps."""
    disable_progress_bar()
    try:
        found, title = measure(Scale(tokens=tokens, steps=steps, teacher=teacher, corpus=corpus), work, seeds)
    except LogitcaskError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        for row in found:
            click.echo(json.dumps(row))
    else:
        show(found, title)


if __name__ == "__main__":
    main()
