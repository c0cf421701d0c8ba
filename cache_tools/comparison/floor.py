"""The noise floor of two cached teachers: how far they are apart although only storing and rounding differ.

Two causes are counted. Storing: the KL that the codecs of both sides made, which the receipts state; errors of two
codecs are independent, so they add up. Rounding: what two runs of the same weights in these types and by this software
are expected to differ by (``rounding.py``). A mean KL up to ``limit_nats`` is no evidence of another difference. It is
no evidence against one either: where the weights differ, the two are other teachers, however close.
"""

from collections.abc import Collection
from dataclasses import dataclass

from cache_tools.comparison.rounding import MEASURED_ON, Arithmetic, rounding_nats
from cache_tools.store.predictions import codec_of, mean_statistics
from cache_tools.store.teacher import CachedTeacher

MARGIN = 2
"""How many times the expected rounding is taken for noise: models, texts and processors differ by about that."""


@dataclass(frozen=True)
class NoiseFloor:
    """What two teachers differ by on average although only storing and rounding differ.

    Attributes:
        a_computed_by: What read the tokens for A, and the type that it computed in; ``unknown`` for imported rows.
        b_computed_by: The same of B.
        same_weights: Whether both were computed from the same weights; None if one of them does not name its weights.
        same_arithmetic: Whether software and type are the same. Rounding then differs only where the machines or the
            batches do.
        storage_nats: Mean KL that storing the targets of both has cost.
        rounding_nats: Mean KL that is expected between two runs of the same weights in these types; None if unknown.
        measured_on: The model of which the expectation was measured.
        limit_nats: A mean KL up to this is explained by storing and rounding alone; None if rounding is unknown.
    """

    a_computed_by: str
    b_computed_by: str
    same_weights: bool | None
    same_arithmetic: bool
    storage_nats: float
    rounding_nats: float | None
    measured_on: str
    limit_nats: float | None

    def explains(self, kl_nats: float | None) -> bool | None:
        """Return whether storing and rounding explain a mean KL; None if that is unknown."""
        if kl_nats is None or self.limit_nats is None:
            return None
        return kl_nats <= self.limit_nats


def noise_floor(a: CachedTeacher, b: CachedTeacher, shards: Collection[int]) -> NoiseFloor:
    """Return the noise floor of two teachers over some shards that both have committed."""
    ours, theirs = (Arithmetic.of(teacher.manifest.identity) for teacher in (a, b))
    weights = [teacher.manifest.identity.get("weights") for teacher in (a, b)]
    storage = sum(storage_nats(teacher, shards) for teacher in (a, b))
    rounding = rounding_nats(ours, theirs)
    return NoiseFloor(
        a_computed_by=str(ours),
        b_computed_by=str(theirs),
        same_weights=weights[0] == weights[1] if all(weights) else None,
        same_arithmetic=bool(ours.dtype) and ours == theirs,
        storage_nats=storage,
        rounding_nats=rounding,
        measured_on=MEASURED_ON,
        limit_nats=None if rounding is None else storage + MARGIN * rounding,
    )


def storage_nats(teacher: CachedTeacher, shards: Collection[int]) -> float:
    """Return the mean KL that storing a teacher's targets has cost; the codec's budget where it was not recorded."""
    receipts = filter(None, map(teacher.receipt, shards))
    means = mean_statistics([(receipt.positions, receipt.statistics) for receipt in receipts])
    return float(means.get("codec_kl_nats", codec_of(teacher.manifest).budget_nats))
