"""Declare a teacher before its first shard: its manifest, its head, the bases of its hidden states.

One worker declares a teacher and the others wait for it, because all of them must use the same calibration: the basis
in which a layer's hidden states are quantised is computed from a sample.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from cache_tools.errors import IdentityError
from cache_tools.format import layout
from cache_tools.format.manifest import HiddenSpec, ObjectRecord, TeacherManifest, read_manifest
from cache_tools.format.sequences import Sequence
from cache_tools.hidden_codecs.registry import HIDDEN_CODECS
from cache_tools.hidden_codecs.transform import calibrate_last, calibrate_relative, transform_bytes
from cache_tools.storage import object_exists
from cache_tools.store.predictions import codec_of
from cache_tools.store.reader import Encoding
from cache_tools.store.teacher import CachedTeacher
from cache_tools.store.writer import declare_teacher
from cache_tools.torch_models.head_file import StoredHead, head_bytes
from pipeline.capture.hidden_budget import OutputHead, fisher_metric
from pipeline.capture.predict import KeptOutputs, predict, probe_batch
from pipeline.capture.target import SparseTarget
from pipeline.config.targets import HiddenConfig
from pipeline.config.teacher import TeacherConfig
from pipeline.teachers.batches import Batch
from pipeline.teachers.body_and_head import HeadOutput, body_of, output_parameters, output_scaling
from pipeline.teachers.probe import check_rows
from pipeline.teachers.teacher import AnyTeacher, RowTeacher, Teacher

CALIBRATION_POSITIONS = 4096
"""Positions, spread over the corpus, whose hidden states the bases are made from."""


CALIBRATION_SHARDS = 32
"""Shards that a sample is taken from, at most."""


RANK_SHARE = 32
RANK_POSITIONS = (4096, 65_536)
"""One position in RANK_SHARE is read to order the ids of rank tables, but no fewer and no more than these."""


PACKED_PROBE = 4
"""Sequences on which packing is compared with padding."""


def declare(
    encoding: Encoding, teacher: AnyTeacher, config: TeacherConfig, target: SparseTarget, chunk_positions: int
) -> CachedTeacher:
    """Declare a loaded teacher, or check that the cache holds the same one; add layers that it lacks.

    Args:
        encoding: The committed encoding.
        teacher: The loaded teacher.
        config: The teacher's block of the capture file.
        target: The block's target, resolved.
        chunk_positions: Rows per inner chunk of the arrays.

    Raises:
        IdentityError: the cache holds another teacher under this name.
        ModelError: the model's logits cannot be reproduced from its head, or a row depends on later tokens, padding or
            other sequences.
    """
    _check_vocabulary(encoding, teacher, config)
    stored, files = _stored_manifest(encoding, config.name), dict[str, bytes]()
    if stored is not None:
        target = target.as_stored(stored.target, stored.vocabulary_size)
    with torch.inference_mode():
        if isinstance(teacher, RowTeacher):
            teacher.rows.check(encoding.sequences(0), target.keep.slots(teacher.vocabulary_size))
            manifest = _manifest(encoding, teacher, target, chunk_positions, {})
        else:
            probe = probe_batch(encoding)
            teacher.body.check(teacher.head, probe, encoding.sequences(0)[:PACKED_PROBE])
            check_rows(encoding, teacher, config)
            head, hidden = _describe(teacher, config, probe)
            manifest = _manifest(encoding, teacher, target, chunk_positions, hidden)
            new = {layer: spec for layer, spec in hidden.items() if stored is None or layer not in stored.hidden}
            files |= _layer_files(encoding, teacher, new, head, config.batch_tokens)
        if stored is None:
            files |= _codec_file(encoding, teacher, target, manifest, config.batch_tokens)
    records = {} if stored is None else dict(stored.files)
    records |= {key: ObjectRecord.of(content) for key, content in files.items()}
    records = dict(sorted(records.items()))
    return declare_teacher(encoding, config.name, manifest.model_copy(update={"files": records}), files)


def first_ids(encoding: Encoding, config: TeacherConfig) -> NDArray[np.int64] | None:
    """Return the longest sequence of the first shard until the cache has this teacher; then None."""
    if is_declared(encoding, config):
        return None
    return max((sequence.input_ids for sequence in encoding.sequences(0)), key=len).astype(np.int64)


def is_declared(encoding: Encoding, config: TeacherConfig) -> bool:
    """Return whether the cache has a teacher of this name with these layers; nothing more is compared."""
    stored = _stored_manifest(encoding, config.name)
    return stored is not None and {str(layer) for layer in config.hidden.layers} <= set(stored.hidden)


def _stored_manifest(encoding: Encoding, name: str) -> TeacherManifest | None:
    folder = layout.teacher_folder(encoding.path, name)
    return read_manifest(folder, TeacherManifest) if object_exists(folder / layout.MANIFEST) else None


def _check_vocabulary(encoding: Encoding, teacher: AnyTeacher, config: TeacherConfig) -> None:
    """Refuse a teacher for which some ids of the encoding do not exist, before it reads one."""
    if isinstance(teacher, Teacher):
        body_of(teacher.head.model)  # refuses a model without output matrix
    vocabulary = teacher.vocabulary_size
    if vocabulary < encoding.manifest.vocabulary_size:
        raise IdentityError(
            f"teacher {config.name!r} has fewer logits than the tokenizer has ids",
            where=config.model,
            expected=f"at least {encoding.manifest.vocabulary_size}",
            found=vocabulary,
            fix="Use the teacher's own tokenizer, in an encoding of its own",
        )


def _describe(teacher: Teacher, config: TeacherConfig, probe: Batch) -> tuple[HeadOutput, dict[str, HiddenSpec]]:
    """Return what the teacher's head gives on the probe, and how each layer of hidden states is kept."""
    last_PD, states = teacher.body.states(probe, [layer for layer in config.hidden.layers if layer != "last"])
    head = teacher.head.logits(last_PD)
    widths = {layer: (head.last if layer == "last" else states[layer]).shape[-1] for layer in config.hidden.layers}
    return head, {str(layer): _hidden_spec(config.hidden, layer, width) for layer, width in widths.items()}


