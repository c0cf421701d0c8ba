"""``logitcask train``: stage two, from a student file."""

from pathlib import Path

import click


@click.command("train")
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of CONFIG, such as training.learning_rate=1e-4.",
)
@click.option(
    "--explain",
    is_flag=True,
    help="Print which losses are exact, unbiased or biased on the cache, and which CONFIG's loss is; train nothing.",
)
def train_command(config: Path, overrides: tuple[str, ...], explain: bool) -> None:
    """Train the student of CONFIG from its cache and print the folder of the result.

    After a stop, run the same command again: it continues from its last checkpoint.
    No teacher is loaded. To use several GPUs, start it with torchrun or accelerate launch.

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
