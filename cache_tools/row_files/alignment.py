"""Which token each row of predictions is about, by the numbers of rows and by the text itself.

Engines return a row for each token of a prompt, the first of which is empty, so some files hold rows for the tokens
0, 1, …, and others for 1, 2, …. One step of difference trains a student on its neighbours' targets, and nothing
fails. So the claim is compared with the text: the row that predicts a token gives it more probability than the rows
beside it do. Where the numbers of rows allow both readings the text decides; where it contradicts the numbers the
file is refused.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache_tools.errors import ConfigError, FormatError
from cache_tools.format.manifest import Objective
from cache_tools.row_files.arrow_lists import Place, flat_lists, nested
from cache_tools.row_files.formats import FILLER_NATS, LABELS, SourceFormat
from cache_tools.row_files.source_rows import DOCUMENT, ORIGINALS, POSITIONS, SourceRows

PROOF_STANDARD_ERRORS, PROOF_TOKENS = 5, 32
"""By how many standard errors one reading must be likelier than the other to decide, and over how many tokens."""

MISSING_NATS = 1.4
"""How much less likely than the least likely kept token a token is taken to be that is not kept."""


@dataclass(frozen=True)
class TokenRows:
    """The tokens of some rows of a file, and which of them predictions belong to.

    Attributes:
        tokens: Token ids of each row, uint32.
        originals: The same before masking; None if causal.
        documents: Name of each row's document; None if the file has none.
        positions: (n,) int64, token at which each prediction is made; -1 for those that predict nothing.
        counts: (s,) int64, predictions of each row.
        widest: Entries of the widest prediction.
    """

    tokens: list[NDArray[np.uint32]]
    originals: list[NDArray[np.uint32]] | None
    documents: list[str] | None
    positions: NDArray[np.int64]
    counts: NDArray[np.int64]
    widest: int

    def masks(self) -> list[NDArray[np.bool_]]:
        """Return for each row which of its tokens have a prediction."""
        masks = []
        for tokens, places in zip(self.tokens, np.split(self.positions, np.cumsum(self.counts)[:-1]), strict=True):
            mask = np.zeros(len(tokens), np.bool_)
            mask[places[places >= 0]] = True
            masks.append(mask)
        return masks


def read_tokens(
    batch: pa.RecordBatch, place: Place, source: SourceFormat, first_token: int, vocabulary_size: int
) -> TokenRows:
    """Return the tokens of a batch and where its predictions belong.

    Args:
        batch: Needs no columns of values but the first.
        place: Where it lies.
        source: Its format.
        first_token: The token that a row's first prediction is about, 0 or 1, unless the file names positions.
        vocabulary_size: Size of the tokenizer's vocabulary; token ids are below this.

    Raises:
        FormatError: numbers of tokens and predictions do not fit, or an id is not a token.
    """
    tokens = token_ids(batch, source.columns.tokens, place, vocabulary_size)
    objective: Objective = source.note.objective if source.note else "causal"
    rows = nested(batch.column(source.value_columns[0]), place, source.value_columns[0])
    lengths = np.array([len(ids) for ids in tokens], np.int64)
    if POSITIONS in batch.schema.names:
        positions = _stated(batch, place, rows.counts, lengths, objective)
    else:
        positions = _counted(place, rows.counts, lengths, first_token)
    if source.name == "axolotl":
        mask = nested(batch.column(source.value_columns[2]), place, source.value_columns[2])
        counted = mask.matrix(max(1, int(mask.lengths.max(initial=0))), 0)
        if len(counted) != len(positions):
            raise place.refuse(0, f"{source.value_columns[2]!r} and {source.value_columns[0]!r} differ in length")
        positions = np.where((counted != 0).any(axis=1), positions, -1)
    elif source.name != "rows" and LABELS in batch.schema.names:
        positions = _labelled(batch, place, rows.counts, positions)
    originals = token_ids(batch, ORIGINALS, place, vocabulary_size) if ORIGINALS in batch.schema.names else None
    documents = batch.column(DOCUMENT).to_pylist() if DOCUMENT in batch.schema.names else None
    if documents is not None and not all(isinstance(name, str) for name in documents):
        raise FormatError(f"the column {DOCUMENT!r} holds no names", where=place.file)
    return TokenRows(tokens, originals, documents, positions, rows.counts, int(rows.lengths.max(initial=0)))


def token_ids(batch: pa.RecordBatch, name: str, place: Place, vocabulary_size: int) -> list[NDArray[np.uint32]]:
    """Return the token ids of each row, checked to be the tokenizer's; raises as ``read_tokens``."""
    lists = flat_lists(batch.column(name), place, name)
    for row, ids in enumerate(lists):
        if not len(ids):
            raise place.refuse(row, "this row has no tokens")
        if ids.dtype.kind not in "iu":
            raise FormatError(f"the column {name!r} holds no token ids", where=place.file, found=ids.dtype)
        if ids.min() < 0 or ids.max() >= vocabulary_size:
            foreign_id = int(ids.min() if ids.min() < 0 else ids.max())
            raise place.refuse(
                row,
                "a token id is not one of the tokenizer's",
                expected=f"ids below {vocabulary_size}",
                found=foreign_id,
                why="the rows were made with another tokenizer, or the file is damaged",
                fix="Give the tokenizer of the teacher with --tokenizer",
            )
    return [ids.astype(np.uint32) for ids in lists]


