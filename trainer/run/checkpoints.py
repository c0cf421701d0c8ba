"""Checkpoints that are checked before they are used: each is finished with the hashes of its files.

::

    <output_dir>/checkpoint-N/sha256.json   bytes and sha256 of every other file of the checkpoint; written last

transformers writes a checkpoint file by file and reads whatever is there: without ``optimizer.pt`` it continues with a
new optimizer, and a flipped bit leads to another student, both without a message. So the newest checkpoint is hashed
before a run continues (about 1.5 GB/s). What happens then:

- Its files have their recorded hashes: the run continues from it.
- It was never finished, because the process was killed or the disk was full: it is removed.
- It is damaged: it is renamed to ``checkpoint-N.damaged``, and the run continues from the one before, which costs the
  steps between them and leads to the same student. If there is none before, the run is refused: starting over may
  cost days, so the user decides that.
- It has no hashes, because an older version wrote it: the run continues with a warning if its files are there.

Folders with other names, such as ``checkpoint-old``, are left alone; transformers would delete them when
``save_total_limit`` is reached.
"""

import errno
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_tools.errors import DamageError, LogitcaskError
from cache_tools.storage import PARTIAL_SUFFIX, file_sha256, remove_tree, storage_errors, write_object

logger = logging.getLogger(__name__)

HASHES = "sha256.json"
STATE = "trainer_state.json"
"""The Trainer's state, which it writes last."""
NUMBERED = re.compile(r"checkpoint-(0|[1-9][0-9]{0,17})")
PROBE_BYTES = 1 << 16


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run folder.

    Attributes:
        newest: The newest checkpoint to continue from; None if there is none.
        has_hashes: Whether ``newest`` was checked against its hashes.
        unfinished: Those that were never written to their end.
        damaged: Newer ones that are damaged, each with the problem.
    """

    newest: Path | None
    has_hashes: bool
    unfinished: tuple[Path, ...]
    damaged: tuple[tuple[Path, str], ...]


def write_hashes(checkpoint: Path) -> None:
    """Finish a checkpoint: write the hashes of its files, which takes one reading of them.

    Raises:
        StorageError: the disk is full or refuses.
    """
    files = {
        path.relative_to(checkpoint).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != HASHES
    }
    write_object(checkpoint / HASHES, (json.dumps({"files": files}, indent=1) + "\n").encode())


def read_checkpoints(output: Path) -> Checkpoints:
    """Find the newest undamaged checkpoint; it and those after it are hashed.

    Raises:
        DamageError: there are checkpoints, and all of them are damaged.
    """
    unfinished: list[Path] = []
    damaged: list[tuple[Path, str]] = []
    for checkpoint in reversed(numbered(output)):
        if _is_unfinished(checkpoint):
            unfinished.append(checkpoint)
            continue
        problem = damage(checkpoint)
        if problem is None:
            return Checkpoints(checkpoint, (checkpoint / HASHES).exists(), tuple(unfinished), tuple(damaged))
        damaged.append((checkpoint, problem))
    if damaged:
        checkpoint, problem = damaged[0]
        raise DamageError(
            f"this checkpoint is damaged: {problem}",
            where=checkpoint,
            why="continuing from it would give a different student, and there is no older undamaged checkpoint",
            fix=f"Restore it from a copy, or delete {checkpoint.name} to start over, and run the same command again",
        )
    return Checkpoints(None, False, tuple(unfinished), ())


def last_checkpoint(output: Path) -> str | None:
    """Return the newest undamaged checkpoint; changes nothing. Errors as for :func:`read_checkpoints`."""
    newest = read_checkpoints(output).newest
    return None if newest is None else str(newest)


def prepare_to_continue(output: Path) -> str | None:
    """Return the checkpoint to continue from; removes unfinished ones, renames damaged ones, and logs this.

    Raises:
        DamageError: there are checkpoints, and all of them are damaged.
        StorageError: the disk refuses.
    """
    checkpoints = read_checkpoints(output)
    for checkpoint in checkpoints.unfinished:
        remove(checkpoint)
    for checkpoint, problem in checkpoints.damaged:
        aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
        remove(aside)
        with storage_errors(checkpoint):
            os.replace(checkpoint, aside)
        logger.warning(
            "%s is damaged: %s. It was renamed to %s, and the run continues from %s. The final student is the same.",
            *(checkpoint, problem, aside.name, getattr(checkpoints.newest, "name", "")),
        )
    if checkpoints.newest is None:
        return None
    if not checkpoints.has_hashes:
        logger.warning(
            "%s has no %s, because an older version wrote it: its files cannot be checked for damage.",
            *(checkpoints.newest, HASHES),
        )
    return str(checkpoints.newest)


def numbered(output: Path) -> list[Path]:
    """Return the checkpoints of a run folder, by number."""
    matches = [(NUMBERED.fullmatch(path.name), path) for path in output.glob("checkpoint-*") if path.is_dir()]
    return [path for _, path in sorted((int(match[1]), path) for match, path in matches if match)]


def damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a finished checkpoint; None if no damage can be detected."""
    try:
        records = json.loads((checkpoint / HASHES).read_bytes())["files"]
        expected = {str(name): (record["bytes"], record["sha256"]) for name, record in records.items()}
    except FileNotFoundError:
        return _missing_file(checkpoint)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{HASHES} cannot be read"
    for name, (num_bytes, sha256) in expected.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != num_bytes or file_sha256(path) != sha256:
            return f"{name} has changed since it was written"
    return _missing_file(checkpoint)


