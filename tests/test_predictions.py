"""Scalars and hidden states: stored integers and what they stand for."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools.format.manifest import HiddenSpec
from cache_tools.format.receipts import TARGETS
from cache_tools.hidden_codecs.bfloat16 import from_bfloat16, to_bfloat16
from cache_tools.store.predictions import (
    MINUS_INFINITY,
    SCALAR_STEP_NATS,
    codec_of,
    decode_hidden,
    encode_hidden,
    encode_targets,
    from_steps,
    group_layouts,
    mean_statistics,
    to_steps,
)
from store_fixtures import close, random_predictions, teacher_manifest

LARGEST_STEPS = 2**31 - 128  # float32 holds no larger number below 2**31

SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 1e-45, -1e-40, 1.1754942e-38, 3.4028235e38]
TIES = [1 + 2**-8, 1 + 3 * 2**-8]
"""Halfway between two bfloat16 values; the even one is below, then above."""


def as_float32(value):
    return np.array([value], dtype=np.float32)


def nearest_bfloat16(value):
    """Return the bfloat16 bits nearest to a float32, ties to even: compare the two candidates exactly."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    toward_zero = bits >> 16
    if math.isinf(value):
        return toward_zero
    below, above = (magnitude(half & 0x7FFF) for half in (toward_zero, toward_zero + 1))
    down, up = abs(value) - below, above - abs(value)
    return toward_zero + (up < down or (up == down and toward_zero % 2 == 1))


def magnitude(half):
    """Return the float64 that positive bfloat16 bits stand for; infinity counts as the next power of two."""
    exponent, fraction = half >> 7, half & 0x7F
    return math.ldexp(fraction, -133) if exponent == 0 else math.ldexp(128 + fraction, exponent - 134)


def assert_rounded_to_nearest(value):
    bits = to_bfloat16(as_float32(value))
    if math.isnan(value):
        assert np.isnan(from_bfloat16(bits)).all()
    else:
        assert bits.tolist() == [nearest_bfloat16(value)]


@pytest.mark.parametrize("value", SPECIAL + TIES)
def test_bfloat16_rounds_special_values_to_the_nearest(value):
    assert_rounded_to_nearest(value)


@given(st.floats(width=32))
@settings(deadline=None)
def test_bfloat16_rounds_any_value_to_the_nearest(value):
    assert_rounded_to_nearest(value)


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF])
def test_no_nan_rounds_to_infinity_or_zero(bits):
    value = np.array([bits], dtype=np.uint32).view(np.float32)
    assert np.isnan(from_bfloat16(to_bfloat16(value))).all()


@given(st.integers(0, 0xFFFF))
@settings(deadline=None)
def test_a_bfloat16_value_survives_a_round_trip(bits):
    value = from_bfloat16(np.array([bits], dtype=np.uint16))
    again = from_bfloat16(to_bfloat16(value))
    assert np.array_equal(value, again, equal_nan=True)


@pytest.mark.parametrize("codec", ["bfloat16", "float32"])
def test_hidden_states_come_back_as_their_codec_keeps_them(codec):
    values = np.random.default_rng(0).normal(0, 1, (20, 3)).astype(np.float32)
    spec = HiddenSpec(width=3, codec=codec)
    group = encode_hidden("last", spec, values, None, None)
    read = decode_hidden(spec, group.arrays["hidden/last"], None, group.parameters)
    assert read.dtype == np.float32
    assert np.abs(read / values - 1).max() <= (2**-8 if codec == "bfloat16" else 0)


