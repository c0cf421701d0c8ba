"""``logitcask capture``: run stage one from a capture file."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from cache_tools.cli_options import FiniteRange

if TYPE_CHECKING:
    from pipeline.config.capture_file import CaptureConfig


@click.command("capture")
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key: teachers.0.dtype=bfloat16."
)
@click.option("--rank", type=click.IntRange(0), default=0, show_default=True, help="Number of this worker, from 0.")
@click.option(
    "--world-size", type=click.IntRange(1), default=1, show_default=True, help="Number of workers of the capture."
)
@click.option(
    "--wait-minutes",
    type=FiniteRange(0),
    default=60,
    show_default=True,
    help="How long a worker waits while rank 0 writes nothing.",
)
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where the teachers run: in this process, or in workers on a Ray cluster.",
)
@click.option(
    "--address",
    metavar="HOST:PORT",
    envvar="RAY_ADDRESS",
    help="Address of the Ray cluster.  [default: start Ray on this machine]",
)
@click.option("--workers", type=click.IntRange(1), help="Number of Ray workers.  [default: one per set of GPUs]")
@click.option("--append", is_flag=True, help="Add files of the corpus that the cache does not hold yet.")
def capture_command(
    config: Path,
    overrides: tuple[str, ...],
    rank: int,
    world_size: int,
    wait_minutes: float,
    executor: str,
    address: str | None,
    workers: int | None,
    append: bool,
) -> None:
    """Run the teachers of CONFIG over its corpus and store their predictions.

    Stop it anywhere and run the same command again: it continues. To share the work, start one
    command per GPU with the same CONFIG and its own --rank, or one command with --executor ray.
    A teacher or a layer of hidden states that is added to CONFIG later is captured without
    redoing the rest.

    \b
    Example:
        logitcask capture configs/demo/capture.yaml --set cache=runs/mine/cache
    """
    if rank >= world_size:
        raise click.UsageError(f"--rank {rank} needs --world-size of at least {rank + 1}")
    _check_executor(executor)
    from transformers.utils.logging import disable_progress_bar

    from cache_tools.configuration import load_config
    from pipeline.config.capture_file import CaptureConfig

    settings = load_config(config, CaptureConfig, overrides)
    disable_progress_bar()  # transformers' own bars would break up ours
    if executor == "ray":
        committed: dict[str, int] | None = _capture_on_ray(settings, address, workers, append)
    else:
        committed = _capture_here(settings, rank, world_size, wait_minutes, append)
    if committed is not None:  # or this process only served the first one of its group
        _report(committed)
        click.echo(str(settings.cache))


def _capture_here(
    settings: "CaptureConfig", rank: int, world_size: int, wait_minutes: float, append: bool
) -> dict[str, int] | None:
    from cache_tools.progress.lines import open_reporter
    from pipeline.run import Worker, run_capture
    from pipeline.teachers.process_group import Place
    from pipeline.teachers.tensor_parallel import run_together

    def run(place: Place) -> dict[str, int]:
        worker = Worker(rank, world_size, wait_minutes).with_groups(place)
        with open_reporter(worker.rank, worker.world_size) as reporter:
            return run_capture(settings, worker, reporter, append)

    return run_together(settings.teachers, run)


def _capture_on_ray(
    settings: "CaptureConfig", address: str | None, workers: int | None, append: bool
) -> dict[str, int]:
    from cache_tools.progress.lines import open_reporter
    from pipeline.ray_executor import run_capture_on_ray

    with open_reporter(0, 1) as reporter:
        return run_capture_on_ray(settings, address or "local", workers, reporter, append)


def _report(committed: dict[str, int]) -> None:
    """Say on standard error how many shards of each teacher were captured."""
    from rich.console import Console

    from cache_tools.quantities import counted

    console = Console(stderr=True)
    for teacher, shards in committed.items():
        news = f"{counted(shards, 'shard')} captured now" if shards else "nothing left to do"
        console.print(f"teacher {teacher}: {news}")


def _check_executor(executor: str) -> None:
    """Refuse options that belong to the other executor."""
    excluded = ("rank", "world_size", "wait_minutes") if executor == "ray" else ("address", "workers")
    context = click.get_current_context()
    given = [name for name in excluded if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(f"{options} cannot be combined with --executor {executor}")
