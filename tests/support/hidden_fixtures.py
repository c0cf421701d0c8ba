"""Small states and heads, and the definitions that hidden states are tested against."""

import numpy as np
import torch

from numpy_head import Head
from pipeline.capture import hidden_budget

WIDTH, VOCABULARY = 24, 101


def states_of(rows: int, seed: int = 0, width: int = WIDTH) -> np.ndarray:
    """Correlated channels of unequal size, with a mean."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(width, width)) / width**0.5
    return (rng.normal(size=(rows, width)) @ mixing * np.geomspace(1, 5, width) + 0.5).astype(np.float32)


def head_of(softcap: float = 0.0, scale: float = 1.0, bias: bool = False, seed: int = 1) -> Head:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(VOCABULARY, WIDTH)).astype(np.float32) * np.geomspace(0.02, 1, WIDTH, dtype=np.float32)
    return Head(weight, rng.normal(size=VOCABULARY).astype(np.float32) if bias else None, scale, softcap)


HEADS = [head_of(), head_of(bias=True), head_of(softcap=3.0, scale=0.5, bias=True)]


def exact_log_probs(head: Head, states: np.ndarray) -> np.ndarray:
    z = states.astype(np.float64) @ head.weight.T.astype(np.float64)
    z = head.logit_scale * (z + (0 if head.bias is None else head.bias))
    z = head.softcap * np.tanh(z / head.softcap) if head.softcap else z
    return z - np.logaddexp.reduce(z, axis=1, keepdims=True)


def exact_kl(head: Head, true: np.ndarray, decoded: np.ndarray) -> float:
    """The definition, in float64."""
    log_p, log_q = exact_log_probs(head, true), exact_log_probs(head, decoded)
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())


def torch_head(head: Head, dtype: torch.dtype = torch.float32) -> hidden_budget.OutputHead:
    bias = None if head.bias is None else torch.from_numpy(head.bias).to(dtype)
    return hidden_budget.OutputHead(torch.from_numpy(head.weight).to(dtype), bias, head.logit_scale, head.softcap)


def entropy_bits(stored: np.ndarray) -> float:
    """Return the mean entropy of the columns."""
    total = 0.0
    for column in stored.T:
        share = np.unique(column, return_counts=True)[1] / len(column)
        total -= float((share * np.log2(share)).sum())
    return total / stored.shape[1]
