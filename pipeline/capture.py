"""Run teachers over an encoding and commit their predictions, shard by shard.

For each shard that lacks something: batch, run the body, run the head at kept positions in
chunks, keep what was asked for, write, commit. Kill it anywhere and run it again: what is
committed is skipped, the rest is done from its shard's beginning, and the bytes are the same.
A layer of hidden states that is asked for later is captured alone. A shard is encoded
and written by a thread of its own while the teacher reads the next.

Memory: the model, one batch through its body, one head chunk of HEAD_CHUNK_BYTES, and the
kept predictions of two shards.
"""

import platform
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.cached_teacher import CachedTeacher
from cache_tools.codec import Targets
from cache_tools.errors import ModelError
from cache_tools.hidden import ErrorOf
from cache_tools.manifest import SOFTWARE, Objective, TeacherManifest
from cache_tools.predictions import Predictions, hidden_array
from cache_tools.reader import Encoding
from cache_tools.receipts import TARGETS
from cache_tools.sequences import Sequence
from cache_tools.writer import commit_shard
from pipeline.batches import Batch, pad, token_budget_batches
from pipeline.draws import position_keys
from pipeline.hidden_budget import OutputHead, kl_error
from pipeline.split_model import HeadOutput, run_body, run_head
from pipeline.targets import Keep, SparseTargets, sparse_targets
from pipeline.teacher import Teacher

HEAD_CHUNK_BYTES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}
"""Size of one chunk of float32 logits by device type; three such tensors live at a time. On a
CPU a chunk that stays near its caches is twice as fast; on a GPU a larger one hides launches."""

Progress = Callable[[int], None]
"""Called with the number of tokens read since the last call."""


def capture_shards(
    cached: CachedTeacher,
    shards: list[int],
    teacher: Teacher,
    keep: Keep,
    batch_tokens: int,
    progress: Progress = lambda _: None,
) -> None:
    """Capture what these shards lack of a declared teacher.

    Args:
        cached: The teacher as declared in the cache.
        shards: Shards to do.
        teacher: The loaded teacher.
        keep: What to keep of each distribution.
        batch_tokens: Tokens per forward pass, padding included.
        progress: Told how many tokens were read.

    Raises:
        ModelError: a prediction is not a number, or cannot be stored.
        StorageError: the disk is full, or disk or bucket refuse.
    """
    encoding, errors = cached.encoding, _error_measures(cached, teacher) if shards else {}
    with ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        for shard in shards:
            started = time.monotonic()
            wanted = Wanted(cached.manifest, cached.missing_groups(shard), keep)
            sequences = encoding.sequences(shard)
            predictions = predict(sequences, encoding.manifest.objective, teacher, wanted, batch_tokens, progress)
            if writing:
                writing.result()
            writing = writer.submit(_commit, cached, shard, predictions, _provenance(teacher, started), errors)
        if writing:
            writing.result()


def _commit(
    cached: CachedTeacher,
    shard: int,
    predictions: Predictions,
    provenance: dict[str, Any],
    errors: dict[str, ErrorOf],
) -> None:
    try:
        commit_shard(cached, shard, predictions, provenance, errors)
    except ValueError as error:
        raise ModelError(
            "the predictions of a shard cannot be stored",
            where=f"teacher {cached.name!r}, shard {shard}",
            found=error,
            why="a student would learn something that the teacher did not say",
        ) from error


@torch.inference_mode()
def _error_measures(cached: CachedTeacher, teacher: Teacher) -> dict[str, ErrorOf]:
    """Return how to measure the error of the last hidden state, if it has a budget: in KL of the logits."""
    last = cached.manifest.hidden.get("last")
    if last is None or last.codec != "transform":
        return {}
    return {"last": kl_error(OutputHead.of(teacher.model, probe_head(cached.encoding, teacher)))}


def probe_head(encoding: Encoding, teacher: Teacher) -> HeadOutput:
    """Run body and head over the encoding's first sequence."""
    probe = torch.from_numpy(encoding.sequences(0)[0].input_ids.astype(np.int64))[None].to(teacher.device)
    return run_head(teacher.model, run_body(teacher.model, probe, torch.ones_like(probe), hidden=False)[0][0])


@dataclass(frozen=True)
class Wanted:
    """Which predictions to keep.

    Attributes:
        manifest: The teacher's.
        groups: ``targets`` and ``hidden/<layer>``.
        keep: What of each distribution, for the group ``targets``.
    """

    manifest: TeacherManifest
    groups: list[str]
    keep: Keep

    @property
    def targets(self) -> bool:
        """Whether sparse targets and scalars are kept."""
        return TARGETS in self.groups

    @property
    def layers(self) -> list[str]:
        """Names of the hidden layers that are kept."""
        return [layer for layer in self.manifest.hidden if hidden_array(layer) in self.groups]


