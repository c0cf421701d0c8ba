"""The tree of errors and the order of what a message says."""

import copy
import pickle
import re

import pytest

from cache_tools import errors
from cache_tools.errors import FormatError, LogitcaskError

EVERYTHING = {"where": "here", "expected": 1, "found": 2, "why": "It matters", "fix": "Do that"}


def drawn_tree():
    """Return the names drawn in the module docstring: the root, then its branches."""
    lines = errors.__doc__.split("::")[1].split("\n\n")[1].splitlines()
    root, *branches = (re.match(r"\s*(?:[├└]── )?(\w+)", line).group(1) for line in lines)
    return root, branches


def test_the_drawn_tree_is_the_real_one():
    root, branches = drawn_tree()
    classes = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    assert set(classes) == {root, *branches}
    assert all(classes[name].__bases__ == (classes[root],) for name in branches)
    assert classes[root].__bases__ == (Exception,)


def test_the_command_line_exits_1_for_every_error():
    assert {error.exit_code for error in (LogitcaskError, *LogitcaskError.__subclasses__())} == {1}


def test_a_message_says_where_problem_sides_why_fix_in_this_order():
    assert str(FormatError("it broke", **EVERYTHING)) == "here: it broke (expected 1, found 2). It matters. Do that."


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([], "it broke."),
        (["where"], "here: it broke."),
        (["expected"], "it broke (expected 1)."),
        (["found"], "it broke (found 2)."),
        (["why"], "it broke. It matters."),
        (["fix"], "it broke. Do that."),
        (["where", "fix"], "here: it broke. Do that."),
    ],
)
def test_a_message_leaves_out_what_is_not_given(parts, text):
    assert str(FormatError("it broke", **{part: EVERYTHING[part] for part in parts})) == text


def test_zero_counts_as_given():
    assert str(FormatError("it broke", expected=1, found=0)) == "it broke (expected 1, found 0)."


def test_the_parts_can_be_read_separately():
    error = FormatError("it broke", **EVERYTHING)
    assert str(error) == f"{error.where}: {error.message}"


@pytest.mark.parametrize("restore", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_comes_back_from_another_process_as_it_was(restore):
    error = FormatError("it broke", **EVERYTHING)
    restored = restore(error)
    assert (type(restored), str(restored), vars(restored)) == (FormatError, str(error), vars(error))
