"""Add a part to an encoding: sequences fill shards, shards are written, the manifest that counts them comes last.

So a part of the corpus is encoded whole or not at all; one that was killed is simply encoded again, which costs a
tokeniser pass, nothing beside a teacher. Shards of earlier parts stay as they are.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cache_tools.errors import CorpusError, IdentityError, LogitcaskError
from cache_tools.format import layout
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
from cache_tools.format.shards import ShardEntry, read_shard_tables, write_part, write_shard
from cache_tools.format.vocabulary import vocabulary_size
from cache_tools.progress.reporter import Advance
from cache_tools.storage import (
    StorePath,
    names,
    object_exists,
    remove_object,
    remove_partial,
    remove_tree,
    write_objects,
)
from cache_tools.store.claims import CLAIM, Claim
from cache_tools.store.creation import create_object
from pipeline.corpus.documents import CorpusSource
from pipeline.corpus.policies import written_by
from pipeline.encoding.held_out import NOTHING_HELD_OUT
from pipeline.encoding.recipe import Recipe
from pipeline.encoding.sequences import SkippedDocuments
from pipeline.encoding.shard_writer import ShardWriter, WriteShard
from pipeline.encoding.tokenizer import tokenizer_files

logger = logging.getLogger(__name__)

OTHER_ENCODING = "the cache holds this encoding from another corpus or with other settings"

WITHOUT_BEGINNING = (
    "%d of %d sequences begin in the middle of a chat that is longer than encoding.max_length_tokens: the teacher "
    "reads their answers without the prompt, or with a part of it. Raise encoding.max_length_tokens, or "
    "shorten these chats"
)


class OvertakenError(Exception):
    """Another capture has committed a part in the meantime, so the encoding has to be looked at again."""


@dataclass(frozen=True)
class HashedSources:
    """Files and datasets of a corpus, in reading order.

    Attributes:
        sources: Each under the name by which an encoding records it.
        hashes: The sha256 of each, under the same name.
    """

    sources: Mapping[str, CorpusSource]
    hashes: Mapping[str, str]

    @classmethod
    def of(cls, sources: Mapping[str, CorpusSource]) -> "HashedSources":
        """Hash every source; that reads them all."""
        return cls(sources, {name: source.sha256() for name, source in sources.items()})

    def without(self, names: Mapping[str, str]) -> "HashedSources":
        """Return the sources that are not named."""
        left = {name: source for name, source in self.sources.items() if name not in names}
        return HashedSources(left, {name: self.hashes[name] for name in left})


def stored_manifest(folder: StorePath) -> EncodingManifest | None:
    """Return the manifest of the encoding in a folder; None if there is none."""
    return read_manifest(folder, EncodingManifest) if object_exists(folder / layout.MANIFEST) else None


def check_unchanged(folder: StorePath, stored: EncodingManifest | None) -> None:
    """Raise OvertakenError if the encoding's manifest is not the expected one any more."""
    if stored_manifest(folder) != stored:
        raise OvertakenError


def add_part(
    folder: StorePath,
    stored: EncodingManifest | None,
    corpus: HashedSources,
    recipe: Recipe,
    progress: Advance,
    claim: Claim,
) -> None:
    """Encode sources as a further part, or the first.

    Args:
        folder: The encoding's folder.
        stored: Its manifest; None if it has no part yet.
        corpus: The sources of the new part.
        recipe: How documents become sequences.
        progress: Called with the tokens of each sequence, and about which share of the corpus that completes.
        claim: Held on the folder.

    Raises:
        CorpusError: a document cannot be read or encoded, or no document has a token to predict.
        IdentityError: completions are not those of the model beside them, or tokens of another tokenizer.
        OvertakenError: another capture has committed a part.
    """
    vocabulary = recipe.identity()["tokenizer"]["vocabulary"]
    policies = written_by(corpus.sources, corpus.hashes, recipe.corpus, vocabulary)
    manifest = stored or _new_manifest(folder, recipe)
    part, before = len(manifest.parts), read_shard_tables(folder, manifest.parts)
    writer = ShardWriter(folder, manifest.positions_per_shard, before, write=_while_held(claim, stored))
    try:
        without_beginning = _fill(writer, corpus, recipe, _document_ids(folder, before), progress)
    except LogitcaskError:
        if claim.is_held():  # or the files are another capture's
            _clear(folder, manifest, len(before), part)
            remove_tree(layout.shard_table_file(folder, part).parent)
            if stored is None:
                _remove_first_part(folder)
        raise
    entries = writer.finish()
    if claim.hold():
        check_unchanged(folder, stored)
    written = write_part(folder, part, dict(corpus.hashes), entries, without_beginning, policies)
    write_group(folder / "teachers")
    _clear(folder, manifest, len(before) + len(entries), part)
    _commit(folder, stored, manifest.model_copy(update={"parts": (*manifest.parts, written)}))
    _warn_if_nothing_is_held_out(recipe.corpus.held_out_fraction, [*before, *entries])


