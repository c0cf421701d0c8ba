"""Documents become sequences, sequences fill shards, shards are written: the start of stage one.

Deterministic: the same documents, tokenizer and settings give the same bytes. The
encoding's manifest is written last, so a part of the corpus is encoded whole or not at all; a
killed one is simply done again (it costs a tokeniser pass, nothing beside a teacher).

A file of the encoding that was lost is written again from the corpus, see ``restore.py``. Before anything is written
the folder is claimed (``cache_tools/store/claims.py``), so that two captures of different corpora cannot overwrite
each other.

Files and datasets that are appended to the corpus become a further part: new shards behind the old
ones, which stay what they are.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from transformers import PreTrainedTokenizerFast

from cache_tools.creation import create_object
from cache_tools.errors import IdentityError, LogitcaskError
from cache_tools.format import layout
from cache_tools.format.fingerprint import fingerprint
from cache_tools.format.manifest import (
    EncodingManifest,
    ObjectRecord,
    Split,
    group_bytes,
    read_manifest,
    write_group,
    write_manifest,
)
from cache_tools.format.sequences import DOCUMENT_IDS, Sequence, read_table
from cache_tools.format.shards import (
    ShardEntry,
    read_file_table,
    read_file_tables,
    read_shard_tables,
    write_part,
    write_shard,
)
from cache_tools.format.vocabulary import vocabulary_size
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.storage import (
    StorePath,
    names,
    object_exists,
    remove_object,
    remove_partial,
    remove_tree,
    write_objects,
)
from cache_tools.store.claims import CLAIM, Claim, claimed
from cache_tools.store.encoding_files import missing_files
from pipeline.config import CaptureConfig
from pipeline.corpus.documents import Document, Source, corpus_sources, read_documents
from pipeline.encoding.checks import check_files, check_same, refuse_remains
from pipeline.encoding.held_out import NOTHING_HELD_OUT, is_held_out
from pipeline.encoding.restore import restore_file_tables, restore_shards, restore_tokenizer
from pipeline.encoding.sequences import EncodedSequence, encode_documents
from pipeline.encoding.shard_writer import ShardWriter, WriteShard
from pipeline.encoding.tokenizer import tokenizer_files, tokenizer_identity

logger = logging.getLogger(__name__)

OTHER_ENCODING = "the cache holds this encoding from another corpus or with other settings"

WITHOUT_BEGINNING = (
    "%d of %d sequences begin in the middle of a chat that is longer than encoding.max_length_tokens: the teacher "
    "reads their answers without the prompt, or with a part of it. Raise encoding.max_length_tokens, or "
    "shorten these chats"
)


def encode(
    config: CaptureConfig,
    tokenizer: PreTrainedTokenizerFast,
    append: bool = False,
    progress: Advance = ignore,
) -> StorePath:
    """Encode the corpus into the cache, or check that it already is.

    Args:
        config: The capture file.
        tokenizer: The encoding's tokenizer.
        append: Encode files and datasets that the encoding lacks as a further part of it.
        progress: Told how many tokens were encoded, and about which share of the corpus that completes.

    Returns:
        The encoding's folder.

    Raises:
        CorpusError: a document cannot be read or encoded.
        IdentityError: the cache holds an encoding of this name from another corpus or other settings.
    """
    sources = corpus_sources(config.corpus)
    hashes = {name: source.sha256() for name, source in sources.items()}
    folder = layout.encoding_folder(config.cache, config.encoding.name)
    identity = encoding_identity(config, tokenizer)
    while True:
        stored = _stored(folder)
        if stored is None:
            refuse_remains(folder)
            new = sources
        else:
            check_same(folder, stored.identity, identity)
            known = _restored(folder, stored, sources, hashes, config, tokenizer, progress)
            check_files(folder, known, hashes, append)
            new = {name: source for name, source in sources.items() if name not in known}
        if not new:
            return folder
        work = {"identity": identity, "part": len(stored.parts) if stored else 0}
        work["corpus"] = fingerprint({name: hashes[name] for name in new})
        with suppress(_OvertakenError), claimed(folder, work, OTHER_ENCODING) as claim:
            _check_unchanged(folder, stored)
            _add_part(folder, stored, new, hashes, config, tokenizer, progress, claim)
            return folder


class _OvertakenError(Exception):
    """Another capture has committed, so that the encoding is to be looked at again."""


def _check_unchanged(folder: StorePath, stored: EncodingManifest | None) -> None:
    if _stored(folder) != stored:
        raise _OvertakenError


def _stored(folder: StorePath) -> EncodingManifest | None:
    return read_manifest(folder, EncodingManifest) if object_exists(folder / layout.MANIFEST) else None


def _new_manifest(folder: StorePath, config: CaptureConfig, tokenizer: PreTrainedTokenizerFast) -> EncodingManifest:
    """Write the tokenizer's files and return the manifest of an encoding without parts."""
    return EncodingManifest(
        identity=encoding_identity(config, tokenizer),
        objective=config.encoding.objective,
        vocabulary_size=vocabulary_size(tokenizer.get_vocab()),
        positions_per_shard=config.encoding.positions_per_shard,
        parts=(),
        files=_save_tokenizer(tokenizer, folder),
    )


