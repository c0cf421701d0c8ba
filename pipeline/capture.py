"""Run teachers over an encoding and commit their predictions, shard by shard.

For each shard without a receipt: batch, run the body, run the head at kept positions in
chunks, keep what was asked for, write, commit. Kill it anywhere and run it again: committed
shards are skipped, the others are done from their beginning, and the bytes are the same.

Memory: the model, one batch through its body, one head chunk of HEAD_CHUNK_BYTES, and the
kept predictions of one shard.
"""

import json
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from cache_tools import layout
from cache_tools.codec import DeltaPower, Targets
from cache_tools.errors import IdentityError, ModelError
from cache_tools.files import write_atomically
from cache_tools.manifest import SOFTWARE, TeacherManifest
from cache_tools.predictions import SCALAR_STEP_NATS, SCALARS, Predictions
from cache_tools.reader import Encoding
from cache_tools.sequences import Sequence
from cache_tools.writer import commit_shard, declare_teacher
from pipeline.batches import Batch, pad, token_budget_batches
from pipeline.config import TeacherConfig
from pipeline.split_model import body_of, check_head, output_scaling, run_body, run_head
from pipeline.targets import SparseTargets, sparse_targets
from pipeline.teacher import Teacher

HEAD_CHUNK_BYTES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}
"""Size of one chunk of float32 logits by device type; three such tensors live at a time. On a
CPU a chunk that stays near its caches is twice as fast; on a GPU a larger one hides launches."""

Progress = Callable[[int], None]
"""Called with the number of tokens read since the last call."""


def capture_teacher(
    encoding: Encoding,
    teacher: Teacher,
    config: TeacherConfig,
    chunk_positions: int,
    rank: int = 0,
    world_size: int = 1,
    progress: Progress = lambda _: None,
) -> int:
    """Capture every missing shard of one teacher, or this rank's share of them.

    Args:
        encoding: The committed encoding.
        teacher: The loaded teacher.
        config: Its block of the capture file.
        chunk_positions: Rows per inner chunk of the arrays.
        rank: This worker's number, in [0, world_size).
        world_size: Number of workers; worker r does shards r, r + world_size, …
        progress: Told how many tokens were read.

    Returns:
        Number of shards that this call committed.

    Raises:
        IdentityError: the cache holds another teacher under this name.
        ModelError: the model's logits cannot be reproduced, or are NaN.
        StorageError: the disk is full or refuses.
    """
    _check_vocabulary(encoding, teacher, config)
    first = encoding.sequences(0)[0]
    probe = torch.from_numpy(first.input_ids.astype(np.int64))[None].to(teacher.device)
    with torch.inference_mode():
        check_head(teacher.model, probe)
        manifest, head = _describe(encoding, teacher, config, chunk_positions, probe)
    cached = declare_teacher(encoding, config.name, manifest)
    if head is not None and not layout.head_file(cached.path).exists():
        write_atomically(layout.head_file(cached.path), head)
    done = 0
    for shard in range(rank, len(encoding.shards), world_size):
        if cached.receipt(shard) is None:
            started = time.monotonic()
            predictions = predict(encoding, shard, teacher, config, manifest, progress)
            commit_shard(cached, shard, predictions, _provenance(teacher, started))
            done += 1
    return done


def predict(
    encoding: Encoding,
    shard: int,
    teacher: Teacher,
    config: TeacherConfig,
    manifest: TeacherManifest,
    progress: Progress = lambda _: None,
) -> Predictions:
    """Run the teacher over one shard and return its predictions in position order."""
    sequences = encoding.sequences(shard)
    gold = [sequence.gold_ids(encoding.manifest.objective) for sequence in sequences]
    rows = _Rows(encoding.shards[shard].positions, manifest)
    starts = [sequence.first_position - sequences[0].first_position for sequence in sequences]
    for indices in token_budget_batches([len(s.input_ids) for s in sequences], config.batch_tokens):
        batch = pad(sequences, indices)
        where = np.concatenate([np.arange(starts[i], starts[i] + len(gold[i])) for i in indices])
        _predict_batch(batch, np.concatenate([gold[i] for i in indices]), where, teacher, config, rows)
        _refuse_nan(rows, sequences[0].first_position, [sequences[i] for i in indices])
        progress(sum(len(sequences[i].input_ids) for i in indices))
    return rows.predictions()


class _Rows:
    """Preallocated host arrays of one shard's predictions, filled in any order."""

    def __init__(self, num_positions: int, manifest: TeacherManifest) -> None:
        k = manifest.target.k
        self.ids = np.zeros((num_positions, k), dtype=np.uint32)
        self.log_probs = np.full((num_positions, k), -np.inf, dtype=np.float32)
        self.log_left_out = np.empty(num_positions, dtype=np.float32)
        self.scalars = {name: np.empty(num_positions, dtype=np.float32) for name in manifest.scalars}
        self.hidden = {
            layer: np.empty((num_positions, spec.width), dtype=np.float32) for layer, spec in manifest.hidden.items()
        }

    def put(self, where: NDArray[np.int64], targets: SparseTargets, hidden: dict[str, Tensor]) -> None:
        self.ids[where] = targets.ids.cpu().numpy()
        self.log_probs[where] = targets.log_probs.cpu().numpy()
        self.log_left_out[where] = targets.log_left_out.cpu().numpy()
        for name, values in targets.scalars.items():
            self.scalars[name][where] = values.cpu().numpy()
        for layer, states in hidden.items():
            self.hidden[layer][where] = states.float().cpu().numpy()

    def predictions(self) -> Predictions:
        return Predictions(Targets(self.ids, self.log_probs, self.log_left_out), self.scalars, self.hidden)


