"""Stage one from one capture file: encode the corpus once, then run each teacher over it.

Everything that can be refused is refused before a teacher is loaded, let alone run. With
several workers, rank 0 encodes and declares each teacher, and the others wait for its
manifests; after that no worker needs another.

A worker cannot see whether rank 0 lives, only what it writes: each further shard of sequences is a
sign of life, and after ``wait_minutes`` without one the worker gives up. That needs no heartbeat
object, and works on a disk as on a bucket. Two ranks 0 need no lock: they write the same
bytes, each object whole, and delete nothing that the other has written.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from cache_tools.errors import IdentityError, IncompleteError, ModelError
from cache_tools.format import layout
from cache_tools.models.files import weight_files
from cache_tools.progress.reporter import Reporter
from cache_tools.storage import names, object_exists
from cache_tools.store.reader import Cache, Encoding
from cache_tools.store.writer import create_cache
from cache_tools.vocabularies.same_tokenizer import probes, require_same, sampled_texts
from pipeline.capture.declare import declare, is_declared
from pipeline.capture.shards import capture_shards
from pipeline.config import CaptureConfig, TeacherConfig
from pipeline.corpus.documents import corpus_sources
from pipeline.encoding.encode import encode, is_encoded, is_whole
from pipeline.encoding.tokenizer import load_tokenizer, tokenizer_identity
from pipeline.planning.fit import plan_fit
from pipeline.planning.held import held_encoding
from pipeline.planning.measure import MEASURED_SECONDS, drawn_order, measure
from pipeline.planning.memory import plan_memory
from pipeline.planning.plan import known_totals, plan_encoding, plan_teacher, survey
from pipeline.teachers.checkpoint import check_tensors
from pipeline.teachers.loading import chosen_device, load_teacher, max_positions, resolve_model
from pipeline.teachers.process_group import Place
from pipeline.teachers.restriction import read_restriction

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Worker:
    """One of several processes that share a capture.

    Attributes:
        rank: In [0, world_size).
        world_size: Number of workers.
        wait_minutes: How long a worker waits without a sign of rank 0.
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
        worker: Which share of the work is this process'.
        reporter: Shown what happens.
        append: Add files of the corpus that the encoding lacks.

    Returns:
        Shards committed by this call, per teacher.

    Raises:
        LogitcaskError: something was refused; what was committed before stays.
    """
    reporter.stage("checking the capture file and its teachers", None)
    for teacher in config.teachers:
        chosen_device(teacher.device)
    encoding, folders = prepare(config, worker, reporter, append)
    return {
        teacher.name: _run_teacher(encoding, teacher, folders[teacher.name], config, worker, reporter)
        for teacher in config.teachers
    }


def prepare(
    config: CaptureConfig, worker: Worker, reporter: Reporter, append: bool = False
) -> tuple[Encoding, dict[str, Path]]:
    """Check everything that needs no teacher in memory, and encode the corpus; arguments and errors as above.

    Returns:
        The encoding, and the folder of each teacher's model.
    """
    folders = {teacher.name: resolve_model(teacher) for teacher in config.teachers}
    tokenizer = load_tokenizer(config.encoding.tokenizer or folders[config.teachers[0].name])
    for teacher in config.teachers:
        check_teacher(teacher, folders[teacher.name], tokenizer, config)
        check_tensors(teacher, folders[teacher.name], config.encoding.objective)
    if worker.rank == 0:
        create_cache(config.cache)
        reporter.stage("encode", None)
        encode(config, tokenizer, append, reporter.advance)
    else:
        sources = corpus_sources(config.corpus)
        _wait_for_rank_0(
            "encode",
            lambda: is_encoded(config, sources) or (not append and is_whole(config)),
            config,
            worker,
            reporter,
        )
        encode(config, tokenizer)  # only compares: the encoding exists
    encoding = Cache(config.cache).encoding(config.encoding.name)
    for teacher in config.teachers:
        check_behaviour(teacher, folders[teacher.name], tokenizer, encoding)
    return encoding, folders


def plan_capture(
    config: CaptureConfig,
    sample_documents: int,
    measured_sequences: int,
    tokens_per_s: float | None,
    reporter: Reporter | None = None,
    tokens: float | None = None,
    measured_seconds: float = MEASURED_SECONDS,
    device_memory_bytes: int | None = None,
) -> dict[str, Any]:
    """Return what a capture will cost one worker; nothing is written.

    Unless teachers are to be measured, their configurations and tokenizers are all that is read of them.

    Args:
        config: The capture file.
        sample_documents: Documents to tokenise.
        measured_sequences: Sequences that each teacher reads at most to be measured; 0 for none.
        tokens_per_s: Speed to plan with; the measured one by default.
        reporter: Shown what happens.
        tokens: Size of a corpus like this one to plan for instead of its own.
        measured_seconds: How long each teacher reads at most to be measured.
        device_memory_bytes: Of the GPU to plan for, if it is not the device here.

    Raises:
        LogitcaskError: something was refused.
    """
    reporter, measuring = reporter or Reporter(), measured_sequences > 0
    reporter.stage("checking the capture file and its teachers", None)
    folders = {teacher.name: resolve_model(teacher, weights=measuring) for teacher in config.teachers}
    tokenizer = load_tokenizer(config.encoding.tokenizer or folders[config.teachers[0].name])
    found, teachers = survey(config, tokenizer, sample_documents, reporter), []
    encoding = held_encoding(config, tokenizer)
    if encoding and is_encoded(config, corpus_sources(config.corpus)):
        found = known_totals(found, encoding)
    if tokens:
        found = found.of_size(tokens, config.encoding.positions_per_shard)
    for teacher in config.teachers:
        folder = folders[teacher.name]
        check_teacher(teacher, folder, tokenizer, config, weights=measuring)
        measured = None
        if measuring:
            reporter.stage(f"loading teacher {teacher.name}", None)
            loaded = load_teacher(teacher, folder, config.encoding.objective)
            sample = drawn_order(found.sequences)[:measured_sequences]
            measured = measure(loaded, teacher, config.encoding.objective, sample, measured_seconds, reporter)
        reporter.stage(f"planning teacher {teacher.name}", None)
        planned = plan_teacher(teacher, folder, found, measured, tokens_per_s, encoding)
        memory = plan_memory(teacher, config.encoding, folder, device_memory_bytes)
        fit = plan_fit(teacher, config.encoding.objective, folder, memory)
        teachers.append(planned | {"memory": memory, "fit": fit})
    sequences = plan_encoding(found, encoding)
    return {
        "documents": found.documents,
        "exact": found.exact,
        "splits": found.totals,
        "stored_bytes": sum(part["stored_bytes"] for part in (sequences, *teachers)),
        "remaining_bytes": sum(part["remaining"]["stored_bytes"] for part in (sequences, *teachers)),
        "encoding": sequences,
        "teachers": teachers,
    }


def _run_teacher(
    encoding: Encoding, config: TeacherConfig, folder: Path, capture: CaptureConfig, worker: Worker, reporter: Reporter
) -> int:
    reporter.stage(f"loading teacher {config.name}", None)
    teacher = load_teacher(config, folder, encoding.manifest.objective)
    if worker.rank > 0:
        _wait_for_rank_0(f"declare {config.name}", lambda: is_declared(encoding, config), capture, worker, reporter)
    reporter.stage(f"declaring teacher {config.name}", None)
    cached = declare(encoding, teacher, config, capture.encoding.chunk_positions)
    mine = range(worker.rank, len(encoding.shards), worker.world_size)
    missing = [shard for shard in mine if cached.missing_groups(shard)]
    reporter.stage(f"teacher {config.name}", sum(encoding.shards[shard].tokens for shard in missing))
    capture_shards(cached, missing, teacher, config, reporter.advance)
    return len(missing)


def check_teacher(
    teacher: TeacherConfig,
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    config: CaptureConfig,
    weights: bool = True,
) -> None:
    """Refuse a teacher that could not be used, before anything is encoded or loaded.

    Args:
        teacher: Its block of the capture file.
        folder: Its model folder.
        tokenizer: The encoding's.
        config: The capture file.
        weights: Whether it needs any.

    Raises:
        ModelError: it has no safe weights, its device is not there, or sequences are longer than it can read.
        IdentityError: it, or its vocabulary, has another tokenizer than the encoding.
    """
    if weights:
        weight_files(folder)
    limit, wanted = max_positions(folder, teacher.trust_remote_code), config.encoding.max_length_tokens
    if limit is not None and wanted > limit:
        raise ModelError(
            f"sequences are longer than teacher {teacher.name!r} can read",
            where="encoding.max_length_tokens",
            expected=f"at most {limit}",
            found=wanted,
            fix=f"Set encoding.max_length_tokens to {limit} or less; longer documents are split",
        )
    own = tokenizer_identity(load_tokenizer(folder, trust_remote_code=teacher.trust_remote_code))
    shared = tokenizer_identity(tokenizer)
    if own["vocabulary"] != shared["vocabulary"]:
        raise IdentityError(
            f"teacher {teacher.name!r} has another tokenizer than the encoding",
            where=folder,
            expected=f"vocabulary {shared['vocabulary'][:12]}…",
            found=f"{own['vocabulary'][:12]}…",
            why="it would read ids that mean other tokens",
            fix="Give it an encoding of its own, in a capture file with another encoding.name",
        )
    check_behaviour(teacher, folder, tokenizer)
    restriction = read_restriction(teacher.target.vocabulary)
    if restriction is not None and restriction.tokenizer != shared["vocabulary"]:
        raise IdentityError(
            f"the vocabulary of teacher {teacher.name!r} is made of another tokenizer",
            where=teacher.target.vocabulary,
            expected=f"vocabulary {shared['vocabulary'][:12]}…",
            found=f"{restriction.tokenizer[:12]}…",
            why="its ids mean other tokens",
            fix="Make it with 'logitcask vocabulary --keep' of a cache with this tokenizer",
        )


def check_behaviour(
    teacher: TeacherConfig, folder: Path, tokenizer: PreTrainedTokenizerFast, encoding: Encoding | None = None
) -> None:
    """Refuse a teacher whose tokenizer, with the same vocabulary, splits text unlike the encoding's.

    Args:
        teacher: Its block of the capture file.
        folder: Its model folder.
        tokenizer: The encoding's tokenizer.
        encoding: Try its texts, and not the probes that need none.

    Raises:
        IdentityError: it does.
    """
    loaded = load_tokenizer(folder, trust_remote_code=teacher.trust_remote_code)
    if tokenizer_identity(loaded) == tokenizer_identity(tokenizer):
        return
    own, shared = loaded.backend_tokenizer, tokenizer.backend_tokenizer
    require_same(
        shared,
        own,
        probes(shared) if encoding is None else sampled_texts(encoding),
        f"the tokenizer of teacher {teacher.name!r} splits text unlike that of the encoding",
        folder,
        "Give it an encoding of its own, in a capture file with another encoding.name",
    )


def _wait_for_rank_0(
    task: str, done: Callable[[], bool], config: CaptureConfig, worker: Worker, reporter: Reporter
) -> None:
    """Wait until rank 0 has done its task; give up when it shows no sign of life for too long."""
    reporter.stage(f"waiting for rank 0 to {task}", None)
    folder = layout.encoding_folder(config.cache, config.encoding.name)
    written = set(names(folder / "sequences"))
    shards = next(i for i in count() if layout.sequences_file(folder, i).name not in written)
    last_sign = time.monotonic()
    while not done():
        if object_exists(layout.sequences_file(folder, shards)):
            shards, last_sign = shards + 1, time.monotonic()
        elif time.monotonic() - last_sign > 60 * worker.wait_minutes:
            raise IncompleteError(
                f"rank 0 did not {task}, and gave no sign for {worker.wait_minutes:g} minutes",
                where=config.cache,
                why="the other workers cannot begin without it",
                fix="Look whether rank 0 runs, then start this worker again; --wait-minutes changes its patience",
            )
        time.sleep(POLL_SECONDS)