def _restored(
    folder: StorePath,
    stored: EncodingManifest,
    sources: dict[str, Source],
    hashes: dict[str, str],
    config: CaptureConfig,
    tokenizer: PreTrainedTokenizerFast,
    progress: Advance,
) -> dict[str, str]:
    """Write what the encoding has lost, if it has, and return the hash of each corpus file by its name."""
    missing = missing_files(folder, stored)
    if not missing:
        return read_file_tables(folder, stored.parts)
    restore_tokenizer(folder, stored, missing, lambda: tokenizer_files(tokenizer))
    parts = [part for part in range(len(stored.parts)) if part not in missing.file_tables]
    known = {
        name: sha256 for part in parts for name, sha256 in read_file_table(folder, part, stored.parts[part]).items()
    }
    check_files(folder, known, hashes, append=True)
    restore_file_tables(folder, stored, missing, {name: hashes[name] for name in sources if name not in known})
    files = {number: list(read_file_table(folder, number, part)) for number, part in enumerate(stored.parts)}

    def encode_files(names: list[str]) -> Iterator[tuple[Split, Sequence]]:
        for encoded in _encoded([sources[name] for name in names], config, tokenizer, set()):
            progress(len(encoded.sequence.input_ids), encoded.document.share_before)
            yield _split(encoded.document, config), encoded.sequence

    restore_shards(folder, stored, files, encode_files)
    return read_file_tables(folder, stored.parts)


def _encoded(
    sources: Iterable[Source], config: CaptureConfig, tokenizer: PreTrainedTokenizerFast, seen: set[str]
) -> Iterator[EncodedSequence]:
    yield from encode_documents(read_documents(sources, config.corpus, seen), tokenizer, config.encoding)


def _split(document: Document, config: CaptureConfig) -> Split:
    return "held_out" if is_held_out(document.group, config.corpus.held_out_fraction) else "train"


def _add_part(
    folder: StorePath,
    stored: EncodingManifest | None,
    sources: dict[str, Source],
    hashes: dict[str, str],
    config: CaptureConfig,
    tokenizer: PreTrainedTokenizerFast,
    progress: Advance,
    claim: Claim,
) -> None:
    """Encode sources as a further part, or the first; the manifest that counts it is written last."""
    manifest = stored or _new_manifest(folder, config, tokenizer)
    part, before = len(manifest.parts), read_shard_tables(folder, manifest.parts)
    writer = ShardWriter(folder, config.encoding.positions_per_shard, before, write=_while_held(claim, stored))
    sequences = without_beginning = 0
    try:
        for document, sequence, without in _encoded(sources.values(), config, tokenizer, _document_ids(folder, before)):
            writer.add(_split(document, config), sequence)
            sequences, without_beginning = sequences + 1, without_beginning + without
            progress(len(sequence.input_ids), document.share_before)
        progress(0, 1.0)
    except LogitcaskError:
        if claim.is_held():  # or the files are another capture's
            _clear(folder, manifest, len(before), part)
            remove_tree(layout.shard_table_file(folder, part).parent)
        raise
    entries = writer.finish()
    if claim.hold():
        _check_unchanged(folder, stored)
    files = {name: hashes[name] for name in sources}
    written = write_part(folder, part, files, entries, without_beginning)
    write_group(folder / "teachers")
    _clear(folder, manifest, len(before) + len(entries), part)
    _commit(folder, stored, manifest.model_copy(update={"parts": (*manifest.parts, written)}))
    fraction = config.corpus.held_out_fraction
    if fraction and not any(entry.split == "held_out" for entry in (*before, *entries)):
        logger.warning(NOTHING_HELD_OUT, fraction)
    if without_beginning:
        logger.warning(WITHOUT_BEGINNING, without_beginning, sequences)


