"""Documents become sequences, sequences fill shards, shards are written: the start of stage one.

Deterministic: the same documents, tokenizer and settings give the same bytes. The
encoding's manifest is written last, so a part of the corpus is encoded whole or not at all; a
killed one is simply done again (it costs a tokeniser pass, nothing beside a teacher).

Files that are appended to the corpus become a further part: new shards behind the old
ones, which stay what they are.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from cache_tools import layout
from cache_tools.errors import FormatError, IdentityError, LogitcaskError
from cache_tools.fingerprint import differences, fingerprint
from cache_tools.manifest import EncodingManifest, ObjectRecord, Split, read_manifest, write_group, write_manifest
from cache_tools.sequences import Sequence, read_table
from cache_tools.shards import ShardEntry, read_file_tables, read_shard_tables, write_part
from cache_tools.storage import (
    StorePath,
    names,
    object_exists,
    remove_object,
    remove_partial,
    remove_tree,
    write_objects,
)
from pipeline.config import CaptureConfig, EncodingConfig
from pipeline.documents import Document, corpus_files, file_hash, file_names, read_documents
from pipeline.masking import draw_mask
from pipeline.pieces import Frame, Piece, frame_of, split_document
from pipeline.shard_writer import ShardWriter
from pipeline.split import is_held_out
from pipeline.tokenizers import tokenizer_files, tokenizer_identity

Progress = Callable[[int], None]
"""Called with the number of tokens encoded since the last call."""


def encode(
    config: CaptureConfig,
    tokenizer: PreTrainedTokenizerFast,
    append: bool = False,
    progress: Progress = lambda _: None,
) -> StorePath:
    """Encode the corpus into the cache, or check that it already is.

    Args:
        config: The capture file.
        tokenizer: The encoding's tokenizer.
        append: Encode files that the encoding lacks as a further part of it.
        progress: Told how many tokens were encoded.

    Returns:
        The encoding's folder.

    Raises:
        CorpusError: a document cannot be read or encoded.
        IdentityError: the cache holds an encoding of this name from another corpus or other settings.
    """
    found = corpus_files(config.corpus)
    files = dict(zip(file_names(found, config.corpus), found, strict=True))
    hashes = {name: file_hash(file) for name, file in files.items()}
    folder = layout.encoding_folder(config.cache, config.encoding.name)
    identity = encoding_identity(config, tokenizer)
    if not object_exists(folder / layout.MANIFEST):
        _clear(folder)
        manifest = EncodingManifest(
            identity=identity,
            objective=config.encoding.objective,
            vocabulary_size=len(tokenizer),
            positions_per_shard=config.encoding.positions_per_shard,
            parts=(),
            files=_save_tokenizer(tokenizer, folder),
        )
        _add_part(folder, manifest, files, hashes, config, tokenizer, progress)
        return folder
    stored = read_manifest(folder, EncodingManifest)
    _check_same(folder, stored.identity, identity)
    known = read_file_tables(folder, stored.parts)
    _check_files(folder, known, hashes, append)
    new = {name: file for name, file in files.items() if name not in known}
    if new:
        _add_part(folder, stored, new, hashes, config, tokenizer, progress)
    return folder


def _add_part(
    folder: StorePath,
    manifest: EncodingManifest,
    files: dict[str, Path],
    hashes: dict[str, str],
    config: CaptureConfig,
    tokenizer: PreTrainedTokenizerFast,
    progress: Progress,
) -> None:
    """Encode files as a further part; the manifest that counts it is written last."""
    part, before = len(manifest.parts), read_shard_tables(folder, manifest.parts)
    _clear_part(folder, len(before), part)
    writer = ShardWriter(folder, config.encoding.positions_per_shard, before)
    documents = read_documents(list(files.values()), config.corpus, _document_ids(folder, before))
    try:
        _encode_documents(documents, config, tokenizer, writer, progress)
    except LogitcaskError:
        _clear_part(folder, len(before), part)
        raise
    written = write_part(folder, part, {name: hashes[name] for name in files}, writer.finish())
    write_group(folder / "teachers")
    write_manifest(folder, manifest.model_copy(update={"parts": (*manifest.parts, written)}))


def is_encoded(config: CaptureConfig) -> bool:
    """Say whether every file of the corpus is part of the encoding; looks at names only."""
    folder = layout.encoding_folder(config.cache, config.encoding.name)
    if not object_exists(folder / layout.MANIFEST):
        return False
    known = read_file_tables(folder, read_manifest(folder, EncodingManifest).parts)
    return set(file_names(corpus_files(config.corpus), config.corpus)) <= set(known)


def _encode_documents(
    documents: Iterator[Document],
    config: CaptureConfig,
    tokenizer: PreTrainedTokenizerFast,
    writer: ShardWriter,
    progress: Progress,
) -> None:
    frame, random_ids = frame_of(tokenizer, config.encoding), ordinary_ids(tokenizer)
    for document in documents:
        split: Split = "held_out" if is_held_out(document.group, config.corpus.held_out_fraction) else "train"
        for sequence in encode_document(document, tokenizer, frame, random_ids, config.encoding):
            writer.add(split, sequence)
            progress(len(sequence.input_ids))


def encoding_identity(config: CaptureConfig, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return everything that determines how a document becomes sequences; its hash is the encoding's fingerprint."""
    encoding = config.encoding.model_dump(mode="json", exclude={"name", "tokenizer", "chunk_positions", "masking"})
    if config.encoding.objective == "masked":
        encoding["masking"] = config.encoding.masking.model_dump(mode="json")
    if config.corpus.messages_field:
        encoding["chat_template"] = fingerprint({"template": tokenizer.chat_template})
    return {
        "corpus": config.corpus.model_dump(mode="json", exclude={"paths"}),
        "encoding": encoding,
        "tokenizer": tokenizer_identity(tokenizer),
    }


