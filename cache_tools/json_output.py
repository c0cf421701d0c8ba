"""The JSON edge: results are frozen dataclasses, and here they become what ``--json`` prints.

A field is a key of the same name, in the order of the dataclass, so the dataclass is the schema of the output. A field
marked with ``FLAT`` contributes its own keys in its place, which lets results share parts. JSON has no infinity and no
NaN; both become null. Rejected: results that travel as dictionaries, whose keys no tool checks.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from types import MappingProxyType
from typing import TypeAlias

from pydantic import BaseModel
from upath import UPath

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""A value that ``json.dumps`` accepts and every JSON reader understands."""

FLAT: Mapping[str, bool] = MappingProxyType({"flat": True})
"""Metadata of a dataclass field whose keys stand beside those of the other fields, instead of below its name."""


def finite(value: float) -> float | None:
    """Return a number as it is if it is finite, and None if it is infinite or NaN, which JSON cannot write."""
    return value if math.isfinite(value) else None


def json_ready(value: object) -> Json:
    """Return a result as plain JSON values.

    Args:
        value: A dataclass, a pydantic model, a mapping with string keys, a list, a tuple, a path or a plain value.

    Raises:
        TypeError: the value, or a value inside it, is of another type.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, Mapping):
        return {str(key): json_ready(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(inner) for inner in value]
    if isinstance(value, BaseModel):
        return json_ready(value.model_dump(mode="json"))
    if isinstance(value, PurePath | UPath):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return json_object(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def json_object(value: object) -> dict[str, Json]:
    """Return a dataclass as a JSON object.

    Raises:
        TypeError: the value is no dataclass, or it holds a value that JSON has no form for.
    """
    if not is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"{type(value).__name__} is no dataclass")
    result: dict[str, Json] = {}
    for field in fields(value):
        inner = json_ready(getattr(value, field.name))
        if field.metadata.get("flat") and isinstance(inner, dict):
            result |= inner
        else:
            result[field.name] = inner
    return result


def json_text(value: object) -> str:
    """Return a result as indented JSON text; errors as for ``json_ready``."""
    return json.dumps(json_ready(value), indent=2, allow_nan=False)
