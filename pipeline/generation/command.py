"""``logitcask generate``: completions by a teacher or student, from a generation file."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pipeline.generation.run import GenerateResult


@click.command("generate")
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key: sampling.temperature=0.7."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def generate_command(config: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Let the model of CONFIG complete prompts, and print the folder of its completions.

    The folder is a corpus that says who wrote it: 'logitcask capture' reads its tokens with
    ids_field: ids and mask_field: mask, and records the model in the cache. Stop it anywhere and
    run the same command again: it continues.

    \b
    Example:
        logitcask generate configs/demo/generate.yaml --set sampling.max_new_tokens=32
    """
    from transformers.utils.logging import disable_progress_bar

    from cache_tools.configuration import load_config
    from cache_tools.progress.lines import open_reporter
    from pipeline.config.generation import GenerateConfig
    from pipeline.generation.run import run_generation

    settings = load_config(config, GenerateConfig, overrides)
    disable_progress_bar()  # transformers' own bars would break up ours
    with open_reporter() as reporter:
        result = run_generation(settings, reporter)
    if as_json:
        from cache_tools.json_output import json_text

        click.echo(json_text(result))
        return
    click.echo(_summary(result), err=True)
    click.echo(str(result.output))


def _summary(result: "GenerateResult") -> str:
    from cache_tools.quantities import counted

    ended = f"{result.stopped:,} ended by a stop token"
    tokens = f"{counted(result.completion_tokens, 'token')}, {ended}"
    return f"{counted(result.completions, 'completion')} ({result.written:,} written now): {tokens}"
