from itertools import chain, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from trainer.data.sampler import ShardWindowSampler
from trainer.run.distillation_trainer import EpochOrder

SIZES = [5, 1, 7, 3, 4, 8, 2, 6, 9, 3]
"""48 items; a multiple of the global batch, so that no batch needs to be filled up."""
GLOBAL_BATCH = 8


def order(seed=0, epoch=0, window=3, sizes=SIZES, step_items=1):
    sampler = ShardWindowSampler(sizes, window, seed, step_items)
    sampler.set_epoch(epoch)
    return list(sampler)


def loader(sampler, world_size, rank):
    """Return one rank's loader, as accelerate makes it for the Trainer."""
    whole = DataLoader(
        range(sum(sampler.shard_sizes)), batch_size=GLOBAL_BATCH // world_size, sampler=sampler, collate_fn=list
    )
    return prepare_data_loader(whole, num_processes=world_size, process_index=rank, put_on_device=False)


def global_batches(world_size, epoch, skipped=0, sizes=SIZES):
    """Return what all ranks read at each step, put together, after a stop in mid-epoch if some steps are skipped."""
    ranks = []
    for rank in range(world_size):
        sampler = ShardWindowSampler(sizes, 3, seed=0, step_items=GLOBAL_BATCH)
        batches = loader(sampler, world_size, rank)
        EpochOrder(sampler).on_epoch_begin(None, SimpleNamespace(epoch=epoch + skipped / 100), None)
        if skipped:
            batches = skip_first_batches(batches, skipped)
        batches.set_epoch(epoch)
        ranks.append(list(batches))
    return [list(chain.from_iterable(step)) for step in zip(*ranks, strict=True)]


@pytest.mark.parametrize("window", [1, 3, 100])
@pytest.mark.parametrize("epoch", [0, 1])
def test_every_item_comes_once_per_epoch(window, epoch):
    assert sorted(order(epoch=epoch, window=window)) == list(range(sum(SIZES)))
    assert len(ShardWindowSampler(SIZES, window, 0)) == sum(SIZES)


def test_the_order_depends_on_seed_and_epoch_alone():
    used = ShardWindowSampler(SIZES, 3, seed=5)
    list(used)
    np.random.seed(1)
    used.set_epoch(2)
    assert list(used) == list(used) == order(seed=5, epoch=2)


def test_epochs_and_seeds_differ():
    orders = {tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@pytest.mark.parametrize("window", [1, 2, 3, 4, 100])
def test_a_window_is_finished_before_the_next_shard_is_touched(window):
    shard_of = np.repeat(np.arange(len(SIZES)), SIZES)[order(window=window)]
    first_seen = list(dict.fromkeys(shard_of))
    window_of = {shard: first_seen.index(shard) // window for shard in first_seen}
    windows = [window_of[shard] for shard in shard_of]
    assert windows == sorted(windows)


def test_sequences_of_a_window_are_mixed_and_shards_change_windows():
    shard_of = np.repeat(np.arange(len(SIZES)), SIZES)
    first, second = ([int(shard_of[i]) for i in order(epoch=epoch)] for epoch in (0, 1))
    assert sum(a != b for a, b in pairwise(first)) > 2 * len(SIZES)
    windows = [set(list(dict.fromkeys(shards))[:3]) for shards in (first, second)]
    assert windows[0] != windows[1]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("skipped", [0, 1, 4])
def test_all_world_sizes_read_the_same_global_batches_and_continue_with_the_next(world_size, epoch, skipped):
    expected = np.reshape(order(epoch=epoch), (-1, GLOBAL_BATCH)).tolist()
    assert global_batches(world_size, epoch, skipped) == expected[skipped:]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_an_epoch_ends_with_a_whole_batch_on_any_number_of_ranks(world_size):
    sizes = [5, 7, 9]
    assert list(chain.from_iterable(global_batches(world_size, epoch=0, sizes=sizes))) == order(sizes=sizes)[:16]


def test_what_an_epoch_leaves_out_is_less_than_a_batch_and_differs_from_epoch_to_epoch():
    left_out = [set(range(21)) - set(order(sizes=[5, 7, 9], epoch=epoch, step_items=8)) for epoch in range(2)]
    assert [len(items) for items in left_out] == [5, 5]
    assert left_out[0] != left_out[1]
    assert len(order(sizes=[5], step_items=8)) == 5
