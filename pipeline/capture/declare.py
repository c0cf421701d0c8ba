"""What a teacher is, before it says anything: its manifest, its head, the bases of its hidden states.

One worker declares a teacher and the others wait for it, because what is calibrated on a
sample (the basis in which a layer's hidden states are quantised) must be the same for all.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache_tools.codecs.registry import Codec, codec_for
from cache_tools.errors import IdentityError, ModelError
from cache_tools.format import layout
from cache_tools.format.layout import SCALARS, TAIL_SCALARS, tempered_name
from cache_tools.format.manifest import ObjectRecord, TeacherManifest, read_manifest
from cache_tools.hidden_codecs.registry import HIDDEN_CODECS
from cache_tools.hidden_codecs.transform import calibrate_last, calibrate_relative, transform_bytes
from cache_tools.storage import object_exists
from cache_tools.store.predictions import SCALAR_STEP_NATS, hidden_array
from cache_tools.store.reader import Encoding
from cache_tools.store.teacher import CachedTeacher
from cache_tools.store.writer import declare_teacher
from cache_tools.torch_models.head_file import StoredHead, head_bytes
from pipeline.capture.hidden_budget import OutputHead, fisher_metric
from pipeline.capture.keep import Keep
from pipeline.capture.predict import Wanted, predict, probe_ids
from pipeline.config import HiddenConfig, TargetConfig, TeacherConfig
from pipeline.teachers.batches import pack, pad
from pipeline.teachers.body_and_head import (
    HeadOutput,
    body_of,
    check_head,
    check_packing,
    output_parameters,
    output_scaling,
    run_body,
    run_head,
)
from pipeline.teachers.loading import Teacher
from pipeline.teachers.probe import check_rows
from pipeline.teachers.restriction import read_restriction

CALIBRATION_POSITIONS = 4096
"""Positions, spread over the corpus, whose hidden states the bases are made from."""


CALIBRATION_SHARDS = 32
"""Shards that the sample is taken from, at most."""


PACKED_PROBE = 4
"""Sequences on which packing is compared with padding."""


def declare(encoding: Encoding, teacher: Teacher, config: TeacherConfig, chunk_positions: int) -> CachedTeacher:
    """Declare a loaded teacher, or check that the cache holds the same one; add layers that it lacks.

    Args:
        encoding: The committed encoding.
        teacher: The loaded teacher.
        config: Its block of the capture file.
        chunk_positions: Rows per inner chunk of the arrays.

    Raises:
        IdentityError: the cache holds another teacher under this name.
        ModelError: the model's logits cannot be reproduced, or its rows depend on what they must not depend on.
    """
    _check_vocabulary(encoding, teacher, config)
    probe = probe_ids(encoding, teacher)
    with torch.inference_mode():
        check_head(teacher.model, probe)
        check_rows(encoding, teacher, config)
        if teacher.packs:
            first = encoding.sequences(0)[:PACKED_PROBE]
            check_packing(teacher.model, *(together(first, list(range(len(first)))) for together in (pad, pack)))
        manifest, head = _describe(encoding, teacher, config, chunk_positions, probe)
        files = _new_files(encoding, teacher, config, manifest, head)
    folder = layout.teacher_folder(encoding.path, config.name)
    known = read_manifest(folder, TeacherManifest).files if object_exists(folder / layout.MANIFEST) else {}
    records = dict(sorted((known | {key: ObjectRecord.of(content) for key, content in files.items()}).items()))
    return declare_teacher(encoding, config.name, manifest.model_copy(update={"files": records}), files)


def keep_of(config: TargetConfig) -> Keep:
    """Return what the capture keeps of each distribution."""
    mass = 1.0 if config.p is None else config.p
    restriction = read_restriction(config.vocabulary)
    draws = config.draws or 0
    return Keep(config.kind, config.k, mass, draws, config.seed, config.temperatures, config.scalars, restriction)


def is_declared(encoding: Encoding, config: TeacherConfig) -> bool:
    """Say whether the cache has a teacher of this name with these layers; nothing more is compared."""
    folder = layout.teacher_folder(encoding.path, config.name)
    if not object_exists(folder / layout.MANIFEST):
        return False
    return {str(layer) for layer in config.hidden.layers} <= set(read_manifest(folder, TeacherManifest).hidden)


def _check_vocabulary(encoding: Encoding, teacher: Teacher, config: TeacherConfig) -> None:
    """Refuse a teacher for which some ids of the encoding do not exist, before it reads one."""
    body_of(teacher.model)  # refuses a model without output matrix
    vocabulary = teacher.model.get_output_embeddings().weight.shape[0]
    if vocabulary < encoding.manifest.vocabulary_size:
        raise IdentityError(
            f"teacher {config.name!r} has fewer logits than the tokenizer has ids",
            where=config.model,
            expected=f"at least {encoding.manifest.vocabulary_size}",
            found=vocabulary,
            fix="Use the teacher's own tokenizer, in an encoding of its own",
        )


def _describe(
    encoding: Encoding, teacher: Teacher, config: TeacherConfig, chunk_positions: int, probe: Tensor
) -> tuple[TeacherManifest, HeadOutput]:
    """Return the teacher's manifest, its files aside, and what its head gives on the probe (1, L)."""
    last_1LD, all_hidden = run_body(teacher.model, probe, torch.ones_like(probe), hidden=True)
    head = run_head(teacher.model, last_1LD[0])
    vocabulary = head.logits.shape[1]
    keep = keep_of(config.target)
    codec = codec_of_target(config.target, vocabulary)
    hidden = {}
    for layer in config.hidden.layers:
        if layer != "last" and not 0 <= layer < len(all_hidden):
            raise ModelError(
                f"teacher {config.name!r} has no layer {layer}",
                where="hidden.layers",
                expected=f"0 (embeddings) to {len(all_hidden) - 1}, or last",
                found=layer,
            )
        states = head.last if layer == "last" else all_hidden[layer]
        hidden[str(layer)] = {"width": states.shape[-1]} | _hidden_codec(config.hidden, layer)
    manifest = TeacherManifest.describe(
        teacher.identity | {"encoding": encoding.manifest.fingerprint},
        teacher.about,
        chunk_positions,
        vocabulary_size=vocabulary,
        target=target_spec(config.target, vocabulary),
        scalar_step_nats=0.0 if codec.exact_scalars else SCALAR_STEP_NATS,
        scalars=scalar_names(keep),
        hidden=hidden,
    )
    return manifest, head


