"""Open the tokenizer of a cache or vocabulary as the untrusted data that it is.

Only its own files are read, by transformers' own classes for fast tokenizers; code that they name is neither run nor
asked about. Its vocabulary must be the recorded one: with another ``tokenizer.json`` the ids of the cache would mean
other tokens.
"""

import json
from inspect import isclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from cache_tools.errors import FormatError, IdentityError
from cache_tools.format.tokenizer_files import SETTINGS
from cache_tools.format.vocabulary import Vocabulary, vocabulary_fingerprint
from cache_tools.storage import StorePath


def open_tokenizer(folder: Path, vocabulary: Vocabulary, where: StorePath) -> PreTrainedTokenizerFast:
    """Load a tokenizer from files that ``save_tokenizer`` has copied.

    Args:
        folder: Where they were copied to.
        vocabulary: The recorded vocabulary.
        where: The encoding, or the vocabulary's folder, for errors.

    Raises:
        FormatError: The files are not those of a tokenizer.
        IdentityError: The tokenizer has another vocabulary than the recorded one.
    """
    try:
        tokenizer: Any = _tokenizer_class(folder).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        actual = vocabulary_fingerprint(tokenizer.get_vocab())
    except BaseException as error:  # the library in Rust raises panics, which are no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise FormatError(
            "the tokenizer's files cannot be read",
            where=where,
            found=shorten(str(error), 300),
            fix="Check the cache with 'logitcask verify --deep'; if it passes, capture it again",
        ) from error
    if actual != vocabulary.fingerprint:
        raise IdentityError(
            "the tokenizer's files are not those of the recorded tokenizer",
            where=where,
            expected=f"vocabulary {vocabulary.fingerprint[:12]}… ({vocabulary.size} ids)",
            found=f"{actual[:12]}… ({len(tokenizer)} ids)",
            why="the tokenizer would give ids that mean other tokens in this cache",
            fix="Restore the files from a copy of the cache, or capture it again",
        )
    opened: PreTrainedTokenizerFast = tokenizer
    return opened


def _tokenizer_class(folder: Path) -> type[PreTrainedTokenizerFast]:
    """Return transformers' class of the name in the settings, if it is one for fast tokenizers; else the plain one."""
    path = folder / SETTINGS
    settings = json.loads(path.read_bytes()) if path.exists() else {}
    name = settings.get("tokenizer_class")
    named: Any = tokenizer_class_from_name(name) if isinstance(name, str) else None
    is_fast = isclass(named) and issubclass(named, PreTrainedTokenizerFast)
    return named if is_fast else PreTrainedTokenizerFast