def encode_document(
    document: Document,
    tokenizer: PreTrainedTokenizerFast,
    frame: Frame,
    random_ids: NDArray[np.uint32],
    config: EncodingConfig,
) -> Iterator[Sequence]:
    """Yield the sequences of one document; ids and rows are assigned when a shard is written.

    Raises:
        CorpusError: the document has no token that a teacher could predict.
    """
    for number, piece in enumerate(split_document(document, tokenizer, frame, config)):
        if config.objective == "causal":
            mask = np.append(piece.trainable[1:], False)
            yield _sequence(document, piece, piece.input_ids, mask, None)
            continue
        for copy in range(config.masking.copies):
            key = f"{document.id}\0{number}\0{copy}"
            assert tokenizer.mask_token_id is not None
            shown, slots = draw_mask(
                piece.input_ids, piece.trainable, tokenizer.mask_token_id, random_ids, config.masking, key
            )
            yield _sequence(document, piece, shown, slots, piece.input_ids)


def _sequence(
    document: Document,
    piece: Piece,
    input_ids: NDArray[np.uint32],
    position_mask: NDArray[np.bool_],
    original_ids: NDArray[np.uint32] | None,
) -> Sequence:
    unassigned = -1
    return Sequence(
        unassigned,
        document.id,
        document.group,
        unassigned,
        input_ids,
        position_mask,
        original_ids,
        piece.text,
        piece.byte_lengths,
    )


def _check_same(folder: StorePath, stored: dict[str, Any], identity: dict[str, Any]) -> None:
    if fingerprint(stored) != fingerprint(identity):
        raise IdentityError(
            "the cache holds this encoding with another tokenizer or other settings",
            where=folder,
            expected="the settings it was made with",
            found="; ".join(differences(stored, identity)),
            why="old and new predictions would belong to different tokens",
            fix="Restore the settings, or choose another encoding.name or cache",
        )


def _check_files(folder: StorePath, known: dict[str, str], found: dict[str, str], append: bool) -> None:
    """Refuse a corpus that lacks or changed a file, or, unless it is to be appended to, has a new one."""
    changed = {name: value for name, value in known.items() if found.get(name) != value}
    new = [] if append else [name for name in found if name not in known]
    if changed or new:
        lines = [f"{name} is {'changed' if name in found else 'gone'}" for name in changed]
        lines += [f"{name} is new" for name in new]
        raise IdentityError(
            "the cache holds this encoding from another corpus",
            where=folder,
            expected="the files it was made from",
            found="; ".join(lines[:5]) + (f" and {len(lines) - 5} more" if len(lines) > 5 else ""),
            why="" if not changed else "old and new predictions would belong to different tokens",
            fix="Restore the corpus, or choose another encoding.name or cache"
            if changed
            else "Run the capture with --append to add the new files, or take them out of corpus.paths",
        )


def _clear(folder: StorePath) -> None:
    """Remove what a killed run left, perhaps with other settings; one process at a time encodes."""
    if any(not name.startswith(layout.MANIFEST) for name in names(folder / "teachers")):
        raise FormatError(
            "the encoding's manifest is gone, but teachers' predictions are there",
            where=folder,
            why="encoding again would throw them away",
            fix=f"Restore {layout.MANIFEST} from a copy, or delete this folder to start over",
        )
    for part in ("sequences", "parts", layout.TOKENIZER):
        remove_tree(folder / part)
    for group in (folder, folder / "teachers"):
        remove_partial(group / layout.MANIFEST)


def _clear_part(folder: StorePath, shards: int, part: int) -> None:
    """Remove what a killed run left of a part that it was adding behind ``shards`` shards."""
    known = {layout.sequences_file(folder, shard).name for shard in range(shards)}
    for name in names(folder / "sequences"):
        if name not in known:
            remove_object(folder / "sequences" / name)
    remove_tree(layout.shard_table_file(folder, part).parent)
    remove_partial(folder / layout.MANIFEST)


def _document_ids(folder: StorePath, entries: list[ShardEntry]) -> set[str]:
    """Return the ids of all documents in these shards."""
    tables = (read_table(layout.sequences_file(folder, i), entry.sha256) for i, entry in enumerate(entries))
    return {name for table in tables for name in table.column("document_id").to_pylist()}


def _save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: StorePath) -> dict[str, ObjectRecord]:
    """Keep the tokenizer's own files in the cache, so that readers and students need no other copy."""
    contents = {f"{layout.TOKENIZER}/{name}": content for name, content in tokenizer_files(tokenizer).items()}
    write_objects(folder, contents)
    return {key: ObjectRecord.of(content) for key, content in contents.items()}


def ordinary_ids(tokenizer: PreTrainedTokenizerFast) -> NDArray[np.uint32]:
    """Return every id that is not a special token: (m,) uint32, ascending."""
    return np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids).astype(np.uint32)
