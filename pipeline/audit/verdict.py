"""Turn the measures of an audit into a verdict: how much may differ, and what a pattern means.

A teacher that runs again, on another device or in other batches, does not repeat its bits. How far apart
two correct runs are depends on the arithmetic; the tolerances below are several times that, and far below
the effect of a fault. The error budget of the codec is in the cache's manifest and is added.

A verdict is a list of checks, each a value with its limit; a diagnosis is a guess at the cause, made only
where a pattern is clear.
"""

import math
from dataclasses import dataclass

import numpy as np

from cache_tools.comparison.rounding import MOST_NATS
from cache_tools.format.layout import GOLD_RANK, SCALARS, TAIL_VARIANCE, temperature_of
from cache_tools.format.manifest import HiddenSpec, TeacherManifest
from cache_tools.hidden_codecs.registry import HIDDEN_CODECS
from cache_tools.store.predictions import codec_of
from pipeline.audit.measures import (
    Floats,
    Rows,
    difference,
    exact_part,
    excess_surprisal,
    fitted_temperature,
    kl_nats,
    left_out_mass,
    proven_shift,
)
from pipeline.config.audit import AuditConfig

STANDARD_ERRORS = 5
"""By how many standard errors the mean over draws may miss its expectation."""

LOG_TEMPERATURE, UNEXPLAINED = 0.05, 0.25
"""A temperature is named if its logarithm is larger than this and it leaves less than this share unexplained."""

NOTHING, SOMETHING = 1e-6, 1e-3
"""Masses: a row leaves nothing out below the first, a live teacher something above the second."""

RANKS_PER_NAT = 4
"""How many times as many tokens, as a logarithm, may lie above a logit that is one nat lower. Of normally distributed
logits with a spread of s nats it is about z / s at z spreads above their mean, near 1 for real vocabularies."""

IDENTITY_CAUSES = {
    "weights": "The live teacher's files are not those that were captured: another revision, or another model.",
    "dtype": "The live teacher computes in another dtype than the capture did.",
}


@dataclass(frozen=True)
class Tolerance:
    """How far two correct runs may differ; ``AuditConfig`` describes each field."""

    max_kl_nats: float
    max_error_nats: float
    max_relative_error: float


TOLERANCES = {
    "float32": Tolerance(3e-5, 5e-3, 1e-2),
    "float16": Tolerance(1e-4, 2e-2, 3e-2),
    "bfloat16": Tolerance(1e-3, 0.1, 0.2),
}
"""Tolerances by the dtype of the capture. Measured: the demo's teacher in bfloat16 is 1e-4 nats of KL and 0.014 nats of
entropy from itself in float32, in float16 1e-6 and 0.002; larger models in bfloat16 2e-4. Two roundings may add up, and
larger logits round more coarsely, so the tolerances are at least five times that."""

BETWEEN_ENGINES = TOLERANCES | {"bfloat16": Tolerance(MOST_NATS["bfloat16"], 0.25, 0.2)}
"""Tolerances where an engine read the tokens, for the capture or for the audit. Two engines add in other orders, layer
by layer, and so does one engine in other batches, so their roundings are independent (``comparison/rounding.py`` has
the figures). In bfloat16 2.1e-3 nats are expected; 1.6e-3 to 1.9e-3 were measured, with a mean error of log-normalisers
of 0.10. The limits are about twice what is expected, and for the errors themselves 2.5 times what was measured. In
float16 roundings are an eighth and KL a 64th of that, and in float32 nothing, so the usual tolerances hold."""

ROUNDED_TO_BFLOAT16 = TOLERANCES["bfloat16"]
"""What hidden states that are stored as bfloat16 may differ by, whatever the teacher's dtype."""

TWO_ROUNDINGS_NATS = 0.125**2 / 12
"""KL between two independent roundings of the same logits to bfloat16, nats, where they lie between 16 and 32: each
rounding has the variance step² / 12, and the KL is half the variance of their difference, less where one token has
most of the probability."""


