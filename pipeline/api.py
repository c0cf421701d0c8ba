"""Stage one from Python: what ``logitcask plan`` and ``logitcask capture`` do, as functions that return values.

``logitcask.plan`` and ``logitcask.capture`` are these functions. They are thin on purpose: a configuration is read
here, and everything else happens in the modules that the commands call, too.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_tools.configuration import NO_OVERRIDES, checked_arguments, configured
from cache_tools.errors import ConfigError
from cache_tools.progress.lines import open_reporter
from cache_tools.storage import StorePath
from cache_tools.store.reader import Cache
from pipeline.config.capture_file import CaptureConfig
from pipeline.planning.capture_plan import CapturePlan, PlanSettings, plan_capture
from pipeline.run import Worker, run_capture

MEASURED_SEQUENCES = 256
"""Sequences that a teacher reads at most to be measured, as for the command."""


@dataclass(frozen=True)
class CaptureResult:
    """What a capture has done.

    Attributes:
        cache: Folder or URL of the cache.
        encoding: Name of the encoding inside it.
        committed_shards: Shards that this call has captured, by teacher; 0 if a teacher was finished before.
        train_positions: Positions of the training split, over all workers and earlier calls.
        held_out_positions: The same of the held-out split.
        seconds: Wall-clock time of this call.
    """

    cache: StorePath
    encoding: str
    committed_shards: dict[str, int]
    train_positions: int
    held_out_positions: int
    seconds: float


@checked_arguments
def plan(
    config: str | Path | Mapping[str, Any] | CaptureConfig,
    *,
    overrides: Mapping[str, Any] = NO_OVERRIDES,
    measure: bool = False,
    tokens_per_s: float | None = None,
) -> CapturePlan:
    """Estimate what a capture will cost; nothing is written.

    The whole corpus is read once, and 500 documents spread evenly over it are tokenised. Progress is shown on standard
    error.

    Args:
        config: Path of a capture file, the mapping that such a file holds, or a checked configuration.
        overrides: New values by dotted key, such as ``{"teachers.0.target.k": 32}``.
        measure: Load each teacher and run it over part of the sample for at most 60 seconds. Without it, bytes are
            rules of thumb and there is no speed.
        tokens_per_s: Speed of a teacher, above 0; default: the measured speed.

    Returns:
        Counts, bytes and hours for one worker; the object that ``logitcask plan --json`` prints.

    Raises:
        ConfigError: The configuration is wrong.
        CorpusError: A document cannot be read or encoded.
        ModelError: A teacher's configuration or tokenizer cannot be read, or with ``measure`` the teacher itself.
        LogitcaskError: Any of these, and what the disk or bucket refuses.

    Example:
        ::

            from logitcask import plan

            estimate = plan("configs/demo/capture.yaml", tokens_per_s=20_000)
            print(f"{estimate.stored_bytes / 1e6:.1f} MB, {estimate.teachers[0].whole.hours:.3f} hours")
    """
    settings = configured(config, CaptureConfig, overrides)
    if tokens_per_s is not None and not 0 < tokens_per_s < float("inf"):
        raise ConfigError("a speed is a number above 0", where="tokens_per_s", found=tokens_per_s)
    assumptions = PlanSettings(measured_sequences=MEASURED_SEQUENCES * measure, tokens_per_s=tokens_per_s)
    with open_reporter() as reporter:
        return plan_capture(settings, assumptions, reporter)


@checked_arguments
def capture(
    config: str | Path | Mapping[str, Any] | CaptureConfig,
    *,
    overrides: Mapping[str, Any] = NO_OVERRIDES,
    append: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> CaptureResult:
    """Run the teachers of a capture file over its corpus and store their predictions.

    What the cache already holds is not captured again: after a stop, the same call continues. Teachers with
    ``tensor_parallel`` above 1 and Ray clusters need the command ``logitcask capture``. Progress is shown on standard
    error.

    Args:
        config: Path of a capture file, the mapping that such a file holds, or a checked configuration.
        overrides: New values by dotted key, such as ``{"teachers.0.target.k": 32}``.
        append: Add files of the corpus that the cache does not hold yet.
        rank: Number of this worker, in [0, ``world_size``).
        world_size: Number of workers that share the capture; each takes every ``world_size``-th shard.

    Returns:
        Where the cache is, and what this call added to it.

    Raises:
        ConfigError: The configuration is wrong, or needs several processes for one teacher.
        CorpusError: A document cannot be read or encoded.
        ModelError: A teacher cannot be loaded or used.
        IdentityError: The cache holds another corpus, tokenizer or teacher under the same name.
        LogitcaskError: Any of these, and what the disk or bucket refuses. Committed shards stay.

    Example:
        ::

            from logitcask import capture

            result = capture("configs/demo/capture.yaml", overrides={"cache": "runs/python/cache"})
            print(result.cache, result.train_positions)
    """
    began = time.monotonic()
    settings = configured(config, CaptureConfig, overrides)
    if any(teacher.tensor_parallel > 1 for teacher in settings.teachers):
        raise ConfigError(
            "tensor_parallel needs several processes, and this is one",
            where="teachers",
            fix="Run 'torchrun --nproc-per-node N logitcask.py capture FILE'",
        )
    if not 0 <= rank < world_size:
        raise ConfigError("this worker does not exist", where="rank", expected=f"0 to {world_size - 1}", found=rank)
    with open_reporter(rank, world_size) as reporter:
        committed = run_capture(settings, Worker(rank, world_size), reporter, append)
    splits = Cache(settings.cache).encoding(settings.encoding.name).manifest.splits
    return CaptureResult(
        cache=settings.cache,
        encoding=settings.encoding.name,
        committed_shards=committed,
        train_positions=splits["train"].positions,
        held_out_positions=splits["held_out"].positions,
        seconds=time.monotonic() - began,
    )
