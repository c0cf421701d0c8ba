"""Names for dictionaries whose values are of any type, each by where it comes from or goes to.

A result is a frozen dataclass. A dictionary of arbitrary values is used only where another program decides about its
keys: JSON and YAML documents, and the interfaces of torch, transformers and other libraries. Each such use has a name
here, and no other module of the three packages writes the type out; a test holds that. The names cost nothing and
change nothing while a program runs. Rejected: ``TypedDict``, because a later version of format 1, or of a library, may
add keys that this version must carry along.
"""

from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]
"""An object parsed from JSON or YAML, or about to be written as one. Whoever reads a value checks its type first."""

Identity: TypeAlias = JsonObject
"""Everything that determines an encoding or a teacher's predictions, or a part of that; its hash is the fingerprint."""

Parameters: TypeAlias = JsonObject
"""What a codec chose for one shard: numbers or lists of numbers, kept in the shard's receipt."""

Provenance: TypeAlias = JsonObject
"""How a shard was made, in its receipt; people read it, and it is never compared.

A capture writes ``software``, ``device`` and ``seconds``; an import adds ``imported``, the format of the files; a
subset writes ``subset_of``, the fingerprint of the teacher it was taken from, and ``shard``.
"""

TokenizerState: TypeAlias = JsonObject
"""Content of a ``tokenizer.json``."""

Arguments: TypeAlias = dict[str, Any]
"""Keyword arguments of a function of another library, such as transformers, Ray or matplotlib."""

ModelInputs: TypeAlias = dict[str, Any]
"""Keyword arguments of a model's forward: tensors and flags by name, in the terms of transformers."""

StateDict: TypeAlias = dict[str, Any]
"""State of an optimizer, as torch's ``state_dict`` returns it: tensors, numbers and lists by name."""
