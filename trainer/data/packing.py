"""Packing: the sequences of a batch one after another in rows, instead of one padded row each.

Packing changes how a batch is laid out, and not which sequences are in it. So the order still depends on (seed,
epoch) alone, and neither world
size, loader workers nor a stop in mid-epoch change which sequences share a step. No sequence is
cut, none is dropped, and the loss and its gradients are those of padding, up to rounding.

Positions start again with each sequence. transformers keeps sequences apart by that, where a model
gets neither an attention mask nor a key-value cache; padding at the end of a row is one more
sequence, which no other sees. :func:`check_packing` asks the model itself whether it does so.

Cost: attention of a row of W tokens costs W squared where it works with masks (``sdpa``, ``eager``), so rows of the
longest sequence's length are best there. Measured on one CPU core, a step of the demo's student beside padding
(``benchmarks/loader.py``): batches of 8, 16 % padding, rows of 256: 0.96, of 512: 1.16, of 1,024: 1.60, one row: 1.82;
batches of 32: 0.85; lengths that differ more, 66 % padding: 0.59. Flash attention skips what a mask would hide, and
keeps sequences apart in a single row only: ``row_tokens: null``, which has no padding at all.

Rejected: filling a row with whatever comes next, across batches. Its steps hold equally many tokens, but which
sequences share a step would then depend on lengths, and continuing in mid-epoch would mean replaying the packing.
"""

import torch
from torch import Tensor

from cache_tools.mappings import ModelInputs
from trainer.data.binding import IGNORED, target_fingerprints
from trainer.data.cached_sequences import Example, collate

FILL = {"input_ids": 0, "attention_mask": 0, "gold_ids": IGNORED}
"""The padding at the end of rows in each tensor that has one entry for every token."""

# B: sequences, L: longest of them, R: rows, W: tokens of the fullest row, T: tokens of the batch, D: width


def pack(examples: list[Example], row_tokens: int | None) -> dict[str, Tensor]:
    """Lay examples out in rows, as a collator.

    Args:
        examples: The sequences of a batch.
        row_tokens: Tokens that a row may hold; more if one sequence alone has more. None: all in one row.

    Returns:
        What ``data.collate`` returns, with (R, W) instead of (B, L), rows of predictions in
        the order of the packed gold tokens, and ``position_ids``, (R, W) int64. ``attention_mask`` tells
        tokens from padding and is not for the model, see :func:`model_inputs`.
    """
    lengths = [len(example.input_ids) for example in examples]
    rows = first_fit_decreasing(lengths, sum(lengths) if row_tokens is None else row_tokens)
    batch = collate([examples[i] for row in rows for i in row])
    position_ids, mask = row_layout([[lengths[i] for i in row] for row in rows])
    padded_mask = batch["attention_mask"].bool()
    packed = {name: laid_out(batch[name][padded_mask], mask, fill) for name, fill in FILL.items()}
    bound = {"position_ids": position_ids, "target_fingerprints": target_fingerprints(packed)}
    return batch | packed | bound


def first_fit_decreasing(lengths: list[int], row_tokens: int) -> list[list[int]]:
    """Put each sequence, the longest first, into the first row with room for it.

    At most 11/9 of the fewest rows possible, and 6/9 of a row (Dósa 2007).

    Args:
        lengths: Tokens of each sequence.
        row_tokens: Tokens that a row may hold; more if one sequence alone has more.

    Returns:
        The sequences of each row, as indices into ``lengths``.
    """
    row_tokens = max(row_tokens, *lengths)
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((row for row, free in enumerate(room) if free >= lengths[index]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(row_tokens)
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


def row_layout(lengths: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return ``position_ids`` and ``attention_mask``, both (R, W) int64, of rows of sequences of these lengths."""
    fills = [sum(row) for row in lengths]
    width = max(fills)
    positions = [
        torch.cat([torch.arange(n) for n in (*row, width - fill)]) for row, fill in zip(lengths, fills, strict=True)
    ]
    return torch.stack(positions), (torch.arange(width) < torch.tensor(fills)[:, None]).long()


def laid_out(values_T: Tensor, mask_RW: Tensor, fill: int) -> Tensor:
    """Return (R, W) with the values where the mask is 1, row by row."""
    laid_out = torch.full_like(mask_RW, fill)
    laid_out[mask_RW.bool()] = values_T
    return laid_out


def model_inputs(input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None) -> ModelInputs:
    """Return a model's arguments for a batch; with ``position_ids``, for a packed one."""
    if position_ids is None:
        return {"input_ids": input_ids, "attention_mask": attention_mask}
    return {"input_ids": input_ids, "attention_mask": None, "position_ids": position_ids, "use_cache": False}
