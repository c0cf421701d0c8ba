"""DistillKit's two compressed row formats: log-probabilities as exact values and a fitted curve, ids as packed bits.

A row holds k log-probabilities in falling order. The first ``exact_k`` are stored as numbers. The others are a sum of
terms of their place t = 0, 1, … (powers, square root, exponential) with one coefficient each, and in the packed format
optionally residuals in bins of few bits. The packed format is one run of bytes for each row, described by a YAML file
beside the data; the legacy format has columns of its own for ids, exact values and coefficients, and t starts at 1.

Decoding rounds the terms to the type of the coefficients, as DistillKit does, because the coefficients were fitted to
rounded terms. The curve is then summed in float64, while DistillKit sums in float32; terms of opposite sign cancel, so
the two differ by up to 1e-3 nats where coefficients are large. With 16-bit coefficients the products are
rounded too, as the rounding is then much larger than the errors of summation. Encoding fits by least squares; it
is a second, independent writer of the format, for exports and for tests.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cache_tools.configuration import Config
from cache_tools.row_files.bit_packing import (
    bits_of,
    pack_bytes,
    pack_words,
    packed_bytes,
    unpack_bytes,
    unpack_words,
    words_of,
)

Floats = NDArray[np.float64]
FloatType = Literal["float16", "bfloat16", "float32", "float64"]
Term = int | Literal["sqrt", "exp"]
WIDTHS: dict[str, int] = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
SINGULAR = 1e-5
"""Singular values up to this are treated as zero in the least-squares fit, as in DistillKit."""


class ResidualBin(Config):
    """Some residuals with a common scale."""

    scale_dtype: FloatType
    element_bits: int = Field(ge=1, le=32)
    num_elements: int = Field(ge=1, le=2**20)

    @property
    def lowest(self) -> int:
        """Value of the smallest stored integer."""
        return 0 if self.element_bits == 1 else -(2 ** (self.element_bits - 1))


class PackedCodec(Config):
    """The YAML file of the packed format; keys and defaults are DistillKit's.

    Attributes:
        d: Size of the vocabulary.
        k: Entries of a row.
        exact_k: Entries stored as numbers.
        exact_dtype: Their type.
        polynomial_terms: Terms of the curve for the other entries; powers, ``sqrt`` or ``exp``.
        term_dtype: Type of the coefficients.
        residual_bins: Residuals of the curve, from its first entry on.
        delta_encoding: Whether values are differences to the value before.
        error_diffusion: Whether the writer passed rounding errors on to the next value; decoding does not depend on it.
        normalize_t: Whether t runs from 0 to 1 instead of from 0 to the number of entries.
    """

    d: int = Field(gt=1, lt=2**32)
    k: int = Field(gt=0, le=2**20)
    exact_k: int = Field(ge=0)
    exact_dtype: FloatType = "float32"
    polynomial_terms: tuple[Term, ...] | None = None
    term_dtype: FloatType = "float32"
    residual_bins: tuple[ResidualBin, ...] = ()
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> "PackedCodec":
        if self.exact_k > self.k:
            raise ValueError("exact_k must not exceed k")
        if self.exact_k < self.k and not self.polynomial_terms and not self.residual_bins:
            raise ValueError("entries beyond exact_k need polynomial_terms or residual_bins")
        if sum(part.num_elements for part in self.residual_bins) > self.k - self.exact_k:
            raise ValueError("residual_bins hold more entries than there are beyond exact_k")
        return self

    @property
    def is_lossless(self) -> bool:
        """Whether float32 values come back with their bits."""
        return self.exact_k == self.k and self.exact_dtype in ("float32", "float64") and not self.delta_encoding

    @property
    def id_bytes(self) -> int:
        """Bytes of a row's packed ids."""
        return packed_bytes(self.k, bits_of(self.d))

    @property
    def value_bytes(self) -> int:
        """Bytes of a row's values."""
        bins = sum(WIDTHS[b.scale_dtype] + packed_bytes(b.num_elements, b.element_bits) for b in self.residual_bins)
        terms = len(self.polynomial_terms or ()) * WIDTHS[self.term_dtype]
        return self.exact_k * WIDTHS[self.exact_dtype] + terms + bins