def _missing_file(checkpoint: Path) -> str | None:
    """Return which file a checkpoint lacks, listed or not; DeepSpeed keeps the optimizer in its own folder."""
    needed = ["*.safetensors", "rng_state*.pth"]
    needed += [] if any(checkpoint.glob("global_step*")) else ["optimizer.pt", "scheduler.pt"]
    return next((f"{name} is missing" for name in needed if not any(checkpoint.glob(name))), None)


def _is_unfinished(checkpoint: Path) -> bool:
    if (checkpoint / HASHES).exists():
        return False
    try:
        return not isinstance(json.loads((checkpoint / STATE).read_bytes()), dict)
    except (OSError, ValueError, RecursionError):
        return True


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint if it is there; of a link, the link alone."""
    if checkpoint.is_symlink() or checkpoint.is_file():
        with storage_errors(checkpoint):
            checkpoint.unlink()
    else:
        remove_tree(checkpoint)


def remove_oldest(output: Path, keep: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints until ``keep`` are left; never the newest, nor the best.

    Args:
        output: The run folder.
        keep: ``save_total_limit``; None for all.
        best: Path of the best checkpoint, if there is one.
    """
    checkpoints = numbered(output)
    protected = {path.name for path in checkpoints[-1:]} | ({Path(best).name} if best else set())
    spare = [path for path in checkpoints if path.name not in protected]
    for checkpoint in spare[: max(0, len(checkpoints) - keep) if keep else 0]:
        remove(checkpoint)


@contextmanager
def saving(place: Path) -> Iterator[None]:
    """Turn what torch, safetensors or tokenizers raise inside the block when the disk fails into a StorageError."""
    with storage_errors(place):
        try:
            yield
        except (OSError, LogitcaskError):
            raise
        except Exception as error:
            refusal = _refusal(error, place)
            if refusal is None:
                raise
            raise refusal from error


def _refusal(error: Exception, place: Path) -> OSError | None:
    """Return the error of the disk; libraries in Rust put it into their message, torch's archive writer drops it."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is not None:
        return OSError(int(number[1]), os.strerror(int(number[1])))
    if not re.search("inline_container|PytorchStreamWriter|iostream error", str(error)):
        return None
    return _probe(place) or OSError(errno.EIO, str(error).splitlines()[0])


def _probe(place: Path) -> OSError | None:
    """Find the error of the disk by writing a small file."""
    folder = next(parent for parent in (place, *place.parents) if parent.is_dir())
    probe = folder / f"probe.{uuid.uuid4().hex}{PARTIAL_SUFFIX}"
    try:
        probe.write_bytes(bytes(PROBE_BYTES))
        if shutil.disk_usage(folder).free < PROBE_BYTES:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        return error
    finally:
        probe.unlink(missing_ok=True)
    return None


@contextmanager
def reading(checkpoint: Path) -> Iterator[None]:
    """Turn what torch or safetensors raise for a damaged file inside the block into a DamageError."""
    try:
        yield
    except (LogitcaskError, MemoryError):
        raise
    except Exception as error:  # the libraries raise a dozen kinds
        if "out of memory" in str(error):
            raise
        raise DamageError(
            "this checkpoint cannot be read",
            where=checkpoint,
            found=(str(error).splitlines() or [type(error).__name__])[0][:300],
            fix=f"Delete {checkpoint.name} to continue from the checkpoint before it, and run the same command again",
        ) from error


def broadcast_choice(output: Path, rank: int, broadcast: Any) -> str | None:
    """Let the first process choose the checkpoint for all of them, so that each file is hashed once.

    Args:
        output: The run folder.
        rank: Rank of this process.
        broadcast: Gives a list of objects of the first process to all.

    Raises:
        LogitcaskError: on every process, if the first process could not choose a checkpoint.
    """
    outcome: list[Any] = [None]
    if rank == 0:
        try:
            outcome = [prepare_to_continue(output)]
        except LogitcaskError as error:
            outcome = [error]
    broadcast(outcome)
    if isinstance(outcome[0], LogitcaskError):
        raise outcome[0]
    checkpoint: str | None = outcome[0]
    return checkpoint
