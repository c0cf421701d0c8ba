"""What an import met and wrote, as a value, and what of it a user should know, as sentences.

Counts come from the receipts, so a continued import reports the same as one without a stop. Alignment, temperature and
the agreement with the tokenizer come from the sample that was looked at first.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cache_tools.exchange.plan import ImportPlan
from cache_tools.row_files.distillkit import LegacyCodec, PackedCodec
from cache_tools.row_files.formats import SourceFormat
from cache_tools.store.predictions import mean_statistics
from cache_tools.store.teacher import CachedTeacher

ALMOST_ALL = 0.99
"""Share of rows from which a property is called one of the whole file."""

CALIBRATED = (0.8, 1.25)
"""Temperatures between which rows are taken for those of the model itself."""


@dataclass(frozen=True)
class ImportReport:
    """What an import met and wrote.

    Attributes:
        format: Format of the files.
        teacher: Name in the cache.
        encoding: Name in the cache.
        files: How many.
        sequences: Rows of the files.
        tokens: Their tokens.
        positions: Predictions that were imported.
        k: Entries that a row can hold.
        first_token: Token that a row's first prediction is about; None if the files name positions.
        decided_by: What decided that: ``text``, ``numbers``, ``option`` or ``positions``.
        gain_nats: How much likelier the text is than by the other reading, nats per token.
        token_agreement: Share of a sample's tokens that come back from their text.
        temperature: That rows look divided by; None if not known.
        kept_mass: Mean mass of the kept tokens.
        renormalised: Share of rows that sum to 1 although they hold less than the vocabulary.
        short: Share of rows with fewer than k entries.
        rising: Share of rows that are not in the falling order that their format promises.
        rise_nats: Largest rise.
        rescaled: Share of rows whose mass exceeded 1 and was scaled to 1.
        excess_mass: By how much at most.
        codec_kl_nats: Error made by storing: mean KL, nats.
        source_bytes_per_position: Bytes of the files for each position, tokens included.
        bytes_per_position: Bytes of the teacher in the cache for each position.
        notes: What a user should know, a sentence each.
    """

    format: str
    teacher: str
    encoding: str
    files: int
    sequences: int
    tokens: int
    positions: int
    k: int
    first_token: int | None
    decided_by: str
    gain_nats: float
    token_agreement: float
    temperature: float | None
    kept_mass: float
    renormalised: float
    short: float
    rising: float
    rise_nats: float
    rescaled: float
    excess_mass: float
    codec_kl_nats: float
    source_bytes_per_position: float
    bytes_per_position: float
    notes: tuple[str, ...]


def summarise(teacher: CachedTeacher, plan: ImportPlan) -> ImportReport:
    """Return the report of a finished import."""
    receipts = list(teacher.receipts())
    parts: list[tuple[int, Mapping[str, float]]] = [(r.positions, r.statistics) for r in receipts]
    met = mean_statistics(parts)
    positions = sum(count for count, _ in parts)

    def share(name: str) -> float:
        return met.get(f"{name}_positions", 0.0) / max(positions, 1)

    source_bytes = sum(file.path.stat().st_size for file in plan.files)
    report = ImportReport(
        format=plan.source.name,
        teacher=teacher.name,
        encoding=teacher.encoding.name,
        files=len(plan.files),
        sequences=sum(entry.sequences for entry in teacher.encoding.shards),
        tokens=sum(entry.tokens for entry in teacher.encoding.shards),
        positions=positions,
        k=teacher.codec.k,
        first_token=plan.reading.first_token,
        decided_by=plan.reading.decided_by,
        gain_nats=plan.reading.gain_nats,
        token_agreement=plan.token_agreement,
        temperature=plan.temperature,
        kept_mass=met.get("kept_mass", math.nan),
        renormalised=share("renormalised"),
        short=share("short"),
        rising=share("rising"),
        rise_nats=met.get("rise_nats_max", 0.0),
        rescaled=share("rescaled"),
        excess_mass=met.get("excess_mass_max", 0.0),
        codec_kl_nats=met.get("codec_kl_nats", 0.0),
        source_bytes_per_position=source_bytes / max(positions, 1),
        bytes_per_position=sum(receipt.stored_bytes for receipt in receipts) / max(positions, 1),
        notes=(),
    )
    return ImportReport(**{**vars(report), "notes": tuple(notes_on(report, plan.source))})


def notes_on(report: ImportReport, source: SourceFormat) -> list[str]:
    """Return what a user should know of imported rows, a sentence each."""
    if source.note:
        return []
    notes = [*_of_alignment(report), *_of_codec(report, source.codec)]
    if report.rescaled:
        notes.append(
            f"{report.rescaled:.1%} of the rows have a mass above 1, by up to {report.excess_mass:.2g}, and were "
            "scaled to 1: the rounding of their format."
        )
    cut = report.short > 0
    if report.renormalised >= ALMOST_ALL:
        notes.append(
            "The rows are renormalised: they sum to 1 over the kept tokens, so the mass that was left out is lost. "
            "Losses over the whole vocabulary are biased towards the kept tokens."
        )
    elif report.renormalised:
        notes.append(f"{report.renormalised:.1%} of the rows sum to 1 over their kept tokens.")
    if cut and report.renormalised > 1 - ALMOST_ALL:
        notes.append(
            f"{report.short:.1%} of the rows have fewer than {report.k} entries: they look truncated by a sampling "
            "policy such as top-p, min-p or top-k, and are not what the model predicts."
        )
    elif cut:
        notes.append(f"{report.short:.1%} of the rows have fewer than {report.k} entries.")
    return notes + _of_temperature(report)


def _of_alignment(report: ImportReport) -> list[str]:
    if report.decided_by == "numbers":
        return [
            "The text is too short to prove which token each prediction is about; the numbers of tokens and "
            "predictions say that a row begins with the prediction of token 1."
        ]
    if report.decided_by == "option" and report.gain_nats < 0:
        return [
            f"The text is {-report.gain_nats:.2f} nats per token likelier by the other value of --first-token: the "
            "predictions are probably shifted by one."
        ]
    return []


def _of_codec(report: ImportReport, codec: PackedCodec | LegacyCodec | None) -> list[str]:
    if codec is None:
        return []
    notes = []
    if codec.exact_k < codec.k:
        exact = "float16" if isinstance(codec, LegacyCodec) else codec.exact_dtype
        kind = "differences" if isinstance(codec, PackedCodec) and codec.delta_encoding else "values"
        notes.append(
            f"Of {codec.k} entries the first {codec.exact_k} are stored as {exact} {kind}; the others come from a "
            "fitted curve whose error the files do not state. 'logitcask audit' measures it with the teacher."
        )
    elif isinstance(codec, PackedCodec) and not codec.is_lossless:
        notes.append(f"All entries were rounded to {codec.exact_dtype} by the writer of the files.")
    if report.rising:
        notes.append(
            f"{report.rising:.1%} of the rows are not monotone, by up to {report.rise_nats:.2g} nats, although their "
            "format stores them by falling probability: the order of tokens is not the teacher's there."
        )
    return notes


def _of_temperature(report: ImportReport) -> list[str]:
    low, high = CALIBRATED
    if report.temperature is None or low <= report.temperature <= high:
        return []
    return [
        f"The rows look tempered: the text fits them best as logits divided by {report.temperature:.2g}. If they were "
        "captured at a temperature, losses at temperature 1 do not see the teacher's predictions."
    ]