def _while_held(claim: Claim, stored: EncodingManifest | None) -> WriteShard:
    """Return ``write_shard``, which first checks that no other capture has taken the folder."""

    def write(folder: StorePath, shard: int, split: Split, documents: int, sequences: list[Sequence]) -> ShardEntry:
        if claim.hold():
            _check_unchanged(folder, stored)
        return write_shard(folder, shard, split, documents, sequences)

    return write


def _commit(folder: StorePath, stored: EncodingManifest | None, manifest: EncodingManifest) -> None:
    """Write the manifest; that of a new encoding only if there is still none, or the same."""
    if stored is not None:
        write_manifest(folder, manifest)
    elif not create_object(folder / layout.MANIFEST, group_bytes(manifest)):
        raise IdentityError(
            OTHER_ENCODING,
            where=folder,
            why="another capture has written this encoding in the meantime",
            fix="Choose another encoding.name or cache",
        )


def is_encoded(config: CaptureConfig, sources: Iterable[str]) -> bool:
    """Say whether all sources of the corpus, given by name, are part of the encoding."""
    folder = layout.encoding_folder(config.cache, config.encoding.name)
    if not object_exists(folder / layout.MANIFEST):
        return False
    stored = read_manifest(folder, EncodingManifest)
    return not missing_files(folder, stored) and set(sources) <= set(read_file_tables(folder, stored.parts))


def is_whole(config: CaptureConfig) -> bool:
    """Say whether there is an encoding that lacks none of its files, whatever it was made from."""
    folder = layout.encoding_folder(config.cache, config.encoding.name)
    stored = _stored(folder)
    return stored is not None and not missing_files(folder, stored)


def encoding_identity(config: CaptureConfig, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return everything that determines how a document becomes sequences; its hash is the encoding's fingerprint."""
    encoding = config.encoding.model_dump(mode="json", exclude={"name", "tokenizer", "chunk_positions", "masking"})
    if config.encoding.objective == "masked":
        encoding["masking"] = config.encoding.masking.identity()
    if config.corpus.messages_field:
        encoding["chat_template"] = fingerprint({"template": tokenizer.chat_template})
    return {
        "corpus": config.corpus.identity(),
        "encoding": encoding,
        "tokenizer": tokenizer_identity(tokenizer),
    }


def _clear(folder: StorePath, manifest: EncodingManifest, shards: int, part: int) -> None:
    """Remove what killed runs, perhaps with other settings, left beside ``shards`` shards and the files of a part.

    It runs after the writing, not before, so that it takes nothing from a second process that writes the same.
    """
    _keep_only(folder / "sequences", {layout.sequences_file(folder, shard).name for shard in range(shards)})
    tables = (layout.file_table_file(folder, part), layout.shard_table_file(folder, part))
    _keep_only(tables[0].parent, {table.name for table in tables})
    _keep_only(folder / layout.TOKENIZER, {key.split("/")[1] for key in manifest.files})
    for path in (folder / layout.MANIFEST, folder / "teachers" / layout.MANIFEST, folder / CLAIM):
        remove_partial(path)


def _keep_only(folder: StorePath, known: set[str]) -> None:
    for name in names(folder):
        if name not in known:
            remove_object(folder / name)


def _document_ids(folder: StorePath, entries: list[ShardEntry]) -> set[str]:
    """Return the ids of all documents in these shards."""
    tables = (
        read_table(layout.sequences_file(folder, i), entry.sha256, DOCUMENT_IDS, entry.bytes, entry.unpacked_bytes)
        for i, entry in enumerate(entries)
    )
    return {name for table in tables for name in table.column("document_id").to_pylist()}


def _save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: StorePath) -> dict[str, ObjectRecord]:
    """Keep the tokenizer's own files in the cache, so that readers and students need no other copy."""
    contents = {f"{layout.TOKENIZER}/{name}": content for name, content in tokenizer_files(tokenizer).items()}
    write_objects(folder, contents)
    return {key: ObjectRecord.of(content) for key, content in contents.items()}
