"""Run a teacher over sequences and bring what is kept to the host.

The head runs at kept positions only, a chunk at a time; ``[batch, length, vocabulary]`` never exists. A GPU does not
wait for the host: results are copied to pinned memory while the next batch is queued, and are read one batch later.

Memory on the device: the model, one batch through its body, what is kept of two batches, and of the head at most two
and a half times HEAD_CHUNK_BYTES: a chunk's logits as the model gives them, some rows of them in float32, and the
softmax of half of those.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.codecs.registry import Targets
from cache_tools.errors import ModelError
from cache_tools.format.manifest import Objective
from cache_tools.format.sequences import Sequence
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.store.predictions import Predictions, hidden_array
from cache_tools.store.reader import Encoding
from pipeline.capture.draws import position_keys
from pipeline.capture.keep import Keep, sparse_targets
from pipeline.capture.row_predictions import row_predictions
from pipeline.teachers.batches import Batch, pack, pad, token_budget_batches, whole
from pipeline.teachers.teacher import AnyTeacher, RowTeacher, Teacher

# L: length, D: width, P: kept positions of a batch, V: vocabulary

HEAD_CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}
"""Size of one chunk of logits by device type, in the model's own type; and of as many in float32 as are looked at
together. On a CPU one that stays near its caches is faster (16 MiB measured best of 8 to 64), but the output matrix
wants many rows; on a GPU a larger one hides launches (not measured)."""


@dataclass(frozen=True)
class KeptOutputs:
    """What is kept of a teacher's outputs.

    Attributes:
        keep: What is kept of each distribution; None if no distribution is needed.
        layers: Names of the hidden layers that are kept: ``last``, or an index in ``hidden_states``.
        skip_nan: Store an empty row where logits are NaN or infinite, instead of raising an error.
    """

    keep: Keep | None
    layers: tuple[str, ...] = ()
    skip_nan: bool = False


PROBE_TOKENS = 32
"""Tokens on which a model's head is tried: enough to tell it, few enough that all their logits are small."""


def probe_batch(encoding: Encoding) -> Batch:
    """Return the beginning of the encoding's first sequence, at most PROBE_TOKENS, all its positions kept."""
    ids_1L = encoding.sequences(0)[0].input_ids[:PROBE_TOKENS].astype(np.int64)[None]
    return whole(ids_1L, np.ones_like(ids_1L))


def predict(
    sequences: list[Sequence],
    objective: Objective,
    teacher: AnyTeacher,
    kept: KeptOutputs,
    batch_tokens: int,
    progress: Advance = ignore,
) -> Predictions:
    """Run the teacher over sequences and return its predictions, position by position, in their order.

    Args:
        sequences: At least one.
        objective: Objective of the encoding; decides which token a position should predict.
        teacher: The loaded teacher.
        kept: What is kept.
        batch_tokens: Tokens per forward pass, padding included.
        progress: Called with the number of tokens of each batch.

    Raises:
        ModelError: a prediction is not a number, and such rows are not skipped.
    """
    if isinstance(teacher, RowTeacher):
        return row_predictions(sequences, teacher, kept.keep, progress)
    gold = [sequence.gold_ids(objective).astype(np.int64) for sequence in sequences]
    ends = list(accumulate(len(ids) for ids in gold))
    rows, starts = _Rows(kept, sequences, ends), [0, *ends[:-1]]
    together, in_flight = pack if teacher.packs else pad, None
    for indices in token_budget_batches([len(s.input_ids) for s in sequences], batch_tokens, teacher.packs):
        batch = together(sequences, indices)
        where = np.concatenate([np.arange(starts[i], ends[i]) for i in indices])
        gold_P = torch.from_numpy(np.concatenate([gold[i] for i in indices]))
        queued = where, _to_host(_predict_batch(batch, gold_P, teacher, kept), teacher.device)
        if in_flight:
            rows.put(*in_flight)
        in_flight = queued
        progress(sum(len(sequences[i].input_ids) for i in indices))
    if in_flight:
        rows.put(*in_flight)
    return rows.predictions()


