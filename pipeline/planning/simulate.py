"""A capture on many workers that fail, simulated: how long it takes and what is read twice. Pure numpy.

Model: each worker first loads the teacher (``restart_seconds``), then reads one shard after
another, each in the same time. It fails after an exponential up-time, loses the shard that it was
reading, and runs again after ``restart_seconds``. A shard counts as committed when it has been read:
writing overlaps the next shard, so a real failure may lose up to one shard more.

Two ways to share shards, on the very same failures. ``fixed``: rank r has shards r, r + N, …, and the worker that fails
most determines the end. ``handed out``: a free worker takes the next shard, and a lost shard is handed out again.

The simulation is exact without simulating each shard. As long as shards remain to be handed out, no worker depends on
another, so the number of shards it has read at any time is a sum over its up-times of ``floor(time / seconds per
shard)``. With fixed shares this holds to the end. Handed-out shards can run out only after all but N are committed;
from then on events are simulated one by one. The cost grows with the number of failures, not of shards, so a corpus of
a trillion tokens is simulated in a moment.
"""

import heapq
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import ConfigError

# N: workers, F: up-times of each that have been drawn so far

MAX_FAILURES = 2_000_000
"""More failures than a cluster that makes progress would have; each takes some tens of bytes."""

WINDOW_SECONDS = 60
WINDOW_WORK = 200_000_000
"""Up-times looked at to find the busiest window: well above a week on a thousand workers."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cluster:
    """The machines.

    Attributes:
        workers: Number of workers, N.
        seconds_between_failures: Mean up-time of one worker, exponential; infinity for none.
        restart_seconds: From a failure until its replacement has loaded the teacher; also paid at the start.
        speed_spread: Standard deviation of the logarithm of the workers' speeds, whose median is as planned.
        seed: Seed of all draws.
    """

    workers: int
    seconds_between_failures: float = math.inf
    restart_seconds: float = 0.0
    speed_spread: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """One way of sharing, run to the end.

    Attributes:
        finish_N: When each worker stopped being of use, in seconds; 0 for one that had nothing to do.
        failures: Of workers that were reading; each lost one shard, which was read again.
        lost_seconds: Of reading that was lost with them, over all workers.
    """

    finish_N: Floats
    failures: int
    lost_seconds: float

    @property
    def seconds(self) -> float:
        """When the last shard was committed."""
        return float(self.finish_N.max())

    @property
    def idle_seconds(self) -> float:
        """Waited for the last worker, over all others."""
        return float((self.finish_N.max() - self.finish_N).sum())


class Uptimes:
    """When each worker runs, drawn only as far as needed.

    Attributes:
        starts_NF: Seconds at which an up-time begins.
        ends_NF: Seconds at which it ends in a failure; infinity if workers never fail.
    """

    def __init__(self, cluster: Cluster, generator: np.random.Generator) -> None:
        self._cluster, self._generator = cluster, generator
        if math.isinf(cluster.seconds_between_failures):
            self.starts_NF = np.full((cluster.workers, 1), cluster.restart_seconds)
            self.ends_NF = np.full((cluster.workers, 1), math.inf)
        else:
            self.starts_NF = self.ends_NF = np.empty((cluster.workers, 0))
            self.extend()

    def extend(self) -> None:
        """Draw as many up-times again as there are."""
        shape = (self._cluster.workers, max(8, self.ends_NF.shape[1]))
        ups = self._generator.exponential(self._cluster.seconds_between_failures, shape)
        before = self.ends_NF[:, -1:] if self.ends_NF.size else 0.0
        ends = before + np.cumsum(self._cluster.restart_seconds + ups, axis=1)
        self.starts_NF = np.concatenate([self.starts_NF, ends - ups], axis=1)
        self.ends_NF = np.concatenate([self.ends_NF, ends], axis=1)

    def cover(self, seconds: float) -> None:
        """Draw until every worker's last up-time ends after ``seconds``."""
        while self.ends_NF[:, -1].min() <= seconds:
            self.extend()

    def next(self, worker: int, index: int, seconds: float) -> int:
        """Return the first up-time, from ``index`` on, that ends after ``seconds``."""
        while True:
            if index == self.ends_NF.shape[1]:
                self.extend()
            if self.ends_NF[worker, index] > seconds:
                return index
            index += 1

    def read_shards(self, seconds_N: Floats, until: float = math.inf) -> Floats:
        """Return how many shards each up-time completes until some time, if there are enough: (N, F), whole numbers.

        Args:
            seconds_N: Time of a shard on each worker.
            until: The time; by default every drawn up-time counts whole.
        """
        ups_NF = np.maximum(np.minimum(self.ends_NF, until) - self.starts_NF, 0)
        read_NF: Floats = np.floor(ups_NF / seconds_N[:, None])
        return read_NF

    def losses(self, seconds_N: Floats, ended_NF: NDArray[np.bool_]) -> float:
        """Return the seconds of unfinished shards at the end of the chosen up-times."""
        ups = np.where(ended_NF, self.ends_NF - self.starts_NF, 0.0)
        return float(np.mod(ups, seconds_N[:, None]).sum())


