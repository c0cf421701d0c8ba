"""What an audit reports besides its checks: KL, errors by probability, left-out mass, agreement, for people to read."""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from cache_tools.format.manifest import Kind
from cache_tools.json_output import FLAT
from pipeline.audit.measures import (
    ExcessSurprisal,
    Floats,
    Rows,
    difference,
    exact_part,
    excess_surprisal,
    kl_nats,
    left_out_mass,
)

BIN_EDGES = (1.0, 0.5, 0.1, 1e-2, 1e-3, 1e-4, 0.0)
"""Edges of the bins of live probability in which errors are summed up."""


@dataclass(frozen=True)
class Spread:
    """How errors are spread.

    Attributes:
        entries: Number of errors.
        mean: Their mean.
        mean_absolute: Their mean absolute value.
        largest: Their largest absolute value.
    """

    entries: int
    mean: float
    mean_absolute: float
    largest: float

    @classmethod
    def of(cls, errors: Floats) -> "Spread":
        """Sum up errors (n,), at least one."""
        sizes = np.abs(errors)
        return cls(len(errors), float(errors.mean()), float(sizes.mean()), float(sizes.max()))


@dataclass(frozen=True)
class ProbabilityBin:
    """Errors of stored log-probabilities of tokens whose live probability lies in one bin.

    Attributes:
        above: The bin's lower edge, which is outside; 0 includes impossible tokens.
        up_to: The bin's upper edge.
        errors: Stored minus live, in nats.
    """

    above: float
    up_to: float
    errors: Spread = field(metadata=FLAT)


@dataclass(frozen=True)
class KlSpread:
    """KL divergences of rows, in nats.

    Attributes:
        mean: Their mean.
        p99: Their 99th percentile.
        largest: The largest.
    """

    mean: float
    p99: float
    largest: float


@dataclass(frozen=True)
class Measures:
    """Measures that an audit reports without judging them.

    Attributes:
        kl: KL divergence of the rows; None for ``sampled``.
        probability_bins: Errors of log-probabilities by live probability; None for ``sampled``.
        left_out: Errors of the left-out mass; None for ``sampled``.
        top1_agreement: Share of rows with the same likeliest token; None for ``sampled``.
        same_tokens: Share of rows with the tokens that the live teacher would keep.
        excess_surprisal: Whether draws are as likely as they should be; None for kinds that do not draw.
        scalars: Errors of each scalar, by name, in the unit of the scalar.
    """

    kl: KlSpread | None
    probability_bins: tuple[ProbabilityBin, ...] | None
    left_out: Spread | None
    top1_agreement: float | None
    same_tokens: float
    excess_surprisal: ExcessSurprisal | None
    scalars: dict[str, Spread]


def measures_of(rows: Rows, kind: Kind) -> Measures:
    """Return the measures that are shown besides the checks."""
    excess = excess_surprisal(rows) if kind.is_drawn else None
    same_tokens = float(rows.same_tokens.mean())
    scalars = {name: Spread.of(difference(*sides)) for name, sides in rows.scalars.items()}
    if not kind.has_exact_part:
        return Measures(None, None, None, None, same_tokens, excess, scalars)
    exact = exact_part(rows)
    kl, left_out = kl_nats(exact), np.exp(exact.stored.log_left_out.astype(np.float64))
    return Measures(
        kl=KlSpread(float(kl.mean()), float(np.quantile(kl, 0.99)), float(kl.max())),
        probability_bins=by_probability(exact),
        left_out=Spread.of(left_out - left_out_mass(exact.log_probs)),
        top1_agreement=top1_agreement(exact),
        same_tokens=same_tokens,
        excess_surprisal=excess,
        scalars=scalars,
    )


def by_probability(rows: Rows) -> tuple[ProbabilityBin, ...]:
    """Sum up errors of stored log-probabilities in bins of the live probability, without bins that hold no token."""
    used = rows.used
    errors = difference(rows.stored.log_probs[used], rows.log_probs[used])
    probabilities, bins = np.exp(rows.log_probs[used]), []
    for up_to, above in pairwise(BIN_EDGES):
        inside = errors[(probabilities > above) & (probabilities <= up_to) | (above == 0) & (probabilities == 0)]
        if len(inside):
            bins.append(ProbabilityBin(above, up_to, Spread.of(inside)))
    return tuple(bins)


def top1_agreement(rows: Rows) -> float:
    """Return the share of rows whose likeliest token is one that the live teacher finds likeliest, ties included."""
    best = rows.stored.log_probs.argmax(axis=1)
    live = np.take_along_axis(rows.log_probs, best[:, None], axis=1)[:, 0]
    return float((live >= rows.top_log_prob - 1e-6).mean())
