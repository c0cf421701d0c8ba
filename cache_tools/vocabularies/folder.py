"""A student's vocabulary on disk: the tokens of several caches, or some tokens of one; checked whenever it is read.

::

    <folder>/tokens.arrow        a row for each token of the vocabulary: its name, and its id in each tokenizer or null
    <folder>/tokenizer/          an ordinary tokenizer folder for the student
    <folder>/vocabulary.json     sealed: sizes and hashes of these files, fingerprints; written last

If tokens were dropped, the student's tokenizer is the cache's own, which still produces the dropped tokens;
``tokenizer/token_map.safetensors`` beside it holds their stand-ins (``token_map.py``).

A folder is never changed, because a student's embeddings become useless if ids change. The same command on the same
caches recognises the existing folder and does nothing; other caches need another folder.
"""

import json
from collections.abc import Sequence
from textwrap import shorten
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors import SafetensorError
from tokenizers import Tokenizer

from cache_tools.errors import FormatError
from cache_tools.format.manifest import ObjectRecord, Split
from cache_tools.format.sealed import UNSEALED, sealed_bytes
from cache_tools.format.sequences import read_recorded, read_table, table_bytes
from cache_tools.format.tokenizer_files import without_code
from cache_tools.format.vocabulary import vocabulary_fingerprint
from cache_tools.inspection.decoding import TOKENIZER_FILE
from cache_tools.mappings import JsonObject, TokenizerState
from cache_tools.storage import StorePath, object_exists, write_object, write_objects
from cache_tools.store.reader import Encoding
from cache_tools.vocabularies.manifest import (
    DOCUMENT,
    TOKEN_MAP_KEY,
    TOKENIZER,
    Part,
    VocabularyManifest,
    read_manifest,
    require_same,
)
from cache_tools.vocabularies.token_map import TOKEN_MAP, read_map
from cache_tools.vocabularies.tokens import tokens_of
from cache_tools.vocabularies.union import NO_ID, UnionVocabulary, unite
from cache_tools.vocabularies.union_tokenizer import differing_rules, tokenizer_files

TOKENS = "tokens.arrow"
SETTINGS_FILE = TOKENIZER_FILE.replace("tokenizer.json", "tokenizer_config.json")

LARGEST_VOCABULARY = 2**24
"""Largest number of ids of a tokenizer, so that an untrusted table cannot fill the memory."""

TOKENS_BYTES = 64 * 2**20
"""The table of tokens, unpacked: about two million tokens of four tokenizers."""


Maps = dict[str, NDArray[np.uint32]]
"""A map of ids for each tokenizer, by the fingerprint of its vocabulary; see ``UnionVocabulary``."""


class OpenTokenizer(NamedTuple):
    """A tokenizer and the content of its ``tokenizer_config.json``."""

    tokenizer: Tokenizer
    settings: JsonObject


def write_vocabulary(folder: StorePath, encodings: Sequence[Encoding]) -> VocabularyManifest:
    """Unite the vocabularies of encodings, each tokenizer once, and write the folder.

    Raises:
        DamageError: a tokenizer's file is missing or not what was written.
        FormatError: a tokenizer's tokens are written in an unknown way.
        IdentityError: the folder holds another vocabulary.
    """
    tokenizers = tokenizers_of(encodings)
    union = unite({key: tokens_of(tokenizer, settings) for key, (tokenizer, settings) in tokenizers.items()})
    states = [json.loads(tokenizer.to_str()) for tokenizer, _ in tokenizers.values()]
    files = {f"{TOKENIZER}/{name}": content for name, content in tokenizer_files(union, states).items()}
    return write_folder(folder, union, states, files)


def write_folder(
    folder: StorePath,
    union: UnionVocabulary,
    states: Sequence[TokenizerState],
    files: dict[str, bytes],
    coverage: dict[Split, float] | None = None,
) -> VocabularyManifest:
    """Write a vocabulary, unless the folder holds the same vocabulary.

    Args:
        folder: The folder to write.
        union: The vocabulary.
        states: ``tokenizer.json`` of each of its tokenizers.
        files: The student's tokenizer, by key.
        coverage: See ``VocabularyManifest``.

    Raises:
        IdentityError: the folder holds another vocabulary.
    """
    files[TOKENS] = table_bytes(_table(union))
    manifest = VocabularyManifest(
        format=1 if coverage is None else 2,
        size=len(union.names),
        fingerprint=union.fingerprint,
        tokenizers=_parts(union, states),
        files={key: ObjectRecord.of(content) for key, content in files.items()},
        coverage=coverage,
    )
    if object_exists(folder / DOCUMENT):
        require_same(folder, manifest)
    else:
        write_objects(folder, files)
        write_object(folder / DOCUMENT, sealed_bytes({"seal": UNSEALED} | manifest.model_dump(mode="json")))
    return manifest


def read_vocabulary(folder: StorePath) -> UnionVocabulary:
    """Read the union in a folder.

    Raises:
        FormatError: see ``read_manifest``; or the table gives several tokens the same id.
        DamageError: the table of tokens is missing, or not what was written.
    """
    manifest = read_manifest(folder)
    try:
        record = manifest.files[TOKENS]
        schema = pa.schema([("name", pa.string()), *((part.vocabulary, pa.uint32()) for part in manifest.tokenizers)])
        table = read_table(folder / TOKENS, record.sha256, schema, record.bytes, TOKENS_BYTES)
        maps = {part.vocabulary: _map(table.column(part.vocabulary)) for part in manifest.tokenizers}
        union = UnionVocabulary(tuple(table.column("name").to_pylist()), maps, _read_maps(folder, manifest, maps))
        if union.fingerprint != manifest.fingerprint:
            raise ValueError("another fingerprint")
    except (KeyError, ValueError, SafetensorError, pa.ArrowException) as error:
        raise FormatError(
            "this is not the table of a vocabulary",
            where=folder / TOKENS,
            found=error,
            fix="Run 'logitcask vocabulary' again",
        ) from error
    return union


