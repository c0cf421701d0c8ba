"""Documents become sequences, sequences fill shards, shards are written: the start of stage one.

Deterministic: the same documents, tokenizer and settings give the same bytes. The
encoding's manifest is written last, so a part of the corpus is encoded whole or not at all; a
killed one is simply done again (it costs a tokeniser pass, nothing beside a teacher).

Files and datasets that are appended to the corpus become a further part: new shards behind the old
ones, which stay what they are.
"""

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedTokenizerFast

from cache_tools import layout
from cache_tools.errors import FormatError, IdentityError, LogitcaskError
from cache_tools.fingerprint import differences, fingerprint
from cache_tools.manifest import EncodingManifest, ObjectRecord, read_manifest, write_group, write_manifest
from cache_tools.progress import Advance, ignore
from cache_tools.sequences import read_table
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
from pipeline.config import CaptureConfig
from pipeline.documents import Source, corpus_sources, read_documents
from pipeline.encode_documents import encode_documents
from pipeline.shard_writer import ShardWriter
from pipeline.split import is_held_out
from pipeline.tokenizers import tokenizer_files, tokenizer_identity


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
    if not object_exists(folder / layout.MANIFEST):
        _refuse_remains(folder)
        manifest = EncodingManifest(
            identity=identity,
            objective=config.encoding.objective,
            vocabulary_size=len(tokenizer),
            positions_per_shard=config.encoding.positions_per_shard,
            parts=(),
            files=_save_tokenizer(tokenizer, folder),
        )
        _add_part(folder, manifest, sources, hashes, config, tokenizer, progress)
        return folder
    stored = read_manifest(folder, EncodingManifest)
    _check_same(folder, stored.identity, identity)
    known = read_file_tables(folder, stored.parts)
    _check_files(folder, known, hashes, append)
    new = {name: source for name, source in sources.items() if name not in known}
    if new:
        _add_part(folder, stored, new, hashes, config, tokenizer, progress)
    return folder


def _add_part(
    folder: StorePath,
    manifest: EncodingManifest,
    sources: dict[str, Source],
    hashes: dict[str, str],
    config: CaptureConfig,
    tokenizer: PreTrainedTokenizerFast,
    progress: Advance,
) -> None:
    """Encode sources as a further part; the manifest that counts it is written last."""
    part, before = len(manifest.parts), read_shard_tables(folder, manifest.parts)
    writer = ShardWriter(folder, config.encoding.positions_per_shard, before)
    documents = read_documents(sources.values(), config.corpus, _document_ids(folder, before))
    try:
        for document, sequence in encode_documents(documents, tokenizer, config.encoding):
            held_out = is_held_out(document.group, config.corpus.held_out_fraction)
            writer.add("held_out" if held_out else "train", sequence)
            progress(len(sequence.input_ids), document.share_before)
        progress(0, 1.0)
    except LogitcaskError:
        _clear(folder, manifest, len(before), part)
        remove_tree(layout.shard_table_file(folder, part).parent)
        raise
    entries = writer.finish()
    written = write_part(folder, part, {name: hashes[name] for name in sources}, entries)
    write_group(folder / "teachers")
    _clear(folder, manifest, len(before) + len(entries), part)
    write_manifest(folder, manifest.model_copy(update={"parts": (*manifest.parts, written)}))


def is_encoded(config: CaptureConfig, sources: Iterable[str]) -> bool:
    """Say whether all sources of the corpus, given by name, are part of the encoding."""
    folder = layout.encoding_folder(config.cache, config.encoding.name)
    if not object_exists(folder / layout.MANIFEST):
        return False
    known = read_file_tables(folder, read_manifest(folder, EncodingManifest).parts)
    return set(sources) <= set(known)


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
            fix="Restore the corpus (the revision of a dataset), or choose another encoding.name or cache"
            if changed
            else "Run the capture with --append to add what is new, or take it out of the corpus",
        )


def _refuse_remains(folder: StorePath) -> None:
    """Refuse to encode where teachers' predictions belong to an encoding that is gone."""
    if any(not name.startswith(layout.MANIFEST) for name in names(folder / "teachers")):
        raise FormatError(
            "the encoding's manifest is gone, but teachers' predictions are there",
            where=folder,
            why="encoding again would throw them away",
            fix=f"Restore {layout.MANIFEST} from a copy, or delete this folder to start over",
        )


def _clear(folder: StorePath, manifest: EncodingManifest, shards: int, part: int) -> None:
    """Remove what killed runs, perhaps with other settings, left beside ``shards`` shards and the files of a part.

    It runs after the writing, not before, so that it takes nothing from a second process that writes the same.
    """
    _keep_only(folder / "sequences", {layout.sequences_file(folder, shard).name for shard in range(shards)})
    tables = (layout.file_table_file(folder, part), layout.shard_table_file(folder, part))
    _keep_only(tables[0].parent, {table.name for table in tables})
    _keep_only(folder / layout.TOKENIZER, {key.rpartition("/")[2] for key in manifest.files})
    for group in (folder, folder / "teachers"):
        remove_partial(group / layout.MANIFEST)


def _keep_only(folder: StorePath, known: set[str]) -> None:
    for name in names(folder):
        if name not in known:
            remove_object(folder / name)


def _document_ids(folder: StorePath, entries: list[ShardEntry]) -> set[str]:
    """Return the ids of all documents in these shards."""
    tables = (read_table(layout.sequences_file(folder, i), entry.sha256) for i, entry in enumerate(entries))
    return {name for table in tables for name in table.column("document_id").to_pylist()}


def _save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: StorePath) -> dict[str, ObjectRecord]:
    """Keep the tokenizer's own files in the cache, so that readers and students need no other copy."""
    contents = {f"{layout.TOKENIZER}/{name}": content for name, content in tokenizer_files(tokenizer).items()}
    write_objects(folder, contents)
    return {key: ObjectRecord.of(content) for key, content in contents.items()}
