"""The tokenizer that rows were made with: its files, its vocabulary, and whether the rows' ids are its tokens.

Ids say nothing about themselves. A vocabulary that is too small is refused, and so are ids that, turned into text and
back, mostly become other ids: with the right tokenizer nearly all come back, with another one few do.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from huggingface_hub import snapshot_download
from tokenizers import Tokenizer

from cache_tools.errors import IdentityError, ModelError
from cache_tools.format.tokenizer_files import SETTINGS, without_code
from cache_tools.format.vocabulary import vocabulary_fingerprint, vocabulary_size
from cache_tools.maintenance.verify_encoding import file_behaviour
from cache_tools.mappings import Identity

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
LEAST_AGREEMENT = 0.5
"""Share of a sample's tokens that must come back from their text."""


@dataclass(frozen=True)
class TokenizerFolder:
    """A tokenizer.

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
    try:
        tokenizer = Tokenizer.from_buffer(files[STATE])
        settings = json.loads(files[SETTINGS])
    except Exception as error:  # the library in Rust raises nothing narrower
        raise ModelError("this tokenizer cannot be read", where=folder, found=shorten(str(error), 300)) from error
    vocabulary = tokenizer.get_vocab()
    identity = {
        "behaviour": file_behaviour(files[STATE], settings if isinstance(settings, dict) else {}, vocabulary),
        "vocabulary": vocabulary_fingerprint(vocabulary),
    }
    return TokenizerFolder(files, tokenizer, identity, vocabulary_size(vocabulary))


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


def require_fitting(tokenizer: TokenizerFolder, sequences: Iterable[Any], teacher_size: int, where: object) -> float:
    """Refuse a tokenizer that the rows were not made with.

    Args:
        tokenizer: The tokenizer.
        sequences: Token ids of some rows.
        teacher_size: Width of the teacher's logits.
        where: The source, for the message.

    Returns:
        Which share of the tokens came back from their text.

    Raises:
        IdentityError: the vocabulary is larger than the teacher's, or few tokens come back.
    """
    if tokenizer.size > teacher_size:
        raise IdentityError(
            "the tokenizer has more tokens than the teacher has logits",
            where=where,
            expected=f"at most {teacher_size}",
            found=tokenizer.size,
            why="the rows were made with another tokenizer",
            fix="Give the tokenizer of the teacher with --tokenizer, or the width of its logits with --vocabulary-size",
        )
    total = same = 0
    for ids in sequences:
        ids = [int(token) for token in ids]
        text = tokenizer.tokenizer.decode(ids, skip_special_tokens=False)
        back = tokenizer.tokenizer.encode(text, add_special_tokens=False).ids
        total, same = total + len(ids), same + len(ids) - _different(ids, back)
    agreement = same / max(total, 1)
    if agreement < LEAST_AGREEMENT:
        raise IdentityError(
            "the token ids do not come back from their text with this tokenizer",
            where=where,
            expected=f"at least {LEAST_AGREEMENT:.0%} of the tokens",
            found=f"{agreement:.0%}",
            why="the rows were made with another tokenizer, so their ids mean other tokens",
            fix="Give the tokenizer of the teacher with --tokenizer",
        )
    return agreement


def _different(first: list[int], second: list[int]) -> int:
    """Return how many tokens of the first list are not in the second, as a multiset."""
    left: dict[int, int] = {}
    for token in second:
        left[token] = left.get(token, 0) + 1
    missing = 0
    for token in first:
        if left.get(token, 0):
            left[token] -= 1
        else:
            missing += 1
    return missing
