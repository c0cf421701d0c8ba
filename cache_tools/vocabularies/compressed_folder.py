"""Write the vocabulary of some tokens of one tokenizer; see ``compression.py``, ``folder.py``."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path

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
from cache_tools.vocabularies.compression import (
    Similarity,
    compressed,
    coverage,
    kept_ids,
    kept_size,
    stand_ins,
    token_counts,
)
from cache_tools.vocabularies.folder import SETTINGS_FILE, OpenTokenizer, tokenizers_of, write_folder
from cache_tools.vocabularies.manifest import TOKEN_MAP_KEY, VocabularyManifest
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
    similarity: Similarity = "dot",
) -> VocabularyManifest:
    """Select the tokens of a student from the encodings' one tokenizer, and write its vocabulary.

    Args:
        folder: The folder to write.
        encodings: Encodings of one tokenizer; their training texts determine which tokens are frequent.
        keep: See ``compression.kept_size``.
        forced: Names of tokens that are always kept.
        embeddings: Folder of a model whose word embeddings determine the stand-ins of dropped tokens.
        progress: Called after each shard whose tokens were counted.
        similarity: How word embeddings are compared.

    Raises:
        IdentityError: the encodings have several tokenizers; or the folder holds another vocabulary.
        FormatError: a forced name is no token; or more tokens must be kept than fit; or as for ``write_vocabulary``.
        ModelError: the model has no word embeddings.
        DamageError: as for ``write_vocabulary``.
    """
    key, (tokenizer, settings) = _only_tokenizer(encodings)
    tokens = tokens_of(tokenizer, settings)
    size, forced_ids = max(tokens) + 1, [_id_of(tokenizer, name) for name in forced]
    counts = {split: token_counts(encodings, split, size, progress) for split in SPLITS}
    kept = kept_ids(counts["train"], tokens, forced_ids, kept_size(keep, len(tokens)))
    vectors = None if embeddings is None else word_embeddings(embeddings, size)
    union = compressed(key, tokens, kept, stand_ins(kept, tokens, vectors, similarity))
    files = {TOKEN_MAP_KEY: token_map_bytes(union.read[key], kept.astype(np.uint32))}
    for name in (TOKENIZER_FILE, SETTINGS_FILE):
        record = encodings[0].manifest.files[name]
        content = read_recorded(encodings[0].path / name, record.sha256, record.bytes)
        files[name] = without_code(name.rpartition("/")[2], content)
    shares = {split: coverage(counts[split], kept, tokens) for split in SPLITS if counts[split].any()}
    return write_folder(folder, union, [json.loads(tokenizer.to_str())], files, shares)


def _only_tokenizer(encodings: Sequence[Encoding]) -> tuple[str, OpenTokenizer]:
    tokenizers = tokenizers_of(encodings)
    if len(tokenizers) > 1:
        raise IdentityError(
            "these caches have several tokenizers",
            expected="a single tokenizer, because --keep selects among its tokens",
            found=" and ".join(f"{key[:12]}…" for key in tokenizers),
            fix="Leave --keep out to unite the vocabularies, or give caches of one tokenizer",
        )
    for encoding in encodings[1:]:
        require_same_encodings(
            encodings[0], encoding, "these caches have several tokenizers", "Give caches of one tokenizer"
        )
    ((key, tokenizer),) = tokenizers.items()
    return key, tokenizer


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
