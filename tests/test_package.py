"""What must be true of the source as a whole."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from cache_tools.configuration import load_config
from pipeline.config.capture_file import CaptureConfig
from pipeline.config.generation import GenerateConfig
from trainer.config.student_file import StudentConfig

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 400
"""Files are about 300 lines; more is for a reviewer to judge, and this much is too much."""

MAX_MODULES = 12
"""Of a room: more no longer shows what is in it."""


def files(*patterns):
    """Return the repository's own files, tracked or new, that match; as paths relative to its root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(path for path in listed if (ROOT / path).is_file())


SOURCES = files("cache_tools/*.py", "pipeline/*.py", "trainer/*.py", "logitcask.py")


def parse(path):
    return ast.parse((ROOT / path).read_text())


def test_there_is_something_to_check():
    assert {"logitcask.py", "cache_tools/store/reader.py", "pipeline/demo/run.py", "trainer/run/train.py"} <= set(
        SOURCES
    )


@pytest.mark.parametrize("path", SOURCES)
def test_every_module_says_what_it_is_and_is_short(path):
    assert ast.get_docstring(parse(path))
    assert len((ROOT / path).read_text().splitlines()) <= MAX_LINES


def rooms():
    """Return the modules of each folder of the three packages, by the folder's path."""
    found = {}
    for path in SOURCES:
        folder, _, name = path.rpartition("/")
        if folder and name != "__init__.py":
            found.setdefault(folder, []).append(name.removesuffix(".py"))
    return found


@pytest.mark.parametrize(("folder", "modules"), rooms().items(), ids=rooms())
def test_a_room_is_small_enough_to_be_seen(folder, modules):
    assert len(modules) <= MAX_MODULES


@pytest.mark.parametrize(("folder", "modules"), [(f, m) for f, m in rooms().items() if "/" in f])
def test_a_room_says_what_it_is_for_and_names_its_modules(folder, modules):
    text = ast.get_docstring(parse(f"{folder}/__init__.py"))
    listed = re.findall(r"``(\w+)``", "\n".join(line for line in text.splitlines() if line.startswith("- ")))
    assert sorted(listed) == sorted(modules)
    assert len(parse(f"{folder}/__init__.py").body) == 1  # imports nothing


def test_no_modules_import_each_other_in_a_circle():
    """Imports for type checkers aside, which run nothing."""
    import grimp
    import networkx

    graph = grimp.build_graph("cache_tools", "pipeline", "trainer", exclude_type_checking_imports=True)
    edges = [(name, other) for name in graph.modules for other in graph.find_modules_directly_imported_by(name)]
    circles = [part for part in networkx.strongly_connected_components(networkx.DiGraph(edges)) if len(part) > 1]
    assert circles == []


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def test_every_dependency_is_pinned():
    project = (ROOT / "pyproject.toml").read_text()
    wanted = re.findall(r'^    "([\w-]+)>=', project, re.MULTILINE)
    assert len(wanted) > 10
    assert {name.lower().replace("_", "-") for name in wanted} - set(pins()) == set()


def test_torch_is_pinned_and_brings_no_cuda_libraries():
    assert pins()["torch"] == "2.13.0"
    assert [name for name in pins() if re.search("nvidia|cuda|triton", name, re.IGNORECASE)] == []


@pytest.mark.parametrize("path", files("configs/**/*.yaml", "configs/*.yaml"))
def test_committed_configurations_are_valid(path):
    kinds = {"corpus": CaptureConfig, "prompts": GenerateConfig, "training": StudentConfig}
    (kind,) = re.findall(f"^({'|'.join(kinds)}):", (ROOT / path).read_text(), re.MULTILINE)
    load_config(ROOT / path, kinds[kind])


FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"torch.load", "torch.save", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "eval", "exec"}
FORBIDDEN_ARGUMENTS = {"trust_remote_code": True, "allow_pickle": True, "weights_only": False, "shell": True}


def dangers(tree):
    """Return whatever in a module could run code that came with data."""
    safe_loaders = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and is_safe_loader(node)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call):
            used = {ast.unparse(argument) for argument in [*node.args, *(k.value for k in node.keywords)]}
            found += [] if used & {*safe_loaders, "yaml.SafeLoader"} else [ast.unparse(node.func)]
            found += [k.arg for k in node.keywords if ast.unparse(k.value) == str(FORBIDDEN_ARGUMENTS.get(k.arg))]
    names = FORBIDDEN_CALLS | FORBIDDEN_ARGUMENTS.keys()
    return [name for name in found if name in names or name.split(".")[0] in FORBIDDEN_MODULES]


def is_safe_loader(node):
    return [ast.unparse(base) for base in node.bases] == ["yaml.SafeLoader"]


@pytest.mark.parametrize("path", [path for path in files("*.py") if not path.startswith("tests/")])
def test_nothing_runs_code_that_comes_with_data(path):
    assert dangers(parse(path)) == []


@pytest.mark.parametrize(
    ("code", "danger"),
    [
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("def f():\n    import os, dill.session", "dill.session"),
        ("torch.load('x')", "torch.load"),
        ("from torch import load", "torch.load"),
        ("yaml.load(text, Loader=yaml.Loader)", "yaml.load"),
        ("class Own(yaml.Loader): pass\nyaml.load(text, Own)", "yaml.load"),
        ("make(path, trust_remote_code=True)", "trust_remote_code"),
        ("numpy.load(path, allow_pickle=True)", "allow_pickle"),
        ("eval(text)", "eval"),
    ],
)
def test_the_search_finds_dangerous_code(code, danger):
    assert danger in dangers(ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "yaml.safe_load(text)",
        "yaml.load(text, yaml.SafeLoader)",
        "class Own(yaml.SafeLoader): pass\nyaml.load(text, Own)",
        "make(trust_remote_code=False)",
        "make(trust_remote_code=config.trust_remote_code)",
        "from torch import nn",
    ],
)
def test_the_search_lets_harmless_code_pass(code):
    assert dangers(ast.parse(code)) == []


def test_no_committed_configuration_runs_code_of_a_model():
    assert [path for path in files("*.yaml", "*.yml") if "trust_remote_code: true" in (ROOT / path).read_text()] == []
