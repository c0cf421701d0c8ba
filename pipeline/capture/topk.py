"""The k largest values of long rows, read once.

``torch.topk`` costs three times what the whole softmax costs on a CPU, and several passes on a GPU. But a row cut into
blocks has its k largest values in the k blocks with the largest maxima, so one pass that takes the maxima selects the
few blocks to search. These blocks are searched in the same way once more, now across blocks, which is faster for the
short rows that remain.

The values are always those of ``torch.topk``; of several values equal to the k-th, any may be kept. Rejected: comparing
with a threshold, which selects a different number of values in each row, so that a GPU would have to synchronise.
"""

import torch
from torch import Tensor

# N: rows, V: their length, B: length of a block, k: values wanted

BLOCKS_PER_K = 8
"""Blocks that a row is cut into for each wanted value."""

SECOND_BLOCK = 8
"""Length of the blocks of the second search."""


def top_k(values_NV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest values of each row and where they stand.

    Args:
        values_NV: (N, V).
        k: 1 to V.

    Returns:
        Values (N, k), falling, and indices (N, k) int64.
    """
    length = values_NV.shape[1]
    width = length // (BLOCKS_PER_K * k)
    if width <= SECOND_BLOCK:
        top = values_NV.topk(k, dim=1)
        return top.values, top.indices
    whole = length - length % width  # what lies behind the last whole block is searched in any case
    blocks_Nk, inside_NC = _best_blocks(values_NV[:, :whole].reshape(len(values_NV), -1, width), k)
    candidates_NC = inside_NC if whole == length else torch.cat([inside_NC, values_NV[:, whole:]], dim=1)
    columns_Nc = _best_columns(candidates_NC, k)
    top = candidates_NC.gather(1, columns_Nc).topk(k, dim=1)
    columns_Nk = columns_Nc.gather(1, top.indices)
    block_Nk = blocks_Nk.gather(1, (columns_Nk // width).clamp(max=k - 1))
    behind_Nk = columns_Nk - k * width
    return top.values, torch.where(behind_Nk < 0, block_Nk * width + columns_Nk % width, whole + behind_Nk)


def _best_blocks(blocks_NnB: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return which k blocks have the largest maxima, (N, k), and what they hold, (N, k * B)."""
    best_Nk = blocks_NnB.amax(dim=2).topk(k, dim=1, sorted=False).indices
    rows_N1, count = torch.arange(len(best_Nk), device=best_Nk.device)[:, None], blocks_NnB.shape[1]
    if not blocks_NnB.is_contiguous():
        return best_Nk, blocks_NnB[rows_N1, best_Nk].flatten(1)
    held = blocks_NnB.flatten(0, 1).index_select(0, (rows_N1 * count + best_Nk).flatten())  # three times as fast
    return best_Nk, held.view(len(best_Nk), -1)


def _best_columns(values_NC: Tensor, k: int) -> Tensor:
    """Return columns of each row that the k largest values are among: (N, c)."""
    count = values_NC.shape[1] // SECOND_BLOCK  # blocks are every count-th column
    whole = count * SECOND_BLOCK
    maxima_Nn = values_NC[:, :whole].reshape(len(values_NC), SECOND_BLOCK, count).amax(dim=1)
    best_Nk = maxima_Nn.topk(k, dim=1, sorted=False).indices
    steps_B1 = torch.arange(0, whole, count, device=best_Nk.device)[:, None]
    columns_Nc = (best_Nk[:, None, :] + steps_B1).flatten(1)
    if whole == values_NC.shape[1]:
        return columns_Nc
    behind = torch.arange(whole, values_NC.shape[1], device=best_Nk.device)
    return torch.cat([columns_Nc, behind.expand(len(values_NC), -1)], dim=1)
