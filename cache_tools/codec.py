"""The sparse-target codec ``delta-power``: k tokens and the mass they leave out, as small integers.

A row is a set of (token id, probability) plus the probability of everything else. No loss
uses the order of the set, so ids are sorted and stored as differences (5 to 7 bits each
instead of 11 to 12 in order of probability).

A probability p is stored as the level ``round(M * p**a)``. The step in log p is then
``1 / (a * M * p**a)``: fine for likely tokens, coarse for rare ones, which is where the
KL divergence, whose share per entry is ``p * step**2 / 24``, can afford it. The left-out
mass is one more outcome under the same rule; deriving it as ``1 - sum(p)`` from quantised
values would cost twenty times the rest of the error. Decoding renormalises over the k + 1
outcomes, so what comes back is always a distribution.

Arrays of n rows (all plain unsigned integers, so every Zarr reader can read them):

- ``ids`` (n, k) uint16: low 16 bits of the difference to the previous id of the row
  (the first entry: of the id itself),
- ``ids_high`` (n, k) uint16: the bits above, only where the vocabulary exceeds 2**16
  (almost always zero, so it compresses to almost nothing),
- ``levels`` (n, k): level of the entry minus ``floor`` plus 1; 0 marks an empty slot,
- ``floor`` (n,): smallest level of the row, 0 where the row is empty,
- ``left_out`` (n,): level of the left-out mass; 0 means that nothing is left out.

With M <= 255 the last three are uint8, else uint16. A probability above zero has level 1
or more, so it never decodes to zero. Empty slots stand at the end of a row.

On 131,072-token rows with k = 64, a = 0.3 and M = 255 this costs about 88 bytes a position
after compression, at a mean KL of 4.6e-5 nats.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cache_tools.errors import FormatError

EMPTY_ID = 0xFFFFFFFF
"""Decoded id of an empty slot; no vocabulary reaches it."""

MASS_TOLERANCE = 1e-3
"""By how much a row's probabilities, left-out mass included, may miss 1 before the row is refused."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Targets:
    """Decoded sparse targets of n positions.

    Attributes:
        ids: (n, k) uint32, ascending in each row; EMPTY_ID in empty slots.
        log_probs: (n, k) float32, natural log; -inf in empty slots.
        log_left_out: (n,) float32, log of the mass outside the row; -inf where there is none.
    """

    ids: NDArray[np.uint32]
    log_probs: NDArray[np.float32]
    log_left_out: NDArray[np.float32]


