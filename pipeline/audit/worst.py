"""The positions at which a capture and its live teacher differ most, each with its text."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_tools.format.manifest import Kind
from cache_tools.format.sequences import Sequence
from cache_tools.store.teacher import CachedTeacher
from pipeline.audit.measures import Rows, difference, exact_part, kl_nats, worst_slots

WORST = 5
CONTEXT_BYTES = 60
"""Text shown before a position."""


def worst_positions(rows: Rows, sequences: list[Sequence], cached: CachedTeacher) -> list[dict[str, Any]]:
    """Return the WORST positions by KL; for ``sampled`` by the error of the gold token's log-probability.

    Args:
        rows: Of all the sequences, in their order.
        sequences: The sample.
        cached: The teacher in the cache.

    Returns:
        For each: ``document_id``, ``sequence_id``, ``row``, ``context`` (the text up to the token that is predicted),
        ``token_id`` with its ``stored`` and ``live`` probability, and ``error_nats``.
    """
    objective = cached.encoding.manifest.objective
    gold = np.concatenate([sequence.gold_ids(objective) for sequence in sequences])
    owners = np.repeat(np.arange(len(sequences)), [sequence.num_positions for sequence in sequences])
    positions = np.concatenate([sequence.positions() for sequence in sequences])
    tokens, stored_logs, live_logs, errors = _judged(rows, cached.manifest.target.kind, gold)
    found = []
    for row in np.argsort(-errors, kind="stable")[:WORST].tolist():
        sequence = sequences[owners[row]]
        end = int(positions[row]) + (objective == "causal")
        found.append(
            {
                "document_id": sequence.document_id,
                "sequence_id": sequence.sequence_id,
                "row": sequence.first_position + row - int(np.searchsorted(owners, owners[row])),
                "context": text_before(sequence, end),
                "token_id": int(tokens[row]),
                "stored": float(np.exp(stored_logs[row])),
                "live": float(np.exp(live_logs[row])),
                "error_nats": float(errors[row]),
            }
        )
    return found


def _judged(rows: Rows, kind: Kind, gold: NDArray[np.uint32]) -> tuple[NDArray[Any], ...]:
    """Return, for each row, the token to show, its stored and live log-probability, and the row's error: (n,) each."""
    if not kind.has_exact_part:
        stored, live = rows.scalars["gold_logprob"]
        return gold, stored, live, np.abs(difference(stored, live))
    exact = exact_part(rows)
    slots = worst_slots(exact)[:, None]
    sides = (exact.stored.ids, exact.stored.log_probs, exact.log_probs)
    chosen = (np.take_along_axis(values, slots, axis=1)[:, 0] for values in sides)
    return *chosen, np.where(exact.used.any(axis=1), kl_nats(exact), 0)


def text_before(sequence: Sequence, token: int) -> str:
    """Return the last CONTEXT_BYTES of a sequence's text that stand before a token."""
    end = int(sequence.byte_lengths[:token].sum())
    return sequence.text.encode()[max(0, end - CONTEXT_BYTES) : end].decode(errors="ignore")
