"""The documents tell the truth: tree, commands, links and command reference."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from logitcask import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def tracked_files():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in listed.splitlines() if (ROOT / path).exists()]


def tree_entries():
    """Return the paths that the README's tree names; a folder that is not opened ends with a slash."""
    block = re.search(r"```tree\n(.*?)```", README, re.DOTALL).group(1)
    folders, entries = [], []
    for line in block.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        folders[len(indent) // 2 :] = [name]
        entries.append("".join(folders))
    return entries


def test_every_file_has_a_line_in_the_tree_or_lies_in_a_folder_that_has():
    entries = tree_entries()
    closed = [entry for entry in entries if entry.endswith("/") and sum(e.startswith(entry) for e in entries) == 1]
    missing = [p for p in tracked_files() if p not in entries and not any(p.startswith(folder) for folder in closed)]
    assert not missing


def test_every_line_of_the_tree_exists_and_says_what_it_is():
    assert [entry for entry in tree_entries() if not (ROOT / entry).exists()] == []
    block = re.search(r"```tree\n(.*?)```", README, re.DOTALL).group(1)
    assert [line for line in block.splitlines() if not re.match(r" *\S+ +\S+", line)] == []


def test_the_first_command_stands_before_line_30():
    first = next(i for i, line in enumerate(README.splitlines(), 1) if line.startswith("make demo"))
    assert first < 30


def test_every_command_is_in_the_readme():
    assert [name for name in COMMANDS if f"logitcask {name}" not in README] == []


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "FORMAT.md", "docs/decisions/README.md"])
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text())
    broken = [link for link in links if "://" not in link and not ((ROOT / document).parent / link).exists()]
    assert broken == []


def test_files_that_the_readme_passes_to_commands_exist():
    paths = re.findall(r"configs/[\w./-]+\.yaml", README)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_command_reference_is_current():
    """In a process of its own: click remembers the help option of a command that another test called by itself."""
    script = "import sys; sys.path[:0] = ['.', 'docs']; import cli; sys.stdout.buffer.write(cli.reference().encode())"
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True)
    assert found.stdout == (ROOT / "docs" / "cli.md").read_bytes()


def test_every_key_of_both_files_is_described_as_its_model_has_it(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    configuration = importlib.import_module("configuration")
    assert configuration.reference() == (ROOT / "docs" / "configuration.md").read_text()
