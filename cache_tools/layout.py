"""Where everything lies inside a cache: names only, no reading or writing.

::

    <cache>/zarr.json                                   the cache's manifest
    <cache>/encodings/<encoding>/zarr.json              the encoding's manifest, written last
    <cache>/encodings/<encoding>/shards.arrow           one row per shard
    <cache>/encodings/<encoding>/sequences/00000.arrow  the sequences of shard 0
    <cache>/encodings/<encoding>/tokenizer/             tokenizer files, no code
    <cache>/encodings/<encoding>/teachers/<teacher>/    zarr.json, arrays, receipts/00000.json

Names come from strangers' files, so they are checked here: letters, digits, dot, dash and
underscore, never a path.
"""

import re
from pathlib import Path

from cache_tools.errors import FormatError

MANIFEST = "zarr.json"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


def checked_name(name: str) -> str:
    """Return ``name`` if it is a legal encoding, teacher or array name.

    Raises:
        FormatError: it is not, for instance because it holds a slash.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise FormatError(
            f"{name!r} is not a legal name",
            expected="letters, digits, '.', '_' and '-', starting with a letter or digit",
            found=repr(name),
            why="names become folders inside the cache",
        )
    return name


def encodings_folder(cache: Path) -> Path:
    """Return the folder of all encodings."""
    return cache / "encodings"


def encoding_folder(cache: Path, encoding: str) -> Path:
    """Return the folder of one encoding."""
    return encodings_folder(cache) / checked_name(encoding)


def sequences_file(encoding: Path, shard: int) -> Path:
    """Return the Arrow file that holds the sequences of a shard."""
    return encoding / "sequences" / f"{shard:05d}.arrow"


def shard_table_file(encoding: Path) -> Path:
    """Return the Arrow file that lists the shards of an encoding."""
    return encoding / "shards.arrow"


def tokenizer_folder(encoding: Path) -> Path:
    """Return the folder of an encoding's tokenizer files."""
    return encoding / "tokenizer"


def teacher_folder(encoding: Path, teacher: str) -> Path:
    """Return the folder of one teacher's predictions."""
    return encoding / "teachers" / checked_name(teacher)


def receipt_file(teacher: Path, shard: int) -> Path:
    """Return the receipt of one shard; it exists if and only if the shard is committed."""
    return teacher / "receipts" / f"{shard:05d}.json"


def head_file(teacher: Path) -> Path:
    """Return the file that holds the teacher's LM head, kept when its last hidden state is."""
    return teacher / "head.safetensors"


def shard_object(array: str, shard: int, dimensions: int) -> str:
    """Return the key, relative to the teacher, of the one object of an array's shard."""
    return "/".join([array, "c", str(shard), *["0"] * (dimensions - 1)])
