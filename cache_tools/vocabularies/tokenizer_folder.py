"""A tokenizer from a local folder or a hub id, without transformers: files as data, identity, vocabulary."""

import json
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from huggingface_hub import snapshot_download
from tokenizers import Tokenizer

from cache_tools.errors import ModelError
from cache_tools.format.tokenizer_files import SETTINGS, without_code
from cache_tools.format.vocabulary import file_behaviour, vocabulary_fingerprint, vocabulary_size
from cache_tools.mappings import Identity, JsonObject

STATE = "tokenizer.json"
FILES = (
    STATE,
    SETTINGS,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
)


@dataclass(frozen=True)
class TokenizerFolder:
    """A tokenizer, its files and what identifies it.

    Attributes:
        files: Contents by name, without anything that runs code.
        tokenizer: The tokenizer itself.
        identity: What an encoding's identity says of it.
        size: Highest id plus one.
    """

    files: dict[str, bytes]
    tokenizer: Tokenizer
    identity: Identity
    size: int


def open_tokenizer(place: str, revision: str | None = None) -> TokenizerFolder:
    """Open a tokenizer from a local folder or a hub id.

    Raises:
        ModelError: there is none, or it has no ``tokenizer.json``.
    """
    folder = Path(place).expanduser()
    if not folder.is_dir():
        folder = _downloaded(place, revision)
    if not (folder / STATE).is_file():
        raise ModelError(
            "this tokenizer has no fast implementation",
            where=folder,
            expected=STATE,
            fix="Load it once with transformers and save it: AutoTokenizer.from_pretrained(…).save_pretrained(…)",
        )
    files = {name: without_code(name, (folder / name).read_bytes()) for name in FILES if (folder / name).is_file()}
    files.setdefault(SETTINGS, b"{}\n")
    tokenizer, settings = tokenizer_of(files[STATE], folder), settings_of(files[SETTINGS])
    vocabulary = tokenizer.get_vocab()
    identity = {
        "behaviour": file_behaviour(files[STATE], settings, vocabulary),
        "vocabulary": vocabulary_fingerprint(vocabulary),
    }
    return TokenizerFolder(files, tokenizer, identity, vocabulary_size(vocabulary))


def tokenizer_of(content: bytes, where: object) -> Tokenizer:
    """Return the tokenizer of a ``tokenizer.json``.

    Args:
        content: The file.
        where: The place that an error names.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        return Tokenizer.from_buffer(content)
    except Exception as error:  # the library in Rust raises nothing narrower
        raise ModelError("this tokenizer cannot be read", where=where, found=shorten(str(error), 300)) from error


def settings_of(content: bytes) -> JsonObject:
    """Return a ``tokenizer_config.json``; nothing if it is no JSON object."""
    try:
        settings = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _downloaded(place: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(place, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # the hub's client raises many kinds
        raise ModelError(
            "no tokenizer could be found",
            where=place,
            expected="a folder, or the id of a model on the hub",
            found=shorten(str(error), 300),
            fix="Check the path or hub id",
        ) from error