@pytest.mark.parametrize("codec", ["bfloat16", "float32"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_refuses_hidden_states_that_are_not_finite(codec, value):
    states = np.zeros((4, 3), dtype=np.float32)
    states[2, 1] = value
    with pytest.raises(ValueError, match="a hidden state of layer 1 is not finite"):
        encode_hidden("1", HiddenSpec(width=3, codec=codec), states, None, None)


def all_groups(manifest, predictions):
    """Encode every group of arrays of a teacher."""
    groups = {TARGETS: encode_targets(manifest, codec_of(manifest), predictions)}
    for layer, states in predictions.hidden.items():
        groups[f"hidden/{layer}"] = encode_hidden(layer, manifest.hidden[layer], states, None, None)
    return groups


@pytest.mark.parametrize("step", [SCALAR_STEP_NATS, 0.0])
def test_arrays_have_the_declared_types(step):
    manifest = teacher_manifest({}, 70_000, 4).model_copy(update={"scalar_step_nats": step})
    groups = all_groups(manifest, random_predictions(np.random.default_rng(0), 5, 4, 70_000))
    found = {name: {key: (a.shape[1:], a.dtype) for key, a in group.arrays.items()} for name, group in groups.items()}
    assert found == {
        name: {key: (cut.type.row, cut.type.dtype) for key, cut in cuts.items()}
        for name, cuts in group_layouts(manifest, 16).items()
    }


def stored_scalar(values):
    """Return the integers that hold ``values`` as entropies."""
    return to_steps(np.array(values, dtype=np.float32), SCALAR_STEP_NATS)


def test_scalars_are_rounded_to_the_step():
    values = np.linspace(-30, 30, 1001, dtype=np.float32)
    read = from_steps(stored_scalar(values), SCALAR_STEP_NATS)
    assert close(read, values, SCALAR_STEP_NATS / 2 * 1.001)
    assert read.dtype == np.float32


def test_minus_infinity_stays_minus_infinity():
    stored = stored_scalar([-math.inf, 1])
    assert stored.tolist() == [MINUS_INFINITY, round(1 / SCALAR_STEP_NATS)]
    assert from_steps(stored, SCALAR_STEP_NATS).tolist() == [-math.inf, 1]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_scalar_is_stored(sign):
    assert stored_scalar([sign * LARGEST_STEPS * SCALAR_STEP_NATS]).tolist() == [sign * LARGEST_STEPS]


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**31 * SCALAR_STEP_NATS, -(2**31) * SCALAR_STEP_NATS])
def test_refuses_a_scalar_that_the_integers_cannot_hold(value):
    with pytest.raises(ValueError, match="a per-position scalar is NaN or too large"):
        stored_scalar([0, value])


@pytest.mark.parametrize("values", [[0.1, -math.inf, 3e38], [-30.7, 1e-45, 0]])
def test_without_a_step_scalars_keep_their_bits(values):
    written = np.array(values, dtype=np.float32)
    assert from_steps(to_steps(written, 0), 0).tobytes() == written.tobytes()


def test_without_a_step_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        to_steps(np.array([0, math.nan], dtype=np.float32), 0)


def test_statistics_are_means_over_positions():
    predictions = random_predictions(np.random.default_rng(0), 6, 4, 1000)
    manifest = teacher_manifest({}, 1000, 4)
    means = encode_targets(manifest, codec_of(manifest), predictions).statistics
    errors = codec_of(manifest).encode(predictions.targets).kl_nats
    assert means["kept_mass"] == pytest.approx(float(np.mean(1 - np.exp(predictions.targets.log_left_out))), abs=1e-6)
    assert means["entropy_nats"] == pytest.approx(float(predictions.scalars["entropy"].mean()), abs=1e-5)
    assert means["cross_entropy_nats"] == pytest.approx(-float(predictions.scalars["gold_logprob"].mean()), abs=1e-5)
    assert (means["codec_kl_nats"], means["codec_kl_nats_max"]) == (errors.mean(), errors.max())


def test_shards_are_weighed_by_their_positions():
    parts = [(1, {"x": 4.0, "x_max": 4.0}), (3, {"x": 0.0, "x_max": 1.0})]
    assert mean_statistics(parts) == {"x": 1, "x_max": 4}
    assert mean_statistics([]) == {}


def test_a_statistic_that_some_shards_lack_is_averaged_over_the_others():
    assert mean_statistics([(1, {"x": 4.0}), (3, {"x": 0.0, "late": 2.0}), (1, {"late": 6.0})]) == {"x": 1, "late": 3}
