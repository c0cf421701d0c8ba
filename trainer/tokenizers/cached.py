"""The tokenizer of a cache or vocabulary, loaded as the data of a stranger.

Only its own files are read, by transformers' own classes for fast tokenizers; code that they name is neither run nor
asked about. Its vocabulary must be the recorded one: with another ``tokenizer.json`` a student would learn other tokens
than its finished folder writes.
"""

import json
from inspect import isclass
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from cache_tools.errors import FormatError, IdentityError
from cache_tools.format.tokenizer_files import SETTINGS
from cache_tools.format.vocabulary import Vocabulary, vocabulary_fingerprint
from cache_tools.storage import StorePath
from cache_tools.store.reader import Encoding
from cache_tools.vocabularies.folder import read_vocabulary, save_tokenizer
from cache_tools.vocabularies.token_map import mapped


def open_tokenizer(folder: Path, vocabulary: Vocabulary, where: StorePath) -> PreTrainedTokenizerBase:
    """Load a tokenizer from files that ``save_tokenizer`` has copied.

    Args:
        folder: Where they were copied to.
        vocabulary: The recorded one.
        where: The encoding, or the vocabulary's folder, for errors.

    Raises:
        FormatError: they are no tokenizer.
        IdentityError: it has another vocabulary than the recorded one.
    """
    try:
        loaded: Any = _tokenizer_class(folder).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        found = vocabulary_fingerprint(loaded.get_vocab())
    except BaseException as error:  # the library in Rust raises panics, which are no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise FormatError(
            "the tokenizer's files cannot be read",
            where=where,
            found=shorten(str(error), 300),
            fix="Check the cache with 'logitcask verify --deep'; if it passes, capture it again",
        ) from error
    if found != vocabulary.fingerprint:
        raise IdentityError(
            "the tokenizer's files are not those of the recorded tokenizer",
            where=where,
            expected=f"vocabulary {vocabulary.fingerprint[:12]}… ({vocabulary.size} ids)",
            found=f"{found[:12]}… ({len(loaded)} ids)",
            why="the student's tokenizer would give other ids than those it was trained on",
            fix="Restore the files from a copy of the cache, or capture it again",
        )
    tokenizer: PreTrainedTokenizerBase = loaded
    return tokenizer


def _tokenizer_class(folder: Path) -> type[PreTrainedTokenizerFast]:
    """Return transformers' class of the name in the settings, if it is one for fast tokenizers; else the plain one."""
    path = folder / SETTINGS
    settings = json.loads(path.read_bytes()) if path.exists() else {}
    name = settings.get("tokenizer_class")
    named: Any = tokenizer_class_from_name(name) if isinstance(name, str) else None
    is_fast = isclass(named) and issubclass(named, PreTrainedTokenizerFast)
    return named if is_fast else PreTrainedTokenizerFast


def check_tokenizer(source: str, vocabulary: Vocabulary, revision: str | None = None, remote: bool = False) -> None:
    """Refuse a student whose tokenizer gives ids another meaning than its vocabulary does.

    Raises:
        IdentityError: it does, or it reads that tokenizer's ids through another map.
        FormatError: its map cannot be read.
        OSError: there is no tokenizer at ``source``.
    """
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=remote)
    found = mapped(vocabulary_fingerprint(tokenizer.get_vocab()), Path(source))
    if found != vocabulary.fingerprint:
        raise IdentityError(
            "the student has another tokenizer than the cache",
            where=source,
            expected=f"vocabulary {vocabulary.fingerprint[:12]}… ({vocabulary.size} ids)",
            found=f"{found[:12]}… ({len(tokenizer)} ids)",
            why="it would learn the probabilities of other tokens",
            fix="Name the vocabulary that it was trained with, if any; or capture an encoding with its tokenizer",
        )


def student_tokenizer(vocabulary: StorePath | None, encoding: Encoding) -> PreTrainedTokenizerBase:
    """Load the student's tokenizer: that of the folder of a vocabulary, or else the encoding's.

    Raises:
        FormatError: its files are no tokenizer.
        IdentityError: they are another one than the recorded.
    """
    with TemporaryDirectory() as folder:  # either may lie in a bucket
        if vocabulary is None:
            encoding.save_tokenizer(Path(folder))
            return open_tokenizer(Path(folder), encoding.manifest.vocabulary, encoding.path)
        save_tokenizer(vocabulary, Path(folder))
        union = read_vocabulary(vocabulary)
        recorded = union.vocabulary  # of a part of a tokenizer's tokens, the tokenizer itself is kept
        for tokenizer, ids in union.read.items():
            recorded = Vocabulary(len(ids), tokenizer)
        return open_tokenizer(Path(folder), recorded, vocabulary)
