"""A tiny real cache, made without a model: what the tests of the store read, verify and damage.

The files are written by the store's own public functions; only what goes into them is made up.
Token ids, texts and predictions are random: the store must give back whatever it was given.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.registry import Codec, DeltaPower, Targets
from cache_tools.format import layout
from cache_tools.format.fingerprint import fingerprint
from cache_tools.format.layout import SCALARS
from cache_tools.format.manifest import (
    EncodingManifest,
    HiddenSpec,
    ObjectRecord,
    TeacherManifest,
    write_group,
    write_manifest,
)
from cache_tools.format.receipts import Receipt, read_receipt, write_receipt
from cache_tools.format.sealed import UNSEALED, sealed_bytes
from cache_tools.format.sequences import Sequence
from cache_tools.format.shards import ShardEntry, write_part, write_shard
from cache_tools.storage import write_object
from cache_tools.store.predictions import SCALAR_STEP_NATS, Predictions, codec_of
from cache_tools.store.reader import Cache, Encoding
from cache_tools.store.root import create_cache
from cache_tools.store.teacher import CachedTeacher
from cache_tools.store.writer import commit_shard, declare_teacher

POSITIONS_PER_SHARD = 16
CHUNK_POSITIONS = 4
SEQUENCE_TOKENS = (5, 6, 4)
"""Lengths of a shard's sequences: 12 positions, so that each shard leaves 4 of its 16 rows unused."""

HIDDEN = {"last": HiddenSpec(width=3, codec="bfloat16"), "1": HiddenSpec(width=2, codec="float32")}
Draw = Callable[[np.random.Generator, int], Targets]  # makes n random targets


@dataclass(frozen=True)
class TinyCache:
    """A cache on disk and what was written into it.

    Attributes:
        path: The cache.
        encoding: Folder of its one encoding, ``tiny``.
        teacher: Folder of its one teacher, ``toy``.
        manifest: The teacher's manifest.
        entries: The shard table.
        sequences: Sequences of each shard.
        predictions: Predictions of each shard, committed or not.
    """

    path: Path
    encoding: Path
    teacher: Path
    manifest: TeacherManifest
    entries: list[ShardEntry]
    sequences: list[list[Sequence]]
    predictions: list[Predictions]

    def open(self) -> CachedTeacher:
        """Open the teacher as a new reader, which remembers nothing."""
        return Cache(self.path).encoding().teacher()

    def commit(self, shard: int) -> Receipt:
        """Commit a shard."""
        return commit_shard(self.open(), shard, self.predictions[shard], {"device": "none"})

    def receipt_file(self, shard: int) -> Path:
        """Return the path of a shard's receipt."""
        return layout.receipt_file(self.teacher, shard)

    def objects(self, shard: int) -> list[Path]:
        """Return the paths of a shard's objects."""
        receipt = read_receipt(self.teacher, shard)
        assert receipt is not None
        return [self.teacher / key for key in receipt.objects]

    def edit_receipt(self, shard: int, **changes: Any) -> None:
        """Replace fields of a receipt."""
        receipt = read_receipt(self.teacher, shard)
        assert receipt is not None
        write_receipt(self.teacher, receipt.model_copy(update=changes))

    def record_object(self, shard: int, key: str, path: Path) -> None:
        """Make a receipt vouch for the bytes at ``path`` under ``key``."""
        receipt = read_receipt(self.teacher, shard)
        self.edit_receipt(shard, objects={**receipt.objects, key: ObjectRecord.of(path.read_bytes())})


def make_cache(
    folder: Path,
    *,
    vocabulary: int = 1000,
    k: int = 4,
    shards: int = 3,
    committed: int | None = None,
    target: tuple[str, Codec] | None = None,
    draw: Draw | None = None,
    hidden: dict[str, HiddenSpec] = HIDDEN,
    files: dict[str, bytes] | None = None,
) -> TinyCache:
    """Write a cache of one encoding (the last shard is held out) and one teacher.

    Args:
        folder: Receives the cache as ``cache``.
        vocabulary: Ids are below this.
        k: Entries a row can hold.
        shards: Number of shards.
        committed: How many shards, from the first, to commit; all of them by default.
        target: Kind and codec of the targets; by default ``topk`` and ``delta-power``.
        draw: Makes n random targets; by default ``random_targets``.
        hidden: Layers of hidden states; ``files`` are the teacher's files.
    """
    rng = np.random.default_rng(7)
    path = folder / "cache"
    create_cache(path)
    encoding = layout.encoding_folder(path, "tiny")
    sequences = [random_sequences(rng, shard, vocabulary) for shard in range(shards)]
    entries = write_encoding(encoding, sequences, vocabulary)
    manifest = teacher_manifest({"corpus": "random"}, vocabulary, k, target, hidden, files, weights="thrown")
    teacher = declare_teacher(Encoding(encoding, "tiny"), "toy", manifest, files).path
    predictions = [
        random_predictions(rng, entry.positions, k, vocabulary, draw, hidden, gold_of(shard))
        for entry, shard in zip(entries, sequences, strict=True)
    ]
    tiny = TinyCache(path, encoding, teacher, manifest, entries, sequences, predictions)
    for shard in range(shards if committed is None else committed):
        tiny.commit(shard)
    return tiny


