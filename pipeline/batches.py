"""Sequences of a shard as padded batches under a token budget, similar lengths together.

The plan depends on the shard and the budget alone, so a shard that is redone after a crash
runs the same batches and gives the same bytes on the same device.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cache_tools.sequences import Sequence


@dataclass(frozen=True)
class Batch:
    """Padded sequences, on the right.

    Attributes:
        indices: Which sequences of the shard these are.
        sequence_ids: (B,) int64.
        input_ids: (B, L) int64; padding is id 0 and never read.
        attention_mask: (B, L) int64, 0 on padding.
        position_mask: (B, L) bool, true where a prediction is kept.
    """

    indices: list[int]
    sequence_ids: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    position_mask: Tensor


def token_budget_batches(lengths: list[int], budget_tokens: int) -> Iterator[list[int]]:
    """Yield indices, longest first, so that (sequences x longest) stays within the budget.

    A sequence longer than the budget gets a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    start = 0
    while start < len(order):
        rows = max(1, budget_tokens // lengths[order[start]])
        yield order[start : start + rows]
        start += rows


def pad(sequences: list[Sequence], indices: list[int]) -> Batch:
    """Return the chosen sequences as one right-padded batch."""
    length = max(len(sequences[i].input_ids) for i in indices)
    ids = np.zeros((len(indices), length), dtype=np.int64)
    attention, kept = np.zeros_like(ids), np.zeros(ids.shape, dtype=bool)
    for row, index in enumerate(indices):
        n = len(sequences[index].input_ids)
        ids[row, :n], attention[row, :n] = sequences[index].input_ids, 1
        kept[row, :n] = sequences[index].position_mask
    numbers = torch.tensor([sequences[i].sequence_id for i in indices])
    return Batch(indices, numbers, torch.from_numpy(ids), torch.from_numpy(attention), torch.from_numpy(kept))
