"""What each way in imports, seen from a fresh process: looking at a cache must not cost torch."""

import ast
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tiny
from logitcask import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
MODELS = {"torch", "transformers", "accelerate", "datasets", "tokenizers"}
ARRAYS = {"zarr", "pyarrow", "numcodecs", "numpy"}
DRIVERS = {"upath", "fsspec", "obstore"}
RUN_EACH = """
import json, sys
from logitcask import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["logitcask", *arguments]
    try:
        main()
    except SystemExit as exit:
        assert not exit.code, (arguments, exit.code)
    imported = {name.split(".")[0] for name in sys.modules} & FORBIDDEN
    assert not imported, (arguments, imported)
"""
"""Runs several commands in one process, where nothing forbidden may be imported after any of them."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tiny.capture(tmp_path_factory.mktemp("cache"), hidden={"layers": ["last"]}).path


def python(code, *arguments, path=(), cwd=ROOT):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=600)


def imported_by(code, *arguments):
    """Return the top-level packages that a fresh process has imported after ``code``."""
    result = python(f"{code}\nimport json, sys; print('\\n' + json.dumps(list(sys.modules)))", *arguments)
    assert result.returncode == 0, result.stderr
    return {name.split(".")[0] for name in json.loads(result.stdout.splitlines()[-1])}


def imported_by_each(commands, forbidden):
    """Return the top-level packages that a process has imported after all commands; none of them imports these."""
    strings = [list(map(str, arguments)) for arguments in commands]
    return imported_by(f"FORBIDDEN = {forbidden}\n{RUN_EACH}", json.dumps(strings))


def test_a_program_that_uses_a_model_library_is_seen_to():
    """Seen with the lightest of them: to import torch takes seconds, and would be seen in the same way."""
    assert MODELS & imported_by("import tokenizers") == {"tokenizers"}


def test_a_command_that_imports_what_it_must_not_is_named():
    result = python(f"FORBIDDEN = {{'click'}}\n{RUN_EACH}", json.dumps([["--version"]]))
    assert "AssertionError: (['--version'], {'click'})" in result.stderr


def test_help_imports_nothing_heavy():
    commands = [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
    assert "click" in imported_by_each(commands, MODELS | ARRAYS | DRIVERS | {"rich", "pydantic", "yaml"})


def test_the_public_interface_imports_nothing_heavy_until_it_is_used():
    everything = MODELS | ARRAYS | DRIVERS | {"rich", "pydantic", "yaml", "cache_tools"}
    assert imported_by("import logitcask; assert 'train' in logitcask.__all__") & everything == set()
    assert imported_by("from logitcask import Cache") & (MODELS | {"zarr"}) == set()


def test_looking_at_a_cache_imports_no_model_library(cache):
    commands = [
        ["inspect", cache],
        ["inspect", "--json", "--groups", "group", cache],
        ["verify", cache],
        ["verify", "--json", cache],
        ["verify", "--deep", cache],
        ["show", "--highest-loss", cache],
    ]
    assert "cache_tools" in imported_by_each(commands, MODELS)


def test_showing_text_imports_the_tokenizers_library_and_no_model_library(cache):
    commands = [["show", cache], ["show", "--position", "3", cache]]
    assert "tokenizers" in imported_by_each(commands, MODELS - {"tokenizers"})


READ_EVERYTHING = """
import sys
from logitcask import Cache
encoding = Cache(sys.argv[1]).encoding()
teacher = encoding.teacher()
rows = encoding.sequence(0).rows
teacher.targets(*rows), teacher.scalar("entropy", *rows), teacher.hidden("last", *rows)
"""


def test_reading_a_cache_imports_no_model_library(cache):
    assert imported_by(READ_EVERYTHING, cache) & MODELS == set()


def test_opening_a_cache_does_not_import_zarr():
    assert "zarr" not in imported_by("import cache_tools.store.reader")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "student.yaml"], ["evaluate", "student", "cache"]])
@pytest.mark.parametrize("name", ["trainer.py", "trainer/__init__.py"])
def test_somebody_elses_package_of_our_name_is_named_in_one_sentence(tmp_path, name, arguments):
    """PyPI has another distribution with a top-level package ``trainer``."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("DISTRIBUTION = 'coqui'\n")
    result = python("from logitcask import main; main()", *arguments, path=[tmp_path], cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "Error: another distribution's package 'trainer' was found first; "
        "install logitcask into a virtual environment of its own.\n"
    )


def test_somebody_elses_package_does_not_keep_us_from_looking_at_a_cache(tmp_path, cache):
    (tmp_path / "trainer.py").write_text("")
    result = python("from logitcask import main; main()", "verify", cache, path=[tmp_path], cwd=tmp_path)
    assert (result.returncode, result.stdout[:11]) == (0, "no problems")


def test_the_console_command_imports_no_package_of_ours_at_the_top():
    tree = ast.parse((ROOT / "logitcask.py").read_text())
    plain = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    sources = {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in plain | sources} - sys.stdlib_module_names == {"click"}


def test_the_contract_against_torch_names_every_room_but_the_one_that_needs_it():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = (c for c in contracts if c["name"] == "the store opens on a machine without torch")
    inside = {path.stem for path in (ROOT / "cache_tools").iterdir() if path.suffix == ".py" or path.is_dir()}
    rooms = {f"cache_tools.{name}" for name in inside - {"__init__", "__pycache__", "torch_models"}}
    assert set(contract["source_modules"]) == rooms


def test_imports_keep_to_the_contracts():
    result = python("from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout
