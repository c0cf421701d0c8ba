"""A plan on a cluster: simulated failures, sizes of shards, how long opening takes, and what a student reads."""

from dataclasses import dataclass

from cache_tools.format.layout import GATHERED_SHARDS
from cache_tools.requests.in_flight import IN_FLIGHT
from cache_tools.requests.listing import PAGE_OBJECTS
from pipeline.planning.plan import Rates, Remaining
from pipeline.planning.simulate import WINDOW_SECONDS, Cluster, Outcome, expected_shard_seconds, simulate

SHARD_POSITIONS = tuple(2**power for power in range(14, 23))
"""Sizes of shards that are compared, besides the planned one."""

SLOWEST_CHOICE = 1.01
"""The best size is the largest that takes at most one percent longer than the fastest: fewer objects at no price."""

OPENING_REQUESTS = 9
"""Requests of opening a teacher in a bucket, besides a page of a listing for each PAGE_OBJECTS receipts and a gathered
file for each GATHERED_SHARDS: ``benchmarks.growth`` counts 11, 11 and 29 at 100, 1,000 and 10,000 shards."""

REQUEST_SECONDS = 0.03
"""Time that a bucket takes to answer."""

OPENING_SECONDS, OPENING_SECONDS_PER_SHARD = 0.2, 37e-6
"""Processor time of opening, as ``benchmarks.growth`` measures it (docs/results/growth.md)."""


@dataclass(frozen=True)
class StudentLoad:
    """How a student reads a cache.

    Attributes:
        positions_per_s: Kept positions that it trains on per second, over all its ranks.
        readers: Processes that load data: ranks times loader workers.
    """

    positions_per_s: float = 65_000
    readers: int = 1


@dataclass(frozen=True)
class Workload:
    """What remains of one teacher, for a cluster to do.

    Attributes:
        remaining: What the cache lacks, and what it costs; at least one shard.
        tokens_per_s: Speed of one worker.
        positions_per_shard: Size of a shard; every shard is taken to be full.
        kept_bytes: Host memory of the kept predictions, at that size.
    """

    remaining: Remaining
    tokens_per_s: float
    positions_per_shard: int
    kept_bytes: int

    @property
    def objects_per_shard(self) -> float:
        """Objects that one shard is stored in."""
        return self.remaining.cost.stored.objects / self.remaining.extent.shards


@dataclass(frozen=True)
class RunForecast:
    """How one way of sharing the shards went, simulated.

    Attributes:
        hours: Until the last shard was committed.
        failures: Number of workers that failed while they were reading.
        redone_shards: Shards that were read again.
        redone_tokens: Tokens that were read again.
        lost_share: Share of the teachers' time that was lost by failures, in [0, 1].
        tail_hours: From the first idle worker to the end.
        idle_worker_hours: Time that workers waited for the last one, summed over workers.
    """

    hours: float
    failures: int
    redone_shards: int
    redone_tokens: int
    lost_share: float
    tail_hours: float
    idle_worker_hours: float


@dataclass(frozen=True)
class StoreLoad:
    """What the store has to take while shards are handed out.

    Attributes:
        mean_bytes_per_s: Bytes per second, on average.
        peak_minute_bytes_per_s: The same in the busiest minute.
        mean_puts_per_s: Objects per second, on average.
        peak_minute_puts_per_s: The same in the busiest minute.
        receipts: Receipts in all, one per shard.
        mean_receipts_per_s: Receipts per second, on average.
    """

    mean_bytes_per_s: float
    peak_minute_bytes_per_s: float
    mean_puts_per_s: float
    peak_minute_puts_per_s: float
    receipts: int
    mean_receipts_per_s: float


@dataclass(frozen=True)
class ShardSize:
    """What one size of shards would cost.

    Attributes:
        positions_per_shard: The size.
        shards: Number of shards.
        objects: Number of objects.
        bytes_per_object: Mean size of an object.
        kept_bytes: Host memory of the kept predictions.
        shard_seconds: Time in which a worker reads one shard without failing.
        redone_share: Work that is read again, relative to all work: (e^x - 1) / x - 1, with x the time of a shard
            over the mean up-time.
        hours: Expected hours of a worker's fixed share, rounded up to whole shards; the last worker takes longer.
        opening_requests: Requests to a bucket until a training has opened the teacher, once in each rank.
        opening_seconds: How long they and the reading of their answers take, at REQUEST_SECONDS a request.
        planned: Whether this is the planned size.
        best: Whether this is the largest size that takes at most SLOWEST_CHOICE times as long as the fastest.
    """

    positions_per_shard: int
    shards: int
    objects: int
    bytes_per_object: float
    kept_bytes: int
    shard_seconds: float
    redone_share: float
    hours: float
    opening_requests: int
    opening_seconds: float
    planned: bool
    best: bool


@dataclass(frozen=True)
class Simulation:
    """What remains of a teacher, simulated on a cluster.

    Attributes:
        workers: Number of workers.
        ideal_hours: How long they would take without failures; None if no speed is known.
        fixed: Each rank has its own shards.
        handed_out: A free worker takes the next shard.
        store: What handed-out shards put into the store.
        shard_sizes: Other sizes of shards.
    """

    workers: int
    ideal_hours: float | None
    fixed: RunForecast
    handed_out: RunForecast
    store: StoreLoad
    shard_sizes: tuple[ShardSize, ...]


