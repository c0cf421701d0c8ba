"""The codec ``delta-power``: sparse targets as small integers, within a stated error.

A probability p is stored as the level ``round(M * p**a)``. The step in log p is then
``1 / (a * M * p**a)``: fine for likely tokens, coarse for rare ones, which is where the
KL divergence, whose share per entry is ``p * step**2 / 24``, can afford it. The left-out
mass is one more outcome under the same rule; deriving it as ``1 - sum(p)`` from quantised
values would cost twenty times the rest of the error. Decoding renormalises over the k + 1
outcomes, so what comes back is always a distribution.

The manifest states a budget, not a step: the mean KL of a shard's rows, in nats, at temperature 1 and at every
temperature that the capture declares. The highest level M is chosen per shard: the error falls as 1 / M**2,
so a sample of the rows says which M to try; all rows then say whether it holds, and if not M grows until
it does. A row whose kept tokens would come back too coarsely at another temperature is stored
on a larger scale than the others (``levels.py``).

The exponent is chosen per shard too, the first of EXPONENTS at which 16 bits hold every row's levels. At T = 1 alone
0.4 costs least, by 0.1 to 0.8 % of all bytes on ordinary rows; with the rows' least scales 0.3 saves 2 % on peaked
rows.

Arrays of n rows, besides the two of ``codec_ids``:

- ``levels``, ``levels_high`` (n, k) uint8: low and high byte of the entry's level minus
  ``floor`` plus 1; 0 marks an empty slot. Few levels exceed 255, so the second is almost all zero.
- ``floor`` (n,) uint8: smallest level of the row, at most 255; 0 where the row is empty,
- ``left_out`` (n,) uint16: level of the left-out mass; 0 means that nothing is left out.

A probability above zero has level 1 or more, so it never decodes to zero. Empty slots stand at
the end of a row.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from cache_tools.codecs.base import DEFAULT_MAX_KL_NATS, Codec, Encoded, Floats, number, prepared
from cache_tools.codecs.ids import decode_ids, encode_ids, id_types
from cache_tools.codecs.levels import (
    MAX_LEVELS,
    Curve,
    Scratch,
    least_scales,
    likeliest,
    normalise,
    pack_levels,
    quantise,
    tempered_kl,
    unpack_levels,
)
from cache_tools.codecs.rows import EMPTY_ID, Arrays, SortedRows, Targets, blocks, sorted_rows
from cache_tools.mappings import JsonObject, Parameters

EXPONENTS = (0.3, 0.25, 0.2)
MIN_LEVELS, FIRST_LEVELS = 15, 255
SAMPLE_ROWS = 4096
MARGIN = 0.99
"""Share of the budget that the sample aims at, so that all rows seldom exceed it."""


@dataclass(frozen=True)
class DeltaPower(Codec):
    """Sorted ids and quantised probabilities.

    Attributes:
        max_kl_nats: Budget: the mean KL of a shard's rows stays at or below this, nats.
        temperatures: Further temperatures at which it does, for the kept tokens tempered among themselves. At any
            other, a row's expected error is at most ``levels.UNDECLARED`` times the budget.
    """

    name: ClassVar[str] = "delta-power"
    can_narrow: ClassVar[bool] = True

    max_kl_nats: float = DEFAULT_MAX_KL_NATS
    temperatures: tuple[float, ...] = ()

    @classmethod
    def from_dict(cls, entry: JsonObject, k: int, vocabulary_size: int, temperatures: tuple[float, ...] = ()) -> Self:
        """Build the codec from its entry in a manifest."""
        return cls(k, vocabulary_size, float(number(entry, "max_kl_nats", 1e-12, 1)), temperatures)

    @property
    def budget_nats(self) -> float:
        """Mean KL of a shard's rows that storing them may cost, nats."""
        return self.max_kl_nats

    def rough_row_bytes(self, half_precision: bool) -> float:
        """Return about how many bytes a row takes; half a bit more for each factor of two of the budget."""
        finer = max(0.0, math.log2(DEFAULT_MAX_KL_NATS / self.max_kl_nats)) / 16
        return self.k * (1.35 + finer) + 4

    def to_dict(self) -> JsonObject:
        """Return the codec's entry in the manifest."""
        return {"name": self.name, "max_kl_nats": self.max_kl_nats}

    def array_types(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Return (shape of a row, dtype) of each stored array, by name."""
        byte, row = np.dtype(np.uint8), (self.k,)
        values = {"levels": (row, byte), "levels_high": (row, byte), "floor": ((), byte)}
        return {**id_types(self.k, self.vocabulary_size), **values, "left_out": ((), np.dtype(np.uint16))}

    def encode(self, targets: Targets) -> Encoded:
        """Quantise one shard's rows as coarsely as the budget allows.

        Raises:
            ValueError: a row breaks a rule, or no number of levels meets the budget.
        """
        rows = sorted_rows(targets, self.k, self.vocabulary_size)
        ids = encode_ids(rows.ids, rows.log_probs > -np.inf, self.vocabulary_size)
        values = self.quantise_rows(rows)
        return replace(values, arrays=ids | values.arrays)

    def quantise_rows(self, rows: SortedRows) -> Encoded:
        """Quantise the probabilities of checked rows, which stand in any order: everything but the ids.

        Raises:
            ValueError: no number of levels meets the budget.
        """
        exponent, least = self._least_scales(rows)
        scale = self._estimate(rows, exponent)
        for attempt in range(100):
            scales = np.minimum(np.maximum(least, np.float32(scale)), np.float32(MAX_LEVELS))
            curve = Curve(math.ceil(scales.max(initial=MIN_LEVELS)), exponent)
            levels, left_out, kl = quantise(rows, curve, scales)
            tempered = {t: tempered_kl(rows, levels, curve, t) for t in self.temperatures if t != 1}
            temperature, mean = max(
                ((t, _mean(values)) for t, values in {1.0: kl, **tempered}.items()), key=lambda pair: pair[1]
            )
            if mean <= self.max_kl_nats:
                break
            if scales.min(initial=MAX_LEVELS) == MAX_LEVELS:
                raise ValueError(self._out_of_reach(temperature, mean))
            grown = max(math.sqrt(mean / (MARGIN * self.max_kl_nats)), 1 + 0.005 * 2**attempt)
            scale, least = min(MAX_LEVELS, math.ceil(scale * grown)), least * np.float32(grown)
        arrays = {**pack_levels(levels), "left_out": left_out}
        return Encoded(arrays, {"levels": curve.levels, "exponent": exponent}, kl, tempered)

    def decode(self, arrays: Mapping[str, NDArray[Any]], parameters: Parameters, out: Targets | None = None) -> Targets:
        """Return the distributions that stored arrays stand for, renormalised over k + 1 outcomes."""
        log_weights = stored_curve(parameters).log_weights().astype(np.float32)
        n = len(arrays["floor"])
        out, scratch = prepared(out, n, self.k), Scratch(n, self.k)
        for rows in blocks(n):
            size = rows.stop - rows.start
            levels, log_probs = scratch.levels[:size], out.log_probs[rows]
            decode_ids(arrays, rows, scratch.words[:size], out.ids[rows])
            unpack_levels(arrays, rows, levels)
            if not arrays["levels"][rows].all():
                out.ids[rows][levels == 0] = EMPTY_ID
            np.take(log_weights, levels, out=log_probs, mode="clip")
            rest = np.take(log_weights, arrays["left_out"][rows], mode="clip")
            out.log_left_out[rows] = normalise(log_probs, rest, scratch.floats[:size])
        return out

    def bounds(
        self, arrays: Mapping[str, NDArray[Any]], parameters: Parameters, narrowed: bool = False
    ) -> tuple[Floats, Floats]:
        """Return between which log-probabilities the written ones lie: half a level from the stored one, see the base.

        Level 1 also holds everything below it. The row's sum is as uncertain as its entries together.
        """
        curve, shape = stored_curve(parameters), (len(arrays["floor"]), self.k + 1)
        levels = np.empty(shape, np.intp)
        unpack_levels(arrays, slice(0, shape[0]), levels[:, :-1])
        levels[:, -1] = arrays["left_out"]
        low, high = (((np.arange(curve.levels + 1) + half) / curve.levels) for half in (-0.5, 0.5))
        low[:2], high[0] = 0, 0
        low, high = (weights.clip(0) ** (1 / curve.exponent) for weights in (low, high))
        low, high = np.take(low, levels, mode="clip"), np.take(high, levels, mode="clip")
        if narrowed:  # every dropped entry was as uncertain as level 1 at most
            low[:, -1], high[:, -1] = 0, high[:, -1] * 1.5 ** (1 / curve.exponent)
        with np.errstate(divide="ignore", invalid="ignore"):  # a damaged row may have no weight at all
            log_low, log_high = np.log(low.sum(axis=1)), np.log(high.sum(axis=1))
            lowest, highest = np.log(low) - log_high[:, None], np.log(high) - log_low[:, None]
        return np.where(low > 0, lowest, -np.inf), np.where(high > 0, highest, -np.inf)

    def broken_rows(self, arrays: Mapping[str, NDArray[Any]], parameters: Parameters) -> dict[str, NDArray[np.bool_]]:
        """Tell which rows hold a level above M, of an entry or of what is left out; it decodes as M would."""
        highest, n = stored_curve(parameters).levels, len(arrays["floor"])
        broken, scratch = arrays["left_out"] > highest, Scratch(n, self.k)
        for rows in blocks(n):
            levels = scratch.levels[: rows.stop - rows.start]
            unpack_levels(arrays, rows, levels)
            broken[rows] |= (levels > highest).any(axis=1)
        return {"a level is above the highest": broken}

    def narrow(
        self, arrays: Mapping[str, NDArray[Any]], parameters: Parameters, k: int
    ) -> tuple[Self, Arrays, Parameters]:
        """Keep the k most likely entries of each stored row (of equals: the lower id); the rest is left out.

        Kept entries keep their levels; only the left-out mass is quantised again. Stored weights
        need not sum to 1, so its level may come out above M; M grows to it, which changes no ratio.
        """
        shape = (len(arrays["floor"]), self.k)
        ids, levels, everything = np.empty(shape, np.uint32), np.empty(shape, np.intp), slice(0, shape[0])
        decode_ids(arrays, everything, np.empty(shape, np.uint32), ids)
        unpack_levels(arrays, everything, levels)
        curve = stored_curve(parameters)
        kept_ids, kept, left_out, highest = narrowed_levels(ids, levels, arrays["left_out"], curve, k)
        coded = encode_ids(kept_ids, kept > 0, self.vocabulary_size)
        return (
            replace(self, k=k),
            {**coded, **pack_levels(kept), "left_out": left_out},
            {**parameters, "levels": highest},
        )

    def _least_scales(self, rows: SortedRows) -> tuple[float, NDArray[np.float32]]:
        """Return the exponent for these rows, and the least scale of each (n,)."""
        for exponent in EXPONENTS:
            least = least_scales(rows, exponent, self.max_kl_nats, self.temperatures)
            if least.max(initial=0) <= MAX_LEVELS:
                break
        return exponent, least

    def _estimate(self, rows: SortedRows, exponent: float) -> int:
        """Return the scale that should just meet the budget on all rows, judged by every n-th row."""
        step = max(1, -(-len(rows.mass) // SAMPLE_ROWS))
        sample = SortedRows(*(values[::step] for values in vars(rows).values()))
        scale = FIRST_LEVELS if len(sample.mass) else MIN_LEVELS
        for _ in range(2 if len(sample.mass) else 0):
            scales = np.full(len(sample.mass), scale, np.float32)
            mean = max(0.0, float(quantise(sample, Curve(scale, exponent), scales)[2].mean()))
            estimate = math.ceil(scale * math.sqrt(mean / (MARGIN * self.max_kl_nats)))
            scale = min(MAX_LEVELS, max(MIN_LEVELS, estimate))
        return scale

    def _out_of_reach(self, temperature: float, mean: float) -> str:
        where = "" if temperature == 1 else f" at temperature {temperature:g}"
        return (
            f"{MAX_LEVELS} levels leave a mean KL of {mean:.1e} nats{where}, above the budget max_kl_nats = "
            f"{self.max_kl_nats:.1e}; set a larger max_kl_nats, or 'exact: true' to store float32"
        )


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else 0.0


def stored_curve(parameters: Parameters) -> Curve:
    """Return the curve that a shard's parameters name."""
    num_levels = int(number(parameters, "levels", 1, MAX_LEVELS, whole=True))
    return Curve(num_levels, float(number(parameters, "exponent", 0.01, 1)))


def narrowed_levels(
    ids: NDArray[np.uint32], levels: NDArray[np.intp], left_out: NDArray[np.uint16], curve: Curve, k: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint16], NDArray[np.uint16], int]:
    """Return the ids and levels (n, k) of the highest levels, the left-out levels with the rest added, and the new M.

    Args:
        ids: (n, more than k), ascending in each row.
        levels: Of these ids; overwritten.
        left_out: (n,) levels of what was left out before.
        curve: What the levels mean.
        k: Entries to keep.
    """
    columns = likeliest(levels, k)
    kept = np.take_along_axis(levels, columns, axis=1).astype(np.uint16)
    np.put_along_axis(levels, columns, 0, axis=1)
    joined = _joined(left_out, levels, curve)
    return np.take_along_axis(ids, columns, axis=1), kept, joined, max(curve.levels, int(joined.max(initial=0)))


def _joined(left_out: NDArray[np.uint16], dropped: NDArray[np.intp], curve: Curve) -> NDArray[np.uint16]:
    """Return the level (n,) of the left-out mass and all dropped entries (n, k) together; it may exceed M."""
    weights = np.exp(curve.log_weights())
    total = np.take(weights, left_out, mode="clip") + np.take(weights, dropped, mode="clip").sum(axis=1)
    joined = np.rint(curve.levels * total**curve.exponent).clip(1, MAX_LEVELS)
    return np.where(dropped.any(axis=1), joined, left_out).astype(np.uint16)
