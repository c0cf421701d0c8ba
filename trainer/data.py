"""Cached sequences as a map-style dataset, and batches of them as tensors.

An item is a whole sequence with the teacher's predictions at its kept positions, so the
student may batch, shuffle and repeat as it likes. The sequences and stored integers of the last few
shards stay in memory and are decoded per sequence: a shuffled reader stays inside a window
of shards (see ``sampler.py``), so each shard is read about once per epoch.

Batches are padded on the right; predictions of all sequences stand one after another, in
the order in which ``labels != -100`` lists their positions.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cache_tools.cached_teacher import CachedTeacher, StoredTargets
from cache_tools.codec import EMPTY_ID, Targets
from cache_tools.manifest import Split
from cache_tools.sequences import Sequence

IGNORED = -100
"""Label of positions that are not under the loss, as everywhere in torch."""


@dataclass(frozen=True)
class Example:
    """One cached sequence.

    Attributes:
        input_ids: (n,) uint32.
        positions: (p,) int64, token indices of the kept positions.
        gold_ids: (p,) uint32, the token that each kept position should predict.
        targets: The teacher's predictions at the p positions.
    """

    input_ids: NDArray[np.uint32]
    positions: NDArray[np.int64]
    gold_ids: NDArray[np.uint32]
    targets: Targets


class CachedSequences(Dataset[Example]):
    """The sequences of one split with one teacher's predictions.

    Args:
        teacher: The teacher to learn from.
        split: ``train`` or ``held_out``.
        student_vocabulary_size: Width of the student's logits. Predicted ids beyond it (vocabulary
            padding) are moved into the left-out mass.
        shards_in_memory: How many shards' sequences and stored integers to keep.

    Raises:
        IncompleteError: a shard of the split has not been captured.
    """

    def __init__(
        self, teacher: CachedTeacher, split: Split, student_vocabulary_size: int, shards_in_memory: int = 4
    ) -> None:
        teacher.require_complete(split)
        self.teacher, self.encoding = teacher, teacher.encoding
        self.student_vocabulary_size = student_vocabulary_size
        self.shards = self.encoding.split_shards(split)
        self.shard_sizes = [self.encoding.shards[shard].sequences for shard in self.shards]
        self._ends = list(accumulate(self.shard_sizes))
        self._shards_in_memory = shards_in_memory
        self._shard = lru_cache(shards_in_memory)(self._read_shard)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Example:
        number = bisect_right(self._ends, index)
        shard = self.shards[number]
        sequences, stored = self._shard(shard)
        sequence = sequences[index - (self._ends[number - 1] if number else 0)]
        first_row, _ = self.teacher.shard_rows(shard)
        start, stop = sequence.first_position - first_row, sequence.first_position - first_row + sequence.num_positions
        targets = fit_vocabulary(stored.decode(start, stop), self.student_vocabulary_size)
        gold = sequence.gold_ids(self.encoding.manifest.objective)
        return Example(sequence.input_ids, sequence.positions(), gold, targets)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the memory behind when a loader worker is started."""
        return {name: value for name, value in self.__dict__.items() if name != "_shard"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._shard = lru_cache(self._shards_in_memory)(self._read_shard)

    def _read_shard(self, shard: int) -> tuple[list[Sequence], StoredTargets]:
        return self.encoding.sequences(shard), self.teacher.stored_targets(
            shard, 0, self.encoding.shards[shard].positions
        )


def fit_vocabulary(targets: Targets, vocabulary_size: int) -> Targets:
    """Move predicted ids at or above ``vocabulary_size`` into the left-out mass.

    Models pad their vocabulary by different amounts; padding ids mean nothing and carry
    next to no probability, but a student that lacks them must not be indexed with them.
    """
    beyond = (targets.ids >= vocabulary_size) & (targets.ids != EMPTY_ID)
    if not beyond.any():
        return targets
    moved = np.exp(np.where(beyond, targets.log_probs, -np.inf)).sum(axis=1)
    with np.errstate(divide="ignore"):
        left_out = np.log(np.exp(targets.log_left_out) + moved).astype(np.float32)
    return Targets(
        np.where(beyond, np.uint32(EMPTY_ID), targets.ids),
        np.where(beyond, np.float32(-np.inf), targets.log_probs),
        left_out,
    )


def collate(examples: list[Example]) -> dict[str, Tensor]:
    """Pad examples into one batch.

    Returns:
        input_ids, attention_mask, labels: (B, L) int64, labels IGNORED outside kept positions;
        target_ids (P, k) int64, 0 in empty slots; target_log_probs (P, k) and
        target_log_left_out (P,) float32, -inf where there is nothing; P positions in all.
    """
    length = max(len(example.input_ids) for example in examples)
    input_ids = np.zeros((len(examples), length), dtype=np.int64)
    attention_mask, labels = np.zeros_like(input_ids), np.full_like(input_ids, IGNORED)
    for row, example in enumerate(examples):
        input_ids[row, : len(example.input_ids)] = example.input_ids
        attention_mask[row, : len(example.input_ids)] = 1
        labels[row, example.positions] = example.gold_ids
    ids = np.concatenate([example.targets.ids for example in examples])
    batch = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "target_ids": np.where(ids == EMPTY_ID, 0, ids).astype(np.int64),
        "target_log_probs": np.concatenate([example.targets.log_probs for example in examples]),
        "target_log_left_out": np.concatenate([example.targets.log_left_out for example in examples]),
    }
    return {name: torch.from_numpy(array) for name, array in batch.items()}