def random_sequences(rng: np.random.Generator, shard: int, vocabulary: int) -> list[Sequence]:
    """Return a shard's causal sequences; each token is spelt ``é``, so bytes and characters differ."""
    sequences, row = [], shard * POSITIONS_PER_SHARD
    for number, tokens in enumerate(SEQUENCE_TOKENS):
        sequence = Sequence(
            sequence_id=shard * len(SEQUENCE_TOKENS) + number,
            document_id=f"document-{shard}",
            group_id=f"group-{shard}",
            first_position=row,
            input_ids=rng.integers(0, vocabulary, tokens, dtype=np.uint32),
            position_mask=np.arange(tokens) < tokens - 1,
            original_ids=None,
            text="é" * tokens,
            byte_lengths=np.full(tokens, 2, dtype=np.uint32),
        )
        sequences.append(sequence)
        row += sequence.num_positions
    return sequences


def write_encoding(encoding: Path, shards: list[list[Sequence]], vocabulary: int) -> list[ShardEntry]:
    """Write sequence files, shard table and manifest, in the order in which stage one does."""
    entries = []
    for shard, sequences in enumerate(shards):
        split = "held_out" if shard == len(shards) - 1 else "train"
        entries.append(write_shard(encoding, shard, split, 1, sequences))
    tokenizer = {f"{layout.TOKENIZER}/tokenizer.json": b"not a real one"}
    for key, content in tokenizer.items():
        write_object(encoding / key, content)
    manifest = EncodingManifest(
        identity={"corpus": "random"},
        objective="causal",
        vocabulary_size=vocabulary,
        positions_per_shard=POSITIONS_PER_SHARD,
        parts=(write_part(encoding, 0, {"random.txt": "0" * 64}, entries),),
        files={key: ObjectRecord.of(content) for key, content in tokenizer.items()},
    )
    write_group(encoding / "teachers")
    write_manifest(encoding, manifest)
    return entries


def teacher_manifest(
    encoding_identity: dict[str, Any],
    vocabulary: int,
    k: int,
    target: tuple[str, Codec] | None = None,
    hidden: dict[str, HiddenSpec] = HIDDEN,
    files: dict[str, bytes] | None = None,
    weights: str = "none",
) -> TeacherManifest:
    """Return the manifest of a made-up teacher over the encoding with this identity.

    Rows of a teacher without weights are not compared with their scalars; any other name says that they fit.
    """
    kind, codec = target or ("topk", DeltaPower(k, vocabulary))
    records = {key: ObjectRecord.of(content).model_dump() for key, content in (files or {}).items()}
    return TeacherManifest.describe(
        {"encoding": fingerprint(encoding_identity), "weights": weights},
        {"name": "toy", "architecture": "dice", "parameters": 0, "dtype": "float32"},
        CHUNK_POSITIONS,
        vocabulary_size=vocabulary,
        target={"kind": kind, "k": k, "codec": codec.to_dict()},
        scalar_step_nats=SCALAR_STEP_NATS,
        scalars=list(SCALARS),
        hidden={name: spec.model_dump() for name, spec in hidden.items()},
        files=records,
    )


def random_predictions(
    rng: np.random.Generator,
    n: int,
    k: int,
    vocabulary: int,
    draw: Draw | None = None,
    hidden: dict[str, HiddenSpec] = HIDDEN,
    gold_ids: NDArray[np.uint32] | None = None,
) -> Predictions:
    """Return n random predictions, with hidden states that bfloat16 holds exactly.

    Scalars are those of distributions with these rows if ``gold_ids`` (n,) are given, and random otherwise.
    """
    targets = draw(rng, n) if draw else random_targets(rng, n, k, vocabulary)
    scalars = {name: rng.normal(0, 5, n).astype(np.float32) for name in SCALARS}
    if gold_ids is not None:
        scalars |= fitting_scalars(rng, targets, gold_ids, vocabulary)
    return Predictions(
        targets=targets,
        scalars=scalars,
        hidden={name: rng.integers(-9, 9, (n, spec.width)).astype(np.float32) for name, spec in hidden.items()},
    )


def gold_of(sequences: list[Sequence]) -> NDArray[np.uint32]:
    """Return the token that each position of causal sequences should predict."""
    return np.concatenate([sequence.gold_ids("causal") for sequence in sequences])


