"""Select the tests whose verdict may depend on the processor: those that compare numbers within a tolerance.

A tolerance is a name of ``tests/support/tolerances.py``, or a comparison of pytest, numpy or torch that has one of its
own (``COMPARISONS``). From there the selection follows names, as a reader would: what mentions a tolerance is
numerical, and so is what mentions something numerical, be it a constant, a helper, a fixture or a class, in the file
itself or in a module of the tests that it imports from. The tests among these are selected, with all their parameters::

    from tolerances import rounding          # numerical: the file takes a tolerance

    ATOL = rounding(torch.float32, 8)        # numerical: it mentions "rounding"

    @pytest.fixture
    def limit(): return 2 * ATOL             # numerical: it mentions "ATOL"

    def test_sums(limit): ...                # selected: its parameter is "limit"

    def test_names(): ...                    # not selected

Names are compared as text, without scopes, so a test is rather selected in vain than left out. Where a numerical
statement gives nothing a name, or a numerical fixture applies by itself, every test of the file is selected. A file
that takes no tolerance is left out whole, though it may call ``approx``: its numbers are exact but for decimals that no
processor changes.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

COMPARISONS = {"allclose", "approx", "assert_allclose", "assert_almost_equal", "assert_close", "isclose"}
"""Functions that compare within a tolerance, given or their default."""

HOME = "tolerances"
"""The support module in which every name is a tolerance."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def mentions(statement: ast.stmt) -> set[str]:
    """Return every identifier in a statement: names, attributes, parameters, and strings, which may name fixtures."""
    names: set[str] = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return names


def bindings(statement: ast.stmt) -> set[str]:
    """Return the names that a statement of a module gives to something, or whose items it sets."""
    if isinstance(statement, Definition):
        return {statement.name}
    names = {node.name for node in ast.walk(statement) if isinstance(node, Definition)}
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            names |= {part.id for part in ast.walk(node.value) if isinstance(part, ast.Name)}
    return names


def is_automatic(statement: ast.stmt) -> bool:
    """Return whether a statement is a fixture that applies to every test of its file."""
    return isinstance(statement, Definition) and any("autouse" in ast.unparse(d) for d in statement.decorator_list)


def statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """Yield every statement, at any depth, without the expressions, which are most of a tree."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.stmt):
            yield child
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from statements(child)


def imported(tree: ast.Module, support: Path) -> set[str]:
    """Return the names that a file imports, anywhere in it, and that are numerical where they come from."""
    names: set[str] = set()
    for node in statements(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name for alias in node.names if numerical_support(support, alias.name)}
        elif isinstance(node, ast.ImportFrom) and node.module:
            source = numerical_support(support, node.module)
            names |= {alias.asname or alias.name for alias in node.names if alias.name in source}
            names |= source if any(alias.name == "*" for alias in node.names) else set()
    return names


def numerical_names(tree: ast.Module, tolerances: set[str]) -> tuple[set[str], bool]:
    """Return the names of a file that are numerical, and whether all its tests are.

    Args:
        tree: The file.
        tolerances: Names that are numerical already.
    """
    names, size = set(tolerances), -1
    steps = [(mentions(statement), bindings(statement), is_automatic(statement)) for statement in tree.body]
    while len(names) > size:
        size = len(names)
        names = names.union(*(given for used, given, _ in steps if used & names))
    return names, any(used & names and (automatic or not given) for used, given, automatic in steps)


@cache
def numerical_support(support: Path, module: str) -> frozenset[str]:
    """Return the numerical names of a support module or another test file; none, if ``module`` is neither."""
    path = next((p for p in (support / f"{module}.py", support.parent / f"{module}.py") if p.is_file()), None)
    if path is None:
        return frozenset()
    tree = ast.parse(path.read_text("utf-8"))
    if module == HOME:
        return frozenset[str]().union(*map(bindings, tree.body))
    tolerances = imported(tree, support)
    return frozenset(numerical_names(tree, tolerances | COMPARISONS)[0]) if tolerances else frozenset()


def defined_tests(tree: ast.Module) -> Iterator[str]:
    """Yield the names under which pytest collects what a file defines: functions, and classes or state machines."""
    for statement in tree.body:
        yield from sorted(name for name in bindings(statement) if name.startswith(("test_", "Test")))


def numerical_tests(path: Path, support: Path) -> list[str]:
    """Return the names of a file's tests that compare numbers within a tolerance, in the order of the file.

    Args:
        path: The test file.
        support: The folder of the support modules, ``tolerances.py`` among them.
    """
    tree = ast.parse(path.read_text("utf-8"))
    tolerances = imported(tree, support)
    if not tolerances:
        return []
    names, everything = numerical_names(tree, tolerances | COMPARISONS)
    return [name for name in defined_tests(tree) if everything or name in names]