def save_tokenizer(folder: StorePath, target: StorePath) -> None:
    """Copy the union's tokenizer to another folder, each file checked.

    Raises:
        FormatError: see ``read_manifest``.
        DamageError: a file is missing or not what was written.
    """
    for key, record in read_manifest(folder).files.items():
        if key.startswith(f"{TOKENIZER}/"):
            name = key.removeprefix(f"{TOKENIZER}/")
            content = read_recorded(folder / key, record.sha256, record.bytes)
            write_object(target / name, without_code(name, content))


def save_token_map(folder: StorePath, target: StorePath) -> None:
    """Copy the map of a student's ids to the student's folder, if tokens were dropped.

    Raises:
        FormatError: see ``read_manifest``.
        DamageError: it is missing or not what was written.
    """
    record = read_manifest(folder).files.get(TOKEN_MAP_KEY)
    if record is not None:
        write_object(target / TOKEN_MAP, read_recorded(folder / TOKEN_MAP_KEY, record.sha256, record.bytes))


def tokenizers_of(encodings: Sequence[Encoding]) -> dict[str, OpenTokenizer]:
    """Return each tokenizer once, by the fingerprint of its vocabulary, and its settings.

    Raises:
        DamageError: a tokenizer's file is missing or not what was written.
        FormatError: there is no encoding, or an encoding keeps no tokenizer, or its tokenizer cannot be read.
    """
    if not encodings:
        raise FormatError("these caches hold no encoding", fix="Run 'logitcask capture' first")
    by_vocabulary = {encoding.manifest.vocabulary.fingerprint: encoding for encoding in encodings}
    return {key: open_tokenizer(encoding) for key, encoding in by_vocabulary.items()}


def _read_maps(folder: StorePath, manifest: VocabularyManifest, maps: Maps) -> Maps:
    """Return the map with stand-ins by its tokenizer; nothing where no token was dropped."""
    if TOKEN_MAP_KEY not in manifest.files:
        return {}
    ((tokenizer, predicted),) = maps.items()
    record = manifest.files[TOKEN_MAP_KEY]
    content = read_recorded(folder / TOKEN_MAP_KEY, record.sha256, record.bytes)
    return {tokenizer: read_map(content, predicted)}


def open_tokenizer(encoding: Encoding) -> OpenTokenizer:
    """Return an encoding's tokenizer and its settings, checked to be the one that its identity names.

    Raises:
        DamageError: a file of the tokenizer is missing or not what was written.
        FormatError: the encoding keeps no tokenizer, or it cannot be read.
    """
    files = encoding.manifest.files
    if not {TOKENIZER_FILE, SETTINGS_FILE} <= set(files):
        raise FormatError("this encoding keeps no tokenizer", where=encoding.path, expected=TOKENIZER_FILE)
    records = {key: files[key] for key in (TOKENIZER_FILE, SETTINGS_FILE)}
    state, settings = (read_recorded(encoding.path / key, r.sha256, r.bytes) for key, r in records.items())
    try:
        tokenizer = Tokenizer.from_buffer(state)
        if vocabulary_fingerprint(tokenizer.get_vocab()) != encoding.manifest.vocabulary.fingerprint:
            raise ValueError("its vocabulary is not the one that the encoding was made with")
        return OpenTokenizer(tokenizer, json.loads(settings))
    except Exception as error:  # the library raises nothing narrower
        raise FormatError(
            "this tokenizer cannot be read", where=encoding.path, found=shorten(str(error), 200)
        ) from error


def _table(union: UnionVocabulary) -> pa.Table:
    columns = {"name": pa.array(union.names, pa.string())}
    for key, ids in union.maps.items():
        own_ids = np.full(len(union.names), NO_ID, np.uint32)
        has_token = ids != NO_ID
        own_ids[ids[has_token]] = np.flatnonzero(has_token)
        columns[key] = pa.array(own_ids, pa.uint32(), mask=own_ids == NO_ID)
    return pa.table(columns)


def _map(column: pa.ChunkedArray) -> NDArray[np.uint32]:
    """Return the (n,) uint32 map of which a column is the inverse.

    Raises:
        ValueError: the column is not invertible.
    """
    own_ids = column.fill_null(NO_ID).to_numpy()
    rows = np.flatnonzero(own_ids != NO_ID)
    size = int(own_ids[rows].max()) + 1
    if size > LARGEST_VOCABULARY or len(np.unique(own_ids[rows])) < len(rows):
        raise ValueError("an id occurs twice, or is too large")
    ids = np.full(size, NO_ID, np.uint32)
    ids[own_ids[rows]] = rows
    return ids


def _parts(union: UnionVocabulary, states: Sequence[TokenizerState]) -> tuple[Part, ...]:
    token_ids = [ids[ids != NO_ID] for ids in union.maps.values()]
    users = np.bincount(np.concatenate(token_ids), minlength=len(union.names))
    sizes = [int((union.read.get(key, ids) != NO_ID).sum()) for key, ids in union.maps.items()]
    different = differing_rules(states)
    return tuple(
        Part(vocabulary=key, ids=size, shared=int((users[ids] > 1).sum()), same_rules=number not in different)
        for number, (key, ids, size) in enumerate(zip(union.maps, token_ids, sizes, strict=True))
    )