@torch.inference_mode()
def _predict_batch(
    batch: Batch,
    gold: NDArray[np.uint32],
    where: NDArray[np.int64],
    teacher: Teacher,
    config: TeacherConfig,
    rows: _Rows,
) -> None:
    """Run one batch and put its rows; ``gold`` and ``where`` follow the batch's kept positions, row by row."""
    device, layers = teacher.device, [layer for layer in config.hidden_layers if layer != "last"]
    last_BLD, all_hidden = run_body(
        teacher.model, batch.input_ids.to(device), batch.attention_mask.to(device), hidden=bool(layers)
    )
    kept = batch.position_mask.to(device)
    last_PD = last_BLD[kept]  # (positions of the batch, D)
    hidden_PD = {str(layer): all_hidden[layer][kept] for layer in layers}
    gold_P = torch.from_numpy(gold.astype(np.int64)).to(device)
    chunk = max(
        1,
        HEAD_CHUNK_BYTES.get(device.type, HEAD_CHUNK_BYTES["cuda"])
        // (4 * teacher.model.get_output_embeddings().weight.shape[0]),
    )
    for start in range(0, len(last_PD), chunk):
        part = slice(start, start + chunk)
        head = run_head(teacher.model, last_PD[part])
        hidden = {name: states[part] for name, states in hidden_PD.items()}
        if "last" in config.hidden_layers:
            hidden["last"] = head.last
        rows.put(where[part], sparse_targets(head.logits, gold_P[part], rows.ids.shape[1]), hidden)


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
) -> tuple[TeacherManifest, bytes | None]:
    """Return the teacher's manifest and, if its last hidden state is kept, the bytes of head.safetensors."""
    last_1LD, all_hidden = run_body(teacher.model, probe, torch.ones_like(probe), hidden=True)
    head = run_head(teacher.model, last_1LD[0])
    vocabulary = head.logits.shape[1]
    hidden: dict[str, dict[str, Any]] = {}
    for layer in config.hidden_layers:
        if layer != "last" and not 0 <= layer < len(all_hidden):
            raise ModelError(
                f"teacher {config.name!r} has no layer {layer}",
                where="hidden_layers",
                expected=f"0 (embeddings) to {len(all_hidden) - 1}, or last",
                found=layer,
            )
        states = head.last if layer == "last" else all_hidden[layer]
        hidden[str(layer)] = {"width": states.shape[-1], "codec": config.hidden_codec}
    k = min(config.target.k, vocabulary)
    codec = DeltaPower(k, vocabulary, config.target.levels, config.target.exponent).to_dict()
    manifest = TeacherManifest.describe(
        teacher.identity | {"encoding": encoding.manifest.fingerprint},
        teacher.about,
        chunk_positions,
        vocabulary_size=vocabulary,
        target={"kind": "topk", "k": k, "codec": codec},
        scalar_step_nats=SCALAR_STEP_NATS,
        scalars=list(SCALARS),
        hidden=hidden,
    )
    keep_head = "last" in config.hidden_layers
    return manifest, _head_bytes(teacher, output_scaling(teacher.model, head)) if keep_head else None


def _head_bytes(teacher: Teacher, scaling: dict[str, float]) -> bytes:
    """Return the output matrix as a safetensors file, with the scaling in its metadata; the same bytes every time."""
    matrix = teacher.model.get_output_embeddings()
    tensors = {"weight": matrix.weight.detach().cpu().contiguous().clone()}
    if getattr(matrix, "bias", None) is not None:
        tensors["bias"] = matrix.bias.detach().cpu().contiguous().clone()
    content = save(tensors, metadata={name: repr(value) if value else "" for name, value in scaling.items()})
    start, stop = 8, 8 + int.from_bytes(content[:8], "little")  # of the header, whose keys come in random order
    header = json.dumps(json.loads(content[start:stop]), sort_keys=True, separators=(",", ":")).encode()
    return content[:start] + header.ljust(stop - start) + content[stop:]


def _refuse_nan(rows: _Rows, shard_start: int, sequences: list[Sequence]) -> None:
    for sequence in sequences:
        start, stop = sequence.rows
        if not np.isfinite(rows.scalars["logsumexp"][start - shard_start : stop - shard_start]).all():
            raise ModelError(
                "the teacher's logits are not numbers",
                where=f"sequence {sequence.sequence_id}, document {sequence.document_id!r}",
                why="such a row would poison every student",
                fix="Try dtype: float32 or bfloat16 instead of float16",
            )


def _provenance(teacher: Teacher, started: float) -> dict[str, Any]:
    device = torch.cuda.get_device_name(teacher.device) if teacher.device.type == "cuda" else platform.machine()
    return {
        "software": f"{SOFTWARE}, torch {torch.__version__}, transformers {transformers.__version__}",
        "device": f"{teacher.device.type} ({device})",
        "seconds": round(time.monotonic() - started, 3),
    }
