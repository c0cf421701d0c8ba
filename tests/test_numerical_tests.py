"""The selection of numerical tests: whatever reaches a tolerance is selected, by any way, and nothing else is."""

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.numerical_tests import numerical_tests
from benchmarks.processors import ROOT, selected_tests

WAYS = {
    "in its own body": "def test_it():\n    assert error() < rounding(8)",
    "in a decorator": "@pytest.mark.parametrize('limit', [rounding(8)])\ndef test_it(limit): ...",
    "by a comparison with a default": "def test_it():\n    assert f() == pytest.approx(1)",
    "by a helper": "def close(a, b):\n    return abs(a - b) < rounding(8)\n\ndef test_it():\n    assert close(1, 2)",
    "by a helper that stands below": "def test_it():\n    assert close()\n\ndef close():\n    return rounding(8)",
    "by a constant": "ATOL = 2 * rounding(8)\n\ndef test_it():\n    assert error() < ATOL",
    "by an item": "ATOL = {}\nATOL['half'] = rounding(8)\n\ndef test_it():\n    assert error() < ATOL['half']",
    "by a fixture": "@pytest.fixture\ndef limit():\n    return rounding(8)\n\ndef test_it(limit): ...",
    "by a fixture's name": (
        "@pytest.fixture\ndef checked():\n    assert error() < rounding(8)\n\n"
        "@pytest.mark.usefixtures('checked')\ndef test_it(): ..."
    ),
    "by a fixture of every test": (
        "@pytest.fixture(autouse=True)\ndef checked():\n    assert error() < rounding(8)\n\ndef test_it(): ..."
    ),
    "by a statement without a name": "register(rounding(8))\n\ndef test_it(): ...",
    "in a class": "class TestIt:\n    def test_it(self):\n        assert error() < rounding(8)",
    "in a condition": "if rounding:\n    def test_it():\n        assert error() < rounding(8)",
    "by another module": "from helpers import compare\n\ndef test_it():\n    compare(1, 2)",
    "by a module's attribute": "import helpers\n\ndef test_it():\n    helpers.compare(1, 2)",
    "by another test file": "from test_others import fixture\n\ndef test_it(fixture): ...",
    "by an import of its own": "def test_it():\n    from helpers import compare\n    compare(1, 2)",
    "by everything of a module": "from helpers import *\n\ndef test_it():\n    compare(1, 2)",
}
HELPERS = (
    "from tolerances import rounding\n\ndef compare(a, b):\n    assert abs(a - b) < rounding(8)\n\ndef tidy(): ...\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of tests with the home of tolerances, a helper module and another test file."""
    folder = tmp_path_factory.mktemp("tests")
    (folder / "support").mkdir()
    (folder / "support" / "tolerances.py").write_text("U = 2.0**-24\n\ndef rounding(n):\n    return n * U\n")
    (folder / "support" / "helpers.py").write_text(HELPERS)
    (folder / "test_others.py").write_text("from helpers import compare\n\ndef fixture():\n    compare(1, 2)\n")
    return folder


def selected(folder: Path, code: str) -> list[str]:
    """Return the selected tests of a file that contains this code."""
    path = folder / "test_case.py"
    path.write_text(code)
    return numerical_tests(path, folder / "support")


@pytest.mark.parametrize("way", WAYS)
def test_a_test_that_reaches_a_tolerance_is_selected(folder, way):
    names = selected(folder, f"from tolerances import rounding\n\n{WAYS[way]}\n")
    assert names in (["test_it"], ["TestIt"])


@pytest.mark.parametrize(
    "code",
    [
        "from tolerances import rounding\n\ndef test_it():\n    assert names() == ['a']",
        "from tolerances import rounding\n\ndef close():\n    return rounding(8)\n\ndef test_it(cache): ...",
        "from helpers import compare, tidy\n\ndef test_it():\n    tidy()",
        "def test_it():\n    assert hours() == pytest.approx(1.5)",
        "def rounding(n):\n    return 0\n\ndef test_it():\n    rounding(8)",
    ],
    ids=["none", "beside a helper", "another helper", "a file without tolerances", "a name of its own"],
)
def test_a_test_that_reaches_no_tolerance_is_not_selected(folder, code):
    assert selected(folder, f"{code}\n") == []


@given(st.lists(st.integers(0, 9), min_size=1, max_size=10), st.integers(0, 9))
def test_what_mentions_what_is_followed_to_its_end(folder, targets, seed):
    """Function i calls function ``targets[i]``, of which one takes the tolerance: a walk finds the same tests."""
    calls = [target % len(targets) for target in targets]
    start = seed % len(calls)
    lines = [f"def helper{i}():\n    {'rounding(8)' if i == start else f'helper{c}()'}" for i, c in enumerate(calls)]
    lines += [f"def test_{i}():\n    helper{i}()" for i in range(len(calls))]

    def reaches(place: int) -> bool:
        walk = [place]
        while walk[-1] != start and len(walk) <= len(calls):
            walk.append(calls[walk[-1]])
        return walk[-1] == start

    names = selected(folder, "from tolerances import rounding\n\n" + "\n\n".join(lines))
    assert names == [f"test_{i}" for i in range(len(calls)) if reaches(i)]


@pytest.mark.slow
def test_every_test_of_this_suite_that_names_a_tolerance_is_selected():
    """A plain search for these words in each function alone finds nothing that is not selected."""
    words = re.compile(r"\b((loss_|model_)?rounding\(|(LOSS|GRADIENT)_ROUNDING\b|assert_same_run\()")
    naming = {
        f"tests/{path.name}::{statement.name}"
        for path in (ROOT / "tests").glob("test_*.py")
        if words.search(path.read_text("utf-8"))
        for statement in ast.parse(path.read_text("utf-8")).body
        if isinstance(statement, ast.FunctionDef) and words.search(ast.unparse(statement))
    }
    naming = {name for name in naming if "::test_" in name and Path(__file__).name not in name}
    assert len(naming) > 50
    assert naming <= set(selected_tests())
