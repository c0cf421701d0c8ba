"""The formats that come in and go out: which columns each has, and how a file shows which one it is.

==================  ==========================================================  ===================================
format              columns beside the tokens                                   of a row
==================  ==========================================================  ===================================
distillkit          ``compressed_logprobs``, ``bytepacked_indices``             bytes, described by a YAML file
distillkit-legacy   ``packed_indices``, ``exact_values``, ``coeffs``            64-bit words, numbers, coefficients
distillkit-raw      ``token_ids``, ``top_values``                               ids and log-probabilities
axolotl             ``target_token_ids``, ``target_logprobs``, ``target_mask``  the same, and which entries count
rows                named by options                                            ids and log-probabilities
==================  ==========================================================  ===================================

A file of ours in the format ``rows`` carries a note in its schema: kind of target, codec, objective, split. With it a
cache comes back as what it was; without it, rows are taken for the most likely tokens.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import pyarrow as pa

from cache_tools.configuration import load_config
from cache_tools.errors import ConfigError, FormatError
from cache_tools.format.manifest import DECODING_KEYS, Objective, Split, TeacherManifest
from cache_tools.format.specs import summary
from cache_tools.mappings import JsonObject
from cache_tools.row_files.distillkit import LegacyCodec, PackedCodec

FormatName = Literal["distillkit", "distillkit-legacy", "distillkit-raw", "axolotl", "rows"]
NOTE = b"logitcask"
"""Key of our note in the metadata of an Arrow schema."""

FILLER_NATS = -100.0
"""Log-probabilities up to this stand for no entry: float32 holds no such probability. An export fills the rows of
formats without empty slots with it."""

LABELS = "labels"
"""Column in which a negative value rules out the prediction at its token, in the formats of DistillKit."""

NAMES: dict[FormatName, tuple[str, ...]] = {
    "distillkit": ("compressed_logprobs", "bytepacked_indices"),
    "distillkit-legacy": ("packed_indices", "exact_values", "coeffs"),
    "axolotl": ("target_logprobs", "target_token_ids", "target_mask"),
    "distillkit-raw": ("top_values", "token_ids"),
}
"""The columns of the formats whose columns are fixed; the first tells how many rows of predictions there are."""

EXACT_MASS_TOLERANCE, ROUNDED_MASS_TOLERANCE = 1e-3, 1e-2
"""How far a row's probabilities may exceed 1: of values that were stored as numbers, and of those from a curve."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns in a file of the format ``rows``."""

    tokens: str = "input_ids"
    ids: str = "token_ids"
    log_probs: str = "logprobs"


@dataclass(frozen=True)
class Note:
    """What an export of ours says of itself.

    Attributes:
        split: Which split of the cache the file holds.
        objective: Objective of the encoding.
        vocabulary_size: Width of the teacher's logits.
        target: The teacher's target, as its manifest states it.
        scalar_step_nats: Resolution of the scalars.
        scalars: Columns that hold one number for each position.
        teacher: Fingerprint of the teacher that the rows were exported from.
    """

    split: Split
    objective: Objective
    vocabulary_size: int
    target: JsonObject
    scalar_step_nats: float
    scalars: list[str] = field(default_factory=list)
    teacher: str = ""

    def metadata(self) -> dict[bytes, bytes]:
        """Return the metadata of a schema."""
        return {NOTE: json.dumps(asdict(self), sort_keys=True).encode()}


@dataclass(frozen=True)
class SourceFormat:
    """How the files of a source are read.

    Attributes:
        name: One of the table above.
        columns: Their names; those of ids and values only in the format ``rows``.
        codec: What describes compressed rows.
        note: What an export of ours says of itself.
    """

    name: FormatName
    columns: Columns
    codec: PackedCodec | LegacyCodec | None = None
    note: Note | None = None

    @property
    def value_columns(self) -> tuple[str, ...]:
        """Columns that hold the rows of predictions; the first has one list for each row."""
        return NAMES.get(self.name) or (self.columns.log_probs, self.columns.ids)

    @property
    def k(self) -> int | None:
        """Entries of a row, where the format states them."""
        return self.codec.k if self.codec else None

    @property
    def vocabulary_size(self) -> int | None:
        """Size of the vocabulary, where the format states it."""
        if self.note:
            return self.note.vocabulary_size
        if isinstance(self.codec, LegacyCodec):
            return self.codec.vocab_size
        return self.codec.d if self.codec else None

    @property
    def promises_order(self) -> bool:
        """Whether rows were stored by falling probability, so that a rise shows an error of the codec."""
        return self.codec is not None

    @property
    def mass_tolerance(self) -> float:
        """How far a row's probabilities may exceed 1 by the rounding of the format."""
        exact = self.codec is None or (isinstance(self.codec, PackedCodec) and self.codec.is_lossless)
        return EXACT_MASS_TOLERANCE if exact else ROUNDED_MASS_TOLERANCE

    def described(self) -> JsonObject:
        """Return what an identity says of the format, as plain JSON."""
        codec = self.codec.model_dump(mode="json") if self.codec else None
        return {"format": self.name, "codec": codec, "columns": asdict(self.columns)}


