"""YAML without surprises: text stays as it is written, and errors name the line.

PyYAML reads YAML 1.1, where ``no`` is false, ``1:30`` is ninety, ``010`` is eight and ``2024-13-45`` raises a
``ValueError``. Here the rules are those of YAML 1.2: only ``true`` and ``false`` are truth values, only digits,
``0x…`` and ``0o…`` are integers, and everything else that is not quoted is text. A scalar keeps the text that it was
written as, so that ``cache: 0x10`` names the folder ``0x10``; ``configuration.py`` decides by the type of the key.

Errors, with their line, are: a key that occurs twice in a mapping (the first value would be lost silently), tags, more
than one document, and files of more than 1 MiB, 50 levels or 20,000 values after every alias is expanded, because a few
lines of nested aliases could fill the memory. Keys are always text. Aliases and ``<<`` work.

Rejected: ruamel.yaml, another dependency that still needs these bounds.
"""

import math
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cache_tools.errors import ConfigError
from cache_tools.mappings import JsonObject

MAX_BYTES = 1 << 20
MAX_DEPTH = 50
MAX_VALUES = 20_000
MERGE = "<<"

_INTEGER = re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {word: value for name, value in (("true", True), ("false", False), ("null", None))
          for word in (name, name.title(), name.upper())} | {"": None, "~": None}  # fmt: skip


@dataclass(frozen=True)
class Scalar:
    """A value that is not quoted and not text.

    Attributes:
        value: A truth value, an integer, a float, or None.
        text: What is written in the file.
    """

    value: bool | int | float | None
    text: str


def read_file(path: Path) -> Any:
    """Return the content of a YAML file: dictionaries with text as keys, lists, text and :class:`Scalar`.

    Raises:
        ConfigError: it cannot be read, or breaks the rules above.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError("cannot read the configuration", where=path, expected="a file", found=_kind(path))
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError("this file is too large for a configuration", where=path, expected="at most 1 MiB")
        text = content.decode("utf-8-sig")
    except OSError as error:
        found, fix = error.strerror or error, "check the path, which starts from the current folder"
        raise ConfigError("cannot read the configuration", where=path, found=found, fix=fix) from error
    except ValueError as error:
        raise ConfigError("cannot read the configuration", where=path, found=error) from error
    return read_text(text, path)


def read_text(text: str, where: object, problem: str = "this is not YAML") -> Any:
    """Return the content of YAML text, as :func:`read_file`; None if it is empty.

    Args:
        text: The YAML.
        where: What an error names.
        problem: What an error says first.
    """
    try:
        _check_events(text)
        node = yaml.compose(text, yaml.SafeLoader)
        if node is None:
            return None
        _expanded_size(node, {})
        return _value(node)
    except yaml.YAMLError as error:
        raise ConfigError(problem, where=where, found=_described(error)) from error
    except RecursionError as error:  # aliases that stand inside each other
        raise ConfigError(problem, where=where, found="aliases nested too deeply") from error


def _kind(path: Path) -> str:
    return "a folder" if path.is_dir() else "a device, pipe or socket"


def _refusal(message: str, mark: Any) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=message, problem_mark=mark)


def _described(error: yaml.YAMLError) -> str:
    """Return what PyYAML found, and the line."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    parts = [getattr(error, name, None) for name in ("context", "problem", "note")]
    return f"line {mark.line + 1}, column {mark.column + 1}: " + ", ".join(part for part in parts if part)


def _check_events(text: str) -> None:
    """Refuse tags, a second document, deep nesting and too many values: the composer recurses, the parser does not."""
    depth = documents = 0
    for number, event in enumerate(yaml.parse(text, yaml.SafeLoader)):
        if number > 2 * MAX_VALUES:
            raise _refusal(f"more than {MAX_VALUES:,} values", event.start_mark)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        if depth > MAX_DEPTH:
            raise _refusal(f"nested more than {MAX_DEPTH} levels deep", event.start_mark)
        if documents > 1:
            raise _refusal("a second document begins here; a configuration is one", event.start_mark)
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise _refusal(f"the tag {tag} is not read here; leave it out", event.start_mark)


def _expanded_size(node: yaml.Node, sizes: dict[int, float]) -> float:
    """Return how many values a node holds when all aliases are written out; refuse too many, or an endless number."""
    if id(node) not in sizes:
        sizes[id(node)] = math.inf  # as long as it is being counted: an alias inside itself never ends
        sizes[id(node)] = 1 + sum(_expanded_size(inner, sizes) for inner in _inside(node))
    if sizes[id(node)] > MAX_VALUES:
        raise _refusal(f"aliases repeat more than {MAX_VALUES:,} values", node.start_mark)
    return sizes[id(node)]


def _inside(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from (key, value)
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _value(node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node)
    if isinstance(node, yaml.SequenceNode):
        return [_value(inner) for inner in node.value]
    return _scalar(node)


def _mapping(node: yaml.MappingNode) -> JsonObject:
    own: JsonObject = {}
    merged: JsonObject = {}
    for key_node, value_node in node.value:
        key = _key(key_node)
        if key in own or (key == MERGE and merged):
            raise _refusal(f"the key {key!r} stands twice in one mapping", key_node.start_mark)
        if key == MERGE and getattr(key_node, "style", None) is None:
            merged = _merged(value_node)
        else:
            own[key] = _value(value_node)
    return merged | own


def _key(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise _refusal("a key is text, not a list or a mapping", node.start_mark)
    return _checked_text(node)


def _merged(node: yaml.Node) -> JsonObject:
    """Return what ``<<`` takes over; of several mappings, the first that has a key gives its value."""
    values = [_value(inner) for inner in (node.value if isinstance(node, yaml.SequenceNode) else [node])]
    if not all(isinstance(value, dict) for value in values):
        raise _refusal("<< takes over the keys of a mapping, or of a list of mappings", node.start_mark)
    result: JsonObject = {}
    for value in reversed(values):
        result |= value
    return result


def _scalar(node: Any) -> str | Scalar:
    text = _checked_text(node)
    if node.style is not None:  # quoted, or a block of text
        return text
    if text in _WORDS:
        return Scalar(_WORDS[text], text)
    if _INTEGER.fullmatch(text) and len(text) < 1000:  # a longer one is no quantity, and int() refuses it
        return Scalar(int(text, 0 if text[:2] in ("0x", "0o") else 10), text)
    if _NUMBER.fullmatch(text):
        return Scalar(float(text.lower().replace(".inf", "inf").replace(".nan", "nan")), text)
    return text


def _checked_text(node: yaml.ScalarNode) -> str:
    text: str = node.value
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise _refusal(
            "text holds a NUL or half of a surrogate pair, which no file name or message can", node.start_mark
        )
    return text
