"""Several caches as one dataset, and the order in which they are mixed.

An epoch has about as many sequences as all caches together. Each cache gives its share of them, and of any stretch
of the order too: the next sequence always comes from the cache that is furthest behind its share, so every
batch holds the caches in nearly the same proportion. Within a cache the order is the sampler's own
(``sampler.py``), one pass after another: an epoch goes on where the one before stopped, so no sequence is seen
twice before every other of its cache was seen once. With shares by size an epoch is one pass over each.

The order depends on (seed, epoch) alone, so ranks, loader workers and a stop in mid-epoch change nothing. A reader
holds a window of shards of every cache. Rejected: drawing the cache of each sequence by chance, which
makes batches noisier for nothing; ending an epoch with the smallest cache, which never shows the largest one whole.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, islice

import numpy as np
from torch.utils.data import ConcatDataset, Sampler

from cache_tools.codecs.registry import EMPTY_ID, Targets
from trainer.data.binding import Binding
from trainer.data.cached_sequences import CachedSequences, Example
from trainer.data.sampler import ShardWindowSampler, Sizes


class SeveralCaches(ConcatDataset[Example]):
    """The sequences of several caches, one cache after another, all with the same number of slots.

    Args:
        parts: The training sequences of each.
        shares: The share of each in an epoch; None for its number of sequences.
    """

    def __init__(self, parts: Sequence[CachedSequences], shares: Sequence[float] | None = None) -> None:
        super().__init__(parts)
        self.parts = tuple(parts)
        self.per_epoch = sequences_per_epoch([len(part) for part in parts], shares)
        self._slots = max(part.teacher.codec.k for part in parts)

    @property
    def binding(self) -> Binding:
        """Which batches a loss on these sequences takes: of any of the caches."""
        return Binding(frozenset(part.source for part in self.parts), self.parts[0].binding.columns)

    def __getitem__(self, index: int) -> Example:
        example: Example = super().__getitem__(index)  # type: ignore[no-untyped-call]
        return widened(example, self._slots)


class MixedOrder(Sampler[int]):
    """Yields indices of ``SeveralCaches``, see the module.

    Args:
        shard_sizes: Sequences of each shard, for each cache.
        per_epoch: Sequences that each cache gives to an epoch.
        window_shards: Shards of a cache whose sequences are shuffled together.
        seed: With the epoch, determines the order.
        step_items: Sequences of a step; an epoch is a whole number of steps, as in ``sampler.py``.
    """

    def __init__(
        self,
        shard_sizes: Sequence[Sizes],
        per_epoch: Sequence[int],
        window_shards: int,
        seed: int,
        step_items: int = 1,
    ) -> None:
        self._orders = [ShardWindowSampler(sizes, window_shards, seed + i) for i, sizes in enumerate(shard_sizes)]
        self._starts = [0, *accumulate(int(np.sum(sizes)) for sizes in shard_sizes)]
        self._per_epoch = in_whole_steps(per_epoch, step_items)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self._per_epoch)

    def __iter__(self) -> Iterator[int]:
        streams = [
            islice(passes(order, self.epoch * number // len(order)), self.epoch * number % len(order), None)
            for order, number in zip(self._orders, self._per_epoch, strict=True)
        ]
        for part in interleaved(self._per_epoch):
            yield self._starts[part] + next(streams[part])


def sequences_per_epoch(sizes: Sequence[int], shares: Sequence[float] | None) -> list[int]:
    """Return how many sequences each cache gives to an epoch: its share of all sequences, rounded, at least 1."""
    if shares is None:
        return list(sizes)
    return [max(1, round(sum(sizes) * share / sum(shares))) for share in shares]


def in_whole_steps(numbers: Sequence[int], step_items: int) -> list[int]:
    """Return the numbers less what does not fill a step, taken from each in proportion; all of what fills none."""
    whole = sum(numbers) // step_items * step_items or sum(numbers)
    taken = Counter(islice(interleaved(numbers), whole))
    return [taken[i] for i in range(len(numbers))]


def interleaved(numbers: Sequence[int]) -> Iterator[int]:
    """Yield each i ``numbers[i]`` times, spread evenly: the next is the one that is furthest behind its share."""
    taken = [0] * len(numbers)
    for _ in range(sum(numbers)):
        next_cache = min((i for i, number in enumerate(numbers) if number), key=lambda i: (taken[i] + 0.5) / numbers[i])
        taken[next_cache] += 1
        yield next_cache


def passes(order: ShardWindowSampler, epoch: int) -> Iterator[int]:
    """Yield a sampler's epochs one after another, from one on."""
    while True:
        order.set_epoch(epoch)
        yield from order
        epoch += 1


def widened(example: Example, slots: int) -> Example:
    """Return an example with empty slots at the end of each row."""
    targets = example.targets
    missing = ((0, 0), (0, slots - targets.ids.shape[1]))
    ids = np.pad(targets.ids, missing, constant_values=EMPTY_ID)
    log_probs = np.pad(targets.log_probs, missing, constant_values=-np.inf)
    return replace(example, targets=Targets(ids, log_probs, targets.log_left_out))
