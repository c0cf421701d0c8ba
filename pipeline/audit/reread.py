"""Compare stored rows with a second reading by a teacher that gives rows and no logits.

Of each position such a teacher gives its k likeliest tokens. A stored token that is not among them is taken to have the
lowest log-probability of the row, which is the most that it can have; so small differences of order at the end of a row
cost nothing, and other rows cost about as much as they should. Entropy and log-normaliser are not compared: the teacher
does not give them.
"""

import numpy as np

from cache_tools.codecs.rows import EMPTY_ID, Targets
from cache_tools.format.layout import GOLD_LOGPROB
from cache_tools.format.sequences import Sequence
from cache_tools.progress.reporter import Advance, ignore
from cache_tools.store.teacher import CachedTeacher
from pipeline.audit.live import Compared
from pipeline.audit.measures import LOWEST_NATS, Floats, Rows, joined_targets
from pipeline.teachers.teacher import RowTeacher, TopRows


def compare_rows(
    cached: CachedTeacher, sequences: list[Sequence], teacher: RowTeacher, progress: Advance = ignore
) -> Compared:
    """Read what the cache holds of some sequences, let the teacher read them again, and return both sides.

    Args:
        cached: The teacher in the cache, with rows of likeliest tokens; only these sequences' rows are read.
        sequences: Of committed shards.
        teacher: The teacher, with the vocabulary of the cached one.
        progress: Called with the number of tokens that were read.

    Raises:
        ModelError: the teacher cannot read.
        IdentityError: another model answers, or it reads other ids.
    """
    stored = joined_targets([cached.targets(*sequence.rows) for sequence in sequences])
    live = teacher.rows.read(sequences, cached.manifest.target.k, progress)
    ends = np.cumsum([sequence.num_positions for sequence in sequences])
    shifts = (-1, 0, 1)
    beside = [_at_stored(stored, live, shift) for shift in shifts]
    surprisal = np.column_stack([_surprisal(stored, *pair) for pair in zip(beside, shifts, strict=True)])
    surprisal[np.concatenate([ends - 1, [0], ends[:-1]])] = np.nan
    scalars = {}
    if GOLD_LOGPROB in cached.manifest.scalars:
        held = np.concatenate([cached.scalar(GOLD_LOGPROB, *sequence.rows) for sequence in sequences])
        scalars[GOLD_LOGPROB] = (held.astype(np.float64), live.gold_log_probs.astype(np.float64))
    count = len(stored.ids)
    rows = Rows(
        stored=stored,
        log_probs=np.where(stored.ids == EMPTY_ID, -np.inf, beside[1]),
        top_log_prob=live.log_probs.max(axis=1).astype(np.float64),
        head_log_prob=np.full(count, -np.inf),
        surprisal=surprisal,
        same_tokens=(np.sort(live.ids, axis=1) == np.sort(stored.ids, axis=1)).all(axis=1),
        entropy=np.full(count, np.nan),
        scalars=scalars,
    )
    return Compared(rows, {})


def _shifted(count: int, shift: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return which row stands beside each; rows beyond the ends are the end rows."""
    return np.clip(np.arange(count, dtype=np.int64) + shift, 0, count - 1)


def _at_stored(stored: Targets, live: TopRows, shift: int) -> Floats:
    """Return each row's live log-probabilities of the tokens of the stored row beside it: (n, k)."""
    return live.log_probs_of(stored.ids[_shifted(len(stored.ids), shift)]).astype(np.float64)


def _surprisal(stored: Targets, log_probs: Floats, shift: int) -> Floats:
    """Return the mean surprisal of the stored row beside each, under these log-probabilities of its tokens: (n,)."""
    weights = np.exp(stored.log_probs[_shifted(len(stored.ids), shift)].astype(np.float64))
    result: Floats = -(weights * np.maximum(log_probs, LOWEST_NATS)).sum(axis=1)
    return result