def simulate(shards: int, shard_seconds: float, cluster: Cluster) -> tuple[Outcome, Outcome, float]:
    """Run a capture on a cluster, both ways.

    Args:
        shards: Number of shards.
        shard_seconds: Time in which a worker of the planned speed reads one.
        cluster: The machines.

    Returns:
        The outcome of fixed shares, that of shards handed out (on the same failures), and the commits in
        the busiest window of WINDOW_SECONDS. Workers that start together commit together, so that is the worst case.

    Raises:
        ConfigError: workers would fail too often to get anything done.
    """
    _require_progress(shards, shard_seconds, cluster)
    generator = np.random.Generator(np.random.PCG64(cluster.seed))
    seconds_N = shard_seconds / np.exp(cluster.speed_spread * generator.standard_normal(cluster.workers))
    uptimes = Uptimes(cluster, generator)
    fixed = run_fixed(shards, seconds_N, uptimes)
    handed_out = run_handed_out(shards, seconds_N, uptimes)
    return fixed, handed_out, busiest_window(seconds_N, uptimes, handed_out.seconds)


def expected_shard_seconds(shard_seconds: float, cluster: Cluster) -> float:
    """Return the mean time until a worker has read a shard, lost attempts and restarts included.

    With up-times of mean H and restarts of R seconds it is ``(H + R) (e^(s / H) - 1)``: the expected
    time to s uninterrupted seconds of a Poisson process, each interruption prolonged by R.
    """
    mean = cluster.seconds_between_failures
    if math.isinf(mean):
        return shard_seconds
    try:
        return (mean + cluster.restart_seconds) * math.expm1(shard_seconds / mean)
    except OverflowError:
        return math.inf


def run_fixed(shards: int, seconds_N: Floats, uptimes: Uptimes) -> Outcome:
    """Give rank r the shards r, r + N, … and let each worker finish its own."""
    workers = np.arange(len(seconds_N))
    share_N = (shards - workers + len(workers) - 1) // len(workers)
    while (read_NF := uptimes.read_shards(seconds_N).cumsum(axis=1))[:, -1].min() < share_N[0]:
        uptimes.extend()
    last_N = (read_NF >= share_N[:, None]).argmax(axis=1)
    before_N = np.where(last_N > 0, read_NF[workers, last_N - 1], 0)
    finish_N = uptimes.starts_NF[workers, last_N] + (share_N - before_N) * seconds_N
    failed_NF = np.arange(read_NF.shape[1]) < last_N[:, None]
    lost = uptimes.losses(seconds_N, failed_NF)
    return Outcome(np.where(share_N > 0, finish_N, 0.0), int(failed_NF.sum()), lost)


def run_handed_out(shards: int, seconds_N: Floats, uptimes: Uptimes) -> Outcome:
    """Give each free worker the next shard, and a lost shard to the next free worker."""
    dispatcher = _Dispatcher(
        shards, seconds_N, uptimes, _independent_until(shards - len(seconds_N), seconds_N, uptimes)
    )
    return dispatcher.run()


