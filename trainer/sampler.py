"""The order of training: shards shuffled, then sequences inside a window of shards.

The order depends on (seed, epoch) alone. Ranks and loader workers take slices of this one
order, so a run may stop in the middle of an epoch and go on with another number of either.
The window keeps reading local: a reader holds ``window_shards`` shards instead of touching
every object for every batch.
"""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class ShardWindowSampler(Sampler[int]):
    """Yields every index of a sharded dataset once per epoch.

    Args:
        shard_sizes: Items of each shard; indices run through the shards in order.
        window_shards: Shards whose items are shuffled together.
        seed: With the epoch, determines the order.
    """

    def __init__(self, shard_sizes: list[int], window_shards: int, seed: int) -> None:
        self.shard_sizes, self.window_shards, self.seed = shard_sizes, window_shards, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self.shard_sizes)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.Generator(np.random.PCG64([self.seed, self.epoch]))
        starts = np.cumsum([0, *self.shard_sizes])
        shards = generator.permutation(len(self.shard_sizes))
        for first in range(0, len(shards), self.window_shards):
            window = shards[first : first + self.window_shards]
            indices = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in window])
            yield from generator.permutation(indices).tolist()
