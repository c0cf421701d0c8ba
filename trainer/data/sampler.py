"""The order of training: shards shuffled, then sequences inside a window of shards.

The order depends on (seed, epoch) alone. Ranks and loader workers take slices of this one
order, so a run may stop in the middle of an epoch and go on with another number of either.
The window keeps reading local: a reader holds ``window_shards`` shards instead of touching
every object for every batch.

An epoch is a whole number of steps: the last sequences of its order, fewer than a step takes, are left out, other ones
each time. A shorter last batch could not be cut into ranks and micro-batches in every way: some would get nothing,
and accelerate repeats sequences then, so that the result would depend on the number of ranks.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

Sizes = Sequence[int] | NDArray[np.int64]


class ShardWindowSampler(Sampler[int]):
    """Yields the indices of a sharded dataset, each at most once per epoch.

    Args:
        shard_sizes: Items of each shard; indices run through the shards in order.
        window_shards: Shards whose items are shuffled together.
        seed: With the epoch, determines the order.
        step_items: Items of a step, over all ranks and micro-batches; a dataset smaller than that is one short step.
    """

    def __init__(self, shard_sizes: Sizes, window_shards: int, seed: int, step_items: int = 1) -> None:
        self.shard_sizes, self.window_shards, self.seed, self.step_items = shard_sizes, window_shards, seed, step_items
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        items = int(np.sum(self.shard_sizes))
        return items // self.step_items * self.step_items or items

    def __iter__(self) -> Iterator[int]:
        return islice(self._order(), len(self))

    def _order(self) -> Iterator[int]:
        generator = np.random.Generator(np.random.PCG64([self.seed, self.epoch]))
        starts = np.concatenate([[0], np.cumsum(self.shard_sizes)]).astype(np.int64)
        shards = generator.permutation(len(self.shard_sizes))
        for first in range(0, len(shards), self.window_shards):
            window = shards[first : first + self.window_shards]
            indices = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in window])
            yield from generator.permutation(indices).tolist()