class LegacyCodec(Config):
    """Settings of the legacy format; keys and defaults are DistillKit's.

    Attributes:
        k: Entries of a row.
        exact_k: Entries stored as numbers.
        polynomial_degree: Highest power of the curve.
        vocab_size: Size of the vocabulary.
        invert_polynomial: Whether powers are negative.
        with_sqrt_term: Whether the curve has a square root besides.
        term_dtype: Type of the coefficients.
    """

    k: int = Field(gt=0, le=2**20)
    exact_k: int = Field(ge=0)
    polynomial_degree: int = Field(ge=0, le=64)
    vocab_size: int = Field(gt=1, lt=2**32)
    invert_polynomial: bool = True
    with_sqrt_term: bool = False
    term_dtype: FloatType = "float32"

    @model_validator(mode="after")
    def _consistent(self) -> "LegacyCodec":
        if self.exact_k > self.k:
            raise ValueError("exact_k must not exceed k")
        return self

    @property
    def num_terms(self) -> int:
        """Coefficients of a row; none if every entry is exact."""
        return (self.polynomial_degree + 1 + self.with_sqrt_term) if self.exact_k < self.k else 0

    @property
    def num_words(self) -> int:
        """64-bit words of a row's ids."""
        return words_of(self.k, bits_of(self.vocab_size))


def unpack_ids(packed: NDArray[np.uint8], codec: PackedCodec) -> NDArray[np.uint64]:
    """Return the ids of packed rows (n, id_bytes): (n, k) uint64."""
    return unpack_bytes(packed, bits_of(codec.d), codec.k)


def decode_values(packed: NDArray[np.uint8], codec: PackedCodec) -> NDArray[np.float32]:
    """Return the log-probabilities of packed rows.

    Args:
        packed: (n, value_bytes) uint8.
        codec: The YAML file that describes them.

    Returns:
        (n, k) float32, as they were stored: nothing is sorted or made to sum to 1.
    """
    exact, rest = _floats(packed, 0, codec.exact_k, codec.exact_dtype)
    terms = codec.polynomial_terms or ()
    coefficients, rest = _floats(packed, rest, len(terms), codec.term_dtype)
    curve = _curve(_term_matrix(codec), coefficients, codec.term_dtype)
    values = np.concatenate([exact, curve], axis=1)
    place = codec.exact_k
    for part in codec.residual_bins:
        scale, rest = _floats(packed, rest, 1, part.scale_dtype)
        width = packed_bytes(part.num_elements, part.element_bits)
        stored = unpack_bytes(packed[:, rest : rest + width], part.element_bits, part.num_elements).astype(np.float64)
        steps = 2 * stored - 1 if part.element_bits == 1 else stored + part.lowest
        values[:, place : place + part.num_elements] += _rounded(steps * scale, codec.exact_dtype)
        place, rest = place + part.num_elements, rest + width
    if codec.delta_encoding:
        return _rounded(np.cumsum(values, axis=1), codec.exact_dtype).astype(np.float32)
    return values.astype(np.float32)


def encode_values(log_probs: NDArray[np.floating], codec: PackedCodec) -> NDArray[np.uint8]:
    """Return packed rows (n, value_bytes) uint8 of falling log-probabilities (n, k); errors are not diffused."""
    values = log_probs.astype(np.float64)
    if codec.delta_encoding:
        values = np.diff(values, axis=1, prepend=0)
    parts = [_float_bytes(values[:, : codec.exact_k], codec.exact_dtype)]
    residual = values[:, codec.exact_k :]
    if codec.polynomial_terms:
        matrix = _term_matrix(codec)
        coefficients = _rounded(residual @ _pseudo_inverse(matrix).T, codec.term_dtype)
        parts.append(_float_bytes(coefficients, codec.term_dtype))
        residual = residual - _curve(matrix, coefficients, codec.term_dtype)
    place = 0
    for part in codec.residual_bins:
        parts += _quantised(residual[:, place : place + part.num_elements], part)
        place += part.num_elements
    return np.concatenate(parts, axis=1)


def pack_ids(ids: NDArray[np.unsignedinteger], codec: PackedCodec) -> NDArray[np.uint8]:
    """Return packed ids (n, id_bytes) uint8 of rows (n, k)."""
    return pack_bytes(ids, bits_of(codec.d))


def decode_legacy(
    words: NDArray[np.uint64], exact: Floats, coefficients: Floats, codec: LegacyCodec
) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """Return (ids, log_probs) of legacy rows, (n, k) each.

    Args:
        words: (n, num_words) uint64.
        exact: (n, exact_k).
        coefficients: (n, num_terms).
        codec: The settings that they were written with.
    """
    ids = unpack_words(words, bits_of(codec.vocab_size), codec.k)
    curve = _curve(_legacy_matrix(codec), coefficients, "float32")
    return ids, np.concatenate([exact, curve], axis=1).astype(np.float32)


def encode_legacy(
    ids: NDArray[np.unsignedinteger], log_probs: NDArray[np.floating], codec: LegacyCodec
) -> tuple[NDArray[np.uint64], Floats, Floats]:
    """Return (words, exact values, coefficients) of rows (n, k) of falling log-probabilities."""
    values = log_probs.astype(np.float64)
    coefficients = values[:, codec.exact_k :] @ _pseudo_inverse(_legacy_matrix(codec)).T
    words = pack_words(ids, bits_of(codec.vocab_size))
    exact = _rounded(values[:, : codec.exact_k], "float16")
    return words, exact, _rounded(coefficients, codec.term_dtype)


