"""A teacher measured on a sample before it reads a corpus: its speed, and what each k would cost and keep.

For a choice of k, three numbers say what it means: the mass that the k tokens hold, the bytes that
a position takes, and the KL floor, the divergence from the teacher's distribution to the best that
can be rebuilt from the row (the tokens kept, and the rest spread evenly over all others).
"""

import time
from dataclasses import replace
from typing import Any

import numpy as np

from cache_tools.arrays import ArrayLayout, ArrayType
from cache_tools.codec import Codec, DeltaFloat32, DeltaPower, Targets
from cache_tools.manifest import Objective, TeacherManifest
from cache_tools.predictions import SCALAR_STEP_NATS, Predictions, to_steps
from cache_tools.receipts import TARGETS
from cache_tools.sequences import Sequence
from pipeline.config import TeacherConfig
from pipeline.declare import codec_of_target, keep_of, scalar_names
from pipeline.predict import Progress, Wanted, predict
from pipeline.targets import Keep
from pipeline.teacher import Teacher

CHOICES = (8, 16, 32, 64, 128, 256)
"""Values of k that are compared, besides the one asked for."""

CHUNK_ROWS = 4096


def measure(
    teacher: Teacher,
    config: TeacherConfig,
    objective: Objective,
    sequences: list[Sequence],
    max_sequences: int,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Run a teacher over an even part of the sample.

    Args:
        teacher: The loaded teacher.
        config: Its block of the capture file.
        objective: Of the encoding.
        sequences: The sample.
        max_sequences: How many of them to read.
        progress: Told how many tokens were read.

    Returns:
        ``tokens_per_s``, ``bytes_per_position`` of the target and scalars asked for, and of these
        ``scalar_bytes_per_position``; and ``choices``: for kinds that keep the most likely tokens, ``k``,
        ``kept_mass``, ``kl_floor_nats`` and ``bytes_per_position``.
    """
    chosen = sequences[:: -(-len(sequences) // max_sequences)]
    vocabulary = teacher.model.get_output_embeddings().weight.shape[0]
    predict(chosen[:1], objective, teacher, _wanted(config, keep_of(config.target), vocabulary), config.batch_tokens)
    started = time.perf_counter()
    found = predict(
        chosen, objective, teacher, _wanted(config, keep_of(config.target), vocabulary), config.batch_tokens, progress
    )
    seconds = time.perf_counter() - started
    codec = codec_of_target(config.target, vocabulary)
    return {
        "tokens_per_s": sum(len(sequence.input_ids) for sequence in chosen) / seconds,
        "bytes_per_position": _target_bytes(codec, found) + _scalar_bytes(found),
        "scalar_bytes_per_position": _scalar_bytes(found),
        "choices": _choices(teacher, config, objective, chosen, vocabulary),
    }


def _wanted(config: TeacherConfig, keep: Keep, vocabulary: int) -> Wanted:
    """Return what ``predict`` keeps, with a manifest that no cache will hold."""
    codec = codec_of_target(config.target, vocabulary)
    manifest = TeacherManifest.describe(
        {},
        {},
        CHUNK_ROWS,
        vocabulary_size=vocabulary,
        target={"kind": keep.kind, "k": keep.slots(vocabulary), "codec": codec.to_dict()},
        scalar_step_nats=SCALAR_STEP_NATS,
        scalars=scalar_names(keep),
    )
    return Wanted(manifest, [TARGETS], keep)


def _choices(
    teacher: Teacher, config: TeacherConfig, objective: Objective, sequences: list[Sequence], vocabulary: int
) -> list[dict[str, Any]]:
    """Return the table of k; empty for targets that do not keep the most likely tokens."""
    if config.target.kind not in ("topk", "topp"):
        return []
    restriction = keep_of(config.target).restriction
    widest = Keep("topk", vocabulary, restriction=restriction)
    ks = sorted({k for k in (*CHOICES, config.target.k) if k <= widest.slots(vocabulary)})
    widest = replace(widest, k=ks[-1])
    found = predict(sequences, objective, teacher, _wanted(config, widest, vocabulary), config.batch_tokens)
    rows = []
    for k in ks:
        smaller = _first(found, k)
        codec = (
            DeltaFloat32(k, vocabulary)
            if config.target.exact
            else DeltaPower(k, vocabulary, config.target.max_kl_nats, config.target.temperatures)
        )
        assert smaller.targets is not None
        rows.append(
            {
                "k": k,
                "kept_mass": float(np.exp(smaller.targets.log_probs, dtype=np.float64).sum(axis=1).mean()),
                "kl_floor_nats": kl_floor(smaller.targets, smaller.scalars["entropy"], vocabulary),
                "bytes_per_position": _target_bytes(codec, smaller) + _scalar_bytes(smaller),
            }
        )
    return rows


def kl_floor(targets: Targets, entropy: Any, vocabulary: int) -> float:
    """Return the mean KL from the teacher to its row with the rest spread evenly, in nats.

    With r the left-out mass over V - k tokens, ``KL = sum over the tail of p ln p - r ln (r / (V - k))``,
    and the tail's sum is minus the whole entropy less the kept tokens' part of it.
    """
    logs = targets.log_probs.astype(np.float64)
    kept = np.where(logs > -np.inf, np.exp(logs) * np.where(logs > -np.inf, logs, 0), 0).sum(axis=1)
    log_rest = targets.log_left_out.astype(np.float64)
    rest = np.exp(log_rest)
    others = max(1, vocabulary - logs.shape[1])
    spread = np.where(rest > 0, rest * (np.where(rest > 0, log_rest, 0) - np.log(others)), 0)
    return float(np.maximum(-np.asarray(entropy, dtype=np.float64) - kept - spread, 0).mean())


def _first(found: Predictions, k: int) -> Predictions:
    """Return predictions of fewer entries; rows stand by falling probability."""
    assert found.targets is not None
    logs = found.targets.log_probs
    with np.errstate(divide="ignore"):
        dropped = np.exp(logs[:, k:], dtype=np.float64).sum(axis=1) + np.exp(found.targets.log_left_out)
        left_out = np.log(dropped).astype(np.float32)
    return Predictions(Targets(found.targets.ids[:, :k], logs[:, :k], left_out), found.scalars)


def _target_bytes(codec: Codec, found: Predictions) -> float:
    """Return the bytes per position of a target, compressed as a cache compresses it."""
    assert found.targets is not None
    encoded, types = codec.encode(found.targets), codec.array_types()
    size, rows = 0, len(found.targets.ids)
    for name, values in encoded.arrays.items():
        array_type = ArrayType(*types[name], codec.compression_level(name))
        size += len(ArrayLayout(array_type, _whole_chunks(rows), CHUNK_ROWS).encode(values))
    return size / rows


def _scalar_bytes(found: Predictions) -> float:
    """Return the same of the scalars."""
    rows = len(found.scalars["entropy"])
    layout = ArrayLayout(ArrayType((), np.dtype(np.int32)), _whole_chunks(rows), CHUNK_ROWS)
    return sum(len(layout.encode(to_steps(values, SCALAR_STEP_NATS))) for values in found.scalars.values()) / rows


def _whole_chunks(rows: int) -> int:
    return -(-rows // CHUNK_ROWS) * CHUNK_ROWS