@dataclass(frozen=True)
class Check:
    """One measure and its limit.

    Attributes:
        name: What is measured, with its unit.
        value: The largest over the shards.
        limit: It must not exceed this.
        shard: Where it is largest; None for a measure of the whole sample.
        passed: Whether the value is within its limit; a value that is not a number is not.
    """

    name: str
    value: float
    limit: float
    shard: int | None
    passed: bool

    @classmethod
    def of(cls, name: str, value: float, limit: float, shard: int | None = None) -> "Check":
        """Judge a measure."""
        return cls(name, value, limit, shard, value <= limit)


def tolerance_of(config: AuditConfig, dtype: str, by_engine: bool = False) -> Tolerance:
    """Return the tolerances of a capture in this dtype, those of ``config`` first.

    Args:
        config: The audit block.
        dtype: Type in which the capture computed.
        by_engine: Whether an engine read the tokens, for the capture or for the audit.
    """
    tolerances = BETWEEN_ENGINES if by_engine else TOLERANCES
    default = vars(tolerances.get(dtype, tolerances["bfloat16"]))
    return Tolerance(**{name: getattr(config, name) or value for name, value in default.items()})


def codec_kl_nats(manifest: TeacherManifest) -> float:
    """Return the KL that the codec may cost the targets of a shard on average."""
    return codec_of(manifest).budget_nats


def hidden_limit(layer: str, spec: HiddenSpec, tolerance: Tolerance) -> float:
    """Return the limit of a layer's error: nats of KL for ``last``, relative for the others."""
    name = "max_kl_nats" if layer == "last" else "max_relative_error"
    lost = spec.budget or 0.0
    if HIDDEN_CODECS[spec.codec].rounds_to_bfloat16:
        lost = getattr(ROUNDED_TO_BFLOAT16, name)
    return float(getattr(tolerance, name)) + lost


def scalar_limit(name: str, live: Floats, error_nats: float) -> float:
    """Return by how much a scalar may be off on average if logits are by ``error_nats``.

    A log-normaliser at temperature T by that over T; a variance s^2 of logits by ``(s + error)^2 - s^2``; the
    logarithm of a rank by RANKS_PER_NAT times that.

    Args:
        name: Name of the scalar.
        live: (n,) values of the live teacher.
        error_nats: Tolerance of a logit.
    """
    if name == TAIL_VARIANCE:
        return float(error_nats * (2 * np.sqrt(live).mean() + error_nats))
    if name == GOLD_RANK:
        return RANKS_PER_NAT * error_nats
    return error_nats / (temperature_of(name) or 1.0)


def checks_of_shard(
    shard: int, rows: Rows, hidden_errors: dict[str, float], manifest: TeacherManifest, tolerance: Tolerance
) -> list[Check]:
    """Return the checks of one shard's sample, so that one bad shard does not hide among good ones.

    A scalar's error is the mean absolute one, of ranks that of ln(1 + rank); see ``scalar_limit``. Kinds that only
    draw have no KL.
    """
    checks = []
    if manifest.target.kind.has_exact_part:
        kl = float(kl_nats(exact_part(rows)).mean())
        checks.append(Check.of("KL of the targets, nats", kl, tolerance.max_kl_nats + codec_kl_nats(manifest), shard))
    for name, (stored, live) in rows.scalars.items():
        limit = scalar_limit(name, live, tolerance.max_error_nats) + manifest.scalar_step_nats / 2
        measured, sides = f"{name}, nats{'²' if name == TAIL_VARIANCE else ''}", (stored, live)
        if name == GOLD_RANK:
            measured, sides = "ln(1 + gold_rank)", (np.log1p(stored), np.log1p(live))
        checks.append(Check.of(f"error of {measured}", float(np.abs(difference(*sides)).mean()), limit, shard))
    for layer, error in hidden_errors.items():
        name = f"KL of hidden {layer}, nats" if layer == "last" else f"relative error of hidden {layer}"
        checks.append(Check.of(name, error, hidden_limit(layer, manifest.hidden[layer], tolerance), shard))
    return checks


