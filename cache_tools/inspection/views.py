"""One sequence with each teacher's predictions: the data behind ``logitcask show``.

A token is predicted at the position before it (causal objective) or at its own (masked). Only the rows of this
sequence are read, and of the targets only the row that is shown.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import ConfigError
from cache_tools.escaping import printable
from cache_tools.format.layout import ENTROPY, GOLD_LOGPROB, GOLD_RANK
from cache_tools.format.manifest import Objective
from cache_tools.format.sequences import Sequence
from cache_tools.inspection.decoding import TokenTexts
from cache_tools.json_output import finite
from cache_tools.store.reader import Encoding
from cache_tools.store.teacher import CachedTeacher

SHOWN_TOKENS = 2**17
"""Tokens of the longest sequence that is shown as a whole; each needs some 500 bytes of Python objects."""

CONTEXT_BYTES = 200
"""Text that is shown before a position."""


@dataclass(frozen=True)
class ViewedToken:
    """A token of a sequence.

    Attributes:
        index: Its index in the sequence.
        id: Its id, before masking.
        text: The text it covers, escaped (see ``escaping``).
        position: The position whose row predicts it; None if no prediction of it is kept.
        masked: The teacher read another token in its place.
        seen: The token that the teacher read, as text.
    """

    index: int
    id: int
    text: str
    position: int | None
    masked: bool
    seen: str


@dataclass(frozen=True)
class TeacherSurprise:
    """A teacher's surprise at the tokens of a sequence.

    Attributes:
        name: The teacher.
        surprise_nats: A number per token; None where no prediction is kept, or the surprise is infinite.
        mean_surprise_nats: Mean over the kept positions; None if it is infinite or there are none.
    """

    name: str
    surprise_nats: list[float | None]
    mean_surprise_nats: float | None


@dataclass(frozen=True)
class ShownSequence:
    """A sequence as every view of it begins.

    Attributes:
        sequence_id: Its id.
        document_id: The document that it is, or is a piece of.
        turn: Number of the chat's message whose predictions are kept; None unless messages are read one by one.
        group_id: The document's group.
        objective: ``causal`` or ``masked``.
        tokens: All its tokens.
    """

    sequence_id: int
    document_id: str
    turn: int | None
    group_id: str
    objective: Objective
    tokens: tuple[ViewedToken, ...]


@dataclass(frozen=True)
class SequenceView(ShownSequence):
    """A sequence's tokens and how surprised each teacher was at them.

    Attributes:
        teachers: The teachers, in the order in which they were given.
        student_tokens: How many tokens a student reads, where teachers read a context in addition; None elsewhere.
    """

    teachers: tuple[TeacherSurprise, ...]
    student_tokens: int | None = None


@dataclass(frozen=True)
class Alternative:
    """A kept token of a row.

    Attributes:
        id: Its id.
        text: Its text, escaped.
        probability: Its probability, in [0, 1].
        gold: Whether it is the gold token.
    """

    id: int
    text: str
    probability: float
    gold: bool


@dataclass(frozen=True)
class PositionPrediction:
    """A teacher's prediction at one position.

    Attributes:
        name: The teacher.
        alternatives: Kept tokens, the likeliest first.
        kept: How many tokens the row keeps.
        left_out: Left-out mass, in [0, 1].
        gold_rank: How many tokens are likelier than the gold token; None if that is not stored and the gold token is
            not among the kept tokens.
        gold_probability: Probability of the gold token; None if it is not stored.
        surprise_nats: Minus its logarithm; None if it is not stored or infinite.
        entropy_nats: Entropy of the whole distribution; None if it is not stored.
    """

    name: str
    alternatives: tuple[Alternative, ...]
    kept: int
    left_out: float
    gold_rank: int | None
    gold_probability: float | None
    surprise_nats: float | None
    entropy_nats: float | None


@dataclass(frozen=True)
class PositionView:
    """Each teacher's prediction at one position.

    Attributes:
        sequence_id: The sequence.
        position: Index into its tokens.
        before: The end of the text before the predicted token, escaped.
        gold_id: The gold token.
        gold: The gold token as text.
        teachers: The teachers, in the order in which they were given.
    """

    sequence_id: int
    position: int
    before: str
    gold_id: int
    gold: str
    teachers: tuple[PositionPrediction, ...]


def sequence_of(encoding: Encoding, number: int) -> Sequence:
    """Return a sequence by its number.

    Raises:
        ConfigError: there is no such sequence.
    """
    try:
        return encoding.sequence(number)
    except IndexError as error:
        count = sum(entry.sequences for entry in encoding.shards)
        raise ConfigError(
            f"there is no sequence {number}", where=encoding.path, expected=f"0 to {count - 1}"
        ) from error


def judged_tokens(encoding: Encoding, sequence: Sequence) -> list[int]:
    """Return the index of the token that each kept position predicts, (p,), ascending."""
    shift = 1 if encoding.manifest.objective == "causal" else 0
    return [int(position) + shift for position in sequence.positions()]


def sequence_view(
    encoding: Encoding, sequence: Sequence, teachers: list[CachedTeacher], texts: TokenTexts
) -> SequenceView:
    """Return a sequence's tokens and how surprised each teacher was at them.

    Raises:
        IncompleteError: a teacher has not captured this sequence yet.
        ConfigError: the sequence is too long.
    """
    if len(sequence.input_ids) > SHOWN_TOKENS:
        raise ConfigError(
            "this sequence is too long to show",
            where=f"sequence {sequence.sequence_id}",
            expected=f"at most {SHOWN_TOKENS:,} tokens",
            found=f"{len(sequence.input_ids):,}",
            fix="Show a single position with --position",
        )
    judged = judged_tokens(encoding, sequence)
    return SequenceView(
        sequence_id=sequence.sequence_id,
        document_id=sequence.document_id,
        turn=sequence.turn,
        group_id=sequence.group_id,
        objective=encoding.manifest.objective,
        tokens=_viewed_tokens(encoding, sequence, judged, texts),
        teachers=tuple(_surprise(teacher, sequence, judged) for teacher in teachers),
        student_tokens=None if sequence.student is None else len(sequence.student.input_ids),
    )


def position_view(
    encoding: Encoding,
    sequence: Sequence,
    position: int,
    teachers: list[CachedTeacher],
    texts: TokenTexts,
    top: int,
) -> PositionView:
    """Return each teacher's prediction at one position.

    Args:
        encoding: The encoding.
        sequence: One of its sequences.
        position: Index into the sequence's tokens; a kept position.
        teachers: Teachers of the encoding.
        texts: The encoding's tokens as text.
        top: How many alternatives to list, the likeliest first.

    Raises:
        ConfigError: no prediction is kept at this position.
    """
    positions = sequence.positions()
    number = int(np.searchsorted(positions, position))
    if number == len(positions) or positions[number] != position:
        raise ConfigError(
            f"no prediction is kept at position {position}",
            where=f"sequence {sequence.sequence_id}",
            expected=_spans(positions.tolist()),
            why="the teacher read this token, but its prediction there was not a target",
        )
    row, gold = sequence.first_position + number, int(sequence.gold_ids(encoding.manifest.objective)[number])
    before = b"".join(texts.surfaces(sequence)[: judged_tokens(encoding, sequence)[number]])
    return PositionView(
        sequence_id=sequence.sequence_id,
        position=position,
        before=printable_end(before, CONTEXT_BYTES),
        gold_id=gold,
        gold=texts.shown(gold),
        teachers=tuple(_prediction(teacher, row, gold, texts, top) for teacher in teachers),
    )


def printable_end(content: bytes, num_bytes: int) -> str:
    """Return the last bytes of a text, safe for a terminal, from a whole character on."""
    return printable(content[-num_bytes:].decode("utf-8", "ignore"))


def _viewed_tokens(
    encoding: Encoding, sequence: Sequence, judged: list[int], texts: TokenTexts
) -> tuple[ViewedToken, ...]:
    positions = sequence.positions().tolist()
    position_of = dict(zip(judged, positions, strict=True))
    original = sequence.input_ids if sequence.original_ids is None else sequence.original_ids
    surfaces = [_text(surface) for surface in texts.surfaces(sequence)]
    if encoding.manifest.labelled and positions:  # the class is a token that no text of the document covers
        surfaces[positions[0]] = texts.shown(int(original[positions[0]]))
    return tuple(
        ViewedToken(
            index=index,
            id=int(original[index]),
            text=surfaces[index],
            position=position_of.get(index),
            masked=bool(original[index] != seen),
            seen=texts.shown(int(seen)),
        )
        for index, seen in enumerate(sequence.input_ids)
    )


def _surprise(teacher: CachedTeacher, sequence: Sequence, judged: list[int]) -> TeacherSurprise:
    nats = -gold_log_probs(teacher, *sequence.rows, sequence.gold_ids(teacher.encoding.manifest.objective))
    mean = finite(float(nats.mean())) if len(nats) else None
    return TeacherSurprise(teacher.name, aligned(nats, judged, len(sequence.input_ids)), mean)


def _prediction(teacher: CachedTeacher, row: int, gold: int, texts: TokenTexts, top: int) -> PositionPrediction:
    targets = teacher.targets(row, row + 1)
    ids, logs = targets.ids[0], targets.log_probs[0].astype(np.float64)
    order = np.argsort(-logs, kind="stable")[: int((logs > -np.inf).sum())]
    stored_rank = _stored(teacher, GOLD_RANK, row)
    gold_logprob = float(gold_log_probs(teacher, row, row + 1, np.array([gold], np.uint32))[0])  # NaN if not kept
    if GOLD_RANK in teacher.manifest.scalars:
        rank = None if stored_rank is None or not math.isfinite(stored_rank) else int(stored_rank)
    else:
        rank = _rank(logs, np.flatnonzero(ids[order] == gold), order)
    return PositionPrediction(
        name=teacher.name,
        alternatives=tuple(
            Alternative(int(i), texts.shown(int(i)), _probability(log), int(i) == gold)
            for i, log in zip(ids[order[:top]], logs[order[:top]], strict=True)
        ),
        kept=len(order),
        left_out=_probability(float(targets.log_left_out[0])),
        gold_rank=rank,
        gold_probability=None if math.isnan(gold_logprob) else finite(_probability(gold_logprob)),
        surprise_nats=finite(-gold_logprob),
        entropy_nats=finite(entropy) if (entropy := _stored(teacher, ENTROPY, row)) is not None else None,
    )


def gold_log_probs(teacher: CachedTeacher, start: int, stop: int, gold_ids: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Return the log-probability of the gold token in rows ``[start, stop)``: (n,) float64.

    An imported teacher keeps no such scalar. Its rows tell it where they hold the token; elsewhere it is NaN.
    """
    if GOLD_LOGPROB in teacher.manifest.scalars:
        return teacher.scalar(GOLD_LOGPROB, start, stop).astype(np.float64)
    targets = teacher.targets(start, stop)
    is_gold = targets.ids == gold_ids[:, None]
    kept = np.where(is_gold, targets.log_probs, -np.inf).max(axis=1, initial=-np.inf)
    return np.where(is_gold.any(axis=1), kept.astype(np.float64), np.nan)


