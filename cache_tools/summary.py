"""What a cache holds, as one plain dictionary: the data behind ``logitcask inspect``.

Reads manifests, the shard table and receipts; no array, so it costs milliseconds per
thousand shards whatever the number of positions.
"""

import math
from collections import defaultdict
from typing import Any

from cache_tools.cached_teacher import CachedTeacher
from cache_tools.predictions import mean_statistics
from cache_tools.reader import Cache, Encoding
from cache_tools.receipts import Receipt

LARGEST_EXPONENT = 700.0
"""exp of more overflows a float; a teacher that gives gold tokens no probability gets there."""


def summarise(cache: Cache) -> dict[str, Any]:
    """Return what ``inspect --json`` prints: encodings, their splits, and each teacher's share."""
    return {
        "path": str(cache.path),
        "format": cache.manifest.format,
        "software": cache.manifest.software,
        "encodings": [_encoding(cache.encoding(name)) for name in cache.encodings],
    }


def _encoding(encoding: Encoding) -> dict[str, Any]:
    manifest = encoding.manifest
    return {
        "name": encoding.name,
        "fingerprint": manifest.fingerprint,
        "parts": len(manifest.parts),
        "objective": manifest.objective,
        "vocabulary_size": manifest.vocabulary_size,
        "positions_per_shard": manifest.positions_per_shard,
        "splits": {name: totals.model_dump() for name, totals in manifest.splits.items()},
        "sequence_bytes": sum(entry.bytes for entry in encoding.shards),
        "teachers": [_teacher(encoding.teacher(name)) for name in encoding.teachers],
    }


def _teacher(teacher: CachedTeacher) -> dict[str, Any]:
    manifest = teacher.manifest
    receipts = [r for shard in range(len(teacher.encoding.shards)) if (r := teacher.receipt(shard))]
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
        "provenance": receipts[0].provenance if receipts else {},
    }


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
            perplexity = math.exp(min(means["cross_entropy_nats"], LARGEST_EXPONENT))
            finite = {name: value if math.isfinite(value) else None for name, value in means.items()}
            result[split] = finite | {"perplexity": perplexity}
    return result
