"""Write the vocabulary of some tokens of one tokenizer; see ``compression.py``, ``folder.py``."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from cache_tools.errors import FormatError, IdentityError
from cache_tools.format.manifest import SPLITS
from cache_tools.format.sequences import read_recorded
from cache_tools.format.tokenizer_files import without_code
from cache_tools.inspection.decoding import TOKENIZER_FILE
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.storage import StorePath
from cache_tools.store.reader import Encoding
from cache_tools.vocabularies.compression import compressed, coverage, kept_ids, kept_size, stand_ins, token_counts
from cache_tools.vocabularies.folder import (
    SETTINGS_FILE,
    TOKEN_MAP_KEY,
    VocabularyManifest,
    tokenizers_of,
    write_folder,
)
from cache_tools.vocabularies.same_tokenizer import require_same_encodings
from cache_tools.vocabularies.token_map import token_map_bytes
from cache_tools.vocabularies.tokens import tokens_of
from cache_tools.vocabularies.word_embeddings import word_embeddings


def write_compressed(
    folder: StorePath,
    encodings: Sequence[Encoding],
    keep: float,
    forced: Collection[str] = (),
    embeddings: Path | None = None,
    progress: Advance = ignore,
) -> VocabularyManifest:
    """Choose which tokens of the encodings' one tokenizer a student has, and write them.

    Args:
        folder: To write.
        encodings: Whose training texts say which tokens are frequent.
        keep: See ``compressed_vocabulary.kept_size``.
        forced: Names of tokens that are kept in any case.
        embeddings: Folder of a model whose word embeddings say what dropped tokens are read as.
        progress: Told of each shard whose tokens are counted.

    Raises:
        IdentityError: the encodings have several tokenizers; or the folder holds another vocabulary.
        FormatError: a forced name is no token; or there are too many; or as for ``write_vocabulary``.
        ModelError: the model has no word embeddings.
        DamageError: as for ``write_vocabulary``.
    """
    key, tokenizer, settings = _only_tokenizer(encodings)
    tokens = tokens_of(tokenizer, settings)
    size, must = max(tokens) + 1, [_id_of(tokenizer, name) for name in forced]
    counts = {split: token_counts(encodings, split, size, progress) for split in SPLITS}
    kept = kept_ids(counts["train"], tokens, must, kept_size(keep, len(tokens)))
    vectors = None if embeddings is None else word_embeddings(embeddings, size)
    union = compressed(key, tokens, kept, stand_ins(kept, tokens, vectors))
    files = {TOKEN_MAP_KEY: token_map_bytes(union.read[key], kept.astype(np.uint32))}
    for name in (TOKENIZER_FILE, SETTINGS_FILE):
        record = encodings[0].manifest.files[name]
        content = read_recorded(encodings[0].path / name, record.sha256, record.bytes)
        files[name] = without_code(name.rpartition("/")[2], content)
    found = {split: coverage(counts[split], kept, tokens) for split in SPLITS if counts[split].any()}
    return write_folder(folder, union, [json.loads(tokenizer.to_str())], files, found)


def _only_tokenizer(encodings: Sequence[Encoding]) -> tuple[str, Tokenizer, dict[str, Any]]:
    found = tokenizers_of(encodings)
    if len(found) > 1:
        raise IdentityError(
            "these caches have several tokenizers",
            expected="one, some tokens of which are kept",
            found=" and ".join(f"{key[:12]}…" for key in found),
            fix="Leave --keep out to unite them, or give caches of one tokenizer",
        )
    for encoding in encodings[1:]:
        require_same_encodings(
            encodings[0], encoding, "these caches have several tokenizers", "Give caches of one tokenizer"
        )
    ((key, (tokenizer, settings)),) = found.items()
    return key, tokenizer, settings


def _id_of(tokenizer: Tokenizer, name: str) -> int:
    token_id = tokenizer.token_to_id(name)
    if token_id is None:
        raise FormatError(
            "the tokenizer has no such token",
            where="--forced",
            found=repr(name),
            fix="Write each token as the tokenizer does, such as ##ing",
        )
    return int(token_id)
