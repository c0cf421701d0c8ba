"""Load a tokenizer, identify it, and save it.

Two hashes, for two questions. ``behaviour`` covers the whole fast tokenizer (normaliser,
merges, vocabulary, special tokens): the same text gives the same ids. ``vocabulary``
covers only which id means which token. A teacher that shares an encoding must have the same vocabulary and
split text alike; ``cache_tools/vocabularies/same_tokenizer.py`` finds out whether tokenizers with different hashes do.
"""

import json
import os
import re
import tempfile
from pathlib import Path
from textwrap import shorten

from transformers import PreTrainedTokenizerFast

from cache_tools.errors import ConfigError, ModelError
from cache_tools.format.fingerprint import fingerprint
from cache_tools.format.tokenizer_files import is_tokenizer_file, without_code
from cache_tools.format.vocabulary import vocabulary_fingerprint
from cache_tools.mappings import Identity
from cache_tools.models.files import why_not_found
from cache_tools.storage import storage_errors
from cache_tools.torch_models import gguf


def load_tokenizer(
    source: str | Path, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer from a local folder, a hub id or a GGUF file.

    Raises:
        ModelError: there is none, or it has no fast implementation (which byte offsets need).
    """
    try:
        tokenizer = gguf.load_tokenizer(source, revision=revision, trust_remote_code=trust_remote_code)
    except ModelError:
        raise
    except Exception as error:  # transformers and its Rust part raise many kinds for damaged files
        raise ModelError(
            "no tokenizer could be loaded",
            where=source,
            found=shorten(str(error), 300) if Path(source).exists() else why_not_found(error),
            fix="Check the path or hub id",
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            "this tokenizer has no fast implementation",
            where=source,
            expected="a tokenizer.json",
            found=type(tokenizer).__name__,
            why="the byte offsets of tokens come from the fast tokenizers",
        )
    return tokenizer


def tokenizer_identity(tokenizer: PreTrainedTokenizerFast) -> Identity:
    """Return the two hashes of a tokenizer, for an encoding's identity."""
    behaviour = json.loads(tokenizer.backend_tokenizer.to_str())
    for transient in ("version", "truncation", "padding"):
        behaviour.pop(transient, None)
    return {
        "behaviour": fingerprint({"tokenizer": behaviour, "special": _special_ids(tokenizer)}),
        "vocabulary": vocabulary_fingerprint(tokenizer.get_vocab()),
    }


def separator_of(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the id of the token between the two sides of a pair.

    Raises:
        ConfigError: the tokenizer has none.
    """
    separator = tokenizer.sep_token_id
    if not isinstance(separator, int):
        raise ConfigError(
            "this tokenizer has no separator between the two sides of a pair",
            where="encoding.segments",
            expected="a tokenizer with a sep_token, such as [SEP]",
            fix="Leave encoding.segments out",
        )
    return separator


def tokenizer_files(tokenizer: PreTrainedTokenizerFast) -> dict[str, bytes]:
    """Return the contents of the files in which a tokenizer is saved, by name; of one that came with code, the data.

    Raises:
        StorageError: the disk with the temporary files is full or refuses.
    """
    with tempfile.TemporaryDirectory() as name, storage_errors(Path(name)):
        try:
            tokenizer.save_pretrained(name)
        except Exception as error:  # the Rust part raises plain exceptions, with the error number in their text
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        files = {path.relative_to(name).as_posix(): path for path in sorted(Path(name).rglob("*")) if path.is_file()}
        return {name: without_code(name, path.read_bytes()) for name, path in files.items() if is_tokenizer_file(name)}


def _special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    names = ("bos", "eos", "cls", "sep", "mask")
    return {name: getattr(tokenizer, f"{name}_token_id", None) for name in names}
