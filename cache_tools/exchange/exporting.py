"""A teacher of a cache as files of another format: one Parquet file for each shard, then nothing to clean up.

A file appears whole or not at all, and the same cache gives the same bytes, so an export that was stopped continues
with the files that are missing; ``finished_files`` says which those are, and refuses another export into the same
folder. Memory: one shard, its table and its file.
"""

import io
from dataclasses import dataclass, replace

import pyarrow.parquet as pq
import yaml

from cache_tools.errors import ConfigError
from cache_tools.exchange.finished_files import FinishedFiles, origin_of, size_and_hash
from cache_tools.format.manifest import SPLITS, Split
from cache_tools.progress.reporter import Reporter
from cache_tools.row_files.distillkit import LegacyCodec, PackedCodec
from cache_tools.row_files.formats import Columns, FormatName, Note, SourceFormat
from cache_tools.row_files.writing import CacheRows, lossless_format, table_of
from cache_tools.separate_places import require_outside
from cache_tools.storage import StorePath
from cache_tools.store.teacher import CachedTeacher

CODEC_FILES: dict[FormatName, str] = {
    "distillkit": "compression_config.yaml",
    "distillkit-legacy": "legacy_config.yaml",
}
SPLIT_FILES: dict[Split, str] = {"train": "train", "held_out": "test"}
"""Beginnings of file names, from which ``datasets`` learns the split."""

