"""The two ways in: the console command, and the public Python interface.

Everything that is reached from here lives beside the code it runs and is imported when it is first used, so that
neither ``logitcask inspect`` nor ``from logitcask import Cache`` on a laptop imports torch. The command line is also
the one place where errors become exit codes.

::

    from logitcask import Cache, capture, distillation, evaluate, plan, train
"""

import importlib
import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cache_tools.store.reader import Cache as Cache
    from pipeline.api import capture as capture
    from pipeline.api import plan as plan
    from trainer.api import distillation as distillation
    from trainer.api import evaluate as evaluate
    from trainer.api import train as train

PUBLIC = {
    "Cache": "cache_tools.store.reader",
    "plan": "pipeline.api",
    "capture": "pipeline.api",
    "train": "trainer.api",
    "distillation": "trainer.api",
    "evaluate": "trainer.api",
}
"""Public Python interface: name to the module that defines it."""

__all__ = ["Cache", "capture", "distillation", "evaluate", "plan", "train"]

COMMANDS = {
    "demo": "pipeline.demo.cli:demo_command",
    "generate": "pipeline.generation.command:generate_command",
    "plan": "pipeline.planning.command:plan_command",
    "capture": "pipeline.cli:capture_command",
    "import": "cache_tools.exchange.command:import_command",
    "vocabulary": "cache_tools.vocabularies.command:vocabulary_command",
    "align": "cache_tools.alignments.command:align_command",
    "train": "trainer.run.command:train_command",
    "evaluate": "trainer.evaluation.command:evaluate_command",
    "inspect": "cache_tools.terminal.inspect_command:inspect_command",
    "show": "cache_tools.terminal.show_command:show_command",
    "view": "cache_tools.viewer.command:view_command",
    "report": "cache_tools.report.command:report_command",
    "diff": "cache_tools.terminal.diff_command:diff_command",
    "audit": "pipeline.audit.command:audit_command",
    "verify": "cache_tools.maintenance.verify_command:verify_command",
    "repair": "cache_tools.maintenance.commands:repair_command",
    "copy": "cache_tools.maintenance.commands:copy_command",
    "subset": "cache_tools.maintenance.commands:subset_command",
    "export": "cache_tools.exchange.command:export_command",
    "card": "cache_tools.publishing.command:card_command",
    "publish": "cache_tools.publishing.command:publish_command",
    "drop": "cache_tools.maintenance.commands:drop_command",
}
"""Subcommand to ``module:attribute``, in the order of a user's work."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in PUBLIC:
        raise AttributeError(f"module 'logitcask' has no attribute {name!r}")
    module_name = PUBLIC[name]
    _check_owner(module_name.split(".")[0])
    globals()[name] = value = getattr(importlib.import_module(module_name), name)
    return value


class LazyGroup(click.Group):
    """A group that imports a subcommand's module when the subcommand is first needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in workflow order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a subcommand; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module_name, attribute = COMMANDS[cmd_name].split(":")
        _check_owner(module_name.split(".")[0])
        command: click.Command = getattr(importlib.import_module(module_name), attribute)
        return command


@click.group(
    cls=LazyGroup,
    commands=dict.fromkeys(COMMANDS),  # names only, so click can say "Did you mean"
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="logitcask", prog_name="logitcask")
def cli() -> None:
    """Run big teacher models over a corpus once; train many students from the cached predictions.

    \b
    Start here:
        logitcask demo
    """


def main() -> None:
    """Run the command line; our own errors end in one message and their exit code."""
    from cache_tools.errors import LogitcaskError

    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a path may hold bytes that are no characters
    try:
        cli()
    except LogitcaskError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)


def _check_owner(package: str) -> None:
    """Refuse another distribution's package of the same top-level name."""
    if getattr(importlib.import_module(package), "DISTRIBUTION", None) != "logitcask":
        raise click.ClickException(
            f"another distribution's package {package!r} was found first; "
            "install logitcask into a virtual environment of its own."
        )


if __name__ == "__main__":
    main()
