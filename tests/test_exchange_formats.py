"""The row formats of other tools: bits, curves and alignments are what those tools define."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools.row_files import distillkit
from cache_tools.row_files.bit_packing import (
    bits_of,
    pack_bytes,
    pack_words,
    packed_bytes,
    unpack_bytes,
    unpack_words,
    words_of,
)
from cache_tools.row_files.distillkit import PackedCodec
from row_fixtures import LEGACY, PACKED, made_rows
from tolerances import rounding

INTEGERS = st.tuples(st.integers(1, 32), st.integers(1, 20), st.integers(0, 2**32 - 1))


@settings(max_examples=60)
@given(INTEGERS)
def test_integers_of_any_number_of_bits_come_back(case):
    bits, count, seed = case
    values = np.random.default_rng(seed).integers(0, 2**bits, (3, count), dtype=np.uint64)
    packed = pack_bytes(values, bits)
    assert packed.shape == (3, packed_bytes(count, bits))
    assert np.array_equal(unpack_bytes(packed, bits, count), values)
    words = pack_words(values, bits)
    assert words.shape == (3, words_of(count, bits))
    assert np.array_equal(unpack_words(words, bits, count), values)


def test_bytes_hold_the_highest_bit_first_and_words_the_first_integer_lowest():
    values = np.array([[5, 3]], np.uint64)
    assert pack_bytes(values, 3).tolist() == [[0b10101100]]
    assert pack_words(values, 3).tolist() == [[0b011101]]


@pytest.mark.parametrize(
    ("size", "bits"), [(2, 1), (3, 2), (32_768, 15), (49_152, 16), (131_072, 17), (131_073, 18), (262_144, 18)]
)
def test_an_id_has_the_bits_of_the_vocabulary(size, bits):
    assert bits_of(size) == bits == int(torch.log2(torch.tensor(size, dtype=torch.float32)).ceil().item())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_values_are_rounded_as_torch_rounds_them(dtype):
    values = np.concatenate([np.random.default_rng(0).normal(0, 5, 1000), [0.0, -100.0, 1e-30]])
    expected = torch.from_numpy(values).float().to(getattr(torch, dtype)).double().numpy()
    assert np.array_equal(distillkit._rounded(values.astype(np.float32).astype(np.float64), dtype), expected)


@pytest.mark.parametrize("name", PACKED)
def test_packed_rows_keep_their_exact_entries_and_their_ids(name):
    codec, rows = PACKED[name], made_rows()
    packed = distillkit.encode_values(rows.log_probs, codec)
    assert packed.shape[1] == codec.value_bytes
    back = distillkit.decode_values(packed, codec)
    exact = rows.log_probs[:, : codec.exact_k]
    eps = {"float32": torch.float32, "bfloat16": torch.bfloat16}[codec.exact_dtype]
    assert np.abs(back[:, : codec.exact_k] - exact).max() <= rounding(eps, codec.k + 1, exact)
    assert np.array_equal(distillkit.unpack_ids(distillkit.pack_ids(rows.ids, codec), codec), rows.ids)


def test_a_row_without_curve_comes_back_bit_for_bit():
    rows, codec = made_rows(), PACKED["exact"]
    assert codec.is_lossless
    assert np.array_equal(
        distillkit.decode_values(distillkit.encode_values(rows.log_probs, codec), codec), rows.log_probs
    )


@pytest.mark.parametrize("terms", [(0, 1), (0, 1, 2), (0, "sqrt"), (0, 1, "exp")])
@pytest.mark.parametrize("normalize_t", [False, True])
def test_a_row_that_is_a_curve_comes_back(terms, normalize_t):
    """Coefficients are rounded once to float32; each entry then sums as many terms."""
    codec = PackedCodec(d=9, k=9, exact_k=1, polynomial_terms=terms, delta_encoding=False, normalize_t=normalize_t)
    places = np.linspace(0, 1, 8) if normalize_t else np.arange(8.0)
    curve = {"sqrt": np.sqrt, "exp": np.exp}
    coefficients = -np.abs(np.random.default_rng(1).normal(0, 1, len(terms)))
    parts = [c * (curve[t](places) if t in curve else places**t) for c, t in zip(coefficients, terms, strict=True)]
    row = np.concatenate([[-0.5], np.sum(parts, axis=0)])[None]
    back = distillkit.decode_values(distillkit.encode_values(row, codec), codec)
    assert np.abs(back - row).max() <= rounding(torch.float32, len(terms) + 2, np.abs(parts).sum(axis=0))


def test_residuals_bound_the_error_of_a_curve_by_half_a_step():
    rows, codec = made_rows(), PACKED["bins"]
    plain = codec.model_copy(update={"residual_bins": ()})
    without = distillkit.decode_values(distillkit.encode_values(rows.log_probs, plain), plain)
    residual = np.abs(without - rows.log_probs)[:, 2:5].max(axis=1, keepdims=True)
    back = distillkit.decode_values(distillkit.encode_values(rows.log_probs, codec), codec)
    error = np.abs(back - rows.log_probs)[:, 2:5]
    clipped = residual / 2**7  # the largest positive residual is one step beyond the largest integer
    assert (error <= clipped * 1.5 + rounding(torch.bfloat16, 2, residual)).all()


def test_legacy_rows_keep_ids_and_exact_entries():
    rows = made_rows()
    ids, back = distillkit.decode_legacy(*distillkit.encode_legacy(rows.ids, rows.log_probs, LEGACY), LEGACY)
    assert np.array_equal(ids, rows.ids)
    exact = rows.log_probs[:, : LEGACY.exact_k]
    assert np.abs(back[:, : LEGACY.exact_k] - exact).max() <= rounding(torch.float16, 1, exact)


@pytest.mark.parametrize(
    "wrong",
    [
        {"exact_k": 9},
        {"exact_k": 2, "polynomial_terms": None},
        {"exact_k": 6, "residual_bins": ({"scale_dtype": "float16", "element_bits": 8, "num_elements": 3},)},
        {"unknown": 1},
    ],
)
def test_settings_that_describe_no_row_are_refused(wrong):
    with pytest.raises(ValueError, match=r"exact_k|residual_bins|unknown"):
        PackedCodec.model_validate({"d": 9, "k": 8, "exact_k": 8} | wrong)
