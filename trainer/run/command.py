"""``logitcask train``: stage two, from a student file."""

from pathlib import Path

import click


@click.command("train")
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key: training.learning_rate=1e-4."
)
@click.option("--explain", is_flag=True, help="Print which losses are exact on the cache, and what CONFIG's is worth.")
def train_command(config: Path, overrides: tuple[str, ...], explain: bool) -> None:
    """Train the student of CONFIG from its cache and print the folder of the result.

    Stop it anywhere and run the same command again: it continues from its last checkpoint.
    No teacher is loaded. Several GPUs: start it with torchrun or accelerate launch.
    With --explain nothing is trained: it needs only the cache's manifests.

    \b
    Example:
        logitcask train configs/demo/student.yaml --set training.max_steps=50
    """
    from cache_tools.configuration import load_config
    from trainer.config.student_file import StudentConfig

    settings = load_config(config, StudentConfig, overrides)
    if explain:
        from trainer.run.explanation import print_explanation

        print_explanation(settings)
        return
    from transformers.utils.logging import disable_progress_bar

    from trainer.run.train import run_training

    disable_progress_bar()  # transformers' own bars would break up ours
    click.echo(str(run_training(settings).student))
