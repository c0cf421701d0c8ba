"""How far two correct computations of one value may lie apart: every numerical test takes its tolerance from here.

Processors and libraries add in different orders, with and without fused multiply-add, so a correct result
is known up to its rounding. Let u = eps / 2 be the unit roundoff of a type, and let n roundings lie
on the longest path from an input to a result, each relative to values of at most a given magnitude. Then

* in the worst case, all roundings in one direction, the error is at most n u / (1 - n u) times the magnitude;
* roundings that are independent of each other cancel: the error exceeds λ √n u times the magnitude
  with probability 2 exp(-λ² / 2) at most (Higham and Mary, 2019). With λ = 8 that is 3e-14, for each compared
  number.

Two results are compared, each with its own error, so twice the smaller of the two bounds is the tolerance:
``eps · min(n, 8 √n) · magnitude``. It grows with what is computed and never follows what happened to pass.

n is counted as follows. A sum of n products counts n. An elementwise function counts a few (``ELEMENTWISE``), as
vector libraries are exact to about two units in the last place. In half precision, libraries add in float32
and round once, so a sum counts 1. A model is the chain of its sums: see ``model_roundings``.

What this cannot know is the condition of the computation. Where an intermediate value is larger than the
result, as in a difference, its magnitude is the one to pass.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

CONFIDENCE = 8
"""λ: independent roundings add up to more than λ √n u once in 3e13 numbers."""

ELEMENTWISE = 4
"""Roundings of an elementwise function: 2 units in the last place, each two unit roundoffs."""

BACKWARD = 3
"""A gradient passes the model forwards, backwards, and once more through the recomputed or kept activations."""


def rounding(dtype: torch.dtype, roundings: float, magnitude: Any = 1.0) -> float:
    """Return the tolerance between two results.

    Args:
        dtype: The type in which both were computed, or the less exact of the two.
        roundings: Roundings on the longest path from an input to the result, such as the length of a sum.
        magnitude: Largest absolute value on that path: a number, an array or a tensor.
    """
    values = magnitude.detach().double().numpy() if isinstance(magnitude, Tensor) else magnitude
    largest = float(np.abs(values).max())
    return torch.finfo(dtype).eps * min(roundings, CONFIDENCE * math.sqrt(roundings)) * largest


def softmax_roundings(entries: int) -> int:
    """Return the roundings of a (log-)softmax: a difference, an exponential, a sum, a logarithm or a quotient."""
    return entries + 2 * ELEMENTWISE + 2


def model_roundings(config: Any, tokens: int, dtype: torch.dtype = torch.float32) -> int:
    """Return the roundings from an input to the logits of a transformer.

    Args:
        config: The model's configuration.
        tokens: Tokens of the longest sequence, over which attention adds.
        dtype: Of the model. In half precision a sum is rounded once.
    """
    width, heads = config.hidden_size, config.num_attention_heads
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width
    head_width = getattr(config, "head_dim", None) or width // heads
    norm = width + ELEMENTWISE
    attention = [norm, width, head_width, softmax_roundings(tokens), tokens, heads * head_width]
    feed_forward = [norm, width, ELEMENTWISE, inner]
    head = [norm, width, ELEMENTWISE]
    sums = (attention + feed_forward) * config.num_hidden_layers + head
    return sum(sums) if dtype in (torch.float32, torch.float64) else len(sums)


def model_rounding(config: Any, tokens: int, magnitude: Any = 1.0, dtype: torch.dtype = torch.float32) -> float:
    """Return the tolerance between two passes of a model over the same tokens in batches of other shapes.

    Args:
        config: The model's configuration.
        tokens: Tokens of the longest sequence.
        magnitude: Largest logit or hidden state: a number, an array or a tensor.
        dtype: Of the model.
    """
    return rounding(dtype, model_roundings(config, tokens, dtype), magnitude)


def gradient_rounding(
    config: Any, tokens: int, positions: int, vocabulary: int, dtype: torch.dtype = torch.float32
) -> float:
    """Return the tolerance of a gradient relative to its norm: forwards, the loss, backwards, and the batch's sum.

    Args:
        config: The model's configuration.
        tokens: Tokens of the longest sequence.
        positions: Positions of the whole batch, over which a matrix' gradient is a sum.
        vocabulary: Entries of the softmax in the loss.
        dtype: Of the model and its gradients.
    """
    ends = softmax_roundings(vocabulary) + positions
    exact = dtype in (torch.float32, torch.float64)
    return rounding(dtype, BACKWARD * model_roundings(config, tokens, dtype) + (ends if exact else 2))


def training_rounding(gradient: float, steps: int, learning_rate: float, largest_weight: float = 1.0) -> float:
    """Return the tolerance between the weights of two runs of stochastic gradient descent.

    Every step moves the weights by the learning rate times a gradient whose norm the trainer clips to 1, and
    rounds them once.

    Args:
        gradient: Relative tolerance of one gradient, from ``gradient_rounding``.
        steps: Steps of the optimizer.
        learning_rate: The largest on the way.
        largest_weight: Largest absolute weight.
    """
    return steps * learning_rate * gradient + rounding(torch.float32, steps, largest_weight)


def log_prob_rounding(entries: int, largest: Any, dtype: torch.dtype = torch.float32) -> float:
    """Return the tolerance of log-probabilities that are computed twice from the same logits.

    The logarithm of the sum is known up to the relative error of the sum; the difference ``logit - logsumexp`` is
    rounded to the step of its own magnitude.

    Args:
        entries: Of the softmax.
        largest: Largest absolute logit or log-probability: a number, an array or a tensor.
        dtype: In which the softmax is computed.
    """
    return rounding(dtype, softmax_roundings(entries)) + rounding(dtype, 3, largest)


def loss_rounding(config: Any, tokens: int, logits: Any) -> float:
    """Return the tolerance of log-probabilities, and of losses in nats, of a model in batches of other shapes.

    Args:
        config: The model's configuration, with ``vocab_size``.
        tokens: Tokens of the longest sequence.
        logits: Largest absolute logit: a number, an array or a tensor.
    """
    return model_rounding(config, tokens, logits) + log_prob_rounding(config.vocab_size, logits)


def adam_rounding(gradient: float, steps: int, learning_rate: float, largest_weight: float = 1.0) -> float:
    """Return the tolerance between the weights of two runs with Adam, as a mean over all weights.

    Adam divides a gradient by its own size. Where a gradient x is a multiple of the typical size, its error δ
    moves the weight by δ / x of a learning rate, up to 2 where the sign is lost. The values of x are spread
    evenly near 0, so the mean is ∫ δ / x dx from δ to 1, plus 2 δ: that is δ (ln(1 / δ) + 2). There is no
    useful bound of the largest difference.

    Args:
        gradient: Relative tolerance of one gradient, from ``gradient_rounding``.
        steps: Steps of the optimizer.
        learning_rate: The largest on the way.
        largest_weight: Largest absolute weight.
    """
    lost = gradient * (math.log(1 / gradient) + 2)
    return steps * learning_rate * lost + rounding(torch.float32, steps, largest_weight)


def assert_same_kept_tokens(found: np.ndarray, expected: np.ndarray, log_probs: np.ndarray, tolerance: float) -> None:
    """Assert that two computations keep the same tokens, but for tokens as likely as the least likely kept.

    Args:
        found: Ids (P, k), in any order.
        expected: Ids (P, k), in any order.
        log_probs: The teacher's log-probabilities (P, V).
        tolerance: Largest difference between two log-probabilities that rounding alone may exchange.
    """
    assert found.shape == expected.shape
    for one, other, truth in zip(found.tolist(), expected.tolist(), log_probs, strict=True):
        exchanged = sorted(set(one) ^ set(other))
        least = np.partition(truth, -len(one))[-len(one)]
        assert (np.abs(truth[exchanged] - least) <= tolerance).all(), exchanged