def checks_of_sample(rows: Rows, manifest: TeacherManifest, tolerance: Tolerance) -> list[Check]:
    """Return the checks that need many rows: whether draws are as likely as they should be."""
    if not manifest.target.kind.is_drawn:
        return []
    excess = excess_surprisal(rows)
    limit = tolerance.max_error_nats + STANDARD_ERRORS * excess.standard_error
    return [Check.of("surprisal of the draws beyond the entropy, nats", abs(excess.mean), limit)]


def diagnose(rows: Rows, manifest: TeacherManifest, identity: list[str]) -> list[str]:
    """Return likely causes of the differences, a sentence each.

    Args:
        rows: The whole sample.
        manifest: Manifest of the cached teacher.
        identity: Keys in which the live teacher's identity differs, a line each.
    """
    keys = [line.split(":")[0] for line in identity]
    causes = [sentence for key, sentence in IDENTITY_CAUSES.items() if key in keys]
    drawn = manifest.target.kind.is_drawn
    shift = proven_shift(rows, drawn)
    if shift:
        side = "before" if shift < 0 else "behind"
        return [
            *causes,
            f"The rows are shifted by one: the live teacher fits the stored row {side} each position best.",
        ]
    causes += _of_draws(rows) if drawn else []
    causes += _of_policy(exact_part(rows)) if manifest.target.kind.has_exact_part else []
    return causes or [_of_size(rows, manifest)]


def _of_draws(rows: Rows) -> list[str]:
    excess = excess_surprisal(rows)
    if abs(excess.mean) <= STANDARD_ERRORS * excess.standard_error:
        return []
    if excess.mean < 0:
        return ["The draws are too likely: the distribution was tempered or truncated before they were made."]
    return ["The draws are too unlikely: they were made from another distribution."]


def _of_policy(rows: Rows) -> list[str]:
    """Name what a sampling policy would have done to the distributions: temperature, truncation."""
    causes = []
    temperature, unexplained = fitted_temperature(rows)
    if abs(math.log(temperature)) > LOG_TEMPERATURE and unexplained < UNEXPLAINED:
        causes.append(f"The log-probabilities are tempered: they fit temperature {temperature:.2f}, not 1.")
    missing = left_out_mass(rows.log_probs)
    closed = (rows.stored.log_left_out < math.log(NOTHING)).mean()
    if closed > 0.99 and missing.mean() > SOMETHING:
        causes.append(
            "The rows are truncated and renormalised: they leave nothing out, but the live teacher gives other tokens "
            f"{missing.mean():.1%} on average and {missing.max():.1%} at most."
        )
    return causes


def _of_size(rows: Rows, manifest: TeacherManifest) -> str:
    """Say what differences of this size are compatible with: rounding, rounded weights, or another distribution."""
    noisy = TOLERANCES["bfloat16"]
    sides = [rows.scalars[name] for name in SCALARS if name in rows.scalars]
    scalars = [np.abs(difference(*pair)).mean() <= noisy.max_error_nats for pair in sides]
    kl = float(kl_nats(exact_part(rows)).mean()) if manifest.target.kind.has_exact_part else 0.0
    if all(scalars) and kl <= noisy.max_kl_nats:
        return "The differences are as small as those of another dtype, device or attention kernel."
    if all(scalars) and kl <= 2 * TWO_ROUNDINGS_NATS:  # rounding inside the model adds to that of the logits
        return (
            f"A KL of {kl:.1e} nats is compatible with rounding alone: two roundings to bfloat16 of logits between 16 "
            f"and 32 cost {TWO_ROUNDINGS_NATS:.1e}. Slightly other weights can have this size too. If both sides ran "
            "in bfloat16, or one on a copy of the weights in another type, allow it with audit.max_kl_nats: 3.0e-3."
        )
    return "No pattern is recognised: the rows look like those of other weights or of another text."