def _warn_if_nothing_is_held_out(fraction: float, entries: list[ShardEntry]) -> None:
    if fraction and not any(entry.split == "held_out" for entry in entries):
        logger.warning(NOTHING_HELD_OUT, fraction)


def _fill(writer: ShardWriter, corpus: HashedSources, recipe: Recipe, seen_ids: set[str], progress: Advance) -> int:
    """Encode all documents into shards; return how many sequences begin in the middle of a chat."""
    skipped, sequences, without_beginning = SkippedDocuments(), 0, 0
    for document, sequence, without in recipe.encode(corpus.sources.values(), seen_ids, skipped):
        writer.add(recipe.split(document), sequence)
        sequences, without_beginning = sequences + 1, without_beginning + without
        progress(len(sequence.input_ids), document.share_before)
    progress(0, 1.0)
    if not sequences:
        raise CorpusError(
            "no document has a token that a teacher could predict",
            where=", ".join(source.where for source in corpus.sources.values()),
            found=f"{skipped.count} documents, the first of which is {skipped.first}",
            why="empty texts, single tokens, and chats without an assistant's answer give it nothing to predict",
            fix="Check the fields that the corpus block names, and the masks of token ids",
        )
    skipped.warn()
    if without_beginning:
        logger.warning(WITHOUT_BEGINNING, without_beginning, sequences)
    return without_beginning


def _new_manifest(folder: StorePath, recipe: Recipe) -> EncodingManifest:
    """Write the tokenizer's files and return the manifest of an encoding without parts."""
    return EncodingManifest(
        identity=recipe.identity(),
        objective=recipe.encoding.objective,
        vocabulary_size=vocabulary_size(recipe.tokenizer.get_vocab()),
        positions_per_shard=recipe.encoding.shard_positions,
        parts=(),
        files=_save_tokenizer(recipe, folder),
    )


def _while_held(claim: Claim, stored: EncodingManifest | None) -> WriteShard:
    """Return ``write_shard``, which first checks that no other capture has taken the folder."""

    def write(folder: StorePath, shard: int, split: Split, documents: int, sequences: list[Sequence]) -> ShardEntry:
        if claim.hold():
            check_unchanged(folder, stored)
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


def _remove_first_part(folder: StorePath) -> None:
    """Remove what is left of an encoding that was refused before it had a manifest, except the claim."""
    for name in ("sequences", "parts", layout.TOKENIZER):
        remove_tree(folder / name)


def _clear(folder: StorePath, manifest: EncodingManifest, shards: int, part: int) -> None:
    """Remove what killed runs, perhaps with other settings, left beside ``shards`` shards and the files of a part.

    It runs after the writing, not before, so that it removes nothing of a second process that writes the same.
    """
    _keep_only(folder / "sequences", {layout.sequences_file(folder, shard).name for shard in range(shards)})
    tables = (layout.file_table_file(folder, part), layout.shard_table_file(folder, part))
    _keep_only(tables[0].parent, {table.name for table in tables})
    _keep_only(folder / layout.TOKENIZER, {key.split("/")[1] for key in manifest.files})
    for path in (folder / layout.MANIFEST, folder / "teachers" / layout.MANIFEST, folder / CLAIM):
        remove_partial(path)


def _keep_only(folder: StorePath, file_names: set[str]) -> None:
    for name in names(folder):
        if name not in file_names:
            remove_object(folder / name)


def _document_ids(folder: StorePath, entries: Iterable[ShardEntry]) -> set[str]:
    """Return the ids of all documents in these shards."""
    tables = (
        read_table(layout.sequences_file(folder, i), entry.sha256, DOCUMENT_IDS, entry.bytes, entry.unpacked_bytes)
        for i, entry in enumerate(entries)
    )
    return {name for table in tables for name in table.column("document_id").to_pylist()}


def _save_tokenizer(recipe: Recipe, folder: StorePath) -> dict[str, ObjectRecord]:
    """Keep the tokenizer's own files in the cache, so that readers and students need no other copy."""
    contents = {f"{layout.TOKENIZER}/{name}": content for name, content in tokenizer_files(recipe.tokenizer).items()}
    write_objects(folder, contents)
    return {key: ObjectRecord.of(content) for key, content in contents.items()}