GROUP_VALUES = 2**22
"""Values of the widest column in a row group."""


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        format: The format.
        target: The folder.
        files: Files of rows.
        sequences: Rows of the files.
        positions: Predictions.
        bytes_per_position: Bytes of the files for each position.
        cache_bytes_per_position: Bytes of the teacher in the cache for each position.
    """

    format: str
    target: str
    files: int
    sequences: int
    positions: int
    bytes_per_position: float
    cache_bytes_per_position: float


def export_rows(
    teacher: CachedTeacher,
    target: StorePath,
    name: FormatName,
    reporter: Reporter,
    split: Split | None = None,
    codec: PackedCodec | LegacyCodec | None = None,
) -> ExportReport:
    """Write a teacher's predictions as files of a format, or go on with an export that was stopped.

    Args:
        teacher: The teacher.
        target: The folder of the files: new, or that of the same export.
        name: The format.
        reporter: Shown what happens.
        split: One split; None for both.
        codec: How DistillKit's compressed rows are stored; None for float32 values without error.

    Raises:
        ConfigError: the format has no room for these predictions, or the folder lies inside the cache.
        IdentityError: the folder holds another export, or other files.
        IncompleteError: a shard has not been captured.
    """
    encoding = teacher.encoding
    require_outside(target, encoding.path.parent.parent, "the export")
    format_ = export_format(teacher, name, codec)
    splits = [split] if split else [split_name for split_name in SPLITS if encoding.split_shards(split_name)]
    shards = [(split_name, shard) for split_name in splits for shard in encoding.split_shards(split_name)]
    teacher.require_shards([shard for _, shard in shards])
    finished = _begin(target, teacher, format_, splits)
    positions = sum(encoding.shards[shard].positions for _, shard in shards)
    reporter.stage(f"exporting teacher {teacher.name}", positions, "positions")
    written_bytes = 0
    for split_name, shard in shards:
        part, origin = f"{SPLIT_FILES[split_name]}-{shard:05d}", origin_of(teacher, shard)
        size_bytes = finished.finished_bytes(part, origin)
        if size_bytes is None:
            content = parquet_bytes(teacher, shard, with_split(format_, teacher, split_name))
            finished.write(f"{part}.parquet", content)
            size_bytes = finished.finish(part, origin, {f"{part}.parquet": size_and_hash(content)})
        written_bytes += size_bytes
        reporter.advance(encoding.shards[shard].positions)
    receipts = [receipt for _, shard in shards if (receipt := teacher.receipt(shard))]
    return ExportReport(
        format=name,
        target=str(target),
        files=len(shards),
        sequences=sum(encoding.shards[shard].sequences for _, shard in shards),
        positions=positions,
        bytes_per_position=written_bytes / max(positions, 1),
        cache_bytes_per_position=sum(receipt.stored_bytes for receipt in receipts) / max(positions, 1),
    )


def export_format(
    teacher: CachedTeacher, name: FormatName, codec: PackedCodec | LegacyCodec | None = None
) -> SourceFormat:
    """Return a format for a teacher's predictions.

    Raises:
        ConfigError: the format has no room for them, or the codec does not fit them.
    """
    k, size = teacher.codec.k, teacher.manifest.vocabulary_size
    if name == "rows":
        return SourceFormat("rows", Columns())
    if teacher.encoding.manifest.objective != "causal":
        raise ConfigError(
            f"the format {name} has no room for predictions of masked tokens",
            where=teacher.path,
            fix="Export with --format rows",
        )
    if name in CODEC_FILES and codec is not None:
        stated = codec.d if isinstance(codec, PackedCodec) else codec.vocab_size
        if codec.k > k or stated < size or (isinstance(codec, PackedCodec) and codec.error_diffusion):
            raise ConfigError(
                "the codec does not fit this teacher's predictions",
                where=teacher.path,
                expected=f"k of at most {k}, a vocabulary of at least {size}, no error_diffusion",
                found=f"k = {codec.k}, a vocabulary of {stated}",
                fix="Change the file that --codec names",
            )
        return SourceFormat(name, Columns(), codec)
    if name == "distillkit-legacy":
        raise ConfigError("this format needs settings", where="--codec", fix="Name DistillKit's YAML with --codec")
    return lossless_format(name, k, size)


def with_split(target: SourceFormat, teacher: CachedTeacher, split: Split) -> SourceFormat:
    """Return the format with the note that a file of this split carries."""
    if target.name != "rows":
        return target
    manifest = teacher.manifest
    note = Note(
        split=split,
        objective=teacher.encoding.manifest.objective,
        vocabulary_size=manifest.vocabulary_size,
        target=manifest.target.model_dump(mode="json"),
        scalar_step_nats=manifest.scalar_step_nats,
        scalars=list(manifest.scalars),
        teacher=manifest.fingerprint,
    )
    return replace(target, note=note)


def parquet_bytes(teacher: CachedTeacher, shard: int, target: SourceFormat) -> bytes:
    """Return the file of a shard."""
    table = table_of(shard_rows(teacher, shard), target)
    widest = max(1, teacher.codec.k * max(1, teacher.encoding.shards[shard].positions) // max(1, table.num_rows))
    sink = io.BytesIO()
    size = max(1, GROUP_VALUES // widest)
    pq.write_table(table, sink, row_group_size=size, compression="zstd", use_dictionary=False)
    return sink.getvalue()


def shard_rows(teacher: CachedTeacher, shard: int) -> CacheRows:
    """Return the sequences of a shard with a teacher's predictions."""
    sequences = teacher.encoding.student_sequences(shard)
    targets = teacher.targets(*teacher.shard_rows(shard))
    masked = teacher.encoding.manifest.objective == "masked"
    originals = [s.original_ids for s in sequences if s.original_ids is not None] if masked else None
    return CacheRows(
        [sequence.input_ids for sequence in sequences],
        [sequence.positions() for sequence in sequences],
        [sequence.document_id for sequence in sequences],
        originals,
        targets.ids,
        targets.log_probs,
        targets.log_left_out,
        {name: teacher.scalar(name, *teacher.shard_rows(shard)) for name in teacher.manifest.scalars},
    )


def _begin(target: StorePath, teacher: CachedTeacher, format_: SourceFormat, splits: list[Split]) -> FinishedFiles:
    """Write what is exported, or check that the folder holds the same export."""
    identity = {
        "format": format_.described(),
        "teacher": {"name": teacher.name, "fingerprint": teacher.manifest.fingerprint},
        "sequences": teacher.encoding.manifest.contents_fingerprint,
        "splits": list(splits),
        "kind": teacher.manifest.target.kind,
    }
    finished = FinishedFiles(target, identity)
    if format_.codec is not None:
        settings = yaml.safe_dump(format_.codec.model_dump(mode="json"), sort_keys=True)
        finished.write(CODEC_FILES[format_.name], settings.encode())
    return finished
