"""Do stored states give the stored log-probabilities? The check before a draft head is trained on them.

A draft head learns to predict a target model's last state, and its trainer turns that state into the target
distribution through final norm and output matrix. If the norm is applied twice or never, or the state is another
layer's, training runs without any failure and its loss is merely higher. The cache holds both sides, so each row is
compared: the logits of its likeliest tokens, from the state as the trainer will read it, with the log-probabilities
that the teacher computed.

Only differences between the tokens of a row are compared, so no sum over the vocabulary is needed: a row costs the
products of CHECKED_ENTRIES rows of the output matrix. The tolerance of a row follows from what was rounded: if each
channel of a state is off by a random share of at most u, a logit's variance is ``u^2 / 3 * sum((w * h)^2)``.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.registry import Targets
from cache_tools.errors import ConfigError, FormatError
from cache_tools.format import layout
from cache_tools.hidden_codecs.registry import HIDDEN_CODECS
from cache_tools.models.final_norm import FinalNorm
from cache_tools.models.tensors import StoredTensor, tensors_of
from cache_tools.store.teacher import CachedTeacher

# N: rows, E: compared entries, D: width

Floats = NDArray[np.float32]

CHECKED_ENTRIES = 8
"""Likeliest tokens of a row that are compared."""

BLOCK_VALUES = 2**24
"""Numbers of the output matrix that are gathered at a time."""

UNITS = {"bfloat16": 2.0**-9, "float16": 2.0**-11, "float32": 2.0**-24}
"""Largest relative rounding error of each type."""

STANDARD_ERRORS = 6
"""How many standard deviations of the rounding a row may be off."""

FLOOR_NATS = 1e-5
"""Rounding of float32 log-probabilities and sums, with room."""

OUTLYING_SHARE = 0.02
"""Rows of a sequence that may be off where states were quantised to a mean error, which single rows exceed."""

FITTING_SHARE, RESEMBLING = 0.9, 0.3
"""Share of rows within twice the tolerance for which an explanation fits; correlation with the stored rows from which
states are taken for those of another layer of the same model."""


@dataclass(frozen=True)
class OutputHead:
    """The output matrix in numpy.

    Attributes:
        weight: (V, D).
        bias: (V,) float32, or None.
        scale: Factor of the products.
        softcap: Bound on the logits; 0 for none.
    """

    weight: StoredTensor
    bias: Floats | None
    scale: float
    softcap: float

    def logits(self, states: Floats, ids: NDArray[np.uint32]) -> tuple[Floats, Floats]:
        """Return logits (N, E) of some tokens (N, E) for states (N, D), and the sums of ``(w * h)^2`` behind them."""
        logits, squares = np.empty(ids.shape, np.float32), np.empty(ids.shape, np.float32)
        step = max(1, BLOCK_VALUES // (ids.shape[1] * states.shape[1]))
        for start in range(0, len(states), step):
            rows = slice(start, start + step)
            weights = self.weight.rows(ids[rows].ravel()).reshape(*ids[rows].shape, -1)
            products = weights * (states[rows, None] * np.float32(self.scale))
            logits[rows] = products.sum(axis=2)
            squares[rows] = np.square(products, out=products).sum(axis=2)
        if self.bias is not None:
            logits += self.bias[ids] * np.float32(self.scale)
        if self.softcap:
            logits = np.float32(self.softcap) * np.tanh(logits / np.float32(self.softcap))
        return logits, squares


@dataclass(frozen=True)
class KeptEntries:
    """The likeliest entries of some rows.

    Attributes:
        ids: (N, E) uint32; 0 where a row has fewer.
        log_probs: (N, E) float32; -inf where a row has fewer.
    """

    ids: NDArray[np.uint32]
    log_probs: Floats

    @classmethod
    def of(cls, targets: Targets) -> "KeptEntries":
        """Take them from targets."""
        entries = min(CHECKED_ENTRIES, targets.ids.shape[1])
        slots = np.argpartition(-targets.log_probs, entries - 1, axis=1)[:, :entries]
        log_probs = np.take_along_axis(targets.log_probs, slots, axis=1)
        ids = np.take_along_axis(targets.ids, slots, axis=1)
        return cls(np.where(log_probs > -np.inf, ids, 0).astype(np.uint32), log_probs)


@dataclass(frozen=True)
class Rounding:
    """What may separate a row's logits from its log-probabilities.

    Attributes:
        state_unit: Relative rounding error of a state's channels, all roundings together.
        logit_unit: Relative rounding error of the teacher's logits.
        state_kl_nats: Mean KL that quantising the last state cost; 0 for none.
        target_kl_nats: Largest KL that storing a row cost.
        is_mean: Whether single rows may exceed the error of the store.
    """

    state_unit: float
    logit_unit: float
    state_kl_nats: float
    target_kl_nats: float
    is_mean: bool

    @classmethod
    def of_shard(cls, teacher: CachedTeacher, shard: int) -> "Rounding":
        """Return the rounding of a shard whose states are exported as bfloat16, from its manifest and receipt."""
        codec, receipt = HIDDEN_CODECS[teacher.manifest.hidden["last"].codec], teacher.receipt(shard)
        statistics = {} if receipt is None else receipt.statistics
        stored = UNITS["bfloat16"] if codec.rounds_to_bfloat16 else 0.0
        return cls(
            state_unit=math.hypot(UNITS["bfloat16"], stored),
            logit_unit=UNITS.get(str(teacher.manifest.identity.get("dtype")), UNITS["float32"]),
            state_kl_nats=statistics.get("hidden_last_kl_nats", 0.0),
            target_kl_nats=statistics.get("codec_kl_nats_max", 0.0),
            is_mean=codec.has_transform,
        )


@dataclass(frozen=True)
class RowErrors:
    """How far states are from their rows.

    Attributes:
        error_nats: (N,) root of the mean squared difference of log-probabilities, weighted by probability.
        tolerance_nats: (N,) what rounding explains of it.
        resemblance: (N,) correlation of logits with stored log-probabilities; NaN for rows of one entry.
    """

    error_nats: Floats
    tolerance_nats: Floats
    resemblance: Floats

    def fit(self, factor: float = 1.0) -> NDArray[np.bool_]:
        """Say of each row whether its error is within so many tolerances."""
        return self.error_nats <= factor * self.tolerance_nats


def open_head(teacher: CachedTeacher) -> OutputHead:
    """Return the output matrix that is stored with a teacher's last state.

    Raises:
        ConfigError: the teacher keeps no last state, or only draws, which no state can be compared with.
        FormatError: the stored matrix cannot be read.
    """
    manifest = teacher.manifest
    if "last" not in manifest.hidden or layout.HEAD not in manifest.files:
        raise ConfigError(
            "this teacher keeps no last hidden state",
            where=teacher.path,
            expected="layer 'last' with its output matrix",
            found=", ".join(manifest.hidden) or "no hidden states",
            fix="Add 'last' to hidden.layers in the capture file and capture again; only the layer is added",
        )
    if manifest.target.kind.is_drawn:
        raise ConfigError(
            "this teacher keeps draws, with which its states cannot be compared",
            where=teacher.path,
            expected="targets of kind topk, topp or dense",
            found=manifest.target.kind,
            fix="Capture a teacher with such targets",
        )
    tensors, metadata = tensors_of(teacher.file(layout.HEAD), teacher.path / layout.HEAD)
    try:
        bias = tensors["bias"].rows() if "bias" in tensors else None
        scale, softcap = (
            float(metadata.get(name) or default) for name, default in (("logit_scale", 1), ("softcap", 0))
        )
        expected = (manifest.vocabulary_size, manifest.hidden["last"].width)
        if tensors["weight"].values.shape != expected:
            raise ValueError(f"a matrix of shape {tensors['weight'].values.shape} instead of {expected}")
    except (KeyError, ValueError) as error:
        raise FormatError(
            "this is not the output matrix of the teacher", where=teacher.path / layout.HEAD, found=error
        ) from error
    return OutputHead(tensors["weight"], bias, scale, softcap)


def compare(head: OutputHead, states: Floats, entries: KeptEntries, rounding: Rounding) -> RowErrors:
    """Compare states (N, D), as the output matrix takes them, with what their rows keep."""
    logits, squares = head.logits(states, entries.ids)
    held = entries.log_probs > -np.inf
    log_probs = np.where(held, entries.log_probs, 0)
    weights = np.where(held, np.exp(log_probs, dtype=np.float64), 0)
    mass = np.maximum(weights.sum(axis=1), np.finfo(np.float64).tiny)
    weights /= mass[:, None]

    def centred(values: Floats) -> NDArray[np.float64]:
        return np.asarray(values - (weights * values).sum(axis=1, keepdims=True), np.float64)

    z, log_p = centred(logits), centred(log_probs)
    variance = rounding.state_unit**2 / 3 * squares + rounding.logit_unit**2 / 3 * np.square(logits)
    expected = (weights * variance).sum(axis=1) + 2 * rounding.state_kl_nats / mass
    stored = np.sqrt(2 * rounding.target_kl_nats / mass)
    tolerance = STANDARD_ERRORS * np.sqrt(expected) + stored + FLOOR_NATS
    spread = np.sqrt((weights * z**2).sum(axis=1) * (weights * log_p**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        resemblance = (weights * z * log_p).sum(axis=1) / spread
    error = np.sqrt((weights * (z - log_p) ** 2).sum(axis=1))
    return RowErrors(*(np.asarray(values, np.float32) for values in (error, tolerance, resemblance)))


def too_many(errors: RowErrors, rounding: Rounding) -> bool:
    """Say whether more rows are off than the store's error explains."""
    allowed = math.ceil(OUTLYING_SHARE * len(errors.error_nats)) if rounding.is_mean else 0
    return int((~errors.fit()).sum()) > allowed


def likely_cause(
    head: OutputHead, states: Floats, entries: KeptEntries, rounding: Rounding, norm: FinalNorm | None
) -> str:
    """Say in a sentence why states (N, D), as the output matrix takes them, do not give their rows."""

    def fits(others: Floats, rows: KeptEntries) -> bool:
        return bool(len(others)) and compare(head, others, rows, rounding).fit(2).mean() >= FITTING_SHARE

    if norm is not None and fits(norm.apply(states), entries):
        return "they fit once the final norm is applied: it was applied never, or once too few"
    if norm is not None and fits(norm.apply(states / norm.weight**2), entries):
        return "they fit once the final norm is undone: it was applied twice"
    if fits(states[1:], _rows(entries, slice(None, -1))) or fits(states[:-1], _rows(entries, slice(1, None))):
        return "they fit the rows of the neighbouring token: tokens and states are shifted by one"
    if np.nanmean(compare(head, states, entries, rounding).resemblance) > RESEMBLING:
        return "they resemble the rows without giving them: they look like another layer's, such as the one before"
    return "they have nothing in common with the rows: they belong to other weights or to other text"


def _rows(entries: KeptEntries, rows: slice) -> KeptEntries:
    return KeptEntries(entries.ids[rows], entries.log_probs[rows])
