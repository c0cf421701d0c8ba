"""What the storing of a cache costs an evaluation: the floor below which no figure means anything, and the bytes.

A model is compared with what the cache kept of the teacher, not with the teacher. A perfect copy of the teacher would
therefore score the error of storing, and this module says how large that is:

- Rows of likely tokens, and states in the type that the teacher computed in, are kept bit for bit: the floor is 0.
- Rows with an error budget: the capture measured the mean and the largest KL of each shard. How the values spread
  between the two is not recorded, so the percentiles have no floor.
- Hidden states with a budget, or rounded to bfloat16: a second error of the same size is added to stored states, and
  the KL between both gives the percentiles. The mean is the one that the capture measured, where it did, and the
  percentiles are scaled with it: the KL grows with the square of the error at every position alike. It costs two
  products with the output matrix for at most FLOOR_POSITIONS positions.
- Draws: their error is no floor but noise, which the mean over positions averages out.

The floor does not hold the difference between two runs of one model, in other types or other batches. For bfloat16 it
is larger than all of these, about 1e-3 nats; only running the teacher again shows it (``--original``).
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cache_tools.format import layout
from cache_tools.format.layout import GOLD_LOGPROB
from cache_tools.format.manifest import Split
from cache_tools.format.receipts import Receipt
from cache_tools.hidden_codecs.registry import HIDDEN_CODECS
from cache_tools.store.predictions import hidden_array, mean_statistics
from cache_tools.store.teacher import CachedTeacher
from trainer.evaluation.measures import measured_kl, measured_reading
from trainer.evaluation.results import Floor, StoredBytes
from trainer.losses.full import TeacherHead, whole_kl

FLOOR_POSITIONS = 8192
"""Positions that are estimated at most; 8 of them lie above the 99.9th percentile."""

FLOOR_SHARDS = 32
"""Shards that these positions are taken from at most."""

CHUNK_POSITIONS = 256
LAST = "last"


def floor_of(teacher: CachedTeacher, split: Split, device: torch.device, translated: bool = False) -> Floor:
    """Return what a perfect copy of a teacher would score on a split, because of how the cache stores it.

    Args:
        teacher: The cached teacher.
        split: ``held_out`` or ``train``.
        device: Where the stored states are multiplied with the output matrix.
        translated: Whether the teacher is read with a student's ids; its targets are then compared.
    """
    gold_nats = teacher.manifest.scalar_step_nats / 2
    means = mean_statistics([(receipt.positions, receipt.statistics) for receipt in _receipts(teacher, split)])
    if measured_kl(teacher.manifest, translated).source == "hidden":
        if _keeps_every_bit(teacher):
            return _exact(gold_nats)
        return _estimated(teacher, split, device, means.get(f"hidden_{LAST}_kl_nats"), gold_nats)
    mean, largest = means.get("codec_kl_nats"), means.get("codec_kl_nats_max")
    if teacher.manifest.target.kind.is_drawn or mean is None or largest is None:
        return Floor("unknown", gold_nats)
    return _exact(gold_nats) if largest == 0 else Floor("measured", gold_nats, mean_nats=mean, max_nats=largest)


def stored_bytes(teacher: CachedTeacher, split: Split, positions: int, translated: bool = False) -> StoredBytes:
    """Return the size of what an evaluation reads of a split.

    Args:
        teacher: The cached teacher.
        split: ``held_out`` or ``train``.
        positions: Positions of the split.
        translated: As for :func:`floor_of`.
    """
    reading = measured_reading(teacher.manifest, translated)
    arrays = {*teacher.codec.array_types(), *reading.scalars, GOLD_LOGPROB, *map(hidden_array, reading.layers)}
    files = {teacher.codec.file, *([layout.HEAD, layout.transform_key(LAST)] if reading.layers else [])}
    objects = (
        record
        for receipt in _receipts(teacher, split)
        for key, record in receipt.objects.items()
        if key.split("/c/")[0] in arrays
    )
    read, vocabulary_size = sum(record.bytes for record in objects), teacher.manifest.vocabulary_size
    once = sum(record.bytes for key, record in teacher.manifest.files.items() if key in files)
    return StoredBytes(read, read / positions, once, 4 * vocabulary_size, 2 * vocabulary_size)


def _receipts(teacher: CachedTeacher, split: Split) -> Iterator[Receipt]:
    """Yield the receipts of a split, with a request for many of them."""
    shards = set(teacher.encoding.split_shards(split))
    return (receipt for receipt in teacher.receipts() if receipt.shard in shards)


def _keeps_every_bit(teacher: CachedTeacher) -> bool:
    """Return whether the states ``last`` are stored as the teacher computed them."""
    codec = HIDDEN_CODECS[teacher.manifest.hidden[LAST].codec]
    if codec.rounds_to_bfloat16:
        return teacher.manifest.identity.get("dtype") == "bfloat16"
    return not codec.has_transform


def _exact(gold_nats: float) -> Floor:
    return Floor("exact", gold_nats, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, top1_agreement=1.0)


def _estimated(
    teacher: CachedTeacher, split: Split, device: torch.device, measured_mean: float | None, gold_nats: float
) -> Floor:
    kl_P, agreement = _second_errors(teacher, split, device)
    if measured_mean is not None and kl_P.mean() > 0:
        kl_P *= measured_mean / kl_P.mean()
    median, p90, p95, p99, p99_9, largest = np.quantile(kl_P, [0.5, 0.9, 0.95, 0.99, 0.999, 1.0]).tolist()
    return Floor(
        "estimated",
        gold_nats,
        mean_nats=float(kl_P.mean()),
        median_nats=median,
        p90_nats=p90,
        p95_nats=p95,
        p99_nats=p99,
        p99_9_nats=p99_9,
        max_nats=largest,
        top1_agreement=agreement,
        positions=len(kl_P),
    )


@torch.no_grad()
def _second_errors(teacher: CachedTeacher, split: Split, device: torch.device) -> tuple[NDArray[np.float64], float]:
    """Return the KL that a second error makes at evenly chosen positions, (P,) float64, and the same-top share."""
    head = nn.Module.to(TeacherHead(teacher.file(layout.HEAD), teacher.manifest.vocabulary_size), device)
    codec, random = HIDDEN_CODECS[teacher.manifest.hidden[LAST].codec], np.random.default_rng(0)
    shards = teacher.encoding.split_shards(split)
    shards = shards[:: -(-len(shards) // FLOOR_SHARDS)]
    values, agreeing = [], 0
    for shard in shards:
        positions = teacher.encoding.shards[shard].positions
        rows = min(positions, FLOOR_POSITIONS // len(shards))
        start = (positions - rows) // 2
        for first in range(start, start + rows, CHUNK_POSITIONS):
            stored = teacher.stored_hidden(LAST, shard, first, min(first + CHUNK_POSITIONS, start + rows))
            states = stored.decode(0, len(stored.values))
            other = codec.with_second_error(states, stored.transform, stored.parameters, random)
            logits_NU, other_NU = (head(torch.from_numpy(x).to(device)) for x in (states, other))
            values.append(whole_kl(other_NU, logits_NU).double().cpu().numpy())
            agreeing += int((logits_NU.argmax(dim=1) == other_NU.argmax(dim=1)).sum())
    kl_P = np.concatenate(values)
    return kl_P, agreeing / len(kl_P)
