"""What a cache holds: the data behind ``logitcask inspect``.

Sizes, means and progress come from manifests, the shard table and receipts, which costs milliseconds per thousand
shards whatever the number of positions. What no receipt holds, such as the calibration, is measured on a random sample
of positions if one is requested; the result states the size of that sample.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from cache_tools.format.manifest import HiddenSpec, Objective, Policy, Split, SplitTotals, TargetSpec
from cache_tools.format.receipts import Receipt
from cache_tools.inspection.measures import LARGEST_EXPONENT, By, Calibration, DocumentGroup, by_group, calibration
from cache_tools.inspection.row_check import contradicting_share
from cache_tools.inspection.sample import Sample, read_sample
from cache_tools.inspection.sampling import committed_shards
from cache_tools.json_output import FLAT
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.store.encoding_files import text_origin
from cache_tools.store.predictions import StatisticsSum
from cache_tools.store.reader import Cache, Encoding
from cache_tools.store.teacher import CachedTeacher

LONGEST_SECONDS = 1e12
"""Longest time that a receipt can state for a shard; a longer one is ignored."""

VARYING = ("seconds", "shard")
"""Keys of a receipt's provenance whose values differ from shard to shard."""


@dataclass(frozen=True)
class SampleSize:
    """How much of a teacher's predictions was read.

    Attributes:
        positions: Positions that were read.
        of_positions: Positions of all finished shards.
        windows: Runs of consecutive positions that were read.
        seed: Seed by which they were chosen.
    """

    positions: int
    of_positions: int
    windows: int
    seed: int


@dataclass(frozen=True)
class SampleSummary:
    """What a sample of a teacher's finished shards shows.

    Attributes:
        size: Size of the sample.
        contradicting: Share of rows that contradict the scalars stored beside them, in [0, 1]; None for rows that no
            model predicted, which are not checked.
        calibration: Confidence against accuracy; None for draws.
        groups: The same by group of documents; None unless it was requested.
    """

    size: SampleSize = field(metadata=FLAT)
    contradicting: float | None
    calibration: Calibration | None
    groups: tuple[DocumentGroup, ...] | None


@dataclass(frozen=True)
class Maker:
    """Software and device that wrote one group of arrays, with what was written there.

    Attributes:
        group: Group of arrays.
        made_with: The receipts' provenance, such as ``software`` and ``device``.
        shards: Shards of the group.
        positions: Positions of these shards.
        seconds: Time that they took together; 0 if it is not recorded.
    """

    group: str
    made_with: dict[str, object] = field(metadata=FLAT)
    shards: int
    positions: int
    seconds: float


@dataclass(frozen=True)
class TeacherFacts:
    """What a teacher's manifest and receipts state.

    Attributes:
        name: The teacher.
        fingerprint: SHA-256 of what determines its predictions.
        model: Name, revision, architecture and parameter count of the model.
        vocabulary_size: Width of its logits.
        target: The sparse target.
        scalars: Names of the per-position scalars.
        hidden: The kept layers of hidden states.
        shards_done: Shards that are captured.
        shards: Shards of the encoding.
        positions: Positions that are captured.
        stored_bytes: Size of everything that is stored of this teacher.
        bytes_per_position: The same per captured position; None if there is none.
        bytes_by_array: Size of each array.
        positions_by_group: Captured positions of each group of arrays.
        positions_by_split: Captured positions of each split.
        statistics: Means over positions by split: the names that receipts use, and ``perplexity``; None if infinite.
        positions_expected: Positions of all shards of the encoding.
        provenance: Provenance in the first receipt.
        made_by: Who wrote the groups of arrays.
    """

    name: str
    fingerprint: str
    model: dict[str, object]
    vocabulary_size: int
    target: TargetSpec
    scalars: tuple[str, ...]
    hidden: dict[str, HiddenSpec]
    shards_done: int
    shards: int
    positions: int
    stored_bytes: int
    bytes_per_position: float | None
    bytes_by_array: dict[str, int]
    positions_by_group: dict[str, int]
    positions_by_split: dict[str, int]
    statistics: dict[str, dict[str, float | None]]
    positions_expected: int
    provenance: dict[str, dict[str, object]]
    made_by: tuple[Maker, ...]


@dataclass(frozen=True)
class TeacherSummary:
    """A teacher and what a sample of it shows.

    Attributes:
        facts: What is known without reading a prediction.
        sample: What a sample shows; None if none was requested or no shard is finished.
    """

    facts: TeacherFacts = field(metadata=FLAT)
    sample: SampleSummary | None


