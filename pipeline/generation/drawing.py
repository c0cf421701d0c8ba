"""Which token is drawn: by a number for each token of the vocabulary, fixed before the model runs.

The number depends on (seed, id of the prompt, number of the sample, position, token) and on nothing else: a 64-bit
hash, computed with whole numbers, so that it is the same on every device. As Gumbel noise it is added to the logits,
and the largest sum wins, which draws from their softmax. If rounding moves a distribution by a total variation of d,
the draw changes with a probability of at most about 2 d. So a completion depends on other prompts, on their order and
on the size of batches only where these change the rounding of logits; ``docs/results/generation.md`` counts how often
that was. After the first token that differs, a completion is another one.

Cost: a dozen operations on (B, V) whole numbers for each step.

Rejected: the generator of torch, as ``do_sample`` uses it, which gives every completion of a batch other numbers when
one prompt is added or a run is continued. One number for each position, compared with the summed probabilities, is
cheaper, but rounding can change the draw at each of the sums: of 200 completions by the demo's teacher, 2 in float32
and 38 in bfloat16 differed between batches of 1 and of 32. With this noise 0 and 12 do.
"""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cache_tools.format.manifest import Sampling

# B: completions of a batch, V: vocabulary

MULTIPLIERS = (-4658895280553007687, -7723592293110705685)
"""Odd 64-bit constants of the finaliser of splitmix64, 0xbf58476d1ce4e5b9 and 0x94d049bb133111eb."""

POSITION_STEP, TOKEN_STEP = -7046029254386353131, 6364136223846793005
"""Odd 64-bit constants that set the numbers of positions and tokens apart."""


def draw_key(seed: int, prompt: str, sample: int) -> int:
    """Return what a completion's draws depend on besides position and token, as a signed 64-bit number."""
    digest = hashlib.sha256(f"{seed}\0{prompt}\0{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def gumbel_noise(keys_B: Tensor, position: int, vocabulary: int) -> Tensor:
    """Return the noise of a position: (B, V) float64, independent draws of the standard Gumbel distribution.

    Args:
        keys_B: int64, of :func:`draw_key`.
        position: Number of the new token, from 0.
        vocabulary: V.
    """
    tokens_V = torch.arange(vocabulary, device=keys_B.device)
    states_B = _mixed(keys_B + position * torch.full_like(keys_B, POSITION_STEP))
    numbers_BV = _mixed(states_B[:, None] + tokens_V * TOKEN_STEP)
    uniform_BV = (_shifted(numbers_BV, 11).double() + 0.5) * 2.0**-53
    return -torch.log(-torch.log(uniform_BV))


def _mixed(numbers: Tensor) -> Tensor:
    """Return 64-bit hashes of 64-bit numbers; products wrap."""
    first, second = MULTIPLIERS
    numbers = (numbers ^ _shifted(numbers, 30)) * first
    numbers = (numbers ^ _shifted(numbers, 27)) * second
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shift to the right as if the numbers had no sign."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)


class ExistingTokens(LogitsProcessor):
    """Rules out ids that have no token: the logits of many models are wider than their vocabulary.

    Args:
        has_token: (n,) bool for each id up to the highest that has a token.
    """

    def __init__(self, has_token: NDArray[np.bool_]) -> None:
        self._has_token = torch.from_numpy(has_token)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores (B, V), minus infinity where there is no token."""
        missing_V = torch.ones(scores.shape[-1], dtype=torch.bool)
        count = min(len(self._has_token), len(missing_V))
        missing_V[:count] = ~self._has_token[:count]
        return scores.masked_fill(missing_V.to(scores.device), -torch.inf)


class DrawnToken(LogitsProcessor):
    """Adds the noise, so that the greedy search of ``generate`` takes the token that is drawn.

    Args:
        keys_B: For each completion, of :func:`draw_key`.
        prompt_tokens: Tokens of the padded prompts.
    """

    def __init__(self, keys_B: Tensor, prompt_tokens: int) -> None:
        self._keys_B, self._prompt_tokens = keys_B, prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores (B, V) with noise, float64: in float32 the largest sums could be equal."""
        position = input_ids.shape[1] - self._prompt_tokens
        return scores.double() + gumbel_noise(self._keys_B.to(scores.device), position, scores.shape[1])


def processors(
    sampling: Sampling, has_token: NDArray[np.bool_], keys_B: Tensor, prompt_tokens: int
) -> LogitsProcessorList:
    """Return what turns the logits of a step into scores, the highest of which is the token that is drawn."""
    steps = LogitsProcessorList([ExistingTokens(has_token)])
    if sampling.temperature == 0:
        return steps
    if sampling.temperature != 1:
        steps.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    steps.append(DrawnToken(keys_B, prompt_tokens))
    return steps
