"""Configuration files: YAML in, a checked pydantic model out, all problems at once.

Precedence: the model's defaults, then the file, then overrides (``--set key=value``, or a mapping from Python). Unknown
keys are errors, with the known ones listed: a misspelt option that is silently ignored costs a day of GPU time. The
YAML is read by ``yaml_file.py``, which runs no code and keeps numbers as they were written: a key whose values are text
is given that text (``name: 007``), any other the number.
"""

import difflib
import functools
import inspect
import numbers
import os
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError

from cache_tools.errors import ConfigError
from cache_tools.mappings import JsonObject
from cache_tools.storage import PlaceText
from cache_tools.yaml_file import MAX_DEPTH, Scalar, read_file, read_text


class Config(BaseModel):
    """Base of every configuration block: frozen, unknown keys refused, no number that is infinite or NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


C = TypeVar("C", bound=Config)
P = ParamSpec("P")
R = TypeVar("R")


NO_OVERRIDES: Mapping[str, Any] = types.MappingProxyType({})


def load_config(path: Path, model: type[C], overrides: tuple[str, ...] = ()) -> C:
    """Read a YAML file and apply the assignments of ``--set``.

    Args:
        path: The YAML file.
        model: The configuration model.
        overrides: Assignments from the command line, as :func:`assignments` reads them.

    Raises:
        ConfigError: the file cannot be read or breaks the model; the message lists every problem.
    """
    values = _mapping(read_file(path), path)
    return _validated(_overridden(values, assignments(overrides), "--set {}"), model, path)


def configured(source: str | Path | Mapping[str, Any] | C, model: type[C], overrides: Mapping[str, Any]) -> C:
    """Return a checked configuration from what a Python program has: a file, a mapping, or a checked configuration.

    Args:
        source: Path of a YAML file, the mapping that such a file holds, or a configuration of type ``model``.
        model: The configuration model.
        overrides: New values by dotted key; list items are addressed by number (``teachers.0.name``). Paths may be
            ``Path`` objects.

    Raises:
        ConfigError: the file cannot be read or breaks the model; the message lists every problem.
    """
    if not isinstance(overrides, Mapping):
        expected = "a mapping of dotted keys, such as {'teachers.0.target.k': 32}"
        raise ConfigError("overrides are given by key", where="overrides", expected=expected, found=repr(overrides))
    if isinstance(source, model):
        where, values = "configuration", source.model_dump(exclude_unset=True)
    elif isinstance(source, Config):
        expected, kind = model.__name__, type(source).__name__
        raise ConfigError("this is a configuration of another kind", expected=expected, found=kind)
    elif isinstance(source, Mapping):
        where, values = "configuration", _plain(source)
    else:
        where = str(source)
        values = _mapping(read_file(Path(where)), where)
    return _validated(_overridden(values, _plain(overrides), "overrides[{!r}]"), model, where)


def checked_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Make a public function refuse arguments whose types are not those of its annotations.

    A whole number passes as a number, and anything that names a place passes as a path; a truth value is no number.
    Python itself refuses arguments that the function does not have.

    Raises:
        ConfigError: an argument has another type; raised by the function that is returned.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        hints = get_type_hints(function)
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            kinds = _alternatives(hints[name])
            if not any(_is_instance(value, kind) for kind in kinds):
                raise ConfigError(
                    "this argument has another type than it needs",
                    where=f"{function.__name__}({name}=…)",
                    expected=" or ".join(dict.fromkeys(_in_words(kind) for kind in kinds)),
                    found=f"{value!r:.80}, which is of type {type(value).__name__}",
                )
        return function(*args, **kwargs)

    return checked


_NUMBERS: dict[Any, type] = {int: numbers.Integral, float: numbers.Real}
_WORDS_FOR = {str: "text", int: "a whole number", float: "a number", bool: "True or False", types.NoneType: "None"}


def _is_instance(value: object, kind: Any) -> bool:
    """Say whether a value is of a type, or equal to a value that a literal lists."""
    kind = get_origin(kind) or kind
    if not isinstance(kind, type):
        return isinstance(value, type(kind))  # which of the texts of a literal, the function itself checks
    if isinstance(value, bool):
        return kind is bool
    return isinstance(
        value, (_NUMBERS.get(kind, kind), os.PathLike) if issubclass(kind, Path) else _NUMBERS.get(kind, kind)
    )


def _in_words(kind: Any) -> str:
    kind = get_origin(kind) or kind
    if not isinstance(kind, type):
        return repr(kind)
    if issubclass(kind, Mapping):
        return "a mapping"
    if issubclass(kind, PurePath) or kind.__name__ == "UPath":
        return "a path"
    return _WORDS_FOR.get(kind, f"a {kind.__name__}")


def assignments(texts: Iterable[str]) -> JsonObject:
    """Return the overrides that ``key=value`` texts stand for; values are YAML (``teachers.0.name=toy``).

    Raises:
        ConfigError: a text has another form, or its value is not YAML.
    """
    overrides: JsonObject = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise ConfigError("an override has the form key=value", where=f"--set {text}")
        content = read_text(value, f"--set {text}", "the value is not YAML")
        overrides[key] = Scalar(None, "") if content is None else content
    return overrides


def _mapping(values: Any, where: object) -> JsonObject:
    if not isinstance(values, dict):
        raise ConfigError("a configuration is a mapping of keys", where=where, found=_named(values))
    return values


def _validated(values: JsonObject, model: type[C], where: object) -> C:
    try:
        return model.model_validate(_typed(values, [model]))
    except ValidationError as error:
        errors = error.errors()
        problems = [_problem(model, e) for e in errors if not _is_echo(e, errors)]
        raise ConfigError(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''}:\n  " + "\n  ".join(problems),
            where=where,
        ) from error


def _plain(value: Any, level: int = 0) -> Any:
    """Return a copy with dictionaries, lists and text in the place of other mappings, tuples and paths.

    Raises:
        ConfigError: the value contains itself, or is nested deeper than a YAML file may be.
    """
    if level > MAX_DEPTH:
        raise ConfigError(
            "the configuration is nested too deeply",
            expected=f"at most {MAX_DEPTH} levels",
            why="it may contain itself",
        )
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, level + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, level + 1) for inner in value]
    return str(value) if isinstance(value, os.PathLike) else value


def _named(values: Any) -> str:
    if values is None or values == Scalar(None, ""):
        return "nothing"
    return "a list" if isinstance(values, list) else "a single value"


def _overridden(values: JsonObject, overrides: Mapping[str, Any], label: str) -> JsonObject:
    """Apply overrides to nested dictionaries and lists in place; ``label`` is how an error names a key."""
    for path, value in overrides.items():
        *parents, last = path.split(".")
        node: Any = values
        try:
            for key in parents:
                node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
            node[int(last) if isinstance(node, list) else last] = value
        except (ValueError, IndexError, TypeError, AttributeError) as error:
            raise ConfigError(
                "this key does not lead anywhere",
                where=label.format(path),
                found=error if isinstance(node, dict | list) else "a single value, which has no keys",
            ) from error
    return values


def _typed(value: Any, annotations: list[Any]) -> Any:
    """Return a value as the model's types want it: a :class:`Scalar` as its text where only text is accepted.

    Args:
        value: From ``yaml_file.py``.
        annotations: Types of which it may be any.
    """
    kinds = [kind for annotation in annotations for kind in _alternatives(annotation)]
    if isinstance(value, Scalar):
        return value.text if _is_text(kinds) and not _is_taken(value.value, kinds) else value.value
    if isinstance(value, dict):
        return {key: _typed(inner, _types_inside(kinds, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner, _types_inside(kinds, number)) for number, inner in enumerate(value)]
    return value


def _alternatives(annotation: Any) -> list[Any]:
    """Return what an annotation allows: the members of a union, the values of a literal, else itself."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        return [str] if PlaceText in metadata else _alternatives(inner)
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for member in get_args(annotation) for kind in _alternatives(member)]
    return list(get_args(annotation)) if get_origin(annotation) is Literal else [annotation]


