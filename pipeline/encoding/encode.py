"""Documents become sequences, sequences fill shards, shards are written: the start of stage one.

Deterministic: the same documents, tokenizer and settings give the same bytes.

A file of the encoding that was lost is written again from the corpus, see ``restore.py``. Before anything is written
the folder is claimed (``cache_tools/store/claims.py``), so that two captures of different corpora cannot overwrite
each other.

Files and datasets that are appended to the corpus become a further part: new shards after the old
ones, which stay what they are.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress

from cache_tools.format import layout
from cache_tools.format.fingerprint import fingerprint
from cache_tools.format.manifest import EncodingManifest, Split
from cache_tools.format.sequences import Sequence
from cache_tools.format.shards import read_file_table, read_file_tables
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.storage import StorePath
from cache_tools.store.claims import claimed
from cache_tools.store.encoding_files import missing_files
from pipeline.corpus.documents import corpus_sources
from pipeline.encoding.checks import check_files, check_same, refuse_remains
from pipeline.encoding.parts import (
    OTHER_ENCODING,
    HashedSources,
    OvertakenError,
    add_part,
    check_unchanged,
    stored_manifest,
)
from pipeline.encoding.recipe import Recipe
from pipeline.encoding.restore import restore_file_tables, restore_shards, restore_tokenizer
from pipeline.encoding.tokenizer import tokenizer_files


def encode(cache: StorePath, recipe: Recipe, append: bool = False, progress: Advance = ignore) -> StorePath:
    """Encode the corpus into the cache, or check that it already is.

    Args:
        cache: Folder of the cache.
        recipe: How documents become sequences; its corpus is read.
        append: Encode files and datasets that the encoding lacks as a further part of it.
        progress: Called with the tokens of each sequence, and about which share of the corpus that completes.

    Returns:
        The encoding's folder.

    Raises:
        CorpusError: a document cannot be read or encoded.
        IdentityError: the cache holds an encoding of this name from another corpus or other settings.
    """
    corpus = HashedSources.of(corpus_sources(recipe.corpus))
    folder, identity = layout.encoding_folder(cache, recipe.encoding.name), recipe.identity()
    while True:
        stored, new = stored_manifest(folder), corpus
        if stored is None:
            refuse_remains(folder)
        else:
            check_same(folder, stored.identity, identity)
            recorded = _restored(folder, stored, corpus, recipe, progress)
            check_files(folder, recorded, corpus.hashes, append)
            new = corpus.without(recorded)
        if not new.sources:
            return folder
        work = {
            "identity": identity,
            "part": len(stored.parts) if stored else 0,
            "corpus": fingerprint(dict(new.hashes)),
        }
        with suppress(OvertakenError), claimed(folder, work, OTHER_ENCODING) as claim:
            check_unchanged(folder, stored)
            add_part(folder, stored, new, recipe, progress, claim)
            return folder


def is_encoded(folder: StorePath, sources: Iterable[str]) -> bool:
    """Return whether all sources of a corpus, given by name, are part of the encoding in a folder."""
    stored = stored_manifest(folder)
    if stored is None or missing_files(folder, stored):
        return False
    return set(sources) <= set(read_file_tables(folder, stored.parts))


def is_whole(folder: StorePath) -> bool:
    """Return whether a folder has an encoding that lacks none of its files, whatever it was made from."""
    stored = stored_manifest(folder)
    return stored is not None and not missing_files(folder, stored)


def _restored(
    folder: StorePath, stored: EncodingManifest, corpus: HashedSources, recipe: Recipe, progress: Advance
) -> dict[str, str]:
    """Write what the encoding has lost, if anything, and return the hash of each of its corpus files by name."""
    missing = missing_files(folder, stored)
    if not missing:
        return read_file_tables(folder, stored.parts)
    restore_tokenizer(folder, stored, missing, lambda: tokenizer_files(recipe.tokenizer))
    parts = [part for part in range(len(stored.parts)) if part not in missing.file_tables]
    recorded = {
        name: sha256 for part in parts for name, sha256 in read_file_table(folder, part, stored.parts[part]).items()
    }
    check_files(folder, recorded, corpus.hashes, append=True)
    restore_file_tables(folder, stored, missing, dict(corpus.without(recorded).hashes))
    files = {number: list(read_file_table(folder, number, part)) for number, part in enumerate(stored.parts)}

    def encode_files(names: list[str]) -> Iterator[tuple[Split, Sequence]]:
        for document, sequence, _ in recipe.encode([corpus.sources[name] for name in names], set()):
            progress(len(sequence.input_ids), document.share_before)
            yield recipe.split(document), sequence

    restore_shards(folder, stored, files, encode_files)
    return read_file_tables(folder, stored.parts)