def detect(schema: pa.Schema, file: Path, columns: Columns, codec_file: Path | None) -> SourceFormat:
    """Return the format of a file.

    Args:
        schema: Its schema.
        file: Its path, for messages; a codec's YAML is looked for beside it.
        columns: Names of the columns in the format ``rows``.
        codec_file: The YAML that describes compressed rows; None to look for one.

    Raises:
        FormatError: the columns are those of no format, or two have the same name.
        ConfigError: the YAML of compressed rows is missing or wrong, or one is given for rows that are not compressed.
    """
    names = set(schema.names)
    if len(names) < len(schema.names):
        twice = sorted(name for name in names if schema.names.count(name) > 1)
        raise FormatError("two columns of this file have the same name", where=file, found=", ".join(twice))
    note = read_note(schema, file)
    if columns.tokens not in names:
        raise _unknown(schema, file, columns)
    if {columns.ids, columns.log_probs} <= names:
        return SourceFormat("rows", columns, _codec("rows", file, codec_file), note)
    for name, needed in NAMES.items():
        if set(needed) <= names:
            return SourceFormat(name, columns, _codec(name, file, codec_file), note)
    raise _unknown(schema, file, columns)


def read_note(schema: pa.Schema, file: Path) -> Note | None:
    """Return what an export of ours says of itself; None for another file.

    Raises:
        FormatError: the note cannot be read.
    """
    content = (schema.metadata or {}).get(NOTE)
    if content is None:
        return None
    try:
        note = Note(**json.loads(content))
        absent = set(note.scalars) - set(schema.names)
        if absent:
            raise ValueError(f"no column {', '.join(sorted(absent))}")
        stated = {key: getattr(note, key) for key in DECODING_KEYS}
        TeacherManifest.describe({}, {}, 1, **stated)  # refuses what no teacher could state
        if note.split not in ("train", "held_out") or note.objective not in ("causal", "masked"):
            raise ValueError(f"split {note.split!r}, objective {note.objective!r}")
        return note
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FormatError(
            "the note of the export in this file's schema cannot be read",
            where=file,
            found=summary(error),
            fix="Export the cache again",
        ) from error


def _codec(name: FormatName, file: Path, codec_file: Path | None) -> PackedCodec | LegacyCodec | None:
    if name not in ("distillkit", "distillkit-legacy"):
        if codec_file is not None:
            raise ConfigError(
                "these rows are not compressed, so no codec describes them",
                where=file,
                expected="compressed rows of DistillKit",
                found=f"the format {name}",
                fix="Leave out --codec",
            )
        return None
    beside = "compression_config.yaml" if name == "distillkit" else "legacy_config.yaml"
    path = codec_file or file.parent / beside
    if not path.is_file():
        raise ConfigError(
            "these rows are compressed, and the file that describes the codec is missing",
            where=path,
            expected=f"the {'logprob_compressor' if name == 'distillkit' else 'legacy_logit_compression'} settings",
            why="the same bytes mean other numbers with other settings",
            fix="Name the file with --codec",
        )
    return load_config(path, PackedCodec) if name == "distillkit" else load_config(path, LegacyCodec)


def _unknown(schema: pa.Schema, file: Path, columns: Columns) -> FormatError:
    formats = "; ".join(f"{name}: {', '.join(needed)}" for name, needed in NAMES.items())
    return FormatError(
        "the columns of this file are those of no known format",
        where=file,
        expected=f"{columns.tokens} with {columns.ids} and {columns.log_probs}, or {formats}",
        found=", ".join(schema.names) or "no columns",
        fix="Name the columns with --tokens-column, --ids-column and --logprobs-column",
    )
