"""The tokenizer's files in a cache are data: which names they may have, and which settings reach a library.

An untrusted cache may list any file, and a tokenizer's settings may name Python to run (``auto_map``) or files outside
the folder. So a manifest with anything but data under ``tokenizer/`` is refused when it is read, and whoever takes the
files out of a cache gets settings without those keys: transformers then has nothing to ask about, with or without a
terminal. Chat templates are programs too, but transformers renders them in a sandbox that cannot reach the machine.
"""

import json
import re
from collections.abc import Iterable

from cache_tools.format import layout

SUFFIXES = ("json", "txt", "jinja", "model", "tiktoken")
"""Of the files in which fast tokenizers are saved; none of them is run or unpickled."""

TEMPLATES = "additional_chat_templates"
"""The one folder inside a tokenizer's."""

SETTINGS = "tokenizer_config.json"
_NAME = re.compile(rf"({TEMPLATES}/)?[A-Za-z0-9][A-Za-z0-9._-]*\.({'|'.join(SUFFIXES)})")
_UNSAFE = re.compile(r"auto_map|init_inputs|name_or_path|tokenizer_object|\w+_files?")
"""Keys of the settings that name code, constructor arguments or other places."""


def is_tokenizer_file(name: str) -> bool:
    """Say whether a file of this name, relative to a tokenizer's folder, is data that a tokenizer is made from."""
    return _NAME.fullmatch(name) is not None


def check_keys(keys: Iterable[str], also: frozenset[str] = frozenset()) -> None:
    """Refuse keys under ``tokenizer/`` that are no tokenizer files.

    Args:
        keys: Keys of objects, relative to an encoding or a vocabulary's folder.
        also: Further keys that are accepted.

    Raises:
        ValueError: naming the first.
    """
    inside = f"{layout.TOKENIZER}/"
    for key in keys:
        if key.startswith(inside) and key not in also and not is_tokenizer_file(key.removeprefix(inside)):
            raise ValueError(f"{key} is not a tokenizer's file; a cache holds no code")


def without_code(name: str, content: bytes) -> bytes:
    """Return a tokenizer's file as a library may see it: its settings without what names code or other places.

    Args:
        name: Relative to the tokenizer's folder.
        content: As it is in the cache; settings that are no JSON object are returned as they are.
    """
    if name != SETTINGS:
        return content
    try:
        settings = json.loads(content)
    except (ValueError, RecursionError):
        return content
    if not isinstance(settings, dict):
        return content
    unsafe = [key for key in settings if _UNSAFE.fullmatch(key)]
    kept = {key: value for key, value in settings.items() if key not in unsafe}
    return (json.dumps(kept, indent=2, ensure_ascii=False) + "\n").encode() if unsafe else content