def _manifest(
    encoding: Encoding,
    teacher: AnyTeacher,
    target: SparseTarget,
    chunk_positions: int,
    hidden: dict[str, HiddenSpec],
) -> TeacherManifest:
    """Return the teacher's manifest, its files aside."""
    vocabulary_size = teacher.vocabulary_size
    return TeacherManifest.describe(
        teacher.computed.identity() | {"encoding": encoding.manifest.fingerprint},
        teacher.description.document(),
        chunk_positions,
        vocabulary_size=vocabulary_size,
        target=target.spec(vocabulary_size),
        scalar_step_nats=target.scalar_step_nats(vocabulary_size),
        scalars=target.keep.scalar_names,
        hidden=hidden,
    )


def _hidden_spec(config: HiddenConfig, layer: int | str, width: int) -> HiddenSpec:
    if not HIDDEN_CODECS[config.stored_codec].has_transform:
        return HiddenSpec(width=width, codec=config.stored_codec)
    budget = config.max_kl_nats if layer == "last" else config.max_relative_error
    return HiddenSpec(width=width, codec=config.stored_codec, budget=budget)


def _layer_files(
    encoding: Encoding, teacher: Teacher, layers: dict[str, HiddenSpec], head: HeadOutput, batch_tokens: int
) -> dict[str, bytes]:
    """Return the files that layers need, the head and the bases, by key."""
    files = {}
    if "last" in layers:
        head_file = StoredHead(*output_parameters(teacher.head.model), output_scaling(teacher.head.model, head))
        files[layout.HEAD] = head_bytes(head_file)
    quantised = tuple(layer for layer, spec in layers.items() if HIDDEN_CODECS[spec.codec].has_transform)
    if quantised:
        states = _sample(encoding, teacher, quantised, batch_tokens)
        for layer in quantised:
            if layer == "last":
                metric = fisher_metric(OutputHead.of(teacher.head.model, head), states[layer])
                transform = calibrate_last(states[layer], metric)
            else:
                transform = calibrate_relative(states[layer])
            files[layout.transform_key(layer)] = transform_bytes(transform)
    return files


def _codec_file(
    encoding: Encoding, teacher: AnyTeacher, target: SparseTarget, manifest: TeacherManifest, batch_tokens: int
) -> dict[str, bytes]:
    """Return the file that the target's codec learns from a sample of the teacher's predictions, by key, if any."""
    codec = codec_of(manifest)
    if codec.file is None:
        return {}
    fewest, most = RANK_POSITIONS
    positions = min(max(sum(entry.positions for entry in encoding.shards) // RANK_SHARE, fewest), most)
    sequences, kept = _spread(encoding, positions), KeptOutputs(target.keep, ())
    predictions = predict(sequences, encoding.manifest.objective, teacher, kept, batch_tokens)
    assert predictions.targets is not None
    return {codec.file: codec.learned_file(predictions.targets)}


def _sample(
    encoding: Encoding, teacher: Teacher, layers: tuple[str, ...], batch_tokens: int
) -> dict[str, NDArray[np.float32]]:
    """Return hidden states (n, width), n about CALIBRATION_POSITIONS, of sequences spread over all shards, by layer."""
    sequences, kept = _spread(encoding, CALIBRATION_POSITIONS), KeptOutputs(None, layers)
    return predict(sequences, encoding.manifest.objective, teacher, kept, batch_tokens).hidden


def _spread(encoding: Encoding, positions: int) -> list[Sequence]:
    """Return sequences with about so many positions, spread over all shards."""
    per_shard = -(-positions // min(len(encoding.shards), CALIBRATION_SHARDS))
    sequences = list[Sequence]()
    for shard in np.unique(np.linspace(0, len(encoding.shards) - 1, CALIBRATION_SHARDS).astype(int)).tolist():
        every = max(1, encoding.shards[shard].positions // per_shard)
        sequences += encoding.sequences(shard)[::every]
    return sequences