def aligned(values: NDArray[np.float64], judged: list[int], num_tokens: int) -> list[float | None]:
    """Return values of the kept positions (p,) at the tokens they predict; None elsewhere and where not finite."""
    result: list[float | None] = [None] * num_tokens
    for index, value in zip(judged, values.tolist(), strict=True):
        result[index] = finite(value)
    return result


def _stored(teacher: CachedTeacher, name: str, row: int) -> float | None:
    """Return a scalar of one row; None if the teacher does not keep it."""
    return float(teacher.scalar(name, row, row + 1)[0]) if name in teacher.manifest.scalars else None


def _probability(log_probability: float) -> float:
    """Return the exponential of a log-probability, at most 1 whatever the rounding."""
    return math.exp(min(log_probability, 0.0))


def _rank(logs: NDArray[np.float64], places: NDArray[np.intp], order: NDArray[np.intp]) -> int | None:
    """Return how many kept tokens are likelier than the gold one, which stands at ``places`` (0 or 1,) of ``order``."""
    return int((logs > logs[order[places[0]]]).sum()) if len(places) else None


def _text(surface: bytes) -> str:
    return printable(surface, keep="\n")


def _spans(positions: list[int]) -> str:
    """Return ascending numbers as spans: ``3-7, 12-30``."""
    if not positions:
        return "no position of this sequence"
    cuts = [i for i in range(1, len(positions)) if positions[i] != positions[i - 1] + 1]
    spans = [positions[a:b] for a, b in zip([0, *cuts], [*cuts, len(positions)], strict=True)]
    shown = [f"{s[0]}-{s[-1]}" if len(s) > 1 else str(s[0]) for s in spans[:8]]
    return "one of " + ", ".join(shown) + (" …" if len(spans) > 8 else "")