def _is_text(kinds: list[Any]) -> bool:
    return any(kind in (str, Path) or isinstance(kind, str) for kind in kinds)


def _is_taken(value: Any, kinds: list[Any]) -> bool:
    """Say whether a number, truth value or null is accepted as it is."""
    accepted = {bool: (bool,), int: (int, float), float: (float,), type(None): (types.NoneType, None)}[type(value)]
    return any(kind in (Any, object, *accepted) or (type(kind) is type(value) and kind == value) for kind in kinds)


def _types_inside(kinds: list[Any], key: str | int) -> list[Any]:
    """Return the types of an entry of a block, a dictionary, a list or a tuple."""
    types_inside: list[Any] = []
    for kind in kinds:
        origin, arguments = get_origin(kind), get_args(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(key))
            if field is not None:
                types_inside.append(
                    Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
                )
        elif origin is dict:
            types_inside.append(arguments[1])
        elif origin is tuple and Ellipsis not in arguments and isinstance(key, int):
            types_inside += arguments[key : key + 1]
        elif origin in (list, tuple):
            types_inside.append(arguments[0])
    return types_inside or [Any]


def _problem(model: type[BaseModel], error: Any) -> str:
    """Return one line: dotted key, what is wrong, and for an unknown key the known keys."""
    location = error["loc"]
    key = ".".join(map(str, _as_written(model, location))) or "(whole file)"
    if error["type"] != "extra_forbidden":
        return f"{key}: {error['msg'].removeprefix('Value error, ')}"
    known_keys = _known_keys(model, location[:-1])
    close = difflib.get_close_matches(str(location[-1]), known_keys, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{key}: unknown key; {hint}known here: {', '.join(known_keys)}"


def _is_echo(error: Any, errors: list[Any]) -> bool:
    """Say whether an error only follows from others: pydantic calls a list too short when its items are wrong."""
    depth = len(error["loc"])
    inside = [other for other in errors if len(other["loc"]) > depth and other["loc"][:depth] == error["loc"]]
    return error["type"] == "too_short" and bool(inside)


def _known_keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Return the keys of the block at ``location``, walking down the model's annotations."""
    return list(_blocks(model, location)[-1][0].model_fields)


def _as_written(model: type[BaseModel], location: tuple[Any, ...]) -> list[Any]:
    """Return a location without the tags by which pydantic says which of several blocks it took."""
    before = _blocks(model, location)
    return [
        part for part, blocks in zip(location, before, strict=False) if len(blocks) == 1 or part not in _tags(blocks)
    ]


def _blocks(model: type[BaseModel], location: tuple[Any, ...]) -> list[list[type[BaseModel]]]:
    """Return the blocks that are possible before each part of a location, and behind the last."""
    steps = [[model]]
    for part in location:
        blocks = steps[-1]
        fields = [block.model_fields[part] for block in blocks if part in block.model_fields]
        inner = [nested for field in fields for nested in _nested_models(field.annotation)]
        steps.append(inner or _tags(blocks).get(part) or blocks)
    return steps


def _tags(blocks: list[type[BaseModel]]) -> dict[Any, list[type[BaseModel]]]:
    """Return each of several blocks by the value of its key ``kind``."""
    kinds = {block: get_args(block.model_fields["kind"].annotation) for block in blocks if "kind" in block.model_fields}
    return {kind: [block] for block, names in kinds.items() for kind in names}


def _nested_models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [nested for argument in get_args(annotation) for nested in _nested_models(argument)]
