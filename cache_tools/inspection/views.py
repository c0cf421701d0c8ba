"""One sequence and what each teacher said about it, as plain dictionaries: the data behind ``logitcask show``.

A token is judged at the position that predicts it: its own for a masked objective, the one before for a
causal one. Only the rows of this sequence are read, and of the targets only the row that is asked for.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import ConfigError
from cache_tools.escaping import printable
from cache_tools.format.layout import ENTROPY, GOLD_LOGPROB, GOLD_RANK
from cache_tools.format.sequences import Sequence
from cache_tools.inspection.decoding import TokenTexts
from cache_tools.store.reader import Encoding
from cache_tools.store.teacher import CachedTeacher

SHOWN_TOKENS = 2**17
"""Tokens of the longest sequence that is shown as a whole; each is some 500 bytes of Python objects."""

CONTEXT_BYTES = 200
"""Text that is shown before a position."""


def judged_tokens(encoding: Encoding, sequence: Sequence) -> list[int]:
    """Return the index of the token that each kept position predicts, (p,), ascending."""
    shift = 1 if encoding.manifest.objective == "causal" else 0
    return [int(position) + shift for position in sequence.positions()]


def sequence_view(
    encoding: Encoding, sequence: Sequence, teachers: list[CachedTeacher], texts: TokenTexts
) -> dict[str, Any]:
    """Return a sequence's tokens and how surprised each teacher was at them.

    Returns:
        ``sequence_id``, ``document_id``, ``turn`` (number of the chat's message that is kept; None of a document
        that was read as a whole), ``group_id``, ``objective`` and ``tokens``: for each its ``index``, ``id``,
        ``text`` (escaped, see ``escaping``), ``masked`` (the teacher saw ``seen`` instead) and ``position``, the
        kept position that predicts it, or None. ``teachers``: for each its ``name``, ``surprise_nats``, aligned with
        the tokens, and its ``mean_surprise_nats``; None where no prediction was kept, or the surprise is infinite.

    Raises:
        IncompleteError: a teacher has not captured this sequence yet.
        ConfigError: a teacher keeps no log-probability of the gold token, or the sequence is too long.
    """
    if len(sequence.input_ids) > SHOWN_TOKENS:
        raise ConfigError(
            "this sequence is too long to show",
            where=f"sequence {sequence.sequence_id}",
            expected=f"at most {SHOWN_TOKENS:,} tokens",
            found=f"{len(sequence.input_ids):,}",
            fix="Look at one position with --position",
        )
    judged, positions = judged_tokens(encoding, sequence), sequence.positions().tolist()
    position_of = dict(zip(judged, positions, strict=True))
    original = sequence.input_ids if sequence.original_ids is None else sequence.original_ids
    surfaces = [_text(surface) for surface in texts.surfaces(sequence)]
    if encoding.manifest.labelled and positions:  # the document's text says nothing of its class
        surfaces[positions[0]] = texts.shown(int(original[positions[0]]))
    tokens = [
        {
            "index": index,
            "id": int(original[index]),
            "text": surfaces[index],
            "position": position_of.get(index),
            "masked": bool(original[index] != seen),
            "seen": texts.shown(int(seen)),
        }
        for index, seen in enumerate(sequence.input_ids)
    ]
    return {
        "sequence_id": sequence.sequence_id,
        "document_id": sequence.document_id,
        "turn": sequence.turn,
        "group_id": sequence.group_id,
        "objective": encoding.manifest.objective,
        "tokens": tokens,
        "teachers": [{"name": t.name} | _surprise(t, sequence, judged) for t in teachers],
    }


def position_view(
    encoding: Encoding,
    sequence: Sequence,
    position: int,
    teachers: list[CachedTeacher],
    texts: TokenTexts,
    top: int,
) -> dict[str, Any]:
    """Return what each teacher said at one position.

    Args:
        encoding: The encoding.
        sequence: One of its sequences.
        position: Index into the sequence's tokens; a kept position.
        teachers: Whom to ask.
        texts: The encoding's tokens as text.
        top: Alternatives to list, the likeliest first.

    Returns:
        ``position``, ``before`` (the text that stands before the predicted token), ``gold_id``, ``gold``, and
        ``teachers``: for each its ``name``, ``alternatives`` (``id``, ``text``, ``probability``, ``gold``),
        ``kept`` (tokens), ``left_out`` (mass), ``gold_rank`` (tokens that are likelier; None if it is not among
        those kept), ``gold_probability`` and ``entropy_nats``.

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
            why="the teacher read this token without being asked about the next",
        )
    row, gold = sequence.first_position + number, int(sequence.gold_ids(encoding.manifest.objective)[number])
    before = b"".join(texts.surfaces(sequence)[: judged_tokens(encoding, sequence)[number]])
    return {
        "sequence_id": sequence.sequence_id,
        "position": position,
        "before": printable_end(before, CONTEXT_BYTES),
        "gold_id": gold,
        "gold": texts.shown(gold),
        "teachers": [{"name": t.name} | _alternatives(t, row, gold, texts, top) for t in teachers],
    }


