"""What no codec stores: rows that break a rule, by number and rule; manifests that name no codec; levels beyond M."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools.codecs.registry import (
    MASS_TOLERANCE,
    DeltaCount,
    DeltaFloat32,
    DeltaPower,
    DenseFloat32,
    Targets,
    codec_from_dict,
)
from cache_tools.errors import FormatError
from codec_fixtures import EMPTY, coded, naive_kl, shards, take, targets_of

V = 1000
N = 3000
SPARSE = [DeltaPower(8, V), DeltaFloat32(8, V), DeltaCount(8, V, 4)]
BUDGET = 5e-5


def sound(n=N):
    """Return n rows that every codec of SPARSE stores."""
    weights = np.zeros((n, 9))
    weights[:, :4] = 1
    return targets_of(weights, V)


def nan_entry(targets, row):
    targets.log_probs[row, 1] = np.nan


def nan_left_out(targets, row):
    targets.log_left_out[row] = np.nan


def signalling_nan(targets, row):
    targets.log_probs.view(np.uint32)[row, 1] = 0x7FA00000


def infinite_entry(targets, row):
    targets.log_probs[row, 1] = np.inf


def infinite_left_out(targets, row):
    targets.log_left_out[row] = np.inf


def huge_entry(targets, row):
    targets.log_probs[row, 1] = np.finfo(np.float32).max


def nan_beside_infinity(targets, row):
    targets.log_probs[row, 1], targets.log_left_out[row] = np.inf, np.nan


def no_mass(targets, row):
    targets.log_probs[row] = EMPTY


def too_much_mass(targets, row):
    targets.log_left_out[row] = math.log(1.01 * MASS_TOLERANCE)


def too_little_mass(targets, row):
    targets.log_probs[row, 0] = math.log(0.25 - 1.01 * MASS_TOLERANCE)


def id_twice(targets, row):
    targets.ids[row, 3] = targets.ids[row, 0]


def id_beyond(targets, row):
    targets.ids[row, 2] = V


def id_of_an_empty_slot(targets, row):
    targets.ids[row, 2] = 2**32 - 1


MASS = "the mass differs from 1 by more than 0.001"
BEYOND = f"an id is not below the vocabulary size {V}"
BROKEN = {
    nan_entry: "a value is NaN",
    nan_left_out: "a value is NaN",
    signalling_nan: "a value is NaN",
    nan_beside_infinity: "a value is NaN",
    infinite_entry: MASS,
    infinite_left_out: MASS,
    huge_entry: MASS,
    no_mass: MASS,
    too_much_mass: MASS,
    too_little_mass: MASS,
    id_twice: "an id occurs twice",
    id_beyond: BEYOND,
    id_of_an_empty_slot: BEYOND,
}


@pytest.mark.parametrize("codec", SPARSE, ids=lambda codec: codec.name)
@pytest.mark.parametrize("change", BROKEN, ids=lambda change: change.__name__)
@pytest.mark.parametrize("row", [0, 2048, N - 1])
def test_a_row_that_breaks_a_rule_is_refused_by_number_and_rule(codec, change, row):
    targets = sound()
    change(targets, row)
    with pytest.raises(ValueError, match="^" + re.escape(f"row {row} cannot be stored: {BROKEN[change]}") + "$"):
        codec.encode(targets)


def test_a_broken_row_of_classes_is_refused():
    weights = np.column_stack([np.ones((3, 4)), np.zeros(3)])
    for change, rule in ((nan_entry, "a value is NaN"), (id_twice, "an id occurs twice"), (infinite_entry, MASS)):
        targets = targets_of(weights, 4)
        change(targets, 1)
        with pytest.raises(ValueError, match=f"row 1 cannot be stored: {rule}"):
            DenseFloat32(4, 4).encode(targets)


@pytest.mark.parametrize("sign", [-1, 1])
def test_mass_just_within_the_tolerance_is_stored_within_the_budget(sign):
    for codec in (DeltaPower(8, V), DeltaFloat32(8, V)):
        weights = shards(50)["random"]
        targets = targets_of(weights, V)
        targets.log_probs[...] += np.float32(math.log1p(sign * 0.98 * MASS_TOLERANCE))
        targets.log_left_out[...] += np.float32(math.log1p(sign * 0.98 * MASS_TOLERANCE))
        encoded, decoded = coded(codec, targets)
        assert encoded.kl_nats.mean() <= BUDGET
        assert naive_kl(targets, decoded).mean() <= BUDGET + 1e-9


def test_one_entry_may_exceed_probability_one_within_the_tolerance():
    certain = Targets(np.full((1, 1), 7, np.uint32), np.full((1, 1), 9e-4, np.float32), np.full(1, -30, np.float32))
    encoded, decoded = coded(DeltaPower(1, V), certain)
    assert decoded.ids.tolist() == [[7]]
    assert -1e-9 < encoded.kl_nats[0] <= BUDGET


@pytest.mark.parametrize("codec", [*SPARSE, DenseFloat32(8, 8)], ids=lambda codec: codec.name)
def test_targets_of_another_shape_are_refused(codec):
    ids, logs, left_out = np.zeros((3, 8), np.uint32), np.zeros((3, 8), np.float32), np.zeros(3, np.float32)
    for broken in ((ids[:, :7], logs[:, :7], left_out), (ids, logs[:2], left_out), (ids, logs, left_out[:2])):
        with pytest.raises(ValueError, match="targets of 8 slots are expected"):
            codec.encode(Targets(*broken))


def odd_row(rng):
    """Return one row of hostile or odd content."""
    k = int(rng.choice([1, 2, 3, 8]))
    weights = np.exp(rng.normal(0, rng.choice([0, 1, 5, 40]), (1, k + 1)))
    weights[rng.random((1, k + 1)) < rng.choice([0, 0.5, 0.9])] = 0
    if rng.random() < 0.5 or not weights.any():
        weights[0, rng.integers(k + 1)] += rng.choice([1, 1e3, 1e30])
    targets = targets_of(weights, V, int(rng.integers(2**32)))
    if rng.random() < 0.3:
        shift = rng.choice([-2e-3, -1e-3, -9e-4, 9e-4, 1e-3, 2e-3])
        targets.log_probs[...] += np.float32(np.log1p(shift))
        targets.log_left_out[...] += np.float32(np.log1p(shift))
    if rng.random() < 0.3:
        odd = [np.nan, np.inf, EMPTY, 0, -0.0, 1e-3, 5, -200, -1e30, 3e38, -1e-45]
        targets.log_probs[0, rng.integers(k)] = rng.choice(odd)
    if rng.random() < 0.1:
        targets.log_left_out[0] = rng.choice([np.nan, np.inf, 0, -700, 1e38])
    if rng.random() < 0.2:
        targets.ids[0, rng.integers(k)] = rng.choice([0, V - 1, V, 2**32 - 1, targets.ids[0, 0]])
    return targets


def is_lawful(targets):
    """Tell whether a row keeps every rule, naively; None where rounding decides."""
    values = [*targets.log_probs[0].tolist(), float(targets.log_left_out[0])]
    if any(math.isnan(value) or value > 1 for value in values):
        return False
    off = abs(math.fsum(map(math.exp, values)) - 1) - MASS_TOLERANCE
    if abs(off) < 1e-12:
        return None
    used = [i for i, value in zip(targets.ids[0].tolist(), values[:-1], strict=True) if value > EMPTY]
    return off < 0 and len(set(used)) == len(used) and max(used, default=0) < V


def assert_stored_or_refused(codec, targets):
    """Check that a row comes back, within the budget or exactly, or is refused by a rule; return which."""
    lawful = is_lawful(targets)
    try:
        encoded, decoded = coded(codec, targets)
    except ValueError as error:
        assert str(error).startswith("row 0 cannot be stored: ")  # noqa: PT017
        assert lawful is not True
        return "refused"
    assert lawful is not False
    assert encoded.kl_nats[0] <= BUDGET
    assert naive_kl(targets, decoded)[0] <= BUDGET + 1e-9
    return "stored"


@pytest.mark.parametrize("kind", [DeltaPower, DeltaFloat32])
def test_a_thousand_odd_rows_come_back_within_the_budget_or_are_refused_by_rule(kind):
    rng = np.random.default_rng(11)
    found = []
    for _ in range(1000):
        targets = odd_row(rng)
        found.append(assert_stored_or_refused(kind(targets.ids.shape[1], V), targets))
    assert min(found.count("stored"), found.count("refused")) > 200


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_bits_come_back_within_the_budget_or_are_refused_by_rule(data):
    k = data.draw(st.integers(1, 4))
    value = st.floats(width=32) | st.sampled_from([EMPTY, 0.0, -0.0, -0.6931472, -1.3862944, -20.0])
    logs = np.array([data.draw(st.lists(value, min_size=k + 1, max_size=k + 1))], np.float32)
    ids = data.draw(st.lists(st.integers(0, V + 1) | st.just(2**32 - 1), min_size=k, max_size=k))
    targets = Targets(np.array([ids], np.uint32), logs[:, :k].copy(), logs[:, k].copy())
    for kind in (DeltaPower, DeltaFloat32):
        assert_stored_or_refused(kind(k, V), targets)


@pytest.mark.parametrize("codec", [*SPARSE, DeltaPower(8, V, 1e-6), DenseFloat32(V, V)], ids=str)
def test_a_codec_comes_back_from_its_entry_in_the_manifest(codec):
    assert codec_from_dict(codec.to_dict(), codec.k, V) == codec


@pytest.mark.parametrize("entry", [{}, {"name": "delta-uint16"}, {"name": None}, {"name": ["delta-power"]}])
def test_an_unknown_codec_is_refused(entry):
    with pytest.raises(FormatError, match=r"unknown target codec.*Upgrade logitcask"):
        codec_from_dict(entry, 8, V)


ODD = [None, "5e-5", True, False, math.nan, math.inf, -math.inf, 0, -1, [1], 10**400]


@pytest.mark.parametrize("value", [*ODD, 1.5, 1e-13], ids=lambda value: str(value)[:9])
def test_a_budget_that_is_no_number_in_range_is_refused(value):
    with pytest.raises(FormatError, match="parameter 'max_kl_nats' cannot be used"):
        codec_from_dict({"name": "delta-power", "max_kl_nats": value}, 8, V)


@pytest.mark.parametrize("value", [*ODD, 2.5, 50.0, 65_536], ids=lambda value: str(value)[:9])
def test_draws_that_are_no_whole_number_in_range_are_refused(value):
    with pytest.raises(FormatError, match="parameter 'draws' cannot be used"):
        codec_from_dict({"name": "delta-count", "draws": value}, 8, V)


def test_a_missing_parameter_is_refused():
    for name, key in (("delta-power", "max_kl_nats"), ("delta-count", "draws")):
        with pytest.raises(FormatError, match=f"parameter '{key}' cannot be used.*found nothing"):
            codec_from_dict({"name": name}, 8, V)
    with pytest.raises(FormatError, match="dense targets hold all classes"):
        codec_from_dict({"name": "dense-float32"}, 8, V)


@pytest.mark.parametrize(
    "change", [{"levels": 0}, {"levels": 65_536}, {"levels": 20.0}, {"exponent": 0}, {"exponent": "a"}]
)
def test_parameters_of_a_shard_that_cannot_be_are_refused(change):
    codec = DeltaPower(8, V)
    encoded = codec.encode(sound(5))
    with pytest.raises(FormatError, match=f"parameter '{next(iter(change))}' cannot be used"):
        codec.decode(encoded.arrays, encoded.parameters | change)


LEVEL = "a level is above the highest"


@pytest.mark.parametrize("array", ["levels", "levels_high", "floor", "left_out"])
def test_a_stored_level_above_the_highest_is_told_by_row(array):
    codec = DeltaPower(8, V)
    encoded = codec.encode(targets_of(shards(N)["ragged"], V))
    most = encoded.parameters["levels"]
    assert most < 255
    assert not codec.broken_rows(encoded.arrays, encoded.parameters)[LEVEL].any()
    arrays = {name: values.copy() for name, values in encoded.arrays.items()}
    rows = [number for number in (7, 2050, N - 1) if arrays["levels"][number].any()]
    for number in rows:
        slot = (number, 0) if arrays[array].ndim == 2 else number
        arrays[array][slot] = {"levels_high": 1, "left_out": most + 1}.get(array, 255)
    broken = codec.broken_rows(arrays, encoded.parameters)[LEVEL]
    assert np.flatnonzero(broken).tolist() == rows
    assert codec.broken_rows(take(arrays, slice(7, 8)), encoded.parameters)[LEVEL].tolist() == [True]


def test_the_highest_level_itself_is_lawful():
    weights = np.zeros((2, 9))
    weights[0, 0] = weights[1, 8] = 1
    codec = DeltaPower(8, V)
    encoded = codec.encode(targets_of(weights, V))
    assert encoded.arrays["left_out"].tolist() == [0, encoded.parameters["levels"]]
    assert codec.broken_rows(encoded.arrays, encoded.parameters)[LEVEL].tolist() == [False, False]


def test_codecs_without_hidden_rules_tell_of_none():
    for codec in (*SPARSE[1:], DenseFloat32(8, 8)):
        assert codec.broken_rows({}, {}) == {}
