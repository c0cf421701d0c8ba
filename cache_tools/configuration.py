"""Configuration files: YAML in, a checked pydantic model out, all problems at once.

Precedence: the model's defaults, then the file, then ``--set key=value``. Unknown keys
are errors, with the known ones listed: a misspelt option that is silently ignored costs a
day of GPU time. YAML is loaded in its safe form, so a stranger's file cannot run code.
"""

import difflib
import re
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cache_tools.errors import ConfigError


class Config(BaseModel):
    """Base of every configuration block: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


C = TypeVar("C", bound=Config)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which ``1e-4`` is a number, as in YAML 1.2; PyYAML alone takes it for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_config(path: Path, model: type[C], overrides: tuple[str, ...] = ()) -> C:
    """Read a YAML file and apply ``key.subkey=value`` overrides.

    Args:
        path: The YAML file.
        model: The configuration model.
        overrides: Assignments from the command line; values are YAML, list items are
            addressed by number (``teachers.0.name=toy``).

    Raises:
        ConfigError: the file cannot be read or breaks the model; the message lists every problem.
    """
    values = _read_yaml(path)
    for override in overrides:
        _assign(values, override)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = error.errors()
        problems = [_problem(model, e) for e in found if not _is_echo(e, found)]
        raise ConfigError(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''}:\n  " + "\n  ".join(problems),
            where=path,
        ) from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("cannot read the configuration", where=path, found=error) from error
    except yaml.YAMLError as error:
        raise ConfigError("this is not YAML", where=path, found=" ".join(str(error).split())) from error
    if not isinstance(values, dict):
        raise ConfigError("a configuration is a mapping of keys", where=path, found=type(values).__name__)
    return values


def _assign(values: dict[str, Any], override: str) -> None:
    """Apply one ``a.b.0.c=value`` to nested dictionaries and lists in place."""
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise ConfigError("an override has the form key=value", where=f"--set {override}")
    *parents, last = path.split(".")
    node: Any = values
    try:
        for key in parents:
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        node[int(last) if isinstance(node, list) else last] = yaml.load(text, _Loader)
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise ConfigError("this key does not lead anywhere", where=f"--set {override}", found=error) from error
    except yaml.YAMLError as error:
        raise ConfigError("the value is not YAML", where=f"--set {override}") from error


def _problem(model: type[BaseModel], error: Any) -> str:
    """Return one line: dotted key, what is wrong, and for an unknown key what is known."""
    location = error["loc"]
    key = ".".join(str(part) for part in location) or "(whole file)"
    if error["type"] != "extra_forbidden":
        return f"{key}: {error['msg'].removeprefix('Value error, ')}"
    known = _known_keys(model, location[:-1])
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{key}: unknown key; {hint}known here: {', '.join(known)}"


def _is_echo(error: Any, found: list[Any]) -> bool:
    """Say whether an error only follows from others: pydantic calls a list too short when its items are wrong."""
    depth = len(error["loc"])
    inside = [other for other in found if len(other["loc"]) > depth and other["loc"][:depth] == error["loc"]]
    return error["type"] == "too_short" and bool(inside)


def _known_keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Return the keys of the block at ``location``, walking down the model's annotations."""
    for part in location:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        nested = _nested_model(model.model_fields[part].annotation)
        if nested:
            model = nested
    return list(model.model_fields)


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_nested_model(argument) for argument in get_args(annotation))
    return next((nested for nested in found if nested), None)
