"""The simulation of a capture equals closed forms, and a naive simulation shard by shard."""

import heapq
import math

import numpy as np
import pytest

from cache_tools.errors import ConfigError
from pipeline.planning.simulate import (
    Cluster,
    Uptimes,
    busiest_window,
    expected_shard_seconds,
    run_fixed,
    run_handed_out,
    simulate,
)

CLUSTERS = [
    pytest.param(Cluster(workers, hours * 3600, 200, spread, seed), id=f"{workers}-{hours}h-{spread}-{seed}")
    for workers, hours, spread, seed in (
        (1, 0.5, 0, 0),
        (3, 0.2, 0, 1),
        (4, 1, 0.3, 2),
        (7, 0.1, 0.1, 3),
        (3, 0.02, 0, 6),
        (20, 0.03, 0.1, 7),
        (40, 2, 0.2, 4),
        (40, math.inf, 0.2, 5),
    )
]


def drawn(cluster, shard_seconds=50.0):
    generator = np.random.Generator(np.random.PCG64(cluster.seed))
    seconds_N = shard_seconds / np.exp(cluster.speed_spread * generator.standard_normal(cluster.workers))
    uptimes = Uptimes(cluster, generator)
    uptimes.cover(10 * 24 * 3600)
    return seconds_N, uptimes


def attempt(seconds_N, uptimes, worker, now):
    """Return when a worker that is free begins, and ends, its next attempt at a shard, and whether it succeeds."""
    index = int(np.argmax(uptimes.ends_NF[worker] > now))
    begin = max(now, uptimes.starts_NF[worker, index])
    done, failure = begin + seconds_N[worker], uptimes.ends_NF[worker, index]
    return begin, min(done, failure), done <= failure


def naive_fixed(shards, seconds_N, uptimes):
    finish, failures, lost = [], 0, 0.0
    for worker in range(len(seconds_N)):
        now = 0.0
        for _ in range(worker, shards, len(seconds_N)):
            succeeded = False
            while not succeeded:
                begin, now, succeeded = attempt(seconds_N, uptimes, worker, now)
                failures, lost = failures + (not succeeded), lost + (now - begin) * (not succeeded)
        finish.append(now)
    return finish, failures, lost


def naive_handed_out(shards, seconds_N, uptimes):
    """One event for each attempt, in order of time; whoever finds no shard looks again at the next event."""
    queue, left, failures, lost, last = shards, shards, 0, 0.0, 0.0
    events = [(0.0, worker, "free", 0.0) for worker in range(len(seconds_N))]
    waiting = []
    while left:
        now, worker, what, begin = heapq.heappop(events)
        if what == "done":
            left, last = left - 1, now
        elif what == "lost":
            queue, failures, lost = queue + 1, failures + 1, lost + now - begin
        waiting.append(worker)
        free, waiting = waiting, []
        for one in free:
            begin, end, succeeded = attempt(seconds_N, uptimes, one, now)
            if begin > now:
                heapq.heappush(events, (begin, one, "free", 0.0))
            elif queue:
                queue -= 1
                heapq.heappush(events, (end, one, "done" if succeeded else "lost", begin))
            else:
                waiting.append(one)
    return last, failures, lost


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("shards", [1, 5, 39, 800])
def test_fixed_shares_equal_a_naive_simulation(cluster, shards):
    seconds_N, uptimes = drawn(cluster)
    found, (finish, failures, lost) = run_fixed(shards, seconds_N, uptimes), naive_fixed(shards, seconds_N, uptimes)
    np.testing.assert_allclose(found.finish_N, finish, rtol=1e-9)
    assert found.failures == failures
    assert found.lost_seconds == pytest.approx(lost, rel=1e-6)


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("shards", [1, 5, 39, 800])
def test_handed_out_shards_equal_a_naive_simulation(cluster, shards):
    seconds_N, uptimes = drawn(cluster)
    found, naive = run_handed_out(shards, seconds_N, uptimes), naive_handed_out(shards, seconds_N, uptimes)
    assert (found.seconds, found.failures) == (pytest.approx(naive[0], rel=1e-9), naive[1])
    assert found.lost_seconds == pytest.approx(naive[2], rel=1e-6)


@pytest.mark.parametrize(("shards", "workers"), [(1, 4), (8, 4), (9, 4), (7_629_395, 512)])
def test_without_failures_the_time_is_that_of_whole_rounds(shards, workers):
    fixed, handed_out, _ = simulate(shards, 6.5, Cluster(workers, restart_seconds=100))
    rounds = -(-shards // workers)
    for found in (fixed, handed_out):
        assert found.seconds == pytest.approx(100 + rounds * 6.5, rel=1e-12)
        assert (found.failures, found.lost_seconds) == (0, 0)


def test_a_failure_costs_half_a_shard_on_average():
    for found in simulate(200_000, 40, Cluster(16, seconds_between_failures=800, restart_seconds=60))[:2]:
        assert found.failures == pytest.approx(200_000 * math.expm1(40 / 800), rel=0.05)
        # half a shard, less the little by which early failures are likelier
        assert found.lost_seconds / found.failures == pytest.approx(20, rel=0.03)


@pytest.mark.parametrize("mean", [30.0, 100.0, 1000.0, math.inf])
def test_one_worker_takes_the_expected_time(mean):
    cluster = Cluster(1, mean, restart_seconds=25)
    expected = 20_000 * expected_shard_seconds(30, cluster)
    for found in simulate(20_000, 30, cluster)[:2]:
        assert found.seconds == pytest.approx(expected, rel=0.03)


def test_unequal_workers_hold_up_fixed_shares_but_not_shards_handed_out():
    cluster = Cluster(64, speed_spread=0.2)
    seconds_N, _ = drawn(cluster, 10.0)
    fixed, handed_out, _ = simulate(64_000, 10, cluster)
    assert fixed.seconds == pytest.approx(1000 * seconds_N.max())
    together = 64_000 / (1 / seconds_N).sum()
    assert together <= handed_out.seconds <= together + seconds_N.max()
    assert handed_out.idle_seconds < 64 * seconds_N.max() < fixed.idle_seconds


def test_the_busiest_minute_counts_commits_that_fall_together():
    seconds_N, uptimes = drawn(Cluster(5), 25.0)
    assert busiest_window(seconds_N, uptimes, 3600) == 5 * 3  # of 2.4 on average
    seconds_N, uptimes = drawn(Cluster(5), 100.0)
    assert busiest_window(seconds_N, uptimes, 3600) == 5


def test_the_same_seed_gives_the_same_and_another_seed_another():
    runs = [simulate(5000, 30, Cluster(8, 3600, 60, 0.1, seed)) for seed in (0, 0, 1)]
    assert runs[0][1].seconds == runs[1][1].seconds != runs[2][1].seconds


@pytest.mark.parametrize("mean", [1.0, 30.0])
def test_refuses_a_cluster_that_would_never_finish(mean):
    with pytest.raises(ConfigError, match=r"fail too often .*positions_per_shard"):
        simulate(1_000_000, 3600, Cluster(4, mean, restart_seconds=60))
