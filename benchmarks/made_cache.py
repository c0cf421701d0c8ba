"""A small real cache of made-up predictions, so that training can be measured without a teacher.

Tokens are random and rows fall like a language model's: with the power -1.2 of the rank, a
little noise, and a twentieth of the mass left out. A step's cost depends on shapes alone.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.registry import DeltaPower, Targets
from cache_tools.format import layout
from cache_tools.format.fingerprint import fingerprint
from cache_tools.format.layout import SCALARS
from cache_tools.format.manifest import EncodingManifest, TeacherManifest, write_group, write_manifest
from cache_tools.format.sequences import Sequence
from cache_tools.format.shards import ShardEntry, write_part, write_shard
from cache_tools.storage import StorePath
from cache_tools.store.predictions import SCALAR_STEP_NATS, Predictions
from cache_tools.store.reader import Encoding
from cache_tools.store.root import create_cache
from cache_tools.store.teacher import CachedTeacher
from cache_tools.store.writer import commit_shard, declare_teacher

SEQUENCES_PER_SHARD = 8
CHUNK_POSITIONS = 2048
IDENTITY = {"corpus": "made up"}


def make_cache(folder: Path, shards: int, length_tokens: int, vocabulary_size: int, k: int) -> CachedTeacher:
    """Write a cache of whole shards of equally long causal sequences, and open its one teacher."""
    rng = np.random.default_rng(0)
    create_cache(folder)
    path = layout.encoding_folder(folder, "made")
    per_shard = -(-SEQUENCES_PER_SHARD * length_tokens // CHUNK_POSITIONS) * CHUNK_POSITIONS
    entries = []
    for shard in range(shards):
        sequences = [
            _sequence(
                rng,
                shard * SEQUENCES_PER_SHARD + i,
                shard * per_shard + i * (length_tokens - 1),
                length_tokens,
                vocabulary_size,
            )
            for i in range(SEQUENCES_PER_SHARD)
        ]
        entries.append(write_shard(path, shard, "train", 1, sequences))
    teacher = declare_made(path, entries, per_shard, made_teacher(vocabulary_size, k, CHUNK_POSITIONS))
    for shard, entry in enumerate(entries):
        commit_shard(teacher, shard, _predictions(rng, entry.positions, vocabulary_size, k), {"device": "none"})
    return Encoding(path, "made").teacher()


def declare_made(path: StorePath, entries: list[ShardEntry], per_shard: int, teacher: TeacherManifest) -> CachedTeacher:
    """Write the manifests of an encoding of these shards and of its one teacher, which has captured nothing yet."""
    manifest = EncodingManifest(
        identity=IDENTITY,
        objective="causal",
        vocabulary_size=teacher.vocabulary_size,
        positions_per_shard=per_shard,
        parts=(write_part(path, 0, {"made.txt": "0" * 64}, entries),),
        files={},
    )
    write_group(path / "teachers")
    write_manifest(path, manifest)
    return declare_teacher(Encoding(path, "made"), "made", teacher, None)


def _sequence(rng: np.random.Generator, number: int, first_position: int, tokens: int, vocabulary: int) -> Sequence:
    return Sequence(
        sequence_id=number,
        document_id=f"document-{number}",
        group_id="made",
        first_position=first_position,
        input_ids=rng.integers(0, vocabulary, tokens, dtype=np.uint32),
        position_mask=np.arange(tokens) < tokens - 1,
        original_ids=None,
        text="x" * tokens,
        byte_lengths=np.ones(tokens, dtype=np.uint32),
    )


def made_teacher(vocabulary_size: int, k: int, chunk_positions: int) -> TeacherManifest:
    """Return a teacher with the arrays of a usual capture."""
    return TeacherManifest.describe(
        {"encoding": fingerprint(IDENTITY), "weights": "none"},
        {"name": "made", "architecture": "none", "parameters": 0, "dtype": "float32"},
        chunk_positions,
        vocabulary_size=vocabulary_size,
        target={"kind": "topk", "k": k, "codec": DeltaPower(k, vocabulary_size).to_dict()},
        scalar_step_nats=SCALAR_STEP_NATS,
        scalars=list(SCALARS),
        hidden={},
        files={},
    )


def _predictions(rng: np.random.Generator, n: int, vocabulary_size: int, k: int) -> Predictions:
    strata = np.arange(k) * (vocabulary_size // k)
    ids = rng.permuted(strata + rng.integers(0, vocabulary_size // k, (n, k)), axis=1).astype(np.uint32)
    fall = np.append(-1.2 * np.log(np.arange(1, k + 1)), np.log(0.2)) + rng.normal(0, 0.5, (n, k + 1))
    logs: NDArray[np.float32] = (fall - np.logaddexp.reduce(fall, axis=1, keepdims=True)).astype(np.float32)
    scalars = {name: np.zeros(n, np.float32) for name in SCALARS}
    return Predictions(targets=Targets(ids, logs[:, :k], logs[:, k]), scalars=scalars, hidden={})
