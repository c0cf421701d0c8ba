"""``logitcask plan``: what a capture will cost before anyone pays for it."""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cache_tools.cli_options import FiniteRange

if TYPE_CHECKING:
    from pipeline.planning.capture_plan import PlanSettings

ABOVE_ZERO = FiniteRange(min=0, min_open=True)

UNITS = {"": 1, "B": 1} | {
    prefix + suffix: base ** (1 + "KMGT".index(prefix.upper()))
    for prefix in "kKMGT"
    for suffix, base in (("B", 1000), ("iB", 1024))
}
"""Bytes of each unit of memory."""


class SizeType(click.ParamType[int]):
    """A size in bytes, with or without a unit."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Turn "80GB" or "79.6 GiB" into bytes."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(value).strip())
        if match is None or match[2] not in UNITS or not 0 < float(match[1]) < 1e15:
            raise click.BadParameter(f"{value!r} is not a size. Write a number and a unit, such as 80GB or 79.6GiB.")
        unit: int = UNITS[match[2]]
        return round(float(match[1]) * unit)


@click.command("plan")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key: teachers.0.target.k=32.")
@click.option(
    "--measure", is_flag=True, help="Run each teacher over part of the sample to measure speed, bytes and a table of k."
)
@click.option("--tokens-per-s", type=ABOVE_ZERO, help="Speed of a worker, if you know it.")
@click.option(
    "--tokens",
    type=ABOVE_ZERO,
    help="Plan for a corpus like CONFIG's with this many tokens; free space is not checked.",
)
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Number of workers that share the capture."
)
@click.option(
    "--simulate",
    is_flag=True,
    help="Simulate the workers and their failures: hours, repeated work, load, shard sizes.",
)
@click.option("--hours-between-failures", type=ABOVE_ZERO, help="Mean up-time of one worker.  [default: no failures]")
@click.option(
    "--restart-seconds",
    type=FiniteRange(min=0),
    default=300,
    show_default=True,
    help="Time from a failure until the replacement has loaded the teacher.",
)
@click.option(
    "--speed-spread",
    type=FiniteRange(min=0, max=1),
    default=0,
    show_default=True,
    help="How much the speeds of workers differ: 0.05 for about 5%.",
)
@click.option(
    "--student-positions-per-s",
    type=FiniteRange(min=0),
    default=65_000,
    show_default=True,
    help="Positions that a student trains on per second, over all its ranks.",
)
@click.option(
    "--student-readers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes that load a student's data: ranks times loader workers. Each reads every shard.",
)
@click.option(
    "--sample-documents",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="Number of documents to tokenise.",
)
@click.option(
    "--sample-sequences",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Largest number of sequences that each teacher reads to be measured.",
)
@click.option(
    "--measure-seconds",
    type=ABOVE_ZERO,
    default=60,
    show_default=True,
    help="Longest time that each teacher reads to be measured.",
)
@click.option(
    "--device-memory",
    type=SizeType(),
    help="Memory of the GPU to plan for, such as 80GB.  [default: that of the device here]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def plan_command(config: Path, overrides: tuple[str, ...], as_json: bool, **assumptions: Any) -> None:
    """Print what the capture CONFIG will cost: sequences, bytes, objects, hours, memory, bandwidth.

    The corpus is read once and an even sample of it tokenised; nothing is written. What the cache
    already holds is subtracted. Only the configuration and tokenizer of a teacher are needed, its
    weights only with --measure. Exits 1 if what remains would not fit on the disk.

    \b
    Example:
        logitcask plan configs/demo/capture.yaml --measure
    """
    if assumptions["simulate"] and not (assumptions["measure"] or assumptions["tokens_per_s"]):
        raise click.UsageError("--simulate needs a speed: give --tokens-per-s, or --measure")
    from transformers.utils.logging import disable_progress_bar

    from cache_tools.configuration import load_config
    from cache_tools.json_output import json_text
    from cache_tools.progress.lines import open_reporter
    from pipeline.config.capture_file import CaptureConfig
    from pipeline.planning.capture_plan import plan_capture
    from pipeline.planning.plan import require_space
    from pipeline.planning.tables import print_plan

    capture = load_config(config, CaptureConfig, overrides)
    disable_progress_bar()  # transformers' own bars would break up ours
    with open_reporter() as reporter:
        plan = plan_capture(capture, _settings(**assumptions), reporter)
    if as_json:
        click.echo(json_text(plan))
    else:
        print_plan(plan)
    if assumptions["tokens"] is None:
        require_space(capture.cache, plan.remaining_bytes)


def _settings(
    *,
    measure: bool,
    tokens_per_s: float | None,
    tokens: float | None,
    workers: int,
    simulate: bool,
    hours_between_failures: float | None,
    restart_seconds: float,
    speed_spread: float,
    student_positions_per_s: float,
    student_readers: int,
    sample_documents: int,
    sample_sequences: int,
    measure_seconds: float,
    device_memory: int | None,
) -> "PlanSettings":
    """Return what the options assume."""
    from pipeline.planning.capture_plan import PlanSettings
    from pipeline.planning.scale import StudentLoad
    from pipeline.planning.simulate import Cluster

    up_seconds = 3600 * (hours_between_failures or math.inf)
    return PlanSettings(
        sample_documents=sample_documents,
        measured_sequences=sample_sequences if measure else 0,
        measured_seconds=measure_seconds,
        tokens_per_s=tokens_per_s,
        corpus_tokens=tokens,
        device_memory_bytes=device_memory,
        cluster=Cluster(workers, up_seconds, restart_seconds, speed_spread),
        simulate=simulate,
        student=StudentLoad(student_positions_per_s, student_readers),
    )