@dataclass(frozen=True)
class EncodingFacts:
    """What an encoding's manifest and shard table state.

    Attributes:
        name: The encoding.
        fingerprint: SHA-256 of what determines its sequences.
        parts: How many runs added documents.
        objective: ``causal`` or ``masked``.
        vocabulary_size: Ids of the tokenizer.
        positions_per_shard: Rows of every array that one shard owns.
        chat_sequences_without_beginning: Sequences that begin in the middle of a chat longer than a sequence.
        written_by: Models that wrote completions of the text, and how.
        wholly_written: Whether these models wrote all tokens at which predictions are kept.
        splits: Totals of each split.
        sequence_bytes: Size of the sequence files.
        alignments: Names of the alignments with students' tokenizers, finished or not.
        context: Templates of what teachers read and students do not, by key of ``corpus.context``; empty for nothing.
    """

    name: str
    fingerprint: str
    parts: int
    objective: Objective
    vocabulary_size: int
    positions_per_shard: int
    chat_sequences_without_beginning: int
    written_by: tuple[Policy, ...]
    wholly_written: bool
    splits: dict[Split, SplitTotals]
    sequence_bytes: int
    alignments: tuple[str, ...]
    context: dict[str, str]


@dataclass(frozen=True)
class EncodingSummary:
    """An encoding and its teachers.

    Attributes:
        facts: What is known of the encoding itself.
        teachers: Its teachers.
    """

    facts: EncodingFacts = field(metadata=FLAT)
    teachers: tuple[TeacherSummary, ...]


@dataclass(frozen=True)
class CacheSummary:
    """What ``logitcask inspect --json`` prints.

    Attributes:
        path: Folder or URL of the cache.
        format: Version of the format.
        software: Name and version of the program that created the cache.
        encodings: Its encodings.
    """

    path: str
    format: int
    software: str
    encodings: tuple[EncodingSummary, ...]


def summarise(
    cache: Cache, sample_positions: int = 0, seed: int = 0, by: By | None = None, progress: Advance = ignore
) -> CacheSummary:
    """Describe a cache.

    Args:
        cache: The cache.
        sample_positions: Positions of each teacher to sample; with 0 no array is read.
        seed: Seed of the random draw of positions.
        by: How to group the documents of the sample; None for no groups.
        progress: Called after each receipt and each chunk of a sample.
    """
    return CacheSummary(
        path=str(cache.path),
        format=cache.manifest.format,
        software=cache.manifest.software,
        encodings=tuple(
            _encoding(cache.encoding(name), sample_positions, seed, by, progress) for name in cache.encodings
        ),
    )


def _encoding(
    encoding: Encoding, sample_positions: int, seed: int, by: By | None, progress: Advance
) -> EncodingSummary:
    teachers = tuple(
        TeacherSummary(describe_teacher(teacher, progress), _sample(teacher, sample_positions, seed, by, progress))
        for teacher in map(encoding.teacher, encoding.teachers)
    )
    return EncodingSummary(describe_encoding(encoding), teachers)


def describe_encoding(encoding: Encoding) -> EncodingFacts:
    """Return what the manifest and the shard table of an encoding state."""
    manifest, origin = encoding.manifest, text_origin(encoding.path, encoding.manifest)
    return EncodingFacts(
        name=encoding.name,
        fingerprint=manifest.fingerprint,
        parts=len(manifest.parts),
        objective=manifest.objective,
        vocabulary_size=manifest.vocabulary_size,
        positions_per_shard=manifest.positions_per_shard,
        chat_sequences_without_beginning=sum(part.chat_sequences_without_beginning for part in manifest.parts),
        written_by=origin.policies,
        wholly_written=origin.complete,
        splits=manifest.splits,
        sequence_bytes=int(encoding.shards.numbers("bytes").sum()),
        alignments=tuple(encoding.alignments),
        context=manifest.context,
    )


