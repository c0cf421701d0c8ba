"""What an import is about to do: its options, the files it reads, and what a sample of their rows shows.

Everything that can be refused without reading all rows is refused here, before anything is written.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.registry import DEFAULT_MAX_KL_NATS
from cache_tools.errors import ConfigError, FormatError
from cache_tools.exchange.tokenizer_folder import require_fitting
from cache_tools.format.fingerprint import fingerprint
from cache_tools.format.manifest import Objective
from cache_tools.format.shards import is_held_out
from cache_tools.mappings import Identity
from cache_tools.progress.reporter import Reporter
from cache_tools.row_files.alignment import Reading, decide, gold_log_probs, token_ids
from cache_tools.row_files.formats import Columns, Note, SourceFormat, detect
from cache_tools.row_files.source import SourceFile, source_files
from cache_tools.row_files.source_rows import POSITIONS, SourceRows, columns_to_read, read_rows
from cache_tools.vocabularies.tokenizer_folder import TokenizerFolder, open_tokenizer

SAMPLE_FILES, SAMPLE_ROWS = 8, 16
"""Files that a sample is taken from, spread over the source, and rows of each."""


@dataclass(frozen=True)
class ImportOptions:
    """What a user asks of an import.

    Attributes:
        tokenizer: Folder or hub id of the tokenizer that the rows were made with.
        revision: Revision of a hub id.
        encoding: Name of the encoding in the cache.
        teacher: Name of the teacher in the cache.
        columns: Names of the columns in files of plain rows.
        codec_file: YAML that describes compressed rows; None for the one beside the data.
        first_token: Token that a row's first prediction is about, 0 or 1; None to find out.
        vocabulary_size: Width of the teacher's logits; None for what the files state, or else the tokenizer's.
        max_kl_nats: Error budget of the stored targets: mean KL of a shard, nats.
        exact: Store float32 without error.
        held_out_fraction: Share of the rows of files that becomes the held-out split.
        positions_per_shard: Positions of a shard.
        chunk_positions: Positions of an inner chunk.
        mass_tolerance: How far a prediction's probabilities may exceed 1; None for what the format's rounding explains.
    """

    tokenizer: str
    revision: str | None = None
    encoding: str = "imported"
    teacher: str = "imported"
    columns: Columns = field(default_factory=Columns)
    codec_file: Path | None = None
    first_token: int | None = None
    vocabulary_size: int | None = None
    max_kl_nats: float = DEFAULT_MAX_KL_NATS
    exact: bool = False
    held_out_fraction: float = 0.0
    positions_per_shard: int = 131_072
    chunk_positions: int = 4096
    mass_tolerance: float | None = None


@dataclass(frozen=True)
class ImportPlan:
    """An import that has been looked at.

    Attributes:
        options: What was asked.
        files: The files, in the order in which they are read.
        hashes: sha256 of each file by its name.
        formats: Format of each file; they differ in the split of our own exports only.
        tokenizer: The tokenizer.
        vocabulary_size: Width of the teacher's logits.
        reading: Which token each prediction is about.
        sampled_positions: Predictions in the sample.
        token_agreement: Share of the sample's tokens that come back from their text.
        temperature: Temperature that the sample's rows look divided by; None if too few of them hold the next token.
    """

    options: ImportOptions
    files: list[SourceFile]
    hashes: dict[str, str]
    formats: list[SourceFormat]
    tokenizer: TokenizerFolder
    vocabulary_size: int
    reading: Reading
    sampled_positions: int
    token_agreement: float
    temperature: float | None

    @property
    def source(self) -> SourceFormat:
        """The format of all files."""
        return self.formats[0]

    @property
    def objective(self) -> Objective:
        """What the teacher predicts at a position."""
        return self.source.note.objective if self.source.note else "causal"

    @property
    def first_token(self) -> int:
        """The token that a row's first prediction is about, where the file names no positions."""
        return 1 if self.reading.first_token is None else self.reading.first_token

    @property
    def mass_tolerance(self) -> float:
        """How far a prediction's probabilities may exceed 1."""
        asked = self.options.mass_tolerance
        return self.source.mass_tolerance if asked is None else asked

    def identity(self) -> Identity:
        """Return what a teacher's identity says of where its predictions came from."""
        note = self.source.note
        origin = {"teacher": note.teacher} if note else {}
        reading = {"first_token": self.reading.first_token, "mass_tolerance": self.mass_tolerance}
        return self.source.described() | {"files": fingerprint(dict(self.hashes))} | reading | origin

    @cached_property
    def held_out(self) -> list[NDArray[np.bool_]]:
        """For each file (rows,): which of its rows belong to the held-out split."""
        return [self._held_out(file, source) for file, source in zip(self.files, self.formats, strict=True)]

    @cached_property
    def first_rows(self) -> list[int]:
        """Number of each file's first row, counted through all files."""
        return [0, *accumulate(file.num_rows for file in self.files)][:-1]

    def _held_out(self, file: SourceFile, source: SourceFormat) -> NDArray[np.bool_]:
        if source.note:
            return np.full(file.num_rows, source.note.split == "held_out")
        fraction = self.options.held_out_fraction
        if not fraction:
            return np.zeros(file.num_rows, np.bool_)
        return np.array([is_held_out(row_name(file.name, row), fraction) for row in range(file.num_rows)], np.bool_)


def row_name(file: str, row: int) -> str:
    """Return the document id of a row of a file that names none."""
    return f"{file}#{row}"


