"""The probability of a student's token that consists of several of the teacher's: the product rule.

Where the student's next token covers the teacher's tokens t1 … tn, the teacher's probability that the text goes on with
these tokens is the product of their probabilities, each at its own row; these are the gold log-probabilities, which a
cache keeps for every row. So with P = exp(sum of gold log-probabilities), and p the row at the first of them,

    p'(s)  = p(s) + P            the student's token s, which p gives nothing unless the teacher has such a token too
    p'(t1) = p(t1) − P           what begins with t1 and goes on otherwise; of the left-out mass, if t1 is not kept

All else stays, and so does the sum. P is at most p(t1); where rounding or draws make it larger, p(t1) is moved whole.

What this is: the probability of the text's own division into teacher tokens. Other divisions of the same bytes add to
the probability of the bytes and are not stored, so P is a lower bound of it. Tokens that the text does not continue
with get no such share: their products would need rows that the teacher never made.
"""

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.registry import EMPTY_ID, Targets

LOWEST = -1e3
"""Nats; a probability of this logarithm is 0 in float64."""


def with_composed(
    targets: Targets,
    chains: NDArray[np.int64],
    first_rows: NDArray[np.int32],
    gold_log_probs: NDArray[np.float32],
    first_ids: NDArray[np.uint32],
    gold_ids: NDArray[np.uint32],
) -> Targets:
    """Return targets (p, k) with one more slot, in which composed tokens have their probability.

    Args:
        targets: The student's targets at its positions, at temperature 1.
        chains: (p,) how many rows a composed token consists of, 0 for other tokens.
        first_rows: (p,) the first row of each.
        gold_log_probs: (r,) of the sequence's rows.
        first_ids: (p,) the student's id of the teacher's first token there; any id that is in no row if it has none.
        gold_ids: (p,) the student's next token.
    """
    at = np.flatnonzero(chains)
    ids = np.pad(targets.ids, ((0, 0), (0, 1)), constant_values=EMPTY_ID)
    log_probs = np.pad(targets.log_probs, ((0, 0), (0, 1)), constant_values=-np.inf)
    log_left_out = targets.log_left_out.copy()
    if len(at):
        finite = np.maximum(gold_log_probs, LOWEST).astype(np.float64)  # of an impossible token the logarithm is -inf
        sums = np.concatenate([np.zeros(1), np.cumsum(finite)])
        products = np.exp(sums[first_rows[at] + chains[at]] - sums[first_rows[at]])
        rows, left_out = np.exp(log_probs[at], dtype=np.float64), np.exp(log_left_out[at], dtype=np.float64)
        source = ids[at] == first_ids[at, None]
        available = np.where(source.any(axis=1), (rows * source).sum(axis=1), left_out)
        moved = np.minimum(products, available)
        rows -= source * moved[:, None]
        left_out -= np.where(source.any(axis=1), 0, moved)
        target = ids[at] == gold_ids[at, None]
        target[:, -1] |= ~target.any(axis=1)
        rows += target * moved[:, None]
        ids[at] = np.where(target & (rows > 0), gold_ids[at, None], ids[at])
        with np.errstate(divide="ignore"):
            log_probs[at], log_left_out[at] = np.log(rows), np.log(left_out)
    return Targets(ids, log_probs, log_left_out)
