"""Check that the tables, sequences and tokenizer of an encoding agree with each other and with its manifest.

Hashes and seals show that bytes are those that were written. A faulty or hostile writer can write wrong numbers with
right hashes. These rules of FORMAT.md can be checked without a teacher, on data that ``verify`` reads anyway. Each
function yields messages; ``verify`` adds the place.
"""

import json
from collections.abc import Iterator

from cache_tools.format import layout
from cache_tools.format.manifest import KEY, SPLITS, EncodingManifest
from cache_tools.format.sequences import Sequence, read_recorded, student_contradiction
from cache_tools.format.shards import ShardEntry, read_shard_tables, totals
from cache_tools.format.vocabulary import file_behaviour, vocabulary_fingerprint
from cache_tools.mappings import JsonObject
from cache_tools.storage import StorePath, read_object
from cache_tools.store.reader import Encoding

LARGEST_VOCABULARY = 2**32 - 1
"""Ids are stored as uint32, whose largest number marks empty slots."""


def root_problems(root: StorePath) -> Iterator[str]:
    """Yield a message if the root holds another group's manifest: a cache states its format and has no identity."""
    try:
        stated = json.loads(read_object(root / layout.MANIFEST))["attributes"][KEY]
        is_root = "format" in stated and "identity" not in stated
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        is_root = False
    if not is_root:
        yield "this is not the manifest of a cache's root: it has no format version, or it has an identity"


def manifest_problems(encoding: Encoding) -> Iterator[str]:
    """Compare an encoding's manifest with its shard tables and its tokenizer."""
    manifest = encoding.manifest
    if not 0 < manifest.vocabulary_size <= LARGEST_VOCABULARY:
        yield f"vocabulary_size is {manifest.vocabulary_size}, not a number from 1 to {LARGEST_VOCABULARY}"
    start = 0
    for number, part in enumerate(manifest.parts):
        stop = len(read_shard_tables(encoding.path, manifest.parts[: number + 1]))
        entries, start = encoding.shards[start:stop], stop
        for split in SPLITS:
            stated, counted = part.splits.get(split), totals(entries, split)
            if (stated is not None and stated != counted) or (stated is None and counted.shards):
                yield f"part {number} states totals of the split {split!r} that differ from the sums of its shard table"
    yield from tokenizer_problems(encoding.path, manifest)


def table_problems(entry: ShardEntry, positions_per_shard: int, shard: int) -> Iterator[str]:
    """Check one row of the shard table."""
    if not 0 < entry.positions <= positions_per_shard:
        yield f"shard {shard} has {entry.positions} positions in the shard table, of at most {positions_per_shard}"


def sequence_problems(
    manifest: EncodingManifest, entry: ShardEntry, sequences: list[Sequence], size: int | None
) -> Iterator[str]:
    """Compare a shard's sequences with its row of the shard table, and their ids with the vocabulary.

    Args:
        manifest: The encoding's.
        entry: The shard's row.
        sequences: The shard's sequences.
        size: Size of the sequence file in bytes.
    """
    for number, sequence in enumerate(sequences, entry.first_sequence):
        if sequence.sequence_id != number:
            yield f"a sequence has the id {sequence.sequence_id} instead of {number}"
        for name, ids in (("input_ids", sequence.input_ids), ("original_ids", sequence.original_ids)):
            if ids is not None and len(ids) and int(ids.max()) >= manifest.vocabulary_size:
                yield (
                    f"sequence {sequence.sequence_id}: {name} holds {int(ids.max())}, "
                    f"which is not below the vocabulary size {manifest.vocabulary_size}"
                )
        wrong = None if sequence.student is None else student_contradiction(sequence, manifest.vocabulary_size)
        if wrong:
            yield f"sequence {sequence.sequence_id} {wrong}"
    documents = len({sequence.document_id for sequence in sequences})
    counted = {
        "sequences": (len(sequences), len(sequences)),
        "tokens": (sum(len(sequence.input_ids) for sequence in sequences),) * 2,
        "documents": (max(0, documents - 1), documents),  # the first may have begun in the shard before
        "bytes": (size, size),
    }
    for name, (least, most) in counted.items():
        stated = getattr(entry, name)
        if least is not None and most is not None and not least <= stated <= most:
            yield f"the shard table states {stated} {name}, but the file holds {most}"


def tokenizer_problems(folder: StorePath, manifest: EncodingManifest) -> Iterator[str]:
    """Compare ``tokenizer.json`` with the tokenizer that the encoding's identity records.

    Nothing is compared if the identity records no tokenizer.
    """
    key = f"{layout.TOKENIZER}/tokenizer.json"
    recorded, record = manifest.identity.get("tokenizer"), manifest.files.get(key)
    if not isinstance(recorded, dict) or record is None:
        return
    content = read_recorded(folder / key, record.sha256)
    vocabulary = file_vocabulary(content)
    if vocabulary is None or vocabulary_fingerprint(vocabulary) != recorded.get("vocabulary"):
        yield "the vocabulary in tokenizer.json is not the one that the manifest records"
        return
    if set(recorded) == {"behaviour", "vocabulary"} and recorded["behaviour"] != file_behaviour(
        content, _settings(folder, manifest), vocabulary
    ):
        yield "the rules of tokenizer.json, or its special tokens, are not those that the manifest records"
    largest = max(vocabulary.values(), default=-1) + 1
    if not len(vocabulary) <= manifest.vocabulary_size <= max(largest, len(vocabulary)):
        size = manifest.vocabulary_size
        yield f"vocabulary_size is {size}, but tokenizer.json has {len(vocabulary)} ids below {largest}"


def _settings(folder: StorePath, manifest: EncodingManifest) -> JsonObject:
    """Return what ``tokenizer_config.json`` holds; nothing if there is none."""
    key = f"{layout.TOKENIZER}/tokenizer_config.json"
    record = manifest.files.get(key)
    try:
        settings = json.loads(read_recorded(folder / key, record.sha256)) if record else {}
    except (ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def file_vocabulary(content: bytes) -> dict[str, int] | None:
    """Return the ids by token of a ``tokenizer.json``, added tokens included; None if it cannot be read.

    The file is read as plain JSON, so that checking a cache needs no library of tokenizers.
    """
    try:
        stated = json.loads(content)
        pieces = stated["model"]["vocab"]  # a mapping, or for Unigram a list of (piece, score)
        vocabulary = {piece[0]: i for i, piece in enumerate(pieces)} if isinstance(pieces, list) else dict(pieces)
        vocabulary |= {token["content"]: token["id"] for token in stated.get("added_tokens") or []}
        return vocabulary if all(type(i) is int and isinstance(t, str) for t, i in vocabulary.items()) else None
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
