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

On 131,072-token rows with k = 64, a = 0.3 and M = 255 this costs about 85 bytes a position
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

BLOCK_ROWS = 2048
"""Rows decoded at a time: small enough that the scratch arrays stay in a core's cache."""

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
class Encoded:
    arrays: Any
    parameters: Any
    kl_nats: Any


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
    max_kl_nats: float = 5e-5
    levels: int = 65535
    exponent: float = 0.35

    def to_dict(self) -> dict[str, Any]:
        """Return the codec's entry in the manifest."""
        return {"name": "delta-power", "max_kl_nats": self.max_kl_nats}

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
            return cls(k, vocabulary_size, float(codec["max_kl_nats"]))
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

    def encode0(self, targets: Targets) -> Arrays:
        """Quantise rows; slots may come in any order, empty ones have log-probability -inf.

        Raises:
            ValueError: a row breaks a rule: NaN, mass other than 1, an id twice or out of range.
        """
        self._check(targets)
        ids, log_probs = _sorted(targets.ids, targets.log_probs)
        used = log_probs > -np.inf
        level_type = self.array_types()["levels"][1]
        levels = self._levels(log_probs)
        floor = np.where(used, levels, self.levels + 1).min(axis=1)
        floor[~used[:, 0]] = 0  # a row's used slots come first
        differences = ids.copy()
        differences[:, 1:] -= ids[:, :-1]
        differences[~used] = 0
        _refuse_rows(((differences[:, 1:] == 0) & used[:, 1:]).any(axis=1), "an id occurs twice")
        arrays: Arrays = {
            "ids": differences.astype(np.uint16),  # keeps the low 16 bits
            "levels": np.where(used, levels - (floor - 1)[:, None], 0).astype(level_type),
            "floor": floor.astype(level_type),
            "left_out": self._levels(targets.log_left_out).astype(level_type),
        }
        if self.vocabulary_size > 2**16:
            arrays["ids_high"] = (differences >> np.uint32(16)).astype(np.uint16)
        return arrays

    def decode0(self, arrays: Mapping[str, NDArray[Any]]) -> Targets:
        """Return the distributions that stored arrays stand for, renormalised over k + 1 outcomes."""
        num_rows = len(arrays["floor"])
        ids = np.empty((num_rows, self.k), dtype=np.uint32)
        log_probs = np.empty((num_rows, self.k), dtype=np.float32)
        log_left_out = np.empty(num_rows, dtype=np.float32)
        log_table = self._log_table()
        for start in range(0, num_rows, BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            block = {name: rows[part] for name, rows in arrays.items()}
            empty = block["levels"] == 0
            _decode_ids(block, empty, ids[part])
            _decode_log_probs(block, empty, log_table, log_probs[part], log_left_out[part])
        return Targets(ids, log_probs, log_left_out)

    def encode(self, targets):
        from dataclasses import replace

        m = 255
        while True:
            c = replace(self, levels=m)
            arrays = c.encode0(targets)
            for n in ("levels", "floor", "left_out"):
                arrays[n] = arrays[n].astype(np.uint16)
            kl = kl_nats(targets, c.decode0(arrays))
            if len(kl) == 0 or kl.mean() <= self.max_kl_nats:
                break
            m = int(m * max(1.05, (kl.mean() / self.max_kl_nats) ** 0.5))
        return Encoded(arrays, {"levels": m, "exponent": c.exponent}, kl)

    def decode(self, arrays, parameters, out=None):
        from dataclasses import replace

        t = replace(self, levels=parameters["levels"], exponent=parameters["exponent"]).decode0(arrays)
        if out is None:
            return t
        out.ids[...] = t.ids
        out.log_probs[...] = t.log_probs
        out.log_left_out[...] = t.log_left_out
        return out

    def _levels(self, log_probs: NDArray[np.float32]) -> NDArray[np.int32]:
        """Return the level of each probability; 0 only for probability zero itself."""
        powers = np.exp(np.float32(self.exponent) * np.minimum(log_probs, np.float32(0)))
        levels = np.maximum(np.rint(np.float32(self.levels) * powers), 1)
        return np.where(log_probs > -np.inf, levels, 0).astype(np.int32)

    def _log_table(self) -> NDArray[np.float32]:
        """Return log p of every level: (M + 1,), -inf at level 0."""
        with np.errstate(divide="ignore"):
            logs = np.log(np.arange(self.levels + 1) / self.levels) / self.exponent
        return logs.astype(np.float32)

    def _check(self, targets: Targets) -> None:
        """Refuse rows that are not distributions over the vocabulary, naming the first one."""
        mass: NDArray[np.float64] = np.exp(targets.log_probs).sum(axis=1, dtype=np.float64) + np.exp(
            targets.log_left_out
        )
        beyond = (targets.ids >= self.vocabulary_size) & (targets.log_probs > -np.inf)
        _refuse_rows(np.isnan(mass), "a value is NaN")
        _refuse_rows(
            np.greater(np.abs(mass - 1), MASS_TOLERANCE), f"the mass differs from 1 by more than {MASS_TOLERANCE}"
        )
        _refuse_rows(beyond.any(axis=1), f"an id is not below the vocabulary size {self.vocabulary_size}")


def _refuse_rows(broken: Any, rule: str) -> None:
    """Raise ValueError if any entry of ``broken`` (n,) is true, naming the first."""
    if broken.any():
        raise ValueError(f"row {int(np.flatnonzero(broken)[0])} cannot be stored: {rule}")


def _decode_ids(block: Arrays, empty: NDArray[np.bool_], ids: NDArray[np.uint32]) -> None:
    """Sum the differences of a block of rows into ``ids`` (b, k)."""
    differences = block["ids"].astype(np.uint32)
    if "ids_high" in block:
        differences += block["ids_high"].astype(np.uint32) << np.uint32(16)
    np.cumsum(differences, axis=1, out=ids)
    ids[empty] = EMPTY_ID


def _decode_log_probs(
    block: Arrays,
    empty: NDArray[np.bool_],
    log_table: NDArray[np.float32],
    log_probs: NDArray[np.float32],
    log_left_out: NDArray[np.float32],
) -> None:
    """Look the levels of a block of rows up and normalise, into ``log_probs`` (b, k) and ``log_left_out`` (b,)."""
    offset = np.maximum(block["floor"].astype(np.int32) - 1, 0)
    levels = block["levels"] + offset[:, None]
    levels[empty] = 0
    np.take(log_table, levels, out=log_probs)
    np.take(log_table, block["left_out"], out=log_left_out)
    total = np.exp(log_probs).sum(axis=1) + np.exp(log_left_out)
    log_total = np.log(np.where(total > 0, total, 1)).astype(np.float32)
    log_probs -= log_total[:, None]
    log_left_out -= log_total


def kl_nats(true: Targets, decoded: Targets) -> NDArray[np.float64]:
    """Return KL(true || decoded) over the k kept tokens and the rest, per row: (n,) float64, nats.

    Both sides must hold the same ids, in any order; each is renormalised over its k + 1 outcomes.
    """
    ids, log_probs = _sorted(true.ids, true.log_probs)
    decoded_ids, decoded_log_probs = _sorted(decoded.ids, decoded.log_probs)
    assert np.array_equal(ids, decoded_ids)
    total: NDArray[np.float64] = np.zeros(len(ids))
    p_sum, q_sum = np.zeros(len(ids)), np.zeros(len(ids))
    for log_p, log_q in ((log_probs, decoded_log_probs), (true.log_left_out[:, None], decoded.log_left_out[:, None])):
        p, q = np.exp(log_p, dtype=np.float64), np.exp(log_q, dtype=np.float64)
        ratio = np.subtract(log_p, log_q, where=log_p > -np.inf, out=np.zeros(log_p.shape), dtype=np.float64)
        total += np.einsum("nk,nk->n", p, ratio)
        p_sum += p.sum(axis=1)
        q_sum += q.sum(axis=1)
    return total / p_sum - np.log(p_sum) + np.log(q_sum)


def _sorted(keys: NDArray[np.uint32], log_probs: NDArray[np.float32]) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """Return (keys, log_probs) with each row ascending by key and its empty slots, as EMPTY_ID, at the end.

    Key and value are sorted as one 64-bit number, key in front, several times faster than an
    argsort and two gathers.
    """
    pairs = np.where(log_probs > -np.inf, keys, EMPTY_ID).astype(np.uint64)
    pairs <<= np.uint64(32)
    pairs |= np.ascontiguousarray(log_probs, dtype=np.float32).view(np.uint32)
    pairs.sort(axis=1)
    return (pairs >> np.uint64(32)).astype(np.uint32), pairs.astype(np.uint32).view(np.float32)


Codec = DeltaPower
DeltaFloat32 = DeltaPower


def codec_from_dict(codec, k, v):
    return DeltaPower.from_dict(codec, k, v)


def narrow(codec, arrays, parameters, k):
    raise ValueError("interim")
