"""A head in numpy: the Fisher metric and the KL that ``pipeline.capture.hidden_budget`` computes with torch.

The head turns a state h into the distribution p = softmax(logits(h)). For a small error e of h,

    KL(p(h) || p(h + e)) = e @ G(h) @ e / 2 + ...,    G(h) = J.T @ (diag p - p p.T) @ J

with J the derivative of the logits (V, d). With s the derivative of the softcap and ``m = W.T @ (s p)``,

    mean G = scale**2 * (W.T @ diag(mean s**2 p) @ W - mean m m.T)
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

CHUNK_VALUES = 4_000_000
"""Logits computed at a time."""


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


def _weighted_gram(head: Head, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return W.T @ diag(weights) @ W in float64, a block of the vocabulary at a time."""
    rows = max(1, CHUNK_VALUES // head.weight.shape[1])
    gram = np.zeros((head.weight.shape[1],) * 2)
    for start in range(0, len(weights), rows):
        block = head.weight[start : start + rows].astype(np.float64)
        gram += block.T @ (block * weights[start : start + rows, None])
    return gram
