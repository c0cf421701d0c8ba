"""The positions at which a capture and its live teacher differ most, each with its text."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_tools.format.layout import GOLD_LOGPROB
from cache_tools.format.manifest import Kind
from cache_tools.format.sequences import Sequence
from cache_tools.store.teacher import CachedTeacher
from pipeline.audit.measures import Rows, difference, exact_part, excess_surprisals, kl_nats, worst_slots

WORST = 5
CONTEXT_BYTES = 60
"""Text shown before a position."""


@dataclass(frozen=True)
class WorstPosition:
    """A position at which a capture and its live teacher differ much.

    Attributes:
        document_id: Id of its document.
        sequence_id: Id of its sequence.
        row: Its row in the cache.
        context: The text up to the token that is predicted, at most CONTEXT_BYTES of it.
        token_id: The token that the error is mostly due to.
        token: Its text.
        stored: Its stored probability.
        live: Its live probability.
        error_nats: The KL divergence of the row; for ``sampled`` the error of the gold token's log-probability, or, if
            the cache does not hold that, of the mean surprisal of the draws.
    """

    document_id: str
    sequence_id: int
    row: int
    context: str
    token_id: int
    token: str
    stored: float
    live: float
    error_nats: float


@dataclass(frozen=True)
class _TokenErrors:
    """For each row the token to show, its stored and live log-probability, and the row's error: (n,) each."""

    tokens: NDArray[np.uint32]
    stored_log_probs: NDArray[np.floating]
    live_log_probs: NDArray[np.floating]
    errors_nats: NDArray[np.floating]


def worst_positions(
    rows: Rows, sequences: list[Sequence], cached: CachedTeacher, text_of: Callable[[int], str]
) -> tuple[WorstPosition, ...]:
    """Return the WORST positions by KL; for ``sampled`` by the error that ``WorstPosition`` names.

    Args:
        rows: Rows of all the sequences, in their order.
        sequences: The sample.
        cached: The teacher in the cache.
        text_of: Returns the text of a token id.
    """
    objective = cached.encoding.manifest.objective
    gold = np.concatenate([sequence.gold_ids(objective) for sequence in sequences])
    owners = np.repeat(np.arange(len(sequences)), [sequence.num_positions for sequence in sequences])
    positions = np.concatenate([sequence.positions() for sequence in sequences])
    judged, worst = _token_errors(rows, cached.manifest.target.kind, gold), []
    for row in np.argsort(-judged.errors_nats, kind="stable")[:WORST].tolist():
        sequence, token_id = sequences[owners[row]], int(judged.tokens[row])
        worst.append(
            WorstPosition(
                document_id=sequence.document_id,
                sequence_id=sequence.sequence_id,
                row=sequence.first_position + row - int(np.searchsorted(owners, owners[row])),
                context=text_before(sequence, int(positions[row]) + (objective == "causal")),
                token_id=token_id,
                token=text_of(token_id),
                stored=float(np.exp(judged.stored_log_probs[row])),
                live=float(np.exp(judged.live_log_probs[row])),
                error_nats=float(judged.errors_nats[row]),
            )
        )
    return tuple(worst)


def _token_errors(rows: Rows, kind: Kind, gold: NDArray[np.uint32]) -> _TokenErrors:
    if not kind.has_exact_part:
        if GOLD_LOGPROB not in rows.scalars:
            return _drawn_most(rows)
        stored, live = rows.scalars[GOLD_LOGPROB]
        return _TokenErrors(gold, stored, live, np.abs(difference(stored, live)))
    exact = exact_part(rows)
    slots = worst_slots(exact)[:, None]
    return _TokenErrors(
        tokens=np.take_along_axis(exact.stored.ids, slots, axis=1)[:, 0],
        stored_log_probs=np.take_along_axis(exact.stored.log_probs, slots, axis=1)[:, 0],
        live_log_probs=np.take_along_axis(exact.log_probs, slots, axis=1)[:, 0],
        errors_nats=np.where(exact.used.any(axis=1), kl_nats(exact), 0),
    )


def _drawn_most(rows: Rows) -> _TokenErrors:
    """Show the token that was drawn most often; one row's draws miss the entropy by chance too, most where they err."""
    slots = rows.stored.log_probs.argmax(axis=1)[:, None]
    return _TokenErrors(
        tokens=np.take_along_axis(rows.stored.ids, slots, axis=1)[:, 0],
        stored_log_probs=np.take_along_axis(rows.stored.log_probs, slots, axis=1)[:, 0],
        live_log_probs=np.take_along_axis(rows.log_probs, slots, axis=1)[:, 0],
        errors_nats=np.abs(excess_surprisals(rows)),
    )


def text_before(sequence: Sequence, token: int) -> str:
    """Return the last CONTEXT_BYTES of a sequence's text that stand before a token."""
    end = int(sequence.byte_lengths[:token].sum())
    return sequence.text.encode()[max(0, end - CONTEXT_BYTES) : end].decode(errors="ignore")
