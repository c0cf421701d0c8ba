"""Run teachers over an encoding and commit their predictions, shard by shard.

For each shard that is incomplete: form batches, run the body, run the head at kept positions in chunks, keep what the
capture file names, write, commit. The process may be killed at any moment: when it is run again, committed shards are
skipped, the others are repeated from their beginning, and the bytes are the same. If a layer of hidden states is added
later, only that layer is captured. A separate thread encodes and writes a shard while the teacher reads the next.

Memory on the host: the kept predictions of two shards; on the device, see ``predict.py``.
"""

import platform
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from cache_tools.errors import ModelError
from cache_tools.format.layout import temperatures_of
from cache_tools.format.manifest import SOFTWARE
from cache_tools.format.receipts import TARGETS
from cache_tools.hidden_codecs.registry import HIDDEN_CODECS
from cache_tools.hidden_codecs.transform import ErrorOf
from cache_tools.mappings import Provenance
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.store.predictions import Predictions, hidden_array
from cache_tools.store.reader import Encoding
from cache_tools.store.teacher import CachedTeacher
from cache_tools.store.writer import commit_shard
from pipeline.capture.hidden_budget import OutputHead, kl_error
from pipeline.capture.keep import Keep
from pipeline.capture.predict import KeptOutputs, predict, probe_batch
from pipeline.teachers.body_and_head import HeadOutput
from pipeline.teachers.teacher import AnyTeacher, RowTeacher, Teacher


def capture_shards(
    cached: CachedTeacher,
    shards: list[int],
    teacher: AnyTeacher,
    keep: Keep,
    batch_tokens: int,
    skip_nan: bool = False,
    progress: Advance = ignore,
    committed: Callable[[int], object] = lambda _: None,
) -> None:
    """Capture what these shards lack of a declared teacher.

    Args:
        cached: The teacher as declared in the cache.
        shards: Shards to do.
        teacher: The loaded teacher.
        keep: What is kept of each distribution.
        batch_tokens: Tokens per forward pass, padding included.
        skip_nan: Keep an empty row where logits are not numbers, instead of refusing it.
        progress: Called with the number of tokens that were read.
        committed: Called with each shard when it is committed, from a thread of its own.

    Raises:
        ModelError: a prediction is not a number, or cannot be stored.
        StorageError: the disk is full, or disk or bucket refuse.
    """
    encoding, errors = cached.encoding, _error_measures(cached, teacher) if shards else {}
    objective = encoding.manifest.objective
    with ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        for shard in shards:
            started = time.monotonic()
            kept = KeptOutputs(*_missing_outputs(cached, shard, keep), skip_nan)
            sequences = encoding.sequences(shard)
            predictions = predict(sequences, objective, teacher, kept, batch_tokens, progress)
            if writing:
                writing.result()
            provenance = _provenance(teacher, started)
            writing = writer.submit(_commit, cached, shard, predictions, provenance, errors, committed)
        if writing:
            writing.result()


def _missing_outputs(cached: CachedTeacher, shard: int, keep: Keep) -> tuple[Keep | None, tuple[str, ...]]:
    """Return what is kept of distributions, None if the shard has its targets, and the layers that the shard lacks."""
    missing = cached.missing_groups(shard)
    layers = tuple(layer for layer in cached.manifest.hidden if hidden_array(layer) in missing)
    return keep if TARGETS in missing else None, layers


def _commit(
    cached: CachedTeacher,
    shard: int,
    predictions: Predictions,
    provenance: Provenance,
    errors: dict[str, ErrorOf],
    committed: Callable[[int], object],
) -> None:
    try:
        commit_shard(cached, shard, predictions, provenance, errors)
    except ValueError as error:
        raise ModelError(
            "the predictions of a shard cannot be stored",
            where=f"teacher {cached.name!r}, shard {shard}",
            found=error,
            why="a student would learn something that the teacher did not predict",
        ) from error
    committed(shard)


@torch.inference_mode()
def _error_measures(cached: CachedTeacher, teacher: AnyTeacher) -> dict[str, ErrorOf]:
    """Return how to measure the error of the last hidden state, if it has a budget: in KL of the logits."""
    last = cached.manifest.hidden.get("last")
    if isinstance(teacher, RowTeacher) or last is None or not HIDDEN_CODECS[last.codec].has_transform:
        return {}
    head = OutputHead.of(teacher.head.model, probe_head(cached.encoding, teacher))
    return {"last": kl_error(head, temperatures_of(cached.manifest.scalars))}


def probe_head(encoding: Encoding, teacher: Teacher) -> HeadOutput:
    """Run body and head over the encoding's first sequence."""
    return teacher.head.logits(teacher.body.states(probe_batch(encoding))[0])


def _provenance(teacher: AnyTeacher, started: float) -> Provenance:
    seconds = round(time.monotonic() - started, 3)
    if isinstance(teacher, RowTeacher):
        return {"software": f"{SOFTWARE}, {teacher.software}", "device": "server", "seconds": seconds}
    device = torch.cuda.get_device_name(teacher.device) if teacher.device.type == "cuda" else platform.machine()
    return {
        "software": f"{SOFTWARE}, torch {torch.__version__}, {teacher.software}",
        "device": f"{teacher.device.type} ({device})",
        "seconds": seconds,
    }
