"""The ``audit:`` block: how much of a capture is compared with the live teacher, and the tolerances."""

from pydantic import Field, PositiveInt

from cache_tools.configuration import Config


class AuditConfig(Config):
    """How much of a capture is compared with the live teacher, and how far the two may differ.

    Tolerances are added to the error that the cache's manifest allows its codec. The default of each follows from the
    dtype in which the cache was captured, and from whether an engine read the tokens for the capture or the audit; see
    ``TOLERANCES`` and ``BETWEEN_ENGINES`` in ``pipeline/audit/verdict.py``.

    Attributes:
        shards: Number of committed shards to sample at random.
        sequences_per_shard: Number of sequences to sample from each shard: by default 64 in all, about ten thousand
            positions.
        seed: Seed of the random sample.
        max_kl_nats: Tolerance of the mean KL divergence of a shard's sampled rows, in nats.
        max_error_nats: Tolerance, in nats, of the mean absolute error of log-normaliser, entropy and gold
            log-probability, and of the mean surprisal of draws.
        max_relative_error: Tolerance of the error of hidden states except ``last``, relative to each channel's spread.
    """

    shards: PositiveInt = 8
    sequences_per_shard: PositiveInt = 8
    seed: int = Field(default=0, ge=0)
    max_kl_nats: float | None = Field(default=None, gt=0)
    max_error_nats: float | None = Field(default=None, gt=0)
    max_relative_error: float | None = Field(default=None, gt=0)
