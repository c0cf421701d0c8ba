"""The documents tell the truth: rooms, links, the map for contributors and the generated references."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from logitcask import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


PACKAGES = ("cache_tools", "pipeline", "trainer")


def rooms_of_the_packages():
    """Return the folders of the three packages that hold modules, as the README names them."""
    return {str(path.parent.relative_to(ROOT)) for name in PACKAGES for path in (ROOT / name).glob("*/__init__.py")}


def test_the_readme_has_one_line_for_each_room():
    named = re.findall(r"^\| `((?:cache_tools|pipeline|trainer)/\w+)` \| .+ \|$", README, re.MULTILINE)
    assert sorted(named) == sorted(rooms_of_the_packages())


def test_the_readme_is_a_door_and_not_a_manual():
    assert 150 <= len(README.splitlines()) <= 200
    assert README.count(".py") <= 3  # no list of files


def test_the_first_command_stands_before_line_30():
    first = next(i for i, line in enumerate(README.splitlines(), 1) if line.startswith("make demo"))
    assert first < 30


DOCUMENTS = ["README.md", "CONTRIBUTING.md", "FORMAT.md", "docs/decisions/README.md"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text())
    broken = [link for link in links if "://" not in link and not ((ROOT / document).parent / link).exists()]
    assert broken == []


def test_files_that_the_map_for_contributors_names_exist():
    named = re.findall(r"`((?:cache_tools|pipeline|trainer|tests|docs|configs)/[\w./-]+)`", CONTRIBUTING)
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_command_reference_is_current():
    """In a process of its own: click remembers the help option of a command that another test called by itself."""
    script = "import sys; sys.path[:0] = ['.', 'docs']; import cli; sys.stdout.buffer.write(cli.reference().encode())"
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True)
    assert found.stdout == (ROOT / "docs" / "cli.md").read_bytes()


def test_every_key_of_both_files_is_described_as_its_model_has_it(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    configuration = importlib.import_module("configuration")
    assert configuration.reference() == (ROOT / "docs" / "configuration.md").read_text()


@pytest.fixture
def json_page(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("json_page")


def test_the_page_of_json_output_is_current(json_page):
    assert json_page.reference() == (ROOT / "docs" / "reference" / "json.md").read_text()


def test_every_command_with_json_is_on_the_page_of_json_output(json_page):
    commands = [name for name in COMMANDS if "--json" in cli_options(name)]
    assert commands == list(json_page.RESULTS)


def test_links_inside_the_page_of_json_output_lead_to_one_heading_each(json_page):
    page = json_page.reference()
    anchors = [heading.lower().replace(" ", "-") for heading in re.findall("^### (.+)$", page, re.MULTILINE)]
    assert len(set(anchors)) == len(anchors)
    assert set(re.findall(r"\]\(#(.+?)\)", page)) == set(anchors)


def cli_options(command):
    parameters = cli.get_command(click.Context(cli), command).params
    return [option for parameter in parameters for option in parameter.opts]


def test_names_that_the_map_for_contributors_places_in_a_file_are_there():
    placed = re.findall(r"`([A-Z]\w+)` (?:in |\()`([\w/]+\.py)`", CONTRIBUTING)
    assert len(placed) >= 4
    assert [(name, path) for name, path in placed if not re.search(rf"\b{name}\b", (ROOT / path).read_text())] == []
