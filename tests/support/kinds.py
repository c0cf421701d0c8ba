"""Random targets of every kind, and caches that hold each codec of targets and of hidden states."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.registry import (
    Codec,
    DeltaCount,
    DeltaFloat32,
    DeltaPower,
    DenseFloat32,
    RankedGrid,
    RankedPower,
    Targets,
)
from cache_tools.format import layout
from cache_tools.format.manifest import HiddenSpec
from cache_tools.hidden_codecs.transform import Transform, transform_bytes
from store_fixtures import TinyCache, make_cache, spread_rest

DRAWS = 8
EVERY_HIDDEN = {
    "last": HiddenSpec(width=3, codec="bfloat16"),
    "0": HiddenSpec(width=2, codec="float32"),
    "1": HiddenSpec(width=5, codec="transform", budget=0.05),
}
"""A layer in each codec."""

MADE = {
    "topk": lambda folder, **more: make_cache(folder, **more),
    "topk-wide": lambda folder, **more: make_cache(folder, **{"vocabulary": 70_000, **more}),
    "topp": lambda folder, **more: make_cache(
        folder, **{"k": 7, "target": ("topp", DeltaPower(7, 1000)), "draw": ragged(7, 1000), **more}
    ),
    "sampled": lambda folder, **more: make_cache(
        folder, **{"target": ("sampled", DeltaCount(4, 1000, DRAWS)), "draw": sampled(4, 1000), **more}
    ),
    "exact": lambda folder, **more: make_cache(folder, **{"target": ("topk", DeltaFloat32(4, 1000)), **more}),
    "dense": lambda folder, **more: make_cache(
        folder,
        **{"vocabulary": 6, "k": 6, "target": ("dense", DenseFloat32(6, 6)), "draw": dense(6), **more},
    ),
    "ranked": lambda folder, **more: make_cache(
        folder,
        **{"vocabulary": 70_000, "k": 12, "draw": ragged(12, 70_000)}
        | ranked(RankedPower(12, 70_000), ragged(12, 70_000), "topp")
        | more,
    ),
    "grid": lambda folder, **more: make_cache(
        folder, **{"k": 10, "draw": gridded(10, 1000)} | ranked(RankedGrid(10, 1000), gridded(10, 1000), "topp") | more
    ),
    "hidden": lambda folder, **more: make_cache(folder, **{"hidden": EVERY_HIDDEN, "files": hidden_files(), **more}),
}
"""A cache of each kind, by name; arguments as for ``make_cache``."""


def make(name: str, folder: Path, **more: object) -> TinyCache:
    """Write the cache of this name."""
    return MADE[name](folder, **more)


def hidden_files() -> dict[str, bytes]:
    """Return the files of a teacher with EVERY_HIDDEN: a basis, and a head that no reader of the store looks into."""
    rng = np.random.default_rng(3)
    basis = np.eye(5) + rng.normal(0, 0.1, (5, 5))
    transform = Transform(rng.normal(size=5).astype(np.float32), basis.astype(np.float32))
    return {layout.HEAD: rng.bytes(200), layout.transform_key("1"): transform_bytes(transform)}


def ranked(codec: Codec, draw, kind: str) -> dict[str, object]:
    """Return the target of a teacher with this codec, and the file that the codec learns from such rows."""
    assert codec.file is not None
    sample = draw(np.random.default_rng(7), 2000)
    return {"target": (kind, codec), "files": {codec.file: codec.learned_file(sample)}, "hidden": {}}


def bfloat16_of(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return values rounded towards zero to bfloat16."""
    return (values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def log_probs_of(logits: NDArray[np.float32], log_total: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return log-probabilities (n, k) as a capture computes them, from logits and log-normalisers below the highest."""
    return logits - logits.max(axis=1, keepdims=True) - log_total[:, None]


def gridded(k: int, vocabulary: int, off_every: int = 7):
    """Return what draws rows of bfloat16 logits, one in ``off_every`` of float32 logits, some with empty slots."""

    def draw(rng: np.random.Generator, n: int) -> Targets:
        ids = np.stack([rng.choice(vocabulary, k, replace=False) for _ in range(n)]).astype(np.uint32)
        logits = rng.normal(12, 4, (n, k)).astype(np.float32)
        on = np.arange(n) % off_every != off_every - 1
        logits[on] = bfloat16_of(logits[on])
        logits[~on] *= 3  # a range of more steps than are looked for
        empty = np.arange(k) >= k - np.arange(n)[:, None] % 3
        logits[empty] = -np.inf
        rest = rng.uniform(0.01, 3, n)
        below = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
        weights = spread_rest(np.column_stack([np.exp(below), rest]), vocabulary)
        log_total = np.log(weights.sum(axis=1)).astype(np.float32)
        left_out = logarithm(weights)[:, -1]
        return Targets(ids, log_probs_of(logits, log_total), left_out)

    return draw


def ragged(k: int, vocabulary: int):
    """Return what draws rows of 1 to k entries, ever fewer, as top-p does."""

    def draw(rng: np.random.Generator, n: int) -> Targets:
        sizes = np.minimum(rng.geometric(0.4, n), k)
        ids = np.stack([rng.choice(vocabulary, k, replace=False) for _ in range(n)]).astype(np.uint32)
        weights = np.exp(rng.normal(0, 1, (n, k + 1)))
        weights[:, :k][np.arange(k) >= sizes[:, None]] = 0
        logs = logarithm(spread_rest(weights, vocabulary))
        return Targets(ids, logs[:, :k], logs[:, k])

    return draw


def sampled(k: int, vocabulary: int):
    """Return what draws rows of DRAWS samples of at most k tokens."""

    def draw(rng: np.random.Generator, n: int) -> Targets:
        ids = np.stack([rng.choice(vocabulary, k, replace=False) for _ in range(n)]).astype(np.uint32)
        counts = rng.multinomial(DRAWS, [0.5, 0.3, 0.2] + [0.0] * (k - 3), n)
        return Targets(ids, logarithm(counts), np.full(n, -np.inf, np.float32))

    return draw


def dense(classes: int):
    """Return what draws distributions over all classes; every other row lacks one."""

    def draw(rng: np.random.Generator, n: int) -> Targets:
        weights = rng.random((n, classes)) + 0.01
        weights[::2, 1] = 0
        ids = np.tile(np.arange(classes, dtype=np.uint32), (n, 1))
        return Targets(ids, logarithm(weights), np.full(n, -np.inf, np.float32))

    return draw


def logarithm(weights: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return the log-probabilities (n, k) float32 that weights (n, k) stand for."""
    with np.errstate(divide="ignore"):
        return np.log(weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def decoded(tiny: TinyCache) -> dict[str, NDArray[np.generic]]:
    """Return everything that a reader finds in a cache, rows of all shards one after another."""
    teacher = tiny.open()
    rows = [teacher.shard_rows(shard) for shard in range(len(tiny.entries))]
    targets = [teacher.targets(*span) for span in rows]
    found = {name: np.concatenate([getattr(t, name) for t in targets]) for name in vars(targets[0])}
    for name in tiny.manifest.scalars:
        found[name] = np.concatenate([teacher.scalar(name, *span) for span in rows])
    for layer in tiny.manifest.hidden:
        found[f"hidden_{layer}"] = np.concatenate([teacher.hidden(layer, *span) for span in rows])
    return found
