"""``student.config``: every key is one that the model's code reads.

transformers' configurations keep whatever they are given, so ``num_hiden_layers: 3`` makes a student with the default
number of layers and says nothing. A key is accepted if it is a field of the configuration's class or another name of
one, or if the class or its model names it in their source: some keys are read without being declared. Keys inside
blocks (``rope_parameters``, ``text_config``) are checked in the same way. Values are checked by transformers.

The source is searched as text, about 10 ms for a model. Rejected: the declared fields alone, which refuse keys that
work (``rope_theta``, ``attn_implementation``).
"""

import difflib
import inspect
import math
import re
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, modeling_rope_utils
from transformers.modeling_rope_utils import RopeParameters

from cache_tools.errors import ConfigError
from cache_tools.mappings import JsonObject

NUMBER = re.compile(r"(num|n)_\w+|\w+_(size|dim)")
"""Keys that count something; transformers accepts -1 layers, and makes a student that has none."""
ROPE = ("rope_parameters", "rope_scaling")
LAYER_KINDS = re.compile(r"\w*attention")
"""Keys under ``rope_parameters`` that hold a block each, one per kind of layer."""


def check_config_keys(config: JsonObject, where: str = "student.config") -> None:
    """Refuse keys of a student's configuration that nothing reads.

    Args:
        config: Keys of a transformers configuration, ``model_type`` among them. Of an unknown model, none is checked:
            making the student refuses it.
        where: The block, for errors.

    Raises:
        ConfigError: naming the first such key, and the one that may be meant.
    """
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        _check(config, CONFIG_MAPPING[model_type], where)


def _check(config: JsonObject, kind: Any, where: str) -> None:
    fields = _fields(kind)
    for key, value in config.items():
        if key not in fields and not _is_read(key, _source(kind)):
            raise _unread(f"{where}.{key}", key, fields)
        if isinstance(value, int) and value < 0 and NUMBER.fullmatch(key):
            raise ConfigError("this number is negative", where=f"{where}.{key}", found=value)
        _check_finite(value, f"{where}.{key}")
        if isinstance(value, dict):
            _check_block(key, value, kind, f"{where}.{key}")


def _check_block(key: str, block: JsonObject, kind: Any, where: str) -> None:
    """Check the keys of a block inside a configuration: another configuration, or rotary embeddings; no other."""
    inner = kind.sub_configs.get(key)
    if inner is not None:
        is_open = not hasattr(inner, "__dataclass_fields__")  # AutoConfig: the block says of which model it is
        if is_open:
            check_config_keys(block, where)
        else:
            _check(block, inner, where)
    elif key in ROPE:
        for name, value in block.items():
            _check_finite(value, f"{where}.{name}")
            if LAYER_KINDS.fullmatch(name) and isinstance(value, dict | None):
                _check_block(key, value or {}, kind, f"{where}.{name}")
            elif name not in RopeParameters.__annotations__ and not _is_read(name, _rope_source() + _source(kind)):
                raise _unread(f"{where}.{name}", name, RopeParameters.__annotations__)


def _check_finite(value: Any, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError("this number is not finite", where=where, found=value)


def _unread(where: str, key: str, fields: Collection[str]) -> ConfigError:
    close = difflib.get_close_matches(key, sorted(fields), n=1)
    return ConfigError(
        "the student's model does not read this key",
        where=where,
        expected=f"perhaps {close[0]}" if close else "",
        why="it would be ignored, and the default would be used",
        fix="Check its spelling, or leave it out",
    )


def _is_read(key: str, source: str) -> bool:
    if key not in source:  # a plain search is far faster than the expressions below, and decides most misspelt keys
        return False
    name = re.escape(key)
    quoted = rf"""["']{name}["']"""
    called = rf"""\b(pop|get|getattr|hasattr|setdefault)\([^()"']*{quoted}"""
    return re.search(rf"{called}|{quoted}\]|{quoted} (not )?in |\bconfig\.{name}\b", source) is not None


@cache
def _fields(kind: Any) -> frozenset[str]:
    """Return the keys that a configuration declares, by all their names, and those that its default has."""
    try:
        default = set(kind().to_dict())
    except Exception:  # some classes have no defaults that pass their own checks
        default = set()
    return frozenset(
        {*kind.__dataclass_fields__, *kind.attribute_map, *kind.attribute_map.values(), *default, "model_type"}
    )


@cache
def _source(kind: Any) -> str:
    """Return the source of a configuration's class and its bases, and of the model beside it."""
    own = {Path(inspect.getfile(base)) for base in kind.__mro__ if base.__module__.startswith("transformers.")}
    beside = {path for file in own if "models" in file.parts for path in file.parent.glob("*.py")}
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(own | beside))


@cache
def _rope_source() -> str:
    return inspect.getsource(modeling_rope_utils)