def plan_import(source: Path, options: ImportOptions, reporter: Reporter) -> ImportPlan:
    """Look at a source, and refuse what cannot be imported.

    Raises:
        ConfigError: there are no files, or it cannot be told which token each prediction is about.
        FormatError: a file cannot be read, files differ in format, or rows contradict their own numbers.
        IdentityError: the tokenizer is not the one that the rows were made with.
        ModelError: there is no tokenizer.
    """
    files = source_files(source)
    formats = [detect(file.schema, file.path, options.columns, options.codec_file) for file in files]
    for file, file_format in zip(files, formats, strict=True):
        if _without_split(file_format) != _without_split(formats[0]):
            raise FormatError(
                "this file has another format than the first",
                where=file.path,
                expected=formats[0].name,
                found=file_format.name if file_format.name != formats[0].name else "other settings",
                fix="Import the files of each format by themselves, as one teacher each",
            )
    if not any(file.num_rows for file in files):
        raise ConfigError("the files hold no rows", where=source, fix="Check the path")
    tokenizer = open_tokenizer(options.tokenizer, options.revision)
    teacher_size = options.vocabulary_size or formats[0].vocabulary_size or tokenizer.size
    samples = list(_samples(files, formats, tokenizer.size))
    agreement = require_fitting(tokenizer, (ids for _, tokens in samples for ids in tokens), teacher_size, source)
    stated = POSITIONS in files[0].schema.names and formats[0].note is not None
    reading = Reading(None, "positions") if stated else decide(samples, options.first_token)
    temperature = None if stated else fitted_temperature(samples, reading.first_token or 0)
    reporter.stage("reading the hashes of the files", sum(file.path.stat().st_size for file in files), "bytes")
    hashes = {}
    for file in files:
        hashes[file.name] = file.sha256()
        reporter.advance(file.path.stat().st_size)
    positions = sum(len(rows.ids) for rows, _ in samples)
    return ImportPlan(
        options, files, hashes, formats, tokenizer, teacher_size, reading, positions, agreement, temperature
    )


def _without_split(source: SourceFormat) -> SourceFormat:
    note: Note | None = source.note
    return replace(source, note=replace(note, split="train")) if note else source


def _samples(
    files: list[SourceFile], formats: list[SourceFormat], vocabulary_size: int
) -> Iterator[tuple[SourceRows, list[NDArray[Any]]]]:
    """Yield decoded rows with their tokens, of the beginnings of some files."""
    sampled_files = sorted({int(i) for i in np.linspace(0, len(files) - 1, SAMPLE_FILES)})
    for file, source in ((files[i], formats[i]) for i in sampled_files):
        columns = columns_to_read(source, file.schema)
        for place, whole in file.batches(columns, lambda first, stop: first < SAMPLE_ROWS):
            batch = whole.slice(0, SAMPLE_ROWS - place.first_row)
            tokens = token_ids(batch, source.columns.tokens, place, vocabulary_size)
            yield read_rows(batch, place, source), tokens


FITTED_POSITIONS, STEPS = 1024, 24
"""Positions that a temperature is fitted to, and steps of the search, each of which leaves two thirds of the range."""

LEAST_POSITIONS = 256
"""Positions whose next token is kept, below which no temperature is named."""


def fitted_temperature(samples: list[tuple[SourceRows, list[NDArray[Any]]]], first_token: int) -> float | None:
    """Return the temperature that rows look divided by: that at which the text is likeliest under p^T, renormalised.

    A language model is nearly calibrated on ordinary text, so logits that were divided by T fit best when
    multiplied by T again. Rows of an instruction-tuned teacher, or of text that it wrote itself, differ by some tenths.

    Args:
        samples: Rows with their tokens.
        first_token: Which token the first prediction of a row is about.

    Returns:
        The temperature, of rows that hold the next token; None if they are too few.
    """
    logs, golds = [], []
    for rows, tokens in samples:
        start = 0
        for count, ids in zip(rows.counts.tolist(), tokens, strict=True):
            shift = 1 - first_token
            number = min(count - shift, len(ids) - 1)
            if number > 0:
                predicting_rows = np.arange(start + shift, start + shift + number)
                held = (rows.ids[predicting_rows] == ids[1 : number + 1, None].astype(np.int64)).any(axis=1)
                held &= ~np.isnan(gold_log_probs(rows, predicting_rows, ids[1 : number + 1]))
                logs.append(rows.log_probs[predicting_rows][held].astype(np.float64))
                golds.append(gold_log_probs(rows, predicting_rows, ids[1 : number + 1])[held])
            start += count
    if sum(len(gold) for gold in golds) < LEAST_POSITIONS or not all(np.isfinite(gold).all() for gold in golds):
        return None
    kept, gold = _spread([row for part in logs for row in part]), _spread(np.concatenate(golds))
    low, high = np.log(0.25), np.log(4)
    for _ in range(STEPS):  # the loss is convex in the power, so its minimum lies on the lower side
        left, right = low + (high - low) / 3, high - (high - low) / 3
        worse_left = _loss(kept, gold, float(np.exp(left))) > _loss(kept, gold, float(np.exp(right)))
        low, high = (left, high) if worse_left else (low, right)
    return float(np.exp((low + high) / 2))


def _spread(values: Any) -> Any:
    """Return at most FITTED_POSITIONS of some values, evenly spread."""
    indices = np.unique(np.linspace(0, len(values) - 1, min(len(values), FITTED_POSITIONS)).astype(np.int64))
    return [values[i] for i in indices] if isinstance(values, list) else values[indices]


def _loss(kept: list[NDArray[np.float64]], gold: NDArray[np.float64], power: float) -> float:
    """Return the loss of the text under ``p^power``, renormalised over the kept tokens, nats."""
    totals = [float(np.log(np.exp(power * (row - row.max())).sum()) + power * row.max()) for row in kept]
    return float(np.sum(totals) - power * gold.sum())