def describe_teacher(teacher: CachedTeacher, progress: Advance = ignore) -> TeacherFacts:
    """Return what a teacher's manifest and receipts state; ``progress`` is called after each receipt."""
    manifest, total = teacher.manifest, _Receipts(teacher)
    for receipt in teacher.receipts():
        total.add(receipt)
        progress(1)
    stored = sum(total.bytes_by_array.values()) + sum(record.bytes for record in manifest.files.values())
    return TeacherFacts(
        name=teacher.name,
        fingerprint=manifest.fingerprint,
        model=manifest.model,
        vocabulary_size=manifest.vocabulary_size,
        target=manifest.target,
        scalars=manifest.scalars,
        hidden=dict(manifest.hidden),
        shards_done=total.shards,
        shards=len(teacher.encoding.shards),
        positions=total.positions,
        stored_bytes=stored,
        bytes_per_position=stored / total.positions if total.positions else None,
        bytes_by_array=dict(sorted(total.bytes_by_array.items())),
        positions_by_group=total.positions_by_group,
        positions_by_split=total.positions_by_split,
        statistics={split: _finite(sums.means()) for split, sums in total.statistics.items() if sums.means()},
        positions_expected=int(teacher.encoding.shards.numbers("positions").sum()),
        provenance=total.first.provenance if total.first else {},
        made_by=total.makers(),
    )


class _Receipts:
    """What the receipts of a teacher add up to; none of them is kept but the first."""

    def __init__(self, teacher: CachedTeacher) -> None:
        splits = teacher.encoding.manifest.splits
        self._entries = teacher.encoding.shards
        self.shards = self.positions = 0
        self.first: Receipt | None = None
        self.bytes_by_array: dict[str, int] = defaultdict(int)
        self.positions_by_group = dict.fromkeys(teacher.groups, 0)
        self.positions_by_split: dict[str, int] = dict.fromkeys(splits, 0)
        self.statistics = {split: StatisticsSum() for split in splits}
        self._makers: dict[str, tuple[int, Maker]] = {}

    def add(self, receipt: Receipt) -> None:
        """Count one receipt."""
        split = self._entries.split(receipt.shard)
        self.shards, self.positions = self.shards + 1, self.positions + receipt.positions
        if self.first is None or receipt.shard < self.first.shard:
            self.first = receipt
        for key, record in receipt.objects.items():
            self.bytes_by_array[key.split("/c/")[0]] += record.bytes
        for group in receipt.groups:
            if group in self.positions_by_group:
                self.positions_by_group[group] += receipt.positions
        if split in self.statistics:
            self.positions_by_split[split] += receipt.positions
            self.statistics[split].add(receipt.positions, receipt.statistics)
        for group, provenance in receipt.provenance.items():
            made_with = {key: value for key, value in provenance.items() if key not in VARYING}
            key = json.dumps([group, made_with], sort_keys=True)
            first, before = self._makers.get(key, (receipt.shard, Maker(group, made_with, 0, 0, 0.0)))
            positions, seconds = before.positions + receipt.positions, before.seconds + _seconds(provenance)
            maker = Maker(group, made_with, before.shards + 1, positions, seconds)
            self._makers[key] = (min(first, receipt.shard), maker)

    def makers(self) -> tuple[Maker, ...]:
        """Return the software and devices that wrote groups of arrays, in the order of their first shard."""
        return tuple(maker for _, maker in sorted(self._makers.values(), key=lambda item: item[0]))


def _finite(means: dict[str, float]) -> dict[str, float | None]:
    """Return means, None where one is not finite, with the perplexity of the cross-entropy."""
    loss = means.get("cross_entropy_nats")
    perplexity = None if loss is None else math.exp(min(loss, LARGEST_EXPONENT))
    return {name: value if math.isfinite(value) else None for name, value in means.items()} | {"perplexity": perplexity}


def describe_sample(sample: Sample, of_positions: int) -> SampleSize:
    """Return the size of a sample of ``of_positions`` positions."""
    return SampleSize(len(sample.rows), of_positions, sample.windows, sample.seed)


def _sample(
    teacher: CachedTeacher, positions: int, seed: int, by: By | None, progress: Advance
) -> SampleSummary | None:
    """Measure a sample of the finished shards; None if there are none or no sample was requested."""
    if not positions or len(teacher.missing_shards()) == len(teacher.encoding.shards):
        return None
    shards = committed_shards([teacher])
    sample = read_sample(teacher.encoding, [teacher], positions, seed, progress)
    predictions = sample.predictions[teacher.name]
    return SampleSummary(
        size=describe_sample(sample, sum(teacher.encoding.shards[shard].positions for shard in shards)),
        contradicting=contradicting_share(teacher, positions, seed),
        calibration=calibration(predictions, sample.gold_ids),
        groups=None if by is None else by_group(sample, predictions, by),
    )


def _seconds(provenance: Mapping[str, object]) -> float:
    """Return the seconds that a group took; 0 if the receipt states no such number."""
    seconds = provenance.get("seconds")
    return float(seconds) if isinstance(seconds, int | float) and 0 <= seconds <= LONGEST_SECONDS else 0.0