def printable_end(content: bytes, num_bytes: int) -> str:
    """Return the last bytes of a text, safe for a terminal, from a whole character on."""
    return printable(content[-num_bytes:].decode("utf-8", "ignore"))


def _surprise(teacher: CachedTeacher, sequence: Sequence, judged: list[int]) -> dict[str, Any]:
    nats = -scalar(teacher, GOLD_LOGPROB, *sequence.rows).astype(np.float64)
    return {
        "surprise_nats": aligned(nats, judged, len(sequence.input_ids)),
        "mean_surprise_nats": finite(float(nats.mean())) if len(nats) else None,
    }


def _alternatives(teacher: CachedTeacher, row: int, gold: int, texts: TokenTexts, top: int) -> dict[str, Any]:
    targets = teacher.targets(row, row + 1)
    ids, logs = targets.ids[0], targets.log_probs[0].astype(np.float64)
    order = np.argsort(-logs, kind="stable")[: int((logs > -np.inf).sum())]
    place = np.flatnonzero(ids[order] == gold)
    rank = int((logs > logs[order[place[0]]]).sum()) if len(place) else None
    names = teacher.manifest.scalars
    if GOLD_RANK in names:
        rank = _whole(float(teacher.scalar(GOLD_RANK, row, row + 1)[0]))
    return {
        "alternatives": [
            {"id": int(i), "text": texts.shown(int(i)), "probability": math.exp(min(p, 0.0)), "gold": int(i) == gold}
            for i, p in zip(ids[order[:top]], logs[order[:top]], strict=True)
        ],
        "kept": len(order),
        "left_out": math.exp(min(float(targets.log_left_out[0]), 0.0)),
        "gold_rank": rank,
        "gold_probability": _exp(teacher, GOLD_LOGPROB, row) if GOLD_LOGPROB in names else None,
        "entropy_nats": finite(float(teacher.scalar(ENTROPY, row, row + 1)[0])) if ENTROPY in names else None,
    }


def scalar(teacher: CachedTeacher, name: str, start: int, stop: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return a scalar of rows ``[start, stop)``: (n,) float32.

    Raises:
        ConfigError: the teacher does not keep it.
    """
    if name not in teacher.manifest.scalars:
        raise ConfigError(
            f"teacher {teacher.name!r} keeps no {name}",
            where=teacher.path,
            expected=name,
            found=", ".join(teacher.manifest.scalars) or "no scalars",
        )
    return teacher.scalar(name, start, stop)


def aligned(values: NDArray[np.float64], judged: list[int], num_tokens: int) -> list[float | None]:
    """Return the kept positions' values (p,) at the tokens they judge; None elsewhere and for what is not finite."""
    result: list[float | None] = [None] * num_tokens
    for index, value in zip(judged, values.tolist(), strict=True):
        result[index] = finite(value)
    return result


def finite(value: float) -> float | None:
    """Return a number that JSON knows; None for one that is infinite or none."""
    return value if math.isfinite(value) else None


def _whole(value: float) -> int | None:
    return int(value) if math.isfinite(value) else None


def _exp(teacher: CachedTeacher, name: str, row: int) -> float | None:
    return finite(math.exp(min(float(teacher.scalar(name, row, row + 1)[0]), 0.0)))


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
