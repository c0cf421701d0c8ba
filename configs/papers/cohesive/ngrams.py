"""What counting words predicts of masked ones: the lines that a masked language model has to beat.

Unigrams know how often a token is used. Bigrams know the token to the left as it was before masking, which a model sees
only if it was not masked too; so an expert above the bigrams has learned little of context. Both count the training
split of the mixed corpus, and are measured at the held-out positions. Probabilities are smoothed as

    p(w) = (c(w) + 1/2) / (N + V/2),   p(w | v) = (c(v w) + a p(w)) / (c(v) + a),  a = ``SMOOTHING``
"""

from collections.abc import Sequence as Sequences
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_tools.format.manifest import Split
from cache_tools.format.sequences import Sequence
from cache_tools.store.reader import Encoding

SMOOTHING = 20.0

# N: held-out positions, V: vocabulary


class Counted(NamedTuple):
    """Cross-entropies of the gold token at each held-out position, nats: (N,)."""

    unigram: NDArray[np.float64]
    bigram: NDArray[np.float64]


def counted(encoding: Encoding) -> Counted:
    """Return the cross-entropies of unigrams and bigrams; the order of positions is that of the cache."""
    training = [before_masking(sequence) for sequence in sequences_of(encoding, "train")]
    size = encoding.manifest.vocabulary_size
    counts_V = np.bincount(np.concatenate(training), minlength=size)
    pairs = np.concatenate([ids[:-1] * size + ids[1:] for ids in training])
    different, times = np.unique(pairs, return_counts=True)
    left_V = np.bincount(np.concatenate([ids[:-1] for ids in training]), minlength=size)
    held_out = sequences_of(encoding, "held_out")
    gold_N = np.concatenate([before_masking(s)[s.positions()] for s in held_out])
    before_N = np.concatenate([before_masking(s)[s.positions() - 1] for s in held_out])
    p_N = (counts_V[gold_N] + 0.5) / (counts_V.sum() + size / 2)
    keys_N = before_N * size + gold_N
    places_N = np.minimum(np.searchsorted(different, keys_N), len(different) - 1)
    pairs_N = np.where(different[places_N] == keys_N, times[places_N], 0)
    return Counted(-np.log(p_N), -np.log((pairs_N + SMOOTHING * p_N) / (left_V[before_N] + SMOOTHING)))


def sequences_of(encoding: Encoding, split: Split) -> Sequences[Sequence]:
    """Return the sequences of a split, in the cache's order."""
    return [sequence for shard in encoding.split_shards(split) for sequence in encoding.sequences(shard)]


def before_masking(sequence: Sequence) -> NDArray[np.int64]:
    """Return a sequence's ids before masking."""
    assert sequence.original_ids is not None
    return sequence.original_ids.astype(np.int64)
