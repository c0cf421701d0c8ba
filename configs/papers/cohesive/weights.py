"""Weights of each rule, and the cross-entropy of each mixture, from the cache alone, before any student.

A mixture's probability of the gold token is the weighted mean of the experts' own, which the cache holds for
every position; so the figures are exact for every kind of target.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.format.manifest import Split
from cache_tools.store.reader import Encoding
from cache_tools.store.teacher import CachedTeacher
from configs.papers.cohesive.texts import domain_of
from trainer.config.mixture import SCALAR, MixtureConfig, Per
from trainer.losses.mixture_weights import teacher_weights

Floats = NDArray[np.float64]
GOLD, CALIBRATED = "gold likelihood", "sequence entropy, calibrated"
OTHERS = "likelihood of the other positions"
RULES = {
    "uniform": MixtureConfig(weights="fixed"),
    "entropy": MixtureConfig(weights="entropy"),
    "sequence entropy": MixtureConfig(weights="entropy", per="sequence"),
    "inverse loss": MixtureConfig(weights="inverse_loss"),
    GOLD: MixtureConfig(weights="gold_likelihood"),
}
"""Ways to weight the experts, by the names that the tables use; the last two use the gold token."""

# N: positions, T: experts, S: sequences


class Positions(NamedTuple):
    """The experts' scalars at the positions of a split."""

    matching_N: NDArray[np.int64]
    """Which expert's domain the position's document is of."""
    sequence_N: NDArray[np.int64]
    """Number of its sequence, from 0."""
    scalars: dict[str, Tensor]
    """(N, T) float32 nats: ``gold_logprob`` and ``entropy``."""


def positions_of(encoding: Encoding, experts: Sequence[str], split: Split = "held_out") -> Positions:
    """Read the experts' scalars of a split; each expert is named after its domain."""
    shards = encoding.split_shards(split)
    sequences = [sequence for shard in shards for sequence in encoding.sequences(shard)]
    lengths = [sequence.num_positions for sequence in sequences]
    matching = [experts.index(domain_of(sequence.group_id)) for sequence in sequences]
    teachers = [encoding.teacher(name) for name in experts]
    scalars = {
        name: torch.stack([torch.from_numpy(_scalar(teacher, name, shards)) for teacher in teachers], dim=1)
        for name in ("gold_logprob", "entropy")
    }
    return Positions(np.repeat(matching, lengths), np.repeat(np.arange(len(sequences)), lengths), scalars)


def weights(sample: Positions, rule: MixtureConfig, given: Sequence[float] | None = None) -> Floats:
    """Return what a rule gives each expert at each position: (N, T), summing to 1.

    Args:
        sample: The positions.
        rule: How the experts are weighted.
        given: Each expert's weight in the student file; by default all alike.
    """
    name, sample = SCALAR[rule.weights], AVERAGED[rule.per](sample)
    given_NT = torch.ones_like(sample.scalars["entropy"]) * (1 if given is None else torch.tensor(given))
    scalar_NT = None if name is None else sample.scalars[name]
    weights_NT = teacher_weights(rule.weights, given_NT, given_NT.bool(), scalar_NT, temperature=rule.temperature)
    return weights_NT.double().numpy()


def over_sequences(sample: Positions) -> Positions:
    """Return the same with each scalar replaced by its mean over the sequence, for weights by sequence."""
    lengths_S = np.bincount(sample.sequence_N)

    def mean(x_N: Floats) -> Floats:
        return (np.bincount(sample.sequence_N, x_N) / lengths_S)[sample.sequence_N]

    return _each_scalar(sample, mean)


def over_others(sample: Positions) -> Positions:
    """Return the same with each scalar replaced by its mean over the other positions of the sequence; 0 if alone."""
    others_N = np.bincount(sample.sequence_N)[sample.sequence_N] - 1

    def mean(x_N: Floats) -> Floats:
        sums_N = np.bincount(sample.sequence_N, x_N)[sample.sequence_N] - x_N
        return np.asarray(np.where(others_N > 0, sums_N, 0) / np.maximum(others_N, 1), np.float64)

    return _each_scalar(sample, mean)


def _each_scalar(sample: Positions, mean: Callable[[Floats], Floats]) -> Positions:
    means = {name: [mean(x_N) for x_N in x_NT.double().numpy().T] for name, x_NT in sample.scalars.items()}
    return sample._replace(
        scalars={name: torch.from_numpy(np.stack(expert_means, axis=1)) for name, expert_means in means.items()}
    )


AVERAGED: dict[Per, Callable[[Positions], Positions]] = {
    "position": lambda sample: sample,
    "sequence": over_sequences,
    "others": over_others,
}


def matching_weight(sample: Positions, weights_NT: Floats) -> Floats:
    """Return the weight of the expert of each position's domain: (N,)."""
    return weights_NT[np.arange(len(weights_NT)), sample.matching_N]


def sequence_means(sample: Positions, name: str) -> tuple[Floats, NDArray[np.int64]]:
    """Return a scalar's mean over each sequence, (S, T), and which expert's domain each sequence is of, (S,)."""
    _, first_S = np.unique(sample.sequence_N, return_index=True)
    return over_sequences(sample).scalars[name].double().numpy()[first_S], sample.matching_N[first_S]


def nats(sample: Positions, weights_NT: Floats) -> Floats:
    """Return -log of the mixture's probability of the gold token: (N,)."""
    gold_NT = sample.scalars["gold_logprob"].double().exp().numpy()
    mixed_N: Floats = -np.log((weights_NT * gold_NT).sum(axis=1))
    return mixed_N


def by_sequence(sample: Positions, values_N: Floats) -> Floats:
    """Return a number's sum over each sequence, scaled so that their mean is the mean over positions: (S,).

    These are the items of a bootstrap, as the positions of a sequence are alike.
    """
    sums_S = np.bincount(sample.sequence_N, values_N)
    return np.asarray(sums_S * (len(sums_S) / len(values_N)), np.float64)


def _scalar(teacher: CachedTeacher, name: str, shards: Sequence[int]) -> NDArray[np.float32]:
    return np.concatenate([teacher.scalar(name, *teacher.shard_rows(shard)) for shard in shards])
