"""Names stand in one place: of codecs and kinds of targets, and of dictionaries whose values are of any type."""

import ast
from pathlib import Path

import pytest

from cache_tools.codecs.registry import CODECS, codec_from_dict
from cache_tools.errors import FormatError
from cache_tools.format.manifest import Kind
from cache_tools.hidden_codecs.registry import HIDDEN_CODECS

ROOT = Path(__file__).resolve().parents[1]
KINDS = {kind.value for kind in Kind}
HOMES = {"cache_tools/codecs", "cache_tools/hidden_codecs"}
SOURCES = [
    path
    for package in ("cache_tools", "pipeline", "trainer")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.parent.relative_to(ROOT).as_posix() not in HOMES
]


def compared_names(tree: ast.AST) -> list[str]:
    """Return the names of codecs and kinds that code compares something with; of hidden codecs, a ``.codec``."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            strings = [n.value for side in sides for n in ast.walk(side) if isinstance(n, ast.Constant)]
            members = [ast.unparse(n) for side in sides for n in ast.walk(side) if isinstance(n, ast.Attribute)]
            names += [text for text in strings if text in CODECS.keys() | KINDS]
            names += [text for text in strings if text in HIDDEN_CODECS and any(m.endswith(".codec") for m in members)]
            names += [text for text in members if text.removeprefix("Kind.") in Kind.__members__]
        elif isinstance(node, ast.MatchValue):
            text = node.value.value if isinstance(node.value, ast.Constant) else ast.unparse(node.value)
            names += [text] if text in CODECS.keys() | KINDS else []
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            classes = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
            names += sorted(classes & {codec.__name__ for codec in CODECS.values()})
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nobody_compares_the_names_of_codecs_and_kinds(path):
    names = compared_names(ast.parse(path.read_text()))
    assert names == [] or path.name == "specs.py"  # the home of Kind


@pytest.mark.parametrize(
    "code",
    [
        'x == "delta-power"',
        'x.kind in ("topk", "topp")',
        'spec.codec == "transform"',
        "kind is Kind.TOPK",
        "isinstance(x, DeltaPower | int)",
        'match x:\n    case "dense": pass',
    ],
)
def test_the_check_sees_comparisons(code):
    assert compared_names(ast.parse(code))


@pytest.mark.parametrize("name", [None, 7, ["delta-power"], "delta", ""])
def test_an_unknown_codec_is_refused_with_the_known_names(name):
    with pytest.raises(FormatError, match="unknown target codec") as refusal:
        codec_from_dict({"name": name}, 2, 10)
    assert all(known in str(refusal.value) for known in CODECS)


ALIASES = "cache_tools/mappings.py"
MODULES = [
    path for package in ("cache_tools", "pipeline", "trainer") for path in sorted((ROOT / package).rglob("*.py"))
]


def untyped_dictionaries(tree: ast.AST) -> list[int]:
    """Return the lines that spell out a dictionary with values of any type, quoted annotations included."""
    spelt = ("dict[str, Any]", "Dict[str, Any]")
    subscripts = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Subscript) and ast.unparse(n) in spelt]
    quoted = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return subscripts + [text.lineno for text in quoted if text.value.startswith(spelt)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_dictionaries_of_anything_are_named_in_one_module(path):
    spelt_out = untyped_dictionaries(ast.parse(path.read_text()))
    assert bool(spelt_out) == (path.relative_to(ROOT).as_posix() == ALIASES)


def test_each_name_of_a_dictionary_of_anything_is_explained():
    body = ast.parse((ROOT / ALIASES).read_text()).body[1:]
    names = [number for number, node in enumerate(body) if isinstance(node, ast.AnnAssign)]
    assert len(names) > 5
    for number in names:
        explanation = body[number + 1]
        assert isinstance(explanation, ast.Expr)
        assert isinstance(explanation.value, ast.Constant)


@pytest.mark.parametrize(
    "code", ["x: dict[str, Any] = {}", "def f() -> list[dict[str, Any]]: ...", 'x: "dict[str, Any]"']
)
def test_the_check_sees_dictionaries_of_anything(code):
    assert untyped_dictionaries(ast.parse(code)) == [1]
