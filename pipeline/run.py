"""Stage one from one capture file: encode the corpus once, then run each teacher over it.

Everything that can be refused is refused before a teacher is loaded, let alone run. With
several workers, rank 0 encodes and the others wait for its manifest; after that no worker
needs another.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedTokenizerFast

from cache_tools import layout
from cache_tools.errors import IdentityError, ModelError
from cache_tools.reader import Cache, Encoding
from cache_tools.writer import create_cache
from pipeline.capture import capture_teacher
from pipeline.config import CaptureConfig, TeacherConfig
from pipeline.encode import encode
from pipeline.teacher import chosen_device, load_teacher, max_positions, resolve_model, weight_files
from pipeline.tokenizers import load_tokenizer, tokenizer_identity

POLL_SECONDS = 1.0


class Reporter(Protocol):
    """What the command line shows while a capture runs."""

    def stage(self, name: str, total_tokens: int | None) -> None:
        """Begin a stage of a known or unknown number of tokens."""

    def advance(self, num_tokens: int) -> None:
        """Count tokens of the current stage."""


@dataclass(frozen=True)
class Worker:
    """One of several processes that share a capture.

    Attributes:
        rank: In [0, world_size).
        world_size: Number of workers.
    """

    rank: int = 0
    world_size: int = 1


def run_capture(config: CaptureConfig, worker: Worker, reporter: Reporter) -> dict[str, int]:
    """Encode the corpus and capture all teachers, continuing whatever is already there.

    Returns:
        Shards committed by this call, per teacher.

    Raises:
        LogitcaskError: something was refused; what was committed before stays.
    """
    folders = {teacher.name: resolve_model(teacher) for teacher in config.teachers}
    tokenizer = load_tokenizer(config.encoding.tokenizer or folders[config.teachers[0].name])
    for teacher in config.teachers:
        _check_teacher(teacher, folders[teacher.name], tokenizer, config)
    if worker.rank == 0:
        create_cache(config.cache)
        reporter.stage("encode", None)
        encode(config, tokenizer, reporter.advance)
    else:
        reporter.stage("waiting for rank 0 to encode", None)
        _wait_for(layout.encoding_folder(config.cache, config.encoding.name) / layout.MANIFEST)
        encode(config, tokenizer)  # only compares: the encoding exists
    encoding = Cache(config.cache).encoding(config.encoding.name)
    return {
        teacher.name: _run_teacher(encoding, teacher, folders[teacher.name], config, worker, reporter)
        for teacher in config.teachers
    }


def _run_teacher(
    encoding: Encoding, config: TeacherConfig, folder: Path, capture: CaptureConfig, worker: Worker, reporter: Reporter
) -> int:
    mine = range(worker.rank, len(encoding.shards), worker.world_size)
    receipts = layout.teacher_folder(encoding.path, config.name)
    missing = [shard for shard in mine if not layout.receipt_file(receipts, shard).exists()]
    reporter.stage(f"teacher {config.name}", sum(encoding.shards[shard].tokens for shard in missing))
    teacher = load_teacher(config, folder, encoding.manifest.objective)
    return capture_teacher(
        encoding, teacher, config, capture.encoding.chunk_positions, worker.rank, worker.world_size, reporter.advance
    )


def _check_teacher(
    teacher: TeacherConfig, folder: Path, tokenizer: PreTrainedTokenizerFast, config: CaptureConfig
) -> None:
    """Refuse a teacher that could not be used, before anything is encoded or loaded."""
    weight_files(folder)
    chosen_device(teacher.device)
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


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(POLL_SECONDS)
