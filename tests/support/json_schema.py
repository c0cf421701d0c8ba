"""Whether JSON has exactly the keys and types of a dataclass: the schema of a command's ``--json`` output."""

import json
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from cache_tools.json_output import Json


def mismatches(value, annotation, where="$"):
    """Return what differs between a parsed JSON value and a type, a line each; nothing if it is of that type."""
    if annotation in (Any, object) or annotation == Json:
        return []
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return [] if any(not mismatches(value, kind, where) for kind in arguments) else [f"{where}: {annotation}"]
    if origin is Literal:
        return [] if value in arguments else [f"{where}: {value!r} is none of {arguments}"]
    if origin in (list, tuple):
        return _of_list(value, origin, arguments, where)
    if origin is not None and issubclass(origin, Mapping):
        return _of_mapping(value, arguments[1], where)
    if is_dataclass(annotation):
        return _of_dataclass(value, annotation, where)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        annotation.model_validate_json(json.dumps(value))
        return []
    return [] if _is_plain(value, annotation) else [f"{where}: {value!r} is no {annotation}"]


def schema(kind):
    """Return the keys of a dataclass in JSON with their types; a flat mapping allows any further key."""
    keys, others = {}, None
    hints = get_type_hints(kind)
    for field in fields(kind):
        annotation = hints[field.name]
        if not field.metadata.get("flat"):
            keys[field.name] = annotation
        elif is_dataclass(annotation):
            keys |= schema(annotation)[0]
        else:
            others = get_args(annotation)[1]
    return keys, others


def _of_dataclass(value, kind, where):
    if not isinstance(value, dict):
        return [f"{where}: {value!r} is no object"]
    keys, others = schema(kind)
    wrong = [f"{where}.{key}: missing" for key in keys if key not in value]
    for key, inner in value.items():
        if key in keys:
            wrong += mismatches(inner, keys[key], f"{where}.{key}")
        elif others is None:
            wrong.append(f"{where}.{key}: not in {kind.__name__}")
        else:
            wrong += mismatches(inner, others, f"{where}.{key}")
    return wrong


def _of_list(value, origin, arguments, where):
    if not isinstance(value, list):
        return [f"{where}: {value!r} is no list"]
    kinds = [arguments[0]] * len(value) if origin is list or Ellipsis in arguments else arguments
    if len(kinds) != len(value):
        return [f"{where}: {len(value)} values instead of {len(kinds)}"]
    return [
        line
        for number, (inner, kind) in enumerate(zip(value, kinds, strict=True))
        for line in mismatches(inner, kind, f"{where}[{number}]")
    ]


def _of_mapping(value, kind, where):
    if not isinstance(value, dict):
        return [f"{where}: {value!r} is no object"]
    return [line for key, inner in value.items() for line in mismatches(inner, kind, f"{where}.{key}")]


def _is_plain(value, annotation):
    if annotation is float:
        return type(value) in (int, float)
    if annotation in (None, types.NoneType):
        return value is None
    return type(value) is annotation if annotation in (bool, int, str) else isinstance(value, str)