def student_bytes_per_s(rates: Rates, sequence_bytes_per_position: float, student: StudentLoad) -> float:
    """Return what the store must deliver to one student.

    A student reads the targets and the sequences of each shard, whole and once an epoch, but not its scalars and hidden
    states. The order of training mixes all shards of a window, so every process that loads data (each loader worker of
    each rank) reads them all, and the bytes count once for each.
    """
    targets = rates.target_bytes_per_position - rates.scalar_bytes_per_position
    return float(student.readers * student.positions_per_s * (targets + sequence_bytes_per_position))


def simulation(workload: Workload, cluster: Cluster) -> Simulation:
    """Simulate a workload on a cluster (see ``simulate.py``).

    Raises:
        ConfigError: workers would fail too often to get anything done.
    """
    extent, stored, speed = workload.remaining.extent, workload.remaining.cost.stored, workload.tokens_per_s
    fixed, handed_out, busiest = simulate(extent.shards, extent.tokens / extent.shards / speed, cluster)
    bytes_per_shard = stored.stored_bytes / extent.shards
    mean, peak = extent.shards / handed_out.seconds, busiest / WINDOW_SECONDS  # shards per second
    return Simulation(
        cluster.workers,
        workload.remaining.cost.hours,
        _forecast(fixed, speed, extent.tokens),
        _forecast(handed_out, speed, extent.tokens),
        StoreLoad(
            mean_bytes_per_s=mean * bytes_per_shard,
            peak_minute_bytes_per_s=peak * bytes_per_shard,
            mean_puts_per_s=mean * workload.objects_per_shard,
            peak_minute_puts_per_s=peak * workload.objects_per_shard,
            receipts=extent.shards,
            mean_receipts_per_s=mean,
        ),
        shard_sizes(workload, cluster),
    )


def shard_sizes(workload: Workload, cluster: Cluster) -> tuple[ShardSize, ...]:
    """Return what each size of shards would cost: many objects if they are small, much work done again if large."""
    planned = workload.positions_per_shard
    hours = {size: _expected_hours(size, workload, cluster) for size in sorted({*SHARD_POSITIONS, planned})}
    best = max(size for size, taken in hours.items() if taken <= SLOWEST_CHOICE * min(hours.values()))
    return tuple(_shard_size(size, workload, cluster, hours[size], size == best) for size in hours)


def opening_requests(shards: int) -> int:
    """Return how many requests open a complete teacher of so many shards in a bucket."""
    return OPENING_REQUESTS + -(-shards // PAGE_OBJECTS) + -(-shards // GATHERED_SHARDS)


def opening_seconds(shards: int) -> float:
    """Return how long that takes; pages of a listing follow each other, gathered files come IN_FLIGHT at a time."""
    files_in_a_row = -(-shards // (GATHERED_SHARDS * IN_FLIGHT))
    waits = OPENING_REQUESTS + -(-shards // PAGE_OBJECTS) + files_in_a_row
    return REQUEST_SECONDS * waits + OPENING_SECONDS + OPENING_SECONDS_PER_SHARD * shards


def _shard_size(positions: int, workload: Workload, cluster: Cluster, hours: float, best: bool) -> ShardSize:
    shards, seconds = _shards_and_seconds(positions, workload)
    reading = expected_shard_seconds(seconds, Cluster(1, cluster.seconds_between_failures))
    return ShardSize(
        positions_per_shard=positions,
        shards=shards,
        objects=round(shards * workload.objects_per_shard),
        bytes_per_object=workload.remaining.cost.stored.stored_bytes / shards / workload.objects_per_shard,
        kept_bytes=round(workload.kept_bytes * positions / workload.positions_per_shard),
        shard_seconds=seconds,
        redone_share=reading / seconds - 1,
        hours=hours,
        opening_requests=opening_requests(shards),
        opening_seconds=opening_seconds(shards),
        planned=positions == workload.positions_per_shard,
        best=best,
    )


def _expected_hours(positions: int, workload: Workload, cluster: Cluster) -> float:
    shards, seconds = _shards_and_seconds(positions, workload)
    rounds = -(-shards // cluster.workers)
    return (cluster.restart_seconds + rounds * expected_shard_seconds(seconds, cluster)) / 3600


def _shards_and_seconds(positions: int, workload: Workload) -> tuple[int, float]:
    """Return how many shards of this size there are, and the time in which a worker reads one."""
    extent = workload.remaining.extent
    tokens_per_shard = extent.tokens / extent.positions * min(positions, extent.positions)
    return -(-extent.positions // positions), tokens_per_shard / workload.tokens_per_s


def _forecast(outcome: Outcome, tokens_per_s: float, tokens: int) -> RunForecast:
    useful_seconds = tokens / tokens_per_s
    return RunForecast(
        hours=outcome.seconds / 3600,
        failures=outcome.failures,
        redone_shards=outcome.failures,
        redone_tokens=round(outcome.lost_seconds * tokens_per_s),
        lost_share=outcome.lost_seconds / (useful_seconds + outcome.lost_seconds),
        tail_hours=float(outcome.seconds - outcome.finish_N.min()) / 3600,
        idle_worker_hours=outcome.idle_seconds / 3600,
    )