def _counted(place: Place, counts: Any, lengths: Any, first_token: int) -> NDArray[np.int64]:
    """Return the position of each prediction where they lie one after another."""
    fits = (counts == lengths) | ((counts == lengths - 1) & (first_token == 1))
    if not fits.all():
        row = int(np.flatnonzero(~fits)[0])
        raise place.refuse(
            row,
            "the numbers of tokens and of predictions do not fit",
            expected=f"{lengths[row]} predictions" + (f" or {lengths[row] - 1}" if first_token else ""),
            found=f"{counts[row]} predictions for {lengths[row]} tokens",
            why="it is not known which token each prediction is about",
        )
    fewer = counts == lengths - 1
    if fewer.any() and not fewer.all():
        row = int(np.flatnonzero(fewer == (2 * fewer.sum() <= len(fewer)))[0])
        raise place.refuse(
            row,
            "this row has another number of predictions for its tokens than the rows around it",
            expected=f"{lengths[row] - (not fewer[row])} predictions",
            found=f"{counts[row]} predictions for {lengths[row]} tokens",
            why="one may be missing, and those behind it would be joined to other tokens",
        )
    ends = np.cumsum(counts)
    number = np.arange(int(counts.sum())) - np.repeat(ends - counts, counts)
    positions = number + (first_token - 1)
    beyond = positions >= np.repeat(lengths, counts) - 1  # it predicts what follows the text
    return np.where(beyond, -1, positions)


def _labelled(batch: pa.RecordBatch, place: Place, counts: Any, positions: Any) -> NDArray[np.int64]:
    """Return positions without those whose token has a negative label, which DistillKit's losses leave out."""
    lists = flat_lists(batch.column(LABELS), place, LABELS)
    short = np.flatnonzero(np.array([len(labels) for labels in lists]) < counts)
    if len(short):
        raise place.refuse(int(short[0]), f"{LABELS!r} has fewer values than there are predictions")
    labels = np.concatenate([labels[:count] for labels, count in zip(lists, counts, strict=True)] or [np.zeros(0)])
    return np.where(labels < 0, -1, positions)


def _stated(batch: pa.RecordBatch, place: Place, counts: Any, lengths: Any, objective: Objective) -> Any:
    """Return the positions that the file names."""
    lists = flat_lists(batch.column(POSITIONS), place, POSITIONS)
    for row, positions in enumerate(lists):
        values = positions.astype(np.int64)
        last = lengths[row] - (objective == "causal")
        rising = (np.diff(values) > 0).all() and (not len(values) or 0 <= values[0] <= values[-1] < last)
        if len(values) != counts[row] or not rising:
            raise place.refuse(
                row, "the positions of this row's predictions cannot be", expected=f"{counts[row]} rising below {last}"
            )
    return np.concatenate([*lists, np.zeros(0)]).astype(np.int64)


