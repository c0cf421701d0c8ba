"""How much an error of a hidden state matters: the Fisher metric of a head, the KL itself, the scale of a channel.

The head turns a state h into the distribution p = softmax(logits(h)). For a small error e of h,

    KL(p(h) || p(h + e)) = e @ G(h) @ e / 2 + ...,    G(h) = J.T @ (diag p - p p.T) @ J

with J the derivative of the logits (V, d). Its mean over sample states is the metric in which
``hidden_states.py`` makes the quantisation noise white. Nothing of size (n, V, d) is ever made: with
s the derivative of the softcap and ``m = W.T @ (s p)``,

    mean G = scale**2 * (W.T @ diag(mean s**2 p) @ W - mean m m.T)

Cost: 4 n V d operations for the rows and 2 V d**2 for the matrix. With n = 4,096, d = 4,096 and
V = 150,000 that is 1.0e13 + 0.5e13: seconds on a GPU, which ``pipeline.capture.hidden_budget`` uses, and
minutes on a laptop, where this module does.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

CHUNK_VALUES = 4_000_000
"""Logits computed at a time."""

OWN_FLOOR = 1e-3
"""A channel's scale is at least this share of its own rms."""

TYPICAL_FLOOR = 1e-2
"""A channel's scale is at least this share of the median channel's rms."""


@dataclass(frozen=True)
class Head:
    """What ``head.safetensors`` holds.

    Attributes:
        weight: (V, d) float32.
        bias: (V,) float32, or None.
        logit_scale: Factor of the product.
        softcap: Bound of the logits; 0 for none.
    """

    weight: Floats
    bias: Floats | None = None
    logit_scale: float = 1.0
    softcap: float = 0.0

    def log_probs(self, states: Floats) -> tuple[Floats, Floats]:
        """Return log-probabilities and the derivative of the softcap, both (n, V), of states (n, d)."""
        z = states @ self.weight.T
        if self.bias is not None:
            z += self.bias
        z *= np.float32(self.logit_scale)
        slope = np.ones_like(z)
        if self.softcap:
            bounded = np.tanh(z / np.float32(self.softcap))
            z, slope = bounded * np.float32(self.softcap), 1 - bounded**2
        z -= z.max(axis=1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=1, keepdims=True)), slope

    @property
    def chunk_rows(self) -> int:
        """Rows of logits to compute at a time."""
        return max(1, CHUNK_VALUES // len(self.weight))


def fisher_metric(head: Head, states: Floats) -> NDArray[np.float64]:
    """Return the mean metric G (d, d) of a head over states (n, d)."""
    num_values, width = head.weight.shape
    diagonal = np.zeros(num_values)
    outer = np.zeros((width, width))
    for start in range(0, len(states), head.chunk_rows):
        log_p, slope = head.log_probs(states[start : start + head.chunk_rows])
        sp = np.exp(log_p) * slope
        diagonal += (sp * slope).sum(axis=0, dtype=np.float64)
        means = (sp @ head.weight).astype(np.float64)
        outer += means.T @ means
    squares = _weighted_gram(head, diagonal)
    return (squares - outer) * (head.logit_scale**2 / len(states))


def mean_kl(head: Head, true: Floats, decoded: Floats) -> float:
    """Return the mean over rows of KL(p(true) || p(decoded)), in nats; both are (n, d)."""
    total = 0.0
    for start in range(0, len(true), head.chunk_rows):
        log_p = head.log_probs(true[start : start + head.chunk_rows])[0].astype(np.float64)
        log_q = head.log_probs(decoded[start : start + head.chunk_rows])[0].astype(np.float64)
        p = np.exp(log_p)
        total += float((p * (log_p - log_q) - p + np.exp(log_q)).sum())  # p and q sum to one only nearly
    return total / len(true)


def channel_scales(states: Floats) -> NDArray[np.float64]:
    """Return the spread of each channel of states (n, d), (d,) above zero: what its error is relative to.

    The standard deviation, which is at most the rms: a channel that sits at 1000 and moves by 100
    says what it has to say by moving. Channels that hardly move get the floors above.
    """
    means = states.mean(axis=0, dtype=np.float64)
    squares = np.zeros(states.shape[1])
    for start in range(0, len(states), 2048):  # a shard in float64 would be large
        squares += np.square(states[start : start + 2048] - means).sum(axis=0)
    spread = np.sqrt(squares / len(states))
    rms = np.hypot(spread, means)
    typical = float(np.median(rms)) or float(np.sqrt(np.square(rms).mean())) or 1.0
    scales: NDArray[np.float64] = np.maximum(spread, np.maximum(OWN_FLOOR * rms, TYPICAL_FLOOR * typical))
    return scales


def _weighted_gram(head: Head, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return W.T @ diag(weights) @ W in float64, a block of the vocabulary at a time."""
    rows = max(1, CHUNK_VALUES // head.weight.shape[1])
    gram = np.zeros((head.weight.shape[1],) * 2)
    for start in range(0, len(weights), rows):
        block = head.weight[start : start + rows].astype(np.float64)
        gram += block.T @ (block * weights[start : start + rows, None])
    return gram
