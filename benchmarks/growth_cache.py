"""Caches of very many small shards, made without a teacher, to measure what depends on the number of shards.

A shard holds 256 positions, so that a hundred thousand fit on a disk. What a shard costs besides its values (objects,
receipt, row of the table) is that of a real capture; only the objects are links to those of one shard, because their
bytes do not matter. ``verify --deep`` accepts everything but the scalars, which are random.
"""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.made_cache import declare_made, made_teacher
from cache_tools.codecs.registry import Targets
from cache_tools.format import layout
from cache_tools.format.layout import SCALARS
from cache_tools.format.manifest import Split
from cache_tools.format.receipts import Receipt
from cache_tools.format.sealed import UNSEALED, sealed_bytes
from cache_tools.format.sequences import Sequence
from cache_tools.format.shards import ShardEntry, write_shard
from cache_tools.store.predictions import Predictions
from cache_tools.store.reader import Encoding
from cache_tools.store.root import create_cache
from cache_tools.store.teacher import CachedTeacher
from cache_tools.store.writer import commit_shard

ROWS, SEQUENCE_TOKENS, VOCABULARY, K = 256, 129, 50_000, 8
SHARDS_IN_PART = 200_000
"""A part's table holds half a million shards at most."""

LINKS = 30_000
"""Links to one file; ext4 permits 65,000."""


def make_growth_cache(folder: Path, shards: int, committed: int) -> CachedTeacher:
    """Write a cache of so many shards, the first ``committed`` of which the teacher has captured."""
    rng = np.random.default_rng(0)
    create_cache(folder)
    path = layout.encoding_folder(folder, "made")
    entries = [write_shard(path, shard, split_of(shard), 2, sequences(rng, shard)) for shard in range(shards)]
    teacher = declare_made(path, entries, ROWS, made_teacher(VOCABULARY, K, ROWS))
    first = commit_shard(teacher, 0, predictions(rng), {"software": "benchmark", "device": "none", "seconds": 1.0})
    link_shards(teacher, first, entries, committed)
    return Encoding(path, "made").teacher()


def split_of(shard: int) -> Split:
    """Return the split of a shard: every tenth is held out."""
    return "held_out" if shard % 10 == 9 else "train"


def link_shards(teacher: CachedTeacher, first: Receipt, entries: list[ShardEntry], committed: int) -> None:
    """Commit further shards whose objects are those of the first."""
    document = first.model_dump(mode="json")
    first_objects = document["objects"]
    for shard in range(1, committed):
        objects = {}
        for key, record in first_objects.items():
            source, own = key.replace("/c/0", f"/c/{shard // LINKS * LINKS}", 1), key.replace("/c/0", f"/c/{shard}", 1)
            place = teacher.path / own
            os.makedirs(place.parent, exist_ok=True)
            if shard % LINKS:
                os.link(teacher.path / source, place)
            else:
                place.write_bytes((teacher.path / key).read_bytes())
            objects[own] = record
        stated = {"shard": shard, "sequences_sha256": entries[shard].sha256, "objects": objects, "seal": UNSEALED}
        layout.receipt_file(teacher.path, shard).write_bytes(sealed_bytes(document | stated))


def sequences(rng: np.random.Generator, shard: int) -> list[Sequence]:
    """Return the sequences of a shard."""
    per_shard = ROWS // (SEQUENCE_TOKENS - 1)
    return [
        Sequence(
            sequence_id=shard * per_shard + number,
            document_id=f"document-{shard}-{number}",
            group_id=f"group-{shard % 7}",
            first_position=shard * ROWS + number * (SEQUENCE_TOKENS - 1),
            input_ids=rng.integers(0, VOCABULARY, SEQUENCE_TOKENS, dtype=np.uint32),
            position_mask=np.arange(SEQUENCE_TOKENS) < SEQUENCE_TOKENS - 1,
            original_ids=None,
            text="x" * SEQUENCE_TOKENS,
            byte_lengths=np.ones(SEQUENCE_TOKENS, dtype=np.uint32),
        )
        for number in range(per_shard)
    ]


def predictions(rng: np.random.Generator) -> Predictions:
    """Return the predictions of one shard; none of its objects is empty but the high bytes of levels."""
    strata = np.arange(K) * (VOCABULARY // K)
    ids = (strata + rng.integers(0, VOCABULARY // K, (ROWS, K))).astype(np.uint32)
    logs = np.append(-1.2 * np.log(np.arange(1, K + 1)), np.log(0.2)) + rng.normal(0, 0.5, (ROWS, K + 1))
    log_probs: NDArray[np.float32] = (logs - np.logaddexp.reduce(logs, axis=1, keepdims=True)).astype(np.float32)
    scalars = {name: np.full(ROWS, value, np.float32) for name, value in zip(SCALARS, (9.0, 1.5, -2.0), strict=True)}
    return Predictions(targets=Targets(ids, log_probs[:, :K], log_probs[:, K]), scalars=scalars, hidden={})
