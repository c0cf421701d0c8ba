"""A plan on a cluster: hours of many workers, simulated failures, sizes of shards, what students read."""

from typing import Any

from pipeline.planning.simulate import WINDOW_SECONDS, Cluster, Outcome, expected_shard_seconds, simulate

SHARD_POSITIONS = tuple(2**power for power in range(14, 23))
"""Sizes of shards that are compared, besides the one asked for."""

SLOWEST_CHOICE = 1.01
"""The best size is the largest that takes at most one percent longer than the fastest: fewer objects at no price."""


def share(teacher: dict[str, Any], workers: int) -> None:
    """Divide a planned teacher's hours among workers."""
    for part in (teacher, teacher["remaining"]):
        part["hours"] = part["hours"] and part["hours"] / workers


def student_bytes_per_s(
    teacher: dict[str, Any], sequence_bytes_per_position: float, positions_per_s: float, readers: int
) -> float:
    """Return what the store must deliver to one student.

    A student reads the targets and the sequences of each shard, whole and once an epoch; scalars and hidden states
    it leaves. The order of training mixes all shards of a window, so every process that loads
    data (each loader worker of each rank) reads them all, and the bytes count once for each.

    Args:
        teacher: The planned teacher.
        sequence_bytes_per_position: Of the encoding.
        positions_per_s: Kept positions that the student trains on, over all its ranks.
        readers: Processes that load data.
    """
    targets = teacher["target_bytes_per_position"] - teacher["scalar_bytes_per_position"]
    return float(readers * positions_per_s * (targets + sequence_bytes_per_position))


def simulation(teacher: dict[str, Any], positions_per_shard: int, cluster: Cluster) -> dict[str, Any]:
    """Simulate what remains of a planned teacher on a cluster (see ``simulate.py``).

    Args:
        teacher: The planned teacher, with a speed; its hours are those of ``cluster.workers`` workers.
        positions_per_shard: Of the encoding; every shard is taken for full.
        cluster: The machines.

    Returns:
        ``ideal_hours``; ``fixed`` and ``handed_out``; ``store``, what the latter puts into it; ``shard_sizes``.
    """
    left, speed = teacher["remaining"], teacher["tokens_per_s"]
    shards, shard_seconds = left["shards"], left["tokens"] / left["shards"] / speed
    fixed, handed_out, busiest = simulate(shards, shard_seconds, cluster)
    bytes_per_shard, objects_per_shard = left["stored_bytes"] / shards, left["objects"] / shards
    mean, peak = shards / handed_out.seconds, busiest / WINDOW_SECONDS
    return {
        "workers": cluster.workers,
        "ideal_hours": left["hours"],
        "fixed": _outcome(fixed, speed, left["tokens"]),
        "handed_out": _outcome(handed_out, speed, left["tokens"]),
        "store": {
            "mean_bytes_per_s": mean * bytes_per_shard,
            "peak_minute_bytes_per_s": peak * bytes_per_shard,
            "mean_puts_per_s": mean * objects_per_shard,
            "peak_minute_puts_per_s": peak * objects_per_shard,
            "receipts": shards,
            "mean_receipts_per_s": mean,
        },
        "shard_sizes": shard_sizes(teacher, positions_per_shard, cluster),
    }


def shard_sizes(teacher: dict[str, Any], positions_per_shard: int, cluster: Cluster) -> list[dict[str, Any]]:
    """Return what each size of shard would cost what remains: objects if small, work read twice if large.

    ``hours`` are those of one worker's fixed share in expectation, rounded up to whole shards; the last worker
    takes longer. ``redone_share`` is (e^x - 1) / x - 1 with x the time of a shard over the mean up-time.
    """
    left, rows = teacher["remaining"], []
    for positions in sorted({*SHARD_POSITIONS, positions_per_shard}):
        shards = -(-left["positions"] // positions)
        seconds = left["tokens"] / left["positions"] * min(positions, left["positions"]) / teacher["tokens_per_s"]
        rounds = -(-shards // cluster.workers)
        reading = expected_shard_seconds(seconds, Cluster(1, cluster.seconds_between_failures))
        rows.append(
            {
                "positions_per_shard": positions,
                "shards": shards,
                "objects": round(shards * left["objects"] / left["shards"]),
                "bytes_per_object": left["stored_bytes"] / shards / (left["objects"] / left["shards"]),
                "kept_bytes": round(teacher["memory"]["kept_bytes"] * positions / positions_per_shard),
                "shard_seconds": seconds,
                "redone_share": reading / seconds - 1,
                "hours": (cluster.restart_seconds + rounds * expected_shard_seconds(seconds, cluster)) / 3600,
                "planned": positions == positions_per_shard,
            }
        )
    fastest = min(row["hours"] for row in rows)
    best = max(row["positions_per_shard"] for row in rows if row["hours"] <= SLOWEST_CHOICE * fastest)
    return [row | {"best": row["positions_per_shard"] == best} for row in rows]


def _outcome(outcome: Outcome, tokens_per_s: float, tokens: int) -> dict[str, Any]:
    useful = tokens / tokens_per_s
    return {
        "hours": outcome.seconds / 3600,
        "failures": outcome.failures,
        "redone_shards": outcome.failures,
        "redone_tokens": round(outcome.lost_seconds * tokens_per_s),
        "lost_share": outcome.lost_seconds / (useful + outcome.lost_seconds),
        "tail_hours": float(outcome.seconds - outcome.finish_N.min()) / 3600,
        "idle_worker_hours": outcome.idle_seconds / 3600,
    }
