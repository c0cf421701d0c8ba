"""Sequences of a shard as batches under a token budget: padded, or packed into one row.

Padded batches hold sequences of similar lengths. Packed ones hold any, one after another in one row,
each with positions from 0; attention that goes by positions keeps them apart, so no token is padding. That pays
where attention skips the other sequences' squares (flash attention); elsewhere a row's attention
costs its whole length squared, and sorting by length leaves only a few per cent of padding anyway.

The plan depends on the shard and the budget alone, so a shard that is redone after a crash
runs the same batches and gives the same bytes on the same device.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.format.sequences import Sequence

# B: rows of a batch, L: their length, P: kept positions of a batch


@dataclass(frozen=True)
class Batch:
    """Sequences that are read together.

    Attributes:
        indices: Which sequences of the shard these are.
        input_ids: (B, L) int64; padding is id 0 and never read.
        attention_mask: (B, L) int64, 0 on padding, which is on the right; None if packed.
        position_ids: (1, L) int64, 0 at the start of each sequence; None if padded.
        kept: (P,) int64, places of the kept positions in the flattened batch.
        sequence_ids: (P,) int64, the sequence that each kept position belongs to.
        positions: (P,) int64, and its token index there.
    """

    indices: list[int]
    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor | None
    kept: Tensor
    sequence_ids: Tensor
    positions: Tensor


def token_budget_batches(lengths: list[int], budget_tokens: int, packed: bool = False) -> Iterator[list[int]]:
    """Yield indices, longest first, so that a batch, padding included, stays within the budget.

    A sequence longer than the budget gets a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    tokens = 0
    for index in order:
        tokens += lengths[index] if packed else lengths[batch[0] if batch else index]
        if batch and tokens > budget_tokens:
            yield batch
            batch, tokens = [], lengths[index]
        batch.append(index)
    if batch:
        yield batch


def pad(sequences: list[Sequence], indices: list[int]) -> Batch:
    """Return the chosen sequences as one right-padded batch."""
    length = max(len(sequences[i].input_ids) for i in indices)
    ids = np.zeros((len(indices), length), dtype=np.int64)
    attention = np.zeros_like(ids)
    for row, index in enumerate(indices):
        n = len(sequences[index].input_ids)
        ids[row, :n], attention[row, :n] = sequences[index].input_ids, 1
    starts = [row * length for row in range(len(indices))]
    kept = _kept(sequences, indices, starts)
    return Batch(indices, torch.from_numpy(ids), torch.from_numpy(attention), None, *kept)


def pack(sequences: list[Sequence], indices: list[int]) -> Batch:
    """Return the chosen sequences one after another in one row."""
    lengths = [len(sequences[i].input_ids) for i in indices]
    ids = np.concatenate([sequences[i].input_ids for i in indices]).astype(np.int64)
    positions = np.concatenate([np.arange(n) for n in lengths])
    kept = _kept(sequences, indices, [0, *np.cumsum(lengths)[:-1].tolist()])
    return Batch(indices, torch.from_numpy(ids)[None], None, torch.from_numpy(positions)[None], *kept)


def whole(input_ids_BL: NDArray[np.int64], attention_mask_BL: NDArray[np.int64]) -> Batch:
    """Return rows that are padded on the right as a batch of which every position is kept, padding aside."""
    kept = np.flatnonzero(attention_mask_BL)
    rows, positions = np.divmod(kept, input_ids_BL.shape[1])
    arrays = (input_ids_BL, attention_mask_BL, kept, rows, positions)
    ids, mask, *places = (torch.from_numpy(array.astype(np.int64)) for array in arrays)
    return Batch(list(range(len(input_ids_BL))), ids, mask, None, *places)


def _kept(sequences: list[Sequence], indices: list[int], starts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``kept``, ``sequence_ids`` and ``positions`` of sequences that begin at these places."""
    positions = [sequences[i].positions() for i in indices]
    places = np.concatenate([start + own for start, own in zip(starts, positions, strict=True)])
    numbers = np.repeat([sequences[i].sequence_id for i in indices], [len(own) for own in positions])
    return tuple(torch.from_numpy(a.astype(np.int64)) for a in (places, numbers, np.concatenate(positions)))  # type: ignore[return-value]