def _term_matrix(codec: PackedCodec) -> Floats:
    """Return the value of each term at each place beyond the exact entries: (k - exact_k, terms)."""
    count = codec.k - codec.exact_k
    places = np.linspace(0, 1, count) if codec.normalize_t else np.arange(count, dtype=np.float64)
    functions: Mapping[Any, Any] = {"sqrt": np.sqrt, "exp": np.exp}
    with np.errstate(over="ignore", divide="ignore"):
        columns = [functions[t](places) if t in functions else places ** float(t) for t in codec.polynomial_terms or ()]
    return np.stack(columns, axis=1) if columns else np.zeros((count, 0))


def _legacy_matrix(codec: LegacyCodec) -> Floats:
    """Return the value of each term at the places 1, 2, …: (k - exact_k, num_terms)."""
    places = np.arange(1, codec.k - codec.exact_k + 1, dtype=np.float64)
    sign = -1.0 if codec.invert_polynomial else 1.0
    columns = [places ** (sign * power) for power in range(codec.polynomial_degree + 1)]
    columns += [np.sqrt(places)] if codec.with_sqrt_term else []
    return np.stack(columns, axis=1) if codec.num_terms else np.zeros((0, 0))


def _curve(matrix: Floats, coefficients: Floats, dtype: FloatType) -> Floats:
    """Return the curve of each row (n, places)."""
    if WIDTHS[dtype] > 2:
        with np.errstate(invalid="ignore", over="ignore"):
            curve: Floats = coefficients @ _rounded(matrix, dtype).T
        return curve
    products = _rounded(_rounded(matrix, dtype)[None] * coefficients[:, None, :], dtype)
    return _rounded(products.sum(axis=2), dtype)


def _pseudo_inverse(matrix: Floats) -> Floats:
    """Return the matrix (terms, places) of the least-squares fit; small singular values are dropped."""
    left, singular, right = np.linalg.svd(matrix, full_matrices=False)
    inverse = np.divide(1, singular, where=singular > SINGULAR, out=np.zeros_like(singular))
    result: Floats = (right.T * inverse) @ left.T
    return result


def _quantised(values: Floats, part: ResidualBin) -> list[NDArray[np.uint8]]:
    """Return the bytes of a bin: its scale, then its integers."""
    largest = np.abs(values).max(axis=1, keepdims=True)
    steps = 1 if part.element_bits == 1 else 2 ** (part.element_bits - 1)
    scale = _rounded(np.where(largest == 0, 1, largest / steps), part.scale_dtype)
    highest = 1 if part.element_bits == 1 else steps - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.nan_to_num(values / scale)
    if part.element_bits == 1:  # the two values are -scale and +scale
        scaled = (scaled + 1) / 2
    stored = np.clip(np.rint(scaled), part.lowest, highest) - part.lowest
    return [_float_bytes(scale, part.scale_dtype), pack_bytes(stored.astype(np.uint64), part.element_bits)]


def _rounded(values: Floats, dtype: FloatType) -> Floats:
    """Return values rounded to a type, ties to even."""
    if dtype == "bfloat16":
        with np.errstate(over="ignore"):
            bits = values.astype(np.float32).view(np.uint32)
        even = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        kept = np.where(np.isfinite(values), even, bits) & np.uint32(0xFFFF0000)
        return kept.view(np.float32).astype(np.float64)
    with np.errstate(over="ignore"):
        return values.astype(dtype).astype(np.float64)


def _float_bytes(values: Floats, dtype: FloatType) -> NDArray[np.uint8]:
    """Return the little-endian bytes (n, count * width) of values (n, count)."""
    n = len(values)
    if dtype == "bfloat16":
        high = _rounded(values, dtype).astype("<f4").view("<u4") >> np.uint32(16)
        return np.ascontiguousarray(high.astype("<u2")).view(np.uint8).reshape(n, -1)
    little = np.dtype(dtype).newbyteorder("<")
    return np.ascontiguousarray(_rounded(values, dtype).astype(little)).view(np.uint8).reshape(n, -1)


def _floats(packed: NDArray[np.uint8], start: int, count: int, dtype: FloatType) -> tuple[Floats, int]:
    """Return ``count`` values of each row (n, bytes) from byte ``start`` on, and the byte behind them."""
    stop = start + count * WIDTHS[dtype]
    content = np.ascontiguousarray(packed[:, start:stop])
    if dtype == "bfloat16":
        return (content.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64), stop
    return content.view(np.dtype(dtype).newbyteorder("<")).astype(np.float64), stop