def fitting_scalars(
    rng: np.random.Generator, targets: Targets, gold_ids: NDArray[np.uint32], vocabulary: int
) -> dict[str, NDArray[np.float32]]:
    """Return an entropy and a gold log-probability that rows allow, the rest being spread evenly."""
    used = targets.log_probs > -np.inf
    log_p, p = np.where(used, targets.log_probs, 0).astype(np.float64), np.exp(targets.log_probs, dtype=np.float64)
    rest = np.exp(targets.log_left_out, dtype=np.float64)
    each = rest / np.maximum(vocabulary - used.sum(axis=1), 1)
    entropy = -(p * log_p).sum(axis=1) - rest * np.log(np.where(each > 0, each, 1))
    with np.errstate(divide="ignore"):
        absent = np.log(each) - rng.uniform(0, 3, len(rest))
    absent[rest == 0] = -5.0 if vocabulary > used.shape[1] else -np.inf  # a draw may miss it; a dense row may not
    is_gold = (targets.ids == gold_ids[:, None]) & used
    gold = np.where(is_gold.any(axis=1), np.where(is_gold, targets.log_probs, -np.inf).max(axis=1), absent)
    silent = ~used.any(axis=1)
    return {
        "entropy": np.where(silent, 0, entropy).astype(np.float32),
        "gold_logprob": np.where(silent, 0, gold).astype(np.float32),
    }


def spread_rest(weights: NDArray[np.float64], vocabulary: int) -> NDArray[np.float64]:
    """Return weights (n, k + 1) whose last, the rest's, is no more than that many less likely tokens can have."""
    kept = weights[:, :-1]
    least = np.where(kept > 0, kept, np.inf).min(axis=1)
    most = np.where(np.isfinite(least), least, 1) * (vocabulary - (kept > 0).sum(axis=1))
    weights[:, -1] = np.minimum(weights[:, -1], most)
    return weights


def random_targets(rng: np.random.Generator, n: int, k: int, vocabulary: int) -> Targets:
    """Return n random rows with heavy tails, ids in no order; row i leaves i % k of its k slots empty."""
    ids = np.stack([rng.choice(vocabulary, k, replace=False) for _ in range(n)]).astype(np.uint32)
    weights = np.exp(rng.normal(0, 3, (n, k + 1)))
    weights[:, :k][np.arange(k) >= k - np.arange(n)[:, None] % k] = 0
    weights = spread_rest(weights, vocabulary)
    with np.errstate(divide="ignore"):
        logs = np.log(weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return Targets(ids, logs[:, :k], logs[:, k])


def by_id(targets: Targets) -> list[dict[int, float]]:
    """Return each row as a mapping from id to log-probability, without its empty slots."""
    rows = zip(targets.ids.tolist(), targets.log_probs.tolist(), strict=True)
    return [{i: value for i, value in zip(*row, strict=True) if value > -np.inf} for row in rows]


def flip_bit(path: Path, byte: int = 0) -> None:
    """Invert the lowest bit of one byte of a file; a negative ``byte`` counts from the end."""
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def close(left: NDArray[Any], right: NDArray[Any], tolerance: float) -> bool:
    """Tell whether two arrays agree within an absolute tolerance, infinities included."""
    return np.allclose(left, right, rtol=0, atol=tolerance)


def assert_rows(tiny: TinyCache, shard: int, start: int, stop: int, reader: CachedTeacher | None = None) -> None:
    """Check that rows [start, stop) of a shard are what was written there, by every way of reading."""
    teacher, written = reader or tiny.open(), tiny.predictions[shard]
    first, inside = shard * POSITIONS_PER_SHARD, slice(start, stop)
    rows = (first + start, first + stop)
    codec = codec_of(tiny.manifest)
    encoded = codec.encode(written.targets)
    expected, found = codec.decode(encoded.arrays, encoded.parameters), teacher.targets(*rows)
    assert np.array_equal(found.ids, expected.ids[inside])
    assert np.array_equal(found.log_probs, expected.log_probs[inside])
    assert np.array_equal(found.log_left_out, expected.log_left_out[inside])
    for name in SCALARS:
        assert close(teacher.scalar(name, *rows), written.scalars[name][inside], SCALAR_STEP_NATS * 0.501)
    for layer in HIDDEN:
        assert np.array_equal(teacher.hidden(layer, *rows), written.hidden[layer][inside])


def read_everything(teacher: CachedTeacher, start: int = 0, stop: int = 12) -> None:
    """Read rows [start, stop) of every array."""
    teacher.targets(start, stop)
    for name in SCALARS:
        teacher.scalar(name, start, stop)
    for layer in HIDDEN:
        teacher.hidden(layer, start, stop)


def sealed(document: dict[str, Any]) -> bytes:
    """Return a document as the sealed JSON text that a writer of the store would have made of it."""
    return sealed_bytes(document | {"seal": UNSEALED})


def edit_json(path: Path, old: str, new: str) -> None:
    """Replace text in a sealed file and seal it again, as somebody would who means to."""
    text = path.read_text()
    assert old in text
    edited = re.sub('"seal": "[0-9a-f]{64}"', f'"seal": "{UNSEALED}"', text.replace(old, new))
    path.write_bytes(sealed_bytes(json.loads(edited)))