def chunk_positions(teacher: Teacher, itemsize: int = 4) -> int:
    """Return how many positions' logits of this many bytes each are one chunk."""
    chunk_bytes = HEAD_CHUNK_BYTES.get(teacher.device.type, HEAD_CHUNK_BYTES["cuda"])
    return max(1, chunk_bytes // (itemsize * teacher.head.vocabulary_size))


@torch.inference_mode()
def _predict_batch(batch: Batch, gold_P: Tensor, teacher: Teacher, kept: KeptOutputs) -> dict[str, Tensor]:
    """Run one batch and return what is kept of it, by name, on the teacher's device."""
    layers = [layer for layer in kept.layers if layer != "last"]
    last_PD, states = teacher.body.states(batch, [int(layer) for layer in layers])
    outputs = {hidden_array(layer): states[int(layer)] for layer in layers}
    if kept.keep is None and "last" not in kept.layers:
        return outputs
    seed = 0 if kept.keep is None else kept.keep.seed
    keys_P = _on(position_keys(seed, batch.sequence_ids, batch.positions), teacher)
    return outputs | _run_head(last_PD, _on(gold_P, teacher), keys_P, teacher, kept)


def _run_head(
    last_PD: Tensor, gold_P: Tensor, keys_P: Tensor, teacher: Teacher, kept: KeptOutputs
) -> dict[str, Tensor]:
    """Run the head in chunks and return what is kept, by name; all tensors are on the teacher's device."""
    num_positions, keep = len(last_PD), kept.keep
    rows = min(chunk_positions(teacher), num_positions)
    logits_NV, scratch_NV = (
        torch.empty(count, teacher.head.vocabulary_size, device=teacher.device) for count in (rows, -(-rows // 2))
    )
    outputs: dict[str, Tensor] = {}

    def put(where: slice, made: dict[str, Tensor]) -> None:
        for name, values in made.items():
            if name not in outputs:  # all rows at once: small tensors that outlive a chunk would fragment its memory
                outputs[name] = values.new_empty(num_positions, *values.shape[1:])
            outputs[name][where] = values

    for chunk in _slices(0, num_positions, chunk_positions(teacher, last_PD.dtype.itemsize)):
        head = teacher.head.logits(last_PD[chunk], as_given=True)
        if "last" in kept.layers:
            put(chunk, {hidden_array("last"): head.last})
        if keep is None:
            continue
        for part in _slices(chunk.start, chunk.stop, rows):
            given_NV = head.logits[part.start - chunk.start : part.stop - chunk.start]
            in_float32 = given_NV if given_NV.dtype == torch.float32 else logits_NV[: len(given_NV)].copy_(given_NV)
            put(part, sparse_targets(in_float32, gold_P[part], keep, keys_P[part], scratch_NV).named())
        del head, given_NV, in_float32  # or a chunk's logits would live until the next ones are made
    return outputs


def _slices(start: int, stop: int, step: int) -> Iterator[slice]:
    return (slice(first, min(first + step, stop)) for first in range(start, stop, step))


def _on(tensor: Tensor, teacher: Teacher) -> Tensor:
    """Return a host tensor on the teacher's device, without waiting for it."""
    return tensor.to(teacher.device, non_blocking=True)


@dataclass(frozen=True)
class _InFlight:
    """Host tensors that a GPU may still be writing to.

    Attributes:
        tensors: Host tensors by name.
        written: The event after which they are complete; None if they are complete.
    """

    tensors: dict[str, Tensor]
    written: torch.cuda.Event | None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Wait, and return float32 and integer arrays."""
        if self.written is not None:
            self.written.synchronize()
        return {name: (t.float() if t.is_floating_point() else t).numpy() for name, t in self.tensors.items()}


def _to_host(outputs: dict[str, Tensor], device: torch.device) -> _InFlight:
    if device.type != "cuda":
        return _InFlight({name: tensor.cpu() for name, tensor in outputs.items()}, None)
    pinned = {name: torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for name, t in outputs.items()}
    for name, tensor in outputs.items():
        pinned[name].copy_(tensor, non_blocking=True)
    written = torch.cuda.Event()  # type: ignore[no-untyped-call]
    written.record(torch.cuda.current_stream(device))
    return _InFlight(pinned, written)


class _Rows:
    """Host arrays of predictions, filled in any order; the first batch says how wide they are."""

    def __init__(self, kept: KeptOutputs, sequences: list[Sequence], ends: list[int]) -> None:
        self.kept, self.sequences, self.ends = kept, sequences, ends
        self.arrays: dict[str, NDArray[Any]] = {}

    def put(self, where: NDArray[np.int64], batch: _InFlight) -> None:
        """Store a batch's rows; rows that are not numbers are refused or emptied."""
        arrays = batch.arrays()
        self._settle_nan(where, arrays)
        for name, values in arrays.items():
            if name not in self.arrays:
                self.arrays[name] = np.empty(
                    (self.ends[-1], *values.shape[1:]), np.uint32 if name == "ids" else np.float32
                )
            self.arrays[name][where] = values

    def _settle_nan(self, where: NDArray[np.int64], arrays: dict[str, NDArray[Any]]) -> None:
        broken = np.zeros(len(where), dtype=bool)
        for name in map(hidden_array, self.kept.layers) if self.kept.keep is None else ["logsumexp"]:
            broken |= ~np.isfinite(arrays[name]).reshape(len(where), -1).all(axis=1)
        if not broken.any():
            return
        if not self.kept.skip_nan:
            self._refuse(int(where[broken].min()))
        for name, values in arrays.items():
            values[broken] = -np.inf if name == "log_probs" else 0  # nothing kept: all the mass is left out

    def _refuse(self, row: int) -> None:
        sequence = self.sequences[bisect_right(self.ends, row)]
        raise ModelError(
            "the teacher's logits are not numbers",
            where=f"sequence {sequence.sequence_id}, document {sequence.document_id!r}",
            why="every student that learns from such a row would be damaged",
            fix="Try dtype: float32 or bfloat16 instead of float16, or leave such positions empty with nan_rows: skip",
        )

    def predictions(self) -> Predictions:
        hidden = {layer: self.arrays[hidden_array(layer)] for layer in self.kept.layers}
        if self.kept.keep is None:
            return Predictions(None, {}, hidden)
        targets = Targets(self.arrays["ids"], self.arrays["log_probs"], self.arrays["log_left_out"])
        return Predictions(targets, {name: self.arrays[name] for name in self.kept.keep.scalar_names}, hidden)
