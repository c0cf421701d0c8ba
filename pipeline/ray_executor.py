"""A capture on a Ray cluster: the driver encodes and hands out shards, actors run the teacher.

An actor holds one teacher on its own GPUs. The first one declares the teacher, so the driver needs
no GPU; only then do the others start. A shard is the unit of work and of retry: it goes to whichever
actor is free, an actor that dies is restarted by Ray and does that shard again, and the shards that it
had committed before are kept. Our own errors are not retried: they would only occur again.

Ray does the placing, restarting and scaling, and has the dashboard. Rejected: queueing shards on actors ahead
of time (an actor that is still being placed, or lost for good, would hold them back), and a placement
group (a teacher spans the GPUs of one machine only). An actor writes a shard before it asks for the
next; that takes a few per cent of the time in which the teacher reads one.
"""

import logging
import os
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from cache_tools.errors import ConfigError, LogitcaskError, ModelError
from cache_tools.mappings import Arguments, JsonObject
from cache_tools.progress.lines import open_reporter
from cache_tools.progress.reporter import Reporter
from cache_tools.storage import store_path
from cache_tools.store.gathered import Gathering, gather_all
from cache_tools.store.reader import Cache, Encoding
from cache_tools.store.teacher import CachedTeacher
from cache_tools.store.writer import remove_leftovers
from pipeline.capture.declare import declare, first_ids
from pipeline.capture.shards import capture_shards
from pipeline.capture.target import ResolvedTeacher, resolve_teacher
from pipeline.config.capture_file import CaptureConfig
from pipeline.config.encoding import EncodingConfig
from pipeline.config.engines import ServerConfig, VllmConfig
from pipeline.config.teacher import TeacherConfig
from pipeline.engines.opening import open_teacher
from pipeline.run import Worker, prepare
from pipeline.teachers.teacher import AnyTeacher

try:
    import ray
    from ray.exceptions import RayActorError, RayTaskError
except ImportError as problem:
    raise ConfigError(
        "Ray is not installed", where="--executor ray", fix="Install it: pip install 'logitcask[ray]'"
    ) from problem

RETRIES = 8
"""How often a shard is retried after its actor died; after more deaths the shard itself is taken to be the cause."""

REACH_SECONDS = 5
"""How long an address may take to answer, in seconds. Ray itself tries for minutes."""

LOCAL: Arguments = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
"""Settings of a Ray that is started for one capture; shards never pass through its object store."""


def run_capture_on_ray(
    config: CaptureConfig, address: str, workers: int | None, reporter: Reporter, append: bool = False
) -> dict[str, int]:
    """Encode the corpus here and capture all teachers on a Ray cluster, continuing whatever is already there.

    A program that is connected to Ray already stays connected; ``address`` is then not used.

    Args:
        config: The capture file. Cache and models must be reachable from every machine of the cluster.
        address: Address of a running cluster, or ``local`` to start Ray on this machine for this call.
        workers: Number of actors; default: as many as the cluster has sets of GPUs, at least one.
        reporter: Shows the progress, a shard at a time.
        append: Add files of the corpus that the encoding lacks.

    Returns:
        Shards committed by this call, per teacher.

    Raises:
        LogitcaskError: something was refused; what was committed before stays.
    """
    if any(teacher.tensor_parallel > 1 for teacher in config.teachers):
        raise ConfigError(
            "tensor_parallel needs torchrun, which --executor ray does not use",
            where="teachers",
            fix="Use device_map: auto and gpus, or torchrun without --executor ray",
        )
    if not ray.is_initialized():
        _check_reachable(address)
    reporter.stage("checking the capture file and its teachers", None)
    encoding, _ = prepare(config, Worker(), reporter, append)
    reporter.stage("connecting to Ray", None)
    with _connected(address):
        return {teacher.name: _run_teacher(encoding, teacher, config, workers, reporter) for teacher in config.teachers}


class ShardReader:
    """One teacher on its own GPUs, in an actor's process. It is loaded when it is first needed.

    Attributes:
        place: The cache.
        encoding: Name of the encoding.
        config: The teacher's block of the capture file.
        settings: The encoding's block.
    """

    def __init__(self, place: str, encoding: str, config: TeacherConfig, settings: EncodingConfig) -> None:
        self.place, self.encoding, self.config, self.settings = place, encoding, config, settings

    def declare(self) -> None:
        """Load the teacher and declare it, or check that the cache holds the same one."""
        self._loaded  # noqa: B018

    def capture(self, shard: int) -> None:
        """Capture what a shard lacks: nothing, if an actor died after its commit and before it reported it."""
        teacher, cached = self._loaded
        if cached.missing_groups(shard):
            with open_reporter(0, 1) as reporter:  # in the worker's own log
                reporter.stage(f"teacher {self.config.name}, shard {shard}", cached.encoding.shards[shard].tokens)
                keep, skip_nan = self._resolved.target.keep, self.config.nan_rows == "skip"
                capture_shards(cached, [shard], teacher, keep, self.config.batch_tokens, skip_nan, reporter.advance)

    @cached_property
    def _loaded(self) -> tuple[AnyTeacher, CachedTeacher]:
        encoding = Cache(store_path(self.place)).encoding(self.encoding)
        longest, objective = self.settings.max_length_tokens, encoding.manifest.objective
        first = first_ids(encoding, self.config)
        separator = encoding.manifest.separator
        teacher = open_teacher(self.config, self._resolved.folder, objective, longest, first, separator)
        return teacher, declare(encoding, teacher, self.config, self._resolved.target, self.settings.chunk_positions)

    @cached_property
    def _resolved(self) -> ResolvedTeacher:
        return resolve_teacher(self.config)


