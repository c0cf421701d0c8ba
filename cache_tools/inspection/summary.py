"""What a cache holds, as one plain dictionary: the data behind ``logitcask inspect``.

Sizes, means and progress come from manifests, the shard table and receipts, which costs milliseconds per
thousand shards whatever the number of positions. What no receipt tells, such as the calibration, comes from
a sample of positions, if one is asked for, and the sample says how many of how many it is.
"""

import json
import math
from collections import defaultdict
from typing import Any

from cache_tools.format.receipts import Receipt
from cache_tools.inspection.measures import LARGEST_EXPONENT, By, by_group, calibration
from cache_tools.inspection.row_check import contradicting_share
from cache_tools.inspection.sample import Sample, read_sample
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.store.predictions import mean_statistics
from cache_tools.store.reader import Cache, Encoding
from cache_tools.store.teacher import CachedTeacher

LONGEST_SECONDS = 1e12
"""Of a shard; a receipt that states more is not believed."""

VARYING = ("seconds", "shard")
"""Keys of a receipt's provenance that are another in every shard."""

NOTHING = {"shards": 0, "positions": 0, "seconds": 0.0}


def summarise(
    cache: Cache, sample_positions: int = 0, seed: int = 0, by: By | None = None, progress: Advance = ignore
) -> dict[str, Any]:
    """Return what ``inspect --json`` prints: encodings, their splits, and each teacher's share.

    Args:
        cache: The cache.
        sample_positions: Positions of each teacher to read for what no receipt tells; 0 for none, and no array is read.
        seed: Of their draw.
        by: Also tell the sample's groups of documents apart, put together by this.
        progress: Told of each receipt, and of each chunk of a sample.
    """
    return {
        "path": str(cache.path),
        "format": cache.manifest.format,
        "software": cache.manifest.software,
        "encodings": [
            _encoding(cache.encoding(name), sample_positions, seed, by, progress) for name in cache.encodings
        ],
    }


def _encoding(encoding: Encoding, sample_positions: int, seed: int, by: By | None, progress: Advance) -> dict[str, Any]:
    teachers = [
        describe_teacher(teacher, progress) | {"sample": _sampled(teacher, sample_positions, seed, by, progress)}
        for teacher in map(encoding.teacher, encoding.teachers)
    ]
    return describe_encoding(encoding) | {"teachers": teachers}


def describe_encoding(encoding: Encoding) -> dict[str, Any]:
    """Return what the manifest and the shard table of an encoding say."""
    manifest = encoding.manifest
    return {
        "name": encoding.name,
        "fingerprint": manifest.fingerprint,
        "parts": len(manifest.parts),
        "objective": manifest.objective,
        "vocabulary_size": manifest.vocabulary_size,
        "positions_per_shard": manifest.positions_per_shard,
        "chat_sequences_without_beginning": sum(part.chat_sequences_without_beginning for part in manifest.parts),
        "splits": {name: totals.model_dump() for name, totals in manifest.splits.items()},
        "sequence_bytes": sum(entry.bytes for entry in encoding.shards),
    }


def describe_teacher(teacher: CachedTeacher, progress: Advance = ignore) -> dict[str, Any]:
    """Return what a teacher's manifest and receipts say: model, sizes, statistics, progress and who made it.

    ``progress`` is told of each receipt.
    """
    manifest, receipts = teacher.manifest, list[Receipt]()
    for shard in range(len(teacher.encoding.shards)):
        receipts += filter(None, [teacher.receipt(shard)])
        progress(1)
    positions = sum(receipt.positions for receipt in receipts)
    stored = sum(r.stored_bytes for r in receipts) + sum(record.bytes for record in manifest.files.values())
    return {
        "name": teacher.name,
        "fingerprint": manifest.fingerprint,
        "model": manifest.model,
        "vocabulary_size": manifest.vocabulary_size,
        "target": manifest.target.model_dump(),
        "scalars": list(manifest.scalars),
        "hidden": {layer: spec.model_dump() for layer, spec in manifest.hidden.items()},
        "shards_done": len(receipts),
        "shards": len(teacher.encoding.shards),
        "positions": positions,
        "stored_bytes": stored,
        "bytes_per_position": stored / positions if positions else None,
        "bytes_by_array": _bytes_by_array(receipts),
        "positions_by_group": {g: sum(r.positions for r in receipts if g in r.groups) for g in teacher.groups},
        "statistics": _statistics(teacher, receipts),
        "positions_expected": sum(entry.positions for entry in teacher.encoding.shards),
        "provenance": receipts[0].provenance if receipts else {},
        "made_by": _makers(receipts),
    }


def describe_sample(sample: Sample, of_positions: int) -> dict[str, int]:
    """Return how many positions were read, of how many, and how they were drawn."""
    return {"positions": len(sample.rows), "of_positions": of_positions, "windows": sample.windows, "seed": sample.seed}


def _sampled(
    teacher: CachedTeacher, positions: int, seed: int, by: By | None, progress: Advance
) -> dict[str, Any] | None:
    """Return what a sample of the finished shards tells; None if there are none or none was asked for."""
    shards = set(range(len(teacher.encoding.shards))) - set(teacher.missing_shards())
    if not positions or not shards:
        return None
    sample = read_sample(teacher.encoding, [teacher], positions, seed, progress)
    answers = sample.answers[teacher.name]
    drawn = describe_sample(sample, sum(teacher.encoding.shards[shard].positions for shard in shards))
    groups = {} if by is None else {"groups": by_group(sample, answers, by)}
    contradicting = contradicting_share(teacher, positions, seed)
    return drawn | {"contradicting": contradicting, "calibration": calibration(answers, sample.gold_ids)} | groups


def _makers(receipts: list[Receipt]) -> list[dict[str, Any]]:
    """Return the software and devices that wrote groups of arrays, with the shards and seconds of each."""
    makers: dict[str, dict[str, Any]] = {}
    for receipt in receipts:
        for group, made in receipt.provenance.items():
            who = {key: value for key, value in made.items() if key not in VARYING}
            maker = makers.setdefault(json.dumps([group, who], sort_keys=True), {"group": group} | who | NOTHING)
            maker["shards"] += 1
            maker["positions"] += receipt.positions
            maker["seconds"] += _seconds(made)
    return list(makers.values())


def _seconds(made: dict[str, Any]) -> float:
    """Return the seconds that a group took; 0 if what stands there is no such number."""
    seconds = made.get("seconds")
    sensible = isinstance(seconds, int | float) and 0 <= seconds <= LONGEST_SECONDS
    return float(seconds) if sensible else 0.0  # type: ignore[arg-type]


def _bytes_by_array(receipts: list[Receipt]) -> dict[str, int]:
    sizes: dict[str, int] = defaultdict(int)
    for receipt in receipts:
        for key, record in receipt.objects.items():
            sizes[key.split("/c/")[0]] += record.bytes
    return dict(sorted(sizes.items()))


def _statistics(teacher: CachedTeacher, receipts: list[Receipt]) -> dict[str, dict[str, float | None]]:
    """Return means over positions per split, with the perplexity of the cross-entropy."""
    result: dict[str, dict[str, float | None]] = {}
    for split in teacher.encoding.manifest.splits:
        shards = set(teacher.encoding.split_shards(split))
        means = mean_statistics([(r.positions, r.statistics) for r in receipts if r.shard in shards])
        if means:
            loss = means.get("cross_entropy_nats")
            perplexity = None if loss is None else math.exp(min(loss, LARGEST_EXPONENT))
            finite = {name: value if math.isfinite(value) else None for name, value in means.items()}
            result[split] = finite | {"perplexity": perplexity}
    return result
