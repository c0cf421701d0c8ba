"""Multinomial logistic regression, by which features are compared: words, or the states of a frozen model.

It is fitted until it converges, so that accuracies differ by the features alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

STEPS = 200
"""Steps of L-BFGS, at most."""

# N: texts, C: classes, D: features


class Classifier(NamedTuple):
    """A linear map from features to classes."""

    weight_DC: Tensor
    bias_C: Tensor

    def logits(self, features_ND: Tensor) -> Tensor:
        """Return the logits of each class: (N, C)."""
        return features_ND @ self.weight_DC + self.bias_C


def fitted(features_ND: Tensor, gold: Sequence[int], classes: int, decay: float = 1e-3) -> Classifier:
    """Fit a classifier: minimise mean cross-entropy + decay / 2 * |weight|^2.

    Features are divided by their mean deviation, so that one decay suits features of any size. They need no centring,
    which the bias, without a penalty, can undo; so sparse ones stay sparse.

    Args:
        features_ND: (N, D) float32, dense or sparse.
        gold: N classes, each in [0, C).
        classes: C.
        decay: Factor of the penalty, for the divided features.

    Returns:
        A classifier of features as they came.
    """
    scale = mean_deviation(features_ND) + 1e-9
    inputs_ND, gold_N = features_ND / scale, torch.tensor(gold)
    weight_DC = torch.zeros(features_ND.shape[1], classes, requires_grad=True)
    bias_C = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_DC, bias_C], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(inputs_ND @ weight_DC + bias_C, gold_N) + decay / 2 * weight_DC.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return Classifier(weight_DC.detach() / scale, bias_C.detach())


def mean_deviation(features_ND: Tensor) -> float:
    """Return the mean over features of their standard deviation over texts."""
    if not features_ND.is_sparse:
        return float(features_ND.double().std(dim=0, correction=0).mean())
    squares_ND = torch.sparse_coo_tensor(
        features_ND.indices(), features_ND.values() ** 2, features_ND.shape, is_coalesced=True, check_invariants=False
    )
    mean_D, square_D = (torch.sparse.sum(x.double(), dim=0).to_dense() / x.shape[0] for x in (features_ND, squares_ND))
    return float((square_D - mean_D**2).clamp(min=0).sqrt().mean())