def _run_teacher(
    encoding: Encoding, config: TeacherConfig, capture: CaptureConfig, workers: int | None, reporter: Reporter
) -> int:
    gpus = _gpus_per_actor(config)
    reporter.stage(f"waiting for a worker to load {config.name}", None)
    reader = ray.remote(num_gpus=gpus, max_restarts=-1, max_task_retries=RETRIES)(ShardReader)
    arguments = (_absolute(capture.cache), encoding.name, _portable(config), capture.encoding)
    first: Any = reader.remote(*arguments)
    _result(first.declare.remote(), f"teacher {config.name!r}")
    cached = encoding.teacher(config.name)
    missing = cached.incomplete_shards(range(len(encoding.shards)))
    remove_leftovers(cached, missing)
    num_actors = min(workers or _gpu_sets(gpus), len(missing))
    actors = [first, *(reader.remote(*arguments) for _ in range(num_actors - 1))]
    del first  # or its GPUs would stay occupied after its last shard
    reporter.stage(f"teacher {config.name}", sum(encoding.shards[shard].tokens for shard in missing))
    gathering = Gathering(cached.path, len(encoding.shards), missing)
    for shard in _hand_out(actors, missing, config.name):
        gathering.committed(shard)
        reporter.advance(encoding.shards[shard].tokens)
    gather_all(cached.path, len(encoding.shards))
    remove_leftovers(cached, missing)  # those of actors that were lost
    return len(missing)


def _hand_out(actors: list[Any], shards: list[int], teacher: str) -> Iterator[int]:
    """Give each actor that has loaded its teacher one shard after another; yield shards as they are committed.

    Takes the actors out of the list. An actor for which no shard is left is released, so that its GPUs are free for
    an actor that Ray has to restart elsewhere.
    """
    waiting, left = deque(shards), len(shards)
    running: dict[Any, tuple[Any, int | None]] = {}
    while actors:
        actor = actors.pop()
        running[actor.declare.remote()] = (actor, None)
    while left:
        (done,), _ = ray.wait(list(running), num_returns=1)
        actor, shard = running.pop(done)
        _result(done, f"teacher {teacher!r}" + ("" if shard is None else f", shard {shard}"))
        if waiting:
            following = waiting.popleft()
            running[actor.capture.remote(following)] = (actor, following)
        del actor
        if shard is not None:
            left -= 1
            yield shard


def _result(task: Any, where: str) -> None:
    """Wait for a task of an actor; raise its own errors here as they were raised there."""
    try:
        ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, LogitcaskError):
            raise error.cause from None
        raise
    except RayActorError as error:
        raise ModelError(
            f"a worker was lost {RETRIES + 1} times in a row",
            where=where,
            found=" ".join(str(error).split())[:300],
            why="perhaps its machine has too little memory for this teacher",
            fix="Read Ray's logs, try a smaller batch_tokens, and run the same command again; it continues",
        ) from error


def _check_reachable(address: str) -> None:
    """Refuse an address with a port where nothing listens; names such as ``auto`` are left to Ray."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(
            "nothing answers at this address",
            where=f"--address {address}",
            found=error,
            fix="Check that the cluster runs (ray start --head prints its address) and can be reached from here",
        ) from error


@contextmanager
def _connected(address: str) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is reported to anybody
    settings = LOCAL if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **settings)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            "no Ray cluster answers", where=f"--address {address}", found=" ".join(str(error).split())[:300]
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _gpus_per_actor(config: TeacherConfig) -> int:
    """Return how many GPUs an actor takes.

    It is 0 if a server computes, if the capture file names another device, or if the cluster has no GPU and the capture
    file asks for none (a cluster that grows on demand may have none yet).
    """
    if isinstance(config.engine, ServerConfig):
        return 0
    on_cuda = config.device.startswith("cuda")
    needs_gpu = on_cuda or "gpus" in config.model_fields_set
    allows_gpu = on_cuda or config.device == "auto"
    return config.gpus if allows_gpu and (needs_gpu or _cluster_gpus()) else 0


def _gpu_sets(gpus: int) -> int:
    return max(1, _cluster_gpus() // gpus) if gpus else 1


def _cluster_gpus() -> int:
    return int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]


def _portable(config: TeacherConfig) -> TeacherConfig:
    """Return a teacher's block whose model and whose engine's Python are also found from another working folder."""
    changes: JsonObject = {}
    if Path(config.model).is_dir():
        changes["model"] = str(Path(config.model).absolute())
    if isinstance(config.engine, VllmConfig) and Path(config.engine.python).is_file():
        python = str(Path(config.engine.python).absolute())  # a link of a virtual environment is not followed
        changes["engine"] = config.engine.model_copy(update={"python": python})
    return config.model_copy(update=changes)


def _absolute(place: Any) -> str:
    return str(place.absolute() if isinstance(place, Path) else place)