def busiest_window(seconds_N: Floats, uptimes: Uptimes, until: float) -> float:
    """Return the most commits in a window of WINDOW_SECONDS; of a very long run, in its first part."""
    uptimes.cover(until)
    windows = max(1, min(int(until // WINDOW_SECONDS), WINDOW_WORK // uptimes.ends_NF.size))
    read = [uptimes.read_shards(seconds_N, min(i * WINDOW_SECONDS, until)).sum() for i in range(windows + 1)]
    return float(np.diff(read).max())


def _require_progress(shards: int, shard_seconds: float, cluster: Cluster) -> None:
    attempts = expected_shard_seconds(shard_seconds, cluster) / (
        cluster.seconds_between_failures + cluster.restart_seconds
    )
    if shards * attempts > MAX_FAILURES:
        raise ConfigError(
            "workers would fail too often to simulate",
            where="--hours-between-failures",
            expected=f"at most {MAX_FAILURES:,} failures",
            found=f"{shard_seconds:,.0f} seconds a shard, {cluster.seconds_between_failures:,.0f} between failures",
            fix="Set a smaller encoding.positions_per_shard, or give the right time between failures",
        )


def _independent_until(committed: int, seconds_N: Floats, uptimes: Uptimes) -> float:
    """Return a time at which at most ``committed`` shards, and nearly as many, are committed; 0 if there is none."""
    if committed <= 0:
        return 0.0
    low, high = 0.0, committed * float(seconds_N.mean()) / len(seconds_N)
    while True:
        uptimes.cover(high)
        if uptimes.read_shards(seconds_N, high).sum() > committed:
            break
        low, high = high, 2 * high
    while high - low > float(seconds_N.min()) / 4:
        middle = (low + high) / 2
        if uptimes.read_shards(seconds_N, middle).sum() > committed:
            high = middle
        else:
            low = middle
    return low


class _Dispatcher:
    """Hands out the last shards, event by event, from the state that the workers are in at some time.

    An event is (time, worker, began, lost): the worker commits or loses the shard that it began then, or, with
    ``began`` None, runs again.
    """

    def __init__(self, shards: int, seconds_N: Floats, uptimes: Uptimes, now: float) -> None:
        self.seconds_N, self.uptimes = seconds_N, uptimes
        uptimes.cover(now)
        ended_NF, read_NF = uptimes.ends_NF <= now, uptimes.read_shards(seconds_N, now)
        self.failures, self.lost_seconds = int(ended_NF.sum()), uptimes.losses(seconds_N, ended_NF)
        self.index_N = ended_NF.sum(axis=1).tolist()
        self.finish_N = np.full(len(seconds_N), now)
        self.queue = self.left = shards - int(read_NF.sum())
        self.events: list[tuple[float, int, float | None, bool]] = []
        self.idle: list[int] = []
        for worker, index in enumerate(self.index_N):
            start = float(uptimes.starts_NF[worker, index])
            if start > now or not self.queue:
                self.offer(worker, now)
            else:
                self.begin(worker, start + float(read_NF[worker, index]) * float(seconds_N[worker]))

    def run(self) -> Outcome:
        """Go on until every shard is committed."""
        while self.left:
            now, worker, began, lost = heapq.heappop(self.events)
            if began is not None and lost:
                self.failures += 1
                self.lost_seconds += now - began
                self.queue += 1
            elif began is not None:
                self.left -= 1
                self.finish_N[worker] = now
            self.offer(worker, now)
            if self.queue and self.idle:
                waiting, self.idle = self.idle, []
                for free in waiting:
                    self.offer(free, now)
        return Outcome(self.finish_N, self.failures, self.lost_seconds)

    def offer(self, worker: int, now: float) -> None:
        """Give a worker a shard if it runs and there is one."""
        index = self.index_N[worker] = self.uptimes.next(worker, self.index_N[worker], now)
        start = float(self.uptimes.starts_NF[worker, index])
        if start > now:
            heapq.heappush(self.events, (start, worker, None, False))
        elif self.queue:
            self.begin(worker, now)
        else:
            self.idle.append(worker)

    def begin(self, worker: int, now: float) -> None:
        """Let a running worker begin a shard, and foresee how it ends."""
        self.queue -= 1
        done, failure = now + float(self.seconds_N[worker]), float(self.uptimes.ends_NF[worker, self.index_N[worker]])
        heapq.heappush(self.events, (min(done, failure), worker, now, failure < done))