def scalar_names(keep: Keep) -> list[str]:
    """Return the names of the scalars that are kept per position."""
    return [*SCALARS, *map(tempered_name, keep.temperatures), *keep.scalars]


def codec_of_target(config: TargetConfig, vocabulary: int) -> Codec:
    """Return the codec that stores a kind of target: draws and dense rows are lossless by nature."""
    return codec_for(
        keep_of(config).slots(vocabulary),
        vocabulary,
        draws_only=not config.kind.has_exact_part,
        all_classes=config.kind.is_whole,
        exact=config.exact,
        max_kl_nats=config.max_kl_nats,
        temperatures=config.temperatures,
    )


def target_spec(config: TargetConfig, vocabulary: int) -> dict[str, Any]:
    """Return what a manifest says of a kind of target, as plain JSON."""
    codec = codec_of_target(config, vocabulary)
    return {"kind": config.kind, "k": codec.k, "codec": codec.to_dict(), "settings": _settings(config)}


def _settings(config: TargetConfig) -> dict[str, Any]:
    """Return what defines a target besides its kind and k."""
    settings: dict[str, Any] = {"p": config.p} if config.kind.has_mass else {}
    if config.draws is not None:
        settings |= {"draws": config.draws, "seed": config.seed}
    if (config.kind.has_head and config.kind.is_drawn) or set(TAIL_SCALARS) & set(config.scalars):
        settings["head"] = config.k
    restriction = read_restriction(config.vocabulary)
    return settings | ({} if restriction is None else restriction.settings)


def _hidden_codec(config: HiddenConfig, layer: int | str) -> dict[str, Any]:
    if not HIDDEN_CODECS[config.stored_codec].has_transform:
        return {"codec": config.stored_codec}
    budget = config.max_kl_nats if layer == "last" else config.max_relative_error
    return {"codec": config.stored_codec, "budget": budget}


def _new_files(
    encoding: Encoding, teacher: Teacher, config: TeacherConfig, manifest: TeacherManifest, head: HeadOutput
) -> dict[str, bytes]:
    """Return the head and the bases that the cache does not hold yet, by key."""
    folder = layout.teacher_folder(encoding.path, config.name)
    known = read_manifest(folder, TeacherManifest).hidden if object_exists(folder / layout.MANIFEST) else {}
    new = {layer: spec for layer, spec in manifest.hidden.items() if layer not in known}
    files = {}
    if "last" in new:
        files[layout.HEAD] = head_bytes(
            StoredHead(*output_parameters(teacher.model), output_scaling(teacher.model, head))
        )
    quantised = [layer for layer, spec in new.items() if HIDDEN_CODECS[spec.codec].has_transform]
    if quantised:
        states = _sample(encoding, teacher, manifest, quantised, config.batch_tokens)
        for layer in quantised:
            if layer == "last":
                metric = fisher_metric(OutputHead.of(teacher.model, head), states[layer])
                transform = calibrate_last(states[layer], metric)
            else:
                transform = calibrate_relative(states[layer])
            files[layout.transform_key(layer)] = transform_bytes(transform)
    return files


def _sample(
    encoding: Encoding, teacher: Teacher, manifest: TeacherManifest, layers: list[str], batch_tokens: int
) -> dict[str, Any]:
    """Return hidden states (n, width), n about CALIBRATION_POSITIONS, of sequences spread over all shards, by layer."""
    per_shard = -(-CALIBRATION_POSITIONS // min(len(encoding.shards), CALIBRATION_SHARDS))
    sequences = []
    for shard in np.unique(np.linspace(0, len(encoding.shards) - 1, CALIBRATION_SHARDS).astype(int)).tolist():
        found, entry = encoding.sequences(shard), encoding.shards[shard]
        every = max(1, entry.positions // per_shard)
        sequences += found[::every]
    wanted = Wanted(manifest, [hidden_array(layer) for layer in layers], keep_of(TargetConfig()))
    return predict(sequences, encoding.manifest.objective, teacher, wanted, batch_tokens).hidden
