"""Draws from a teacher's distribution that depend on (seed, sequence, position) alone.

A sampled target must not depend on its batch, on the number of workers or on the order of shards. So there is no random
generator with a state: each uniform number is a hash of the seed, the sequence, the position and its own number
(splitmix64, Steele et al. 2014), computed on the teacher's device. A draw inverts the cumulative distribution in
float64, and a token of probability zero is never drawn.
"""

import torch
from torch import Tensor

# N: positions of a chunk, V: vocabulary, S: draws per position

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def position_keys(seed: int, sequence_ids_N: Tensor, positions_N: Tensor) -> Tensor:
    """Return one 64-bit key per position.

    Args:
        seed: Seed of the capture.
        sequence_ids_N: (N,) int64.
        positions_N: (N,) int64, token index in the sequence.

    Returns:
        (N,) int64.
    """
    key_N = _mixed(torch.full_like(sequence_ids_N, seed) + _GOLDEN)
    return _mixed(_mixed(key_N ^ sequence_ids_N) + _GOLDEN ^ positions_N)


def uniforms(keys_N: Tensor, draws: int) -> Tensor:
    """Return numbers in [0, 1) that follow from the keys alone: (N, S) float64."""
    counter_S = torch.arange(1, draws + 1, device=keys_N.device) * _GOLDEN
    bits_NS = _mixed(keys_N[:, None] + counter_S)
    return _shifted(bits_NS, 11).double() * 2.0**-53


def draw(probabilities_NV: Tensor, keys_N: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Draw tokens with replacement.

    Args:
        probabilities_NV: (N, V), not negative, of any positive sum.
        keys_N: (N,) int64 from :func:`position_keys`.
        draws: S.

    Returns:
        Distinct token ids (N, S) int64, ascending, and how often each was drawn (N, S) int64;
        unused slots, at the end of a row, have id 0 and count 0.
    """
    cumulative_NV = probabilities_NV.double().cumsum(dim=1)
    points_NS = uniforms(keys_N, draws) * cumulative_NV[:, -1:]
    found_NS = torch.searchsorted(cumulative_NV, points_NS, right=True)
    last_N1 = torch.searchsorted(cumulative_NV, cumulative_NV[:, -1:].contiguous())  # where rounding reached the sum
    return _counted(torch.minimum(found_NS, last_N1).sort(dim=1).values)


def _counted(sorted_NS: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct values of each ascending row and their counts."""
    new_NS = torch.ones_like(sorted_NS)
    new_NS[:, 1:] = sorted_NS[:, 1:] != sorted_NS[:, :-1]
    slots_NS = new_NS.cumsum(dim=1) - 1
    counts_NS = torch.zeros_like(sorted_NS).scatter_add_(1, slots_NS, torch.ones_like(sorted_NS))
    return torch.zeros_like(sorted_NS).scatter_(1, slots_NS, sorted_NS), counts_NS


def _mixed(bits: Tensor) -> Tensor:
    """Return splitmix64's finaliser of 64-bit numbers; products wrap around, as they should."""
    bits = (bits ^ _shifted(bits, 30)) * _FIRST
    bits = (bits ^ _shifted(bits, 27)) * _SECOND
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shift right as if the numbers had no sign."""
    shifted: Tensor = (bits >> by) & (2 ** (64 - by) - 1)
    return shifted