@dataclass(frozen=True)
class DeltaPower:
    """Parameters of the codec; its ``to_dict`` stands in the teacher's manifest.

    Args:
        k: Entries a row can hold.
        vocabulary_size: Ids are below this.
        levels: M, the level of probability 1, in [1, 65535].
        exponent: a, in (0, 1].
    """

    k: int
    vocabulary_size: int
    levels: int = 255
    exponent: float = 0.3

    def to_dict(self) -> dict[str, Any]:
        """Return the codec's entry in the manifest."""
        return {"name": "delta-power", "levels": self.levels, "exponent": self.exponent}

    @classmethod
    def from_dict(cls, codec: Mapping[str, Any], k: int, vocabulary_size: int) -> Self:
        """Build the codec that a manifest names.

        Raises:
            FormatError: it names another codec.
        """
        if codec.get("name") != "delta-power":
            raise FormatError(
                "unknown target codec",
                expected="delta-power",
                found=repr(codec.get("name")),
                fix="Upgrade logitcask; the cache was written by a later version",
            )
        try:
            return cls(k, vocabulary_size, int(codec["levels"]), float(codec["exponent"]))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(
                "the codec's parameters are incomplete", expected="levels and exponent", found=error
            ) from error

    def array_types(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Return (shape of a row, dtype) of each stored array, by name."""
        level = np.dtype(np.uint8 if self.levels <= 255 else np.uint16)
        id_part = np.dtype(np.uint16)
        types = {"ids": ((self.k,), id_part), "levels": ((self.k,), level), "floor": ((), level)}
        if self.vocabulary_size > 2**16:
            types["ids_high"] = ((self.k,), id_part)
        return {**types, "left_out": ((), level)}

    def encode(self, targets: Targets) -> Arrays:
        """Quantise rows; slots may come in any order, empty ones have log-probability -inf.

        Raises:
            ValueError: a row breaks a rule: NaN, mass other than 1, an id twice or out of range.
        """
        ids, log_probs = _sorted_by_id(targets)
        used = log_probs > -np.inf
        self._check(ids, log_probs, used, targets.log_left_out)
        level_type = self.array_types()["levels"][1]
        levels = self._levels(log_probs)
        floor = np.where(used, levels, self.levels + 1).min(axis=1)
        floor[~used.any(axis=1)] = 0
        differences = ids.astype(np.int64)
        differences[:, 1:] -= differences[:, :-1].copy()
        differences[~used] = 0
        arrays: Arrays = {
            "ids": (differences & 0xFFFF).astype(np.uint16),
            "levels": np.where(used, levels - floor[:, None] + 1, 0).astype(level_type),
            "floor": floor.astype(level_type),
            "left_out": self._levels(targets.log_left_out).astype(level_type),
        }
        if self.vocabulary_size > 2**16:
            arrays["ids_high"] = (differences >> 16).astype(np.uint16)
        return arrays

    def decode(self, arrays: Mapping[str, NDArray[Any]]) -> Targets:
        """Return the distributions that stored arrays stand for, renormalised over k + 1 outcomes."""
        stored, floor = arrays["levels"], arrays["floor"].astype(np.int32)
        empty = stored == 0
        levels = stored + np.maximum(floor - 1, 0)[:, None]
        levels[empty] = 0
        log_probs = self._log_table()[levels]
        log_left_out = self._log_table()[arrays["left_out"]]
        total = np.exp(log_probs).sum(axis=1) + np.exp(log_left_out)
        log_total = np.log(np.where(total > 0, total, 1)).astype(np.float32)
        differences = arrays["ids"].astype(np.uint32)
        if "ids_high" in arrays:
            differences += arrays["ids_high"].astype(np.uint32) << np.uint32(16)
        ids = np.cumsum(differences, axis=1, dtype=np.uint32)
        ids[empty] = EMPTY_ID
        return Targets(ids, log_probs - log_total[:, None], log_left_out - log_total)

    def _levels(self, log_probs: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the level of each probability; 0 only for probability zero itself."""
        log_p = np.minimum(log_probs.astype(np.float64), 0)
        levels = np.maximum(np.rint(self.levels * np.exp(self.exponent * log_p)), 1)
        return np.where(log_p > -np.inf, levels, 0).astype(np.int64)

    def _log_table(self) -> NDArray[np.float32]:
        """Return log p of every level: (M + 1,), -inf at level 0."""
        with np.errstate(divide="ignore"):
            logs = np.log(np.arange(self.levels + 1) / self.levels) / self.exponent
        return logs.astype(np.float32)

    def _check(
        self,
        ids: NDArray[np.uint32],
        log_probs: NDArray[np.float32],
        used: NDArray[np.bool_],
        log_left_out: NDArray[np.float32],
    ) -> None:
        """Refuse rows that are not distributions, naming the first one."""
        mass = np.exp(log_probs.astype(np.float64)).sum(axis=1) + np.exp(log_left_out.astype(np.float64))
        repeated = ((ids[:, 1:] == ids[:, :-1]) & used[:, 1:]).any(axis=1)
        rules = {
            "a value is NaN": np.isnan(log_probs).any(axis=1) | np.isnan(log_left_out),
            f"the mass differs from 1 by more than {MASS_TOLERANCE}": ~(np.abs(mass - 1) <= MASS_TOLERANCE),
            f"an id is not below the vocabulary size {self.vocabulary_size}": (
                used & (ids >= self.vocabulary_size)
            ).any(axis=1),
            "an id occurs twice": repeated,
        }
        for rule, broken in rules.items():
            if broken.any():
                raise ValueError(f"row {int(np.flatnonzero(broken)[0])} cannot be stored: {rule}")


def kl_nats(true: Targets, decoded: Targets) -> NDArray[np.float64]:
    """Return KL(true || decoded) over the k kept tokens and the rest, per row: (n,) float64, nats.

    Both sides must hold the same ids; each is renormalised over its k + 1 outcomes.
    """
    ids, log_probs = _sorted_by_id(true)
    assert np.array_equal(np.where(log_probs > -np.inf, ids, EMPTY_ID), decoded.ids)
    log_p = _log_outcomes(log_probs, true.log_left_out)
    log_q = _log_outcomes(decoded.log_probs, decoded.log_left_out)
    possible = log_p > -np.inf
    terms = np.exp(log_p) * (np.where(possible, log_p, 0) - np.where(possible, log_q, 0))
    total: NDArray[np.float64] = terms.sum(axis=1)
    return total


def _log_outcomes(log_probs: NDArray[np.float32], log_left_out: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the normalised log-probabilities of the k tokens and the rest: (n, k + 1) float64."""
    logs = np.concatenate([log_probs, log_left_out[:, None]], axis=1).astype(np.float64)
    normalised: NDArray[np.float64] = logs - np.log(np.exp(logs).sum(axis=1, keepdims=True))
    return normalised


def _sorted_by_id(targets: Targets) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """Return (ids, log_probs) with each row ascending by id and its empty slots at the end."""
    keys = np.where(targets.log_probs > -np.inf, targets.ids, EMPTY_ID).astype(np.uint32)
    keys = np.where(np.isnan(targets.log_probs), targets.ids, keys).astype(np.uint32)
    order = np.argsort(keys, axis=1, kind="stable")
    return np.take_along_axis(keys, order, axis=1), np.take_along_axis(targets.log_probs, order, axis=1)