@dataclass(frozen=True)
class Reading:
    """Which token a row's first prediction is about, and why.

    Attributes:
        first_token: 0 or 1; None if the file names positions.
        decided_by: ``positions``, ``option``, ``text``, or ``numbers`` of rows where the text is too short to tell.
        gain_nats: How much likelier the text is than by the other reading, nats per token; 0 if not compared.
    """

    first_token: int | None
    decided_by: str
    gain_nats: float = 0.0


def decide(samples: list[tuple[SourceRows, list[NDArray[Any]]]], option: int | None) -> Reading:
    """Return how rows are aligned.

    Args:
        samples: Rows of some batches with the tokens of each row.
        option: What the user says; None to find out.

    Raises:
        ConfigError: numbers and text allow both readings.
        FormatError: the text contradicts the numbers.
    """
    fewer = any((rows.counts < [len(ids) for ids in tokens]).any() for rows, tokens in samples)
    gains = np.concatenate([_gains(rows, tokens) for rows, tokens in samples])
    mean = float(gains.mean()) if len(gains) else 0.0
    error = float(gains.std() / np.sqrt(len(gains))) if len(gains) >= PROOF_TOKENS else np.inf
    proven = abs(mean) > PROOF_STANDARD_ERRORS * error
    first_token = (1 if mean > 0 else 0) if proven else None
    if option is not None:
        return Reading(option, "option", mean if option == 1 else -mean)
    if fewer and first_token == 0:
        raise FormatError(
            "the predictions fit the tokens one place later",
            where=samples[0][0].place.file,
            expected="a row with one prediction less than tokens begins with the prediction of token 1",
            found=f"the text is {-mean:.2f} nats per token likelier if it begins with that of token 0",
            why="a student would learn each position's target at its neighbour",
            fix="Find out how the file was made; --first-token 1 imports it as it claims to be",
        )
    if fewer:
        return Reading(1, "text" if proven else "numbers", mean)
    if first_token is None:
        raise ConfigError(
            "it cannot be told which token each prediction is about",
            where=samples[0][0].place.file,
            found=f"as many predictions as tokens, and {len(gains)} tokens that fit both readings",
            fix="Say with --first-token whether a row's first prediction is that of its token 0 or of its token 1",
        )
    return Reading(first_token, "text", abs(mean))


def _gains(rows: SourceRows, tokens: list[NDArray[Any]]) -> NDArray[np.float64]:
    """Return how much likelier each token is by the prediction before it than by the one at its own place: (t,)."""
    parts, start = [np.zeros(0)], 0
    for count, ids in zip(rows.counts.tolist(), tokens, strict=True):
        last = min(count, len(ids))
        if last > 1:
            before = gold_log_probs(rows, np.arange(start, start + last - 1), ids[1:last])
            beside = gold_log_probs(rows, np.arange(start + 1, start + last), ids[1:last])
            usable = np.isfinite(before) & np.isfinite(beside)
            parts.append((before - beside)[usable])
        start += count
    return np.concatenate(parts)


def gold_log_probs(rows: SourceRows, row_numbers: Any, gold: Any) -> NDArray[np.float64]:
    """Return the log-probability of a token in each chosen row; of one that is not kept, a guess; NaN in empty rows."""
    log_probs = rows.log_probs[row_numbers].astype(np.float64)
    used = (log_probs > FILLER_NATS) & ~rows.masked[row_numbers, None]
    least = np.where(used, log_probs, np.inf).min(axis=1, initial=np.inf) - MISSING_NATS
    is_gold = (rows.ids[row_numbers] == np.asarray(gold, np.int64)[:, None]) & used
    kept = np.where(is_gold, log_probs, -np.inf).max(axis=1, initial=-np.inf)
    log_prob = np.where(np.isneginf(kept), least, kept)
    return np.where(used.any(axis=1), log_prob, np.nan)
