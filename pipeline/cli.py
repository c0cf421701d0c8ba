"""``logitcask capture``: stage one, from a capture file."""

from pathlib import Path

import click
from click.core import ParameterSource

from cache_tools.cli_options import FiniteRange


@click.command("capture")
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key: teachers.0.dtype=bfloat16."
)
@click.option("--rank", type=click.IntRange(0), default=0, show_default=True, help="Number of this worker.")
@click.option(
    "--world-size", type=click.IntRange(1), default=1, show_default=True, help="How many workers share the capture."
)
@click.option(
    "--wait-minutes", type=FiniteRange(0), default=60, show_default=True, help="Patience with a silent rank 0."
)
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Who runs the teachers: this process, or workers on a Ray cluster.",
)
@click.option("--address", metavar="HOST:PORT", envvar="RAY_ADDRESS", help="Ray cluster.  [default: one started here]")
@click.option("--workers", type=click.IntRange(1), help="Ray workers.  [default: one per set of GPUs]")
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
    """Run the teachers of CONFIG over its corpus and store what they predict.

    Stop it anywhere and run the same command again: it continues. With several workers,
    start one per GPU with the same CONFIG and its own --rank, or one command with --executor ray.
    A teacher or a layer of hidden states that is added to CONFIG later is captured without
    redoing the rest.

    \b
    Example:
        logitcask capture configs/demo/capture.yaml --set cache=runs/mine/cache
    """
    if rank >= world_size:
        raise click.UsageError(f"--rank {rank} needs --world-size of at least {rank + 1}")
    _check_executor(executor)
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from cache_tools.configuration import load_config
    from cache_tools.progress.lines import open_reporter
    from pipeline.config import CaptureConfig
    from pipeline.run import Worker, run_capture
    from pipeline.teachers.process_group import Place
    from pipeline.teachers.tensor_parallel import run_together

    settings = load_config(config, CaptureConfig, overrides)
    disable_progress_bar()  # transformers' own bars would break up ours
    console = Console(stderr=True)
    worker = Worker(rank, world_size, wait_minutes)

    def run(place: Place) -> dict[str, int]:
        own = worker.with_groups(place)
        with open_reporter(own.rank, own.world_size) as reporter:
            return run_capture(settings, own, reporter, append)

    if executor == "ray":
        from pipeline.ray_executor import run_capture_on_ray

        with open_reporter(0, 1) as reporter:
            committed: dict[str, int] | None
            committed = run_capture_on_ray(settings, address or "local", workers, reporter, append)
    else:
        committed = run_together(settings, run)
    if committed is None:  # another process did this one's share
        return
    for teacher, shards in committed.items():
        console.print(
            f"teacher {teacher}: {shards} shards captured now" if shards else f"teacher {teacher}: nothing left to do"
        )
    click.echo(str(settings.cache))


def _check_executor(executor: str) -> None:
    """Refuse options that belong to the other executor."""
    wrong = ("rank", "world_size", "wait_minutes") if executor == "ray" else ("address", "workers")
    context = click.get_current_context()
    given = [name for name in wrong if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(f"{options} cannot be combined with --executor {executor}")
