"""Stage one from one capture file: encode the corpus once, then run each teacher over it.

Everything that can be refused is refused before a teacher is loaded, let alone run. With
several workers, rank 0 encodes and declares each teacher, and the others wait for its
manifests; after that no worker needs another.

A worker cannot see whether rank 0 is alive, only what it writes: each further shard of sequences is a
sign of life, and after ``wait_minutes`` without one the worker gives up. This needs no heartbeat
object, and works on a disk as in a bucket. Two ranks 0 need no lock: they write the same
bytes, each object whole, and delete nothing that the other has written.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

from cache_tools.errors import IncompleteError
from cache_tools.format import layout
from cache_tools.models.files import weight_files
from cache_tools.progress.reporter import Reporter
from cache_tools.storage import StorePath, names, object_exists, require_writable
from cache_tools.store.gathered import Gathering, gather_all
from cache_tools.store.reader import Cache, Encoding
from cache_tools.store.root import new_cache
from cache_tools.store.writer import remove_leftovers
from pipeline.capture.declare import declare, first_ids, is_declared
from pipeline.capture.host_memory import sized
from pipeline.capture.shards import capture_shards
from pipeline.capture.target import ResolvedTeacher, resolve_teacher
from pipeline.config.capture_file import CaptureConfig
from pipeline.config.encoding import EncodingConfig
from pipeline.config.engines import ServerConfig
from pipeline.corpus.documents import corpus_sources
from pipeline.encoding.encode import encode, is_encoded, is_whole
from pipeline.encoding.recipe import Recipe
from pipeline.encoding.tokenizer import load_tokenizer
from pipeline.engines.opening import open_teacher, where_it_runs
from pipeline.teachers.checkpoint import check_tensors
from pipeline.teachers.fitting import check_behaviour, check_teacher
from pipeline.teachers.loading import chosen_device, resolve_tokenizer
from pipeline.teachers.process_group import Place

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Worker:
    """One of several processes that share a capture.

    Attributes:
        rank: Number of this worker, in [0, world_size).
        world_size: Number of workers.
        wait_minutes: How long a worker waits while rank 0 writes nothing.
    """

    rank: int = 0
    world_size: int = 1
    wait_minutes: float = 60

    def with_groups(self, place: Place) -> "Worker":
        """Return which worker a group of processes is, where each of these workers consists of several groups."""
        rank, world_size = self.rank * place.groups + place.group, self.world_size * place.groups
        return replace(self, rank=rank, world_size=world_size)


def run_capture(config: CaptureConfig, worker: Worker, reporter: Reporter, append: bool = False) -> dict[str, int]:
    """Encode the corpus and capture all teachers, continuing whatever is already there.

    Args:
        config: The capture file.
        worker: Which share of the work this process does.
        reporter: Shows the progress.
        append: Add files of the corpus that the encoding lacks.

    Returns:
        Shards committed by this call, per teacher.

    Raises:
        LogitcaskError: something was refused; what was committed before stays.
    """
    require_writable(config.cache)
    reporter.stage("checking the capture file and its teachers", None)
    for teacher in config.teachers:
        chosen_device(teacher.device)
    encoding, teachers = prepare(config, worker, reporter, append)
    return {
        teacher.config.name: _run_teacher(encoding, teacher, config.encoding, worker, reporter) for teacher in teachers
    }


def prepare(
    config: CaptureConfig, worker: Worker, reporter: Reporter, append: bool = False
) -> tuple[Encoding, list[ResolvedTeacher]]:
    """Check everything that needs no teacher in memory, and encode the corpus; arguments and errors as above.

    Returns:
        The encoding, and the teachers in the order of the capture file.
    """
    teachers = [resolve_teacher(teacher) for teacher in config.teachers]
    named = config.encoding.tokenizer
    tokenizer = load_tokenizer(resolve_tokenizer(named) if named else teachers[0].folder)
    recipe = Recipe(config.corpus, config.encoding, tokenizer)
    for teacher in teachers:
        has_weights = not isinstance(teacher.config.engine, ServerConfig)
        if has_weights:
            weight_files(teacher.folder)
        restriction = teacher.target.keep.restriction
        check_teacher(teacher.config, teacher.folder, tokenizer, config.encoding.max_length_tokens, restriction)
        if has_weights:
            check_tensors(teacher.config, teacher.folder, config.encoding.objective)
    if worker.rank == 0:
        with new_cache(config.cache):
            reporter.stage("encode", None)
            encode(config.cache, sized(recipe, config.cache, teachers), append, reporter.advance)
    else:
        sources = corpus_sources(config.corpus)
        folder = layout.encoding_folder(config.cache, config.encoding.name)
        _wait_for_rank_0(
            "encode",
            lambda: is_encoded(folder, sources) or (not append and is_whole(folder)),
            folder,
            worker,
            reporter,
        )
        encode(config.cache, sized(recipe, config.cache, teachers))  # only compares: the encoding exists
    encoding = Cache(config.cache).encoding(config.encoding.name)
    for teacher in teachers:
        check_behaviour(teacher.config, teacher.folder, tokenizer, encoding)
    return encoding, teachers


def _run_teacher(
    encoding: Encoding, resolved: ResolvedTeacher, settings: EncodingConfig, worker: Worker, reporter: Reporter
) -> int:
    """Capture a worker's share of one teacher; return how many shards that took."""
    config, keep = resolved.config, resolved.target.keep
    reporter.stage(f"loading teacher {config.name}{where_it_runs(config)}", None)
    first = first_ids(encoding, config) if worker.rank == 0 else None
    objective, separator = encoding.manifest.objective, encoding.manifest.separator
    teacher = open_teacher(config, resolved.folder, objective, settings.max_length_tokens, first, separator)
    if worker.rank > 0:
        _wait_for_rank_0(
            f"declare {config.name}", lambda: is_declared(encoding, config), encoding.path, worker, reporter
        )
    hashing = "" if isinstance(config.engine, ServerConfig) else " and hashing its weights"
    reporter.stage(f"checking teacher {config.name}{hashing}", None)
    cached = declare(encoding, teacher, config, resolved.target, settings.chunk_positions)
    mine = range(worker.rank, len(encoding.shards), worker.world_size)
    missing = cached.incomplete_shards(mine)
    remove_leftovers(cached, missing)
    tokens = sum(encoding.shards[shard].tokens for shard in missing)
    reporter.stage(f"teacher {config.name}{where_it_runs(config)}", tokens)
    skip_nan = config.nan_rows == "skip"
    gathering = Gathering(cached.path, len(encoding.shards), missing)
    capture_shards(cached, missing, teacher, keep, config.batch_tokens, skip_nan, reporter.advance, gathering.committed)
    gather_all(cached.path, len(encoding.shards))
    return len(missing)


def _wait_for_rank_0(
    task: str, done: Callable[[], bool], folder: StorePath, worker: Worker, reporter: Reporter
) -> None:
    """Wait until rank 0 has done its task; give up when nothing new appears in the encoding's folder for too long."""
    reporter.stage(f"waiting for rank 0 to {task}", None)
    written = set(names(folder / "sequences"))
    shards = next(i for i in count() if layout.sequences_file(folder, i).name not in written)
    last_sign = time.monotonic()
    while not done():
        if object_exists(layout.sequences_file(folder, shards)):
            shards, last_sign = shards + 1, time.monotonic()
        elif time.monotonic() - last_sign > 60 * worker.wait_minutes:
            raise IncompleteError(
                f"rank 0 has written nothing for {worker.wait_minutes:g} minutes",
                where=folder,
                why=f"this worker waits for it to {task}",
                fix="Check that rank 0 is running, then restart this worker; --wait-minutes sets how long it waits",
            )
        time.sleep(POLL_SECONDS)
