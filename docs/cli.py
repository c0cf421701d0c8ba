"""Write ``docs/cli.md`` from the commands' own help: ``python docs/cli.py``. A test checks that it is current."""

from pathlib import Path

from click.testing import CliRunner

from logitcask import COMMANDS, cli

WIDTH = 100


def reference() -> str:
    """Return the reference of the root command and every subcommand, in workflow order."""
    sections = [_section(words) for words in ([], *([name] for name in COMMANDS))]
    return "# Command line\n\nMade from `--help` by `python docs/cli.py`.\n\n" + "\n".join(sections)


def _section(words: list[str]) -> str:
    result = CliRunner().invoke(
        cli, [*words, "--help"], prog_name="logitcask", terminal_width=WIDTH, max_content_width=WIDTH
    )
    return f"## {' '.join(['logitcask', *words])}\n\n```\n{result.output.rstrip()}\n```\n"


if __name__ == "__main__":
    (Path(__file__).parent / "cli.md").write_text(reference())