def predict(
    sequences: list[Sequence],
    objective: Objective,
    teacher: Teacher,
    wanted: Wanted,
    batch_tokens: int,
    progress: Progress = lambda _: None,
) -> Predictions:
    """Run the teacher over sequences and return its predictions, position by position, in their order."""
    gold = [sequence.gold_ids(objective) for sequence in sequences]
    ends = list(accumulate(len(ids) for ids in gold))
    rows, starts = _Rows(ends[-1], wanted), [0, *ends[:-1]]
    for indices in token_budget_batches([len(s.input_ids) for s in sequences], batch_tokens):
        batch = pad(sequences, indices)
        where = np.concatenate([np.arange(starts[i], starts[i] + len(gold[i])) for i in indices])
        _predict_batch(batch, np.concatenate([gold[i] for i in indices]), where, teacher, wanted, rows)
        for i in indices:
            rows.refuse_nan(starts[i], ends[i], sequences[i])
        progress(sum(len(sequences[i].input_ids) for i in indices))
    return rows.predictions()


class _Rows:
    """Preallocated host arrays of predictions, filled in any order."""

    def __init__(self, num_positions: int, wanted: Wanted) -> None:
        kept, k = num_positions if wanted.targets else 0, wanted.manifest.target.k
        self.has_targets = wanted.targets
        self.ids = np.zeros((kept, k), dtype=np.uint32)
        self.log_probs = np.full((kept, k), -np.inf, dtype=np.float32)
        self.log_left_out = np.empty(kept, dtype=np.float32)
        self.scalars = {name: np.empty(kept, dtype=np.float32) for name in wanted.manifest.scalars}
        self.hidden = {
            layer: np.empty((num_positions, wanted.manifest.hidden[layer].width), dtype=np.float32)
            for layer in wanted.layers
        }

    def put_targets(self, where: NDArray[np.int64], targets: SparseTargets) -> None:
        self.ids[where] = targets.ids.cpu().numpy()
        self.log_probs[where] = targets.log_probs.cpu().numpy()
        self.log_left_out[where] = targets.log_left_out.cpu().numpy()
        for name, values in targets.scalars.items():
            self.scalars[name][where] = values.cpu().numpy()

    def put_hidden(self, where: NDArray[np.int64], layer: str, states: Tensor) -> None:
        self.hidden[layer][where] = states.float().cpu().numpy()

    def refuse_nan(self, start: int, stop: int, sequence: Sequence) -> None:
        """Refuse rows [start, stop), which are a sequence's, if one is not a number."""
        checked = [self.scalars["logsumexp"]] if self.has_targets else list(self.hidden.values())
        if not all(np.isfinite(values[start:stop]).all() for values in checked):
            raise ModelError(
                "the teacher's logits are not numbers",
                where=f"sequence {sequence.sequence_id}, document {sequence.document_id!r}",
                why="such a row would poison every student",
                fix="Try dtype: float32 or bfloat16 instead of float16",
            )

    def predictions(self) -> Predictions:
        targets = Targets(self.ids, self.log_probs, self.log_left_out) if self.has_targets else None
        return Predictions(targets, self.scalars if self.has_targets else {}, self.hidden)


@torch.inference_mode()
def _predict_batch(
    batch: Batch,
    gold: NDArray[np.uint32],
    where: NDArray[np.int64],
    teacher: Teacher,
    wanted: Wanted,
    rows: _Rows,
) -> None:
    """Run one batch and put its rows; ``gold`` and ``where`` follow the batch's kept positions, row by row."""
    device, layers = teacher.device, [layer for layer in wanted.layers if layer != "last"]
    last_BLD, all_hidden = run_body(
        teacher.model, batch.input_ids.to(device), batch.attention_mask.to(device), hidden=bool(layers)
    )
    kept = batch.position_mask.to(device)
    for layer in layers:
        rows.put_hidden(where, layer, all_hidden[int(layer)][kept])
    if not wanted.targets and "last" not in wanted.layers:
        return
    last_PD = last_BLD[kept]  # (positions of the batch, D)
    gold_P, keys_P = torch.from_numpy(gold.astype(np.int64)).to(device), _keys(batch, wanted.keep.seed).to(device)
    chunk = _chunk_positions(teacher)
    for start in range(0, len(last_PD), chunk):
        part = slice(start, start + chunk)
        head = run_head(teacher.model, last_PD[part])
        if wanted.targets:
            rows.put_targets(where[part], sparse_targets(head.logits, gold_P[part], wanted.keep, keys_P[part]))
        if "last" in wanted.layers:
            rows.put_hidden(where[part], "last", head.last)


def _keys(batch: Batch, seed: int) -> Tensor:
    """Return the key of each kept position's draws: (positions of the batch,) int64."""
    rows, positions = batch.position_mask.nonzero(as_tuple=True)
    return position_keys(seed, batch.sequence_ids[rows], positions)


def _chunk_positions(teacher: Teacher) -> int:
    """Return how many positions go through the head at once."""
    chunk_bytes = HEAD_CHUNK_BYTES.get(teacher.device.type, HEAD_CHUNK_BYTES["cuda"])
    vocabulary: int = teacher.model.get_output_embeddings().weight.shape[0]
    return max(1, chunk_bytes // (4 * vocabulary))


def _provenance(teacher: Teacher, started: float) -> dict[str, Any]:
    device = torch.cuda.get_device_name(teacher.device) if teacher.device.type == "cuda" else platform.machine()
    return {
        "software": f"{SOFTWARE}, torch {torch.__version__}, transformers {transformers.__version__}",
        "device": f"{teacher.device.type} ({device})",
        "seconds": round(time.monotonic() - started, 3),
    }
