"""The codec within a budget of KL: the budget, the stated formula, every way of decoding, narrowing."""

import math
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools.codecs.registry import DeltaCount, DeltaFloat32, DeltaPower, DenseFloat32, Targets, kl_nats, narrow
from cache_tools.codecs.rows import empty_targets
from codec_fixtures import (
    EMPTY,
    assert_canonical,
    coded,
    naive_kl,
    naive_row,
    naive_weights,
    same,
    shards,
    take,
    targets_of,
)

V = 50_000
EPSILON = float(np.finfo(np.float32).eps)
BUDGETS = [1e-3, 5e-5, 1e-6]
SHARDS = list(shards(1))


def shard(name, n=300, k=8):
    return targets_of(shards(n, k)[name], V)


def power(targets, budget=5e-5):
    return DeltaPower(targets.ids.shape[1], V, budget)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", SHARDS)
def test_the_mean_error_of_a_shard_stays_within_the_budget(name, budget):
    targets = shard(name)
    encoded, decoded = coded(power(targets, budget), targets)
    assert_canonical(decoded)
    assert encoded.kl_nats.shape == (len(targets.ids),)
    assert encoded.kl_nats.dtype == np.float64
    assert encoded.kl_nats.sum() <= budget * len(targets.ids)
    assert (encoded.kl_nats >= -1e-12).all()
    naive = naive_kl(targets, decoded)
    np.testing.assert_allclose(encoded.kl_nats, naive, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(encoded.kl_nats.sum(), naive.sum(), rtol=1e-4, atol=1e-9 * len(naive))
    np.testing.assert_allclose(encoded.kl_nats, kl_nats(targets, decoded), rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(kl_nats(targets, decoded), naive, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", ["random", "ragged", "nothing left out"])
def test_the_budget_is_spent(name, budget):
    targets = shard(name, 2000, 16)
    assert power(targets, budget).encode(targets).kl_nats.mean() > 0.7 * budget


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", SHARDS)
def test_decoded_rows_are_those_of_the_stated_formula(name, budget):
    targets = shard(name)
    encoded, decoded = coded(power(targets, budget), targets)
    for row in range(len(targets.ids)):
        weights, rest = naive_weights(encoded.arrays, encoded.parameters, row)
        total = math.fsum([*weights.values(), rest])
        used = decoded.log_probs[row] > EMPTY
        assert decoded.ids[row, used].tolist() == list(weights) == sorted(naive_row(targets, row)[0])
        expected = [math.log(weight / total) for weight in weights.values()]
        rounding = 4 * EPSILON * (1 + abs(math.log(min([*weights.values(), rest or 1]))))  # of two logs
        np.testing.assert_allclose(decoded.log_probs[row, used], expected, rtol=0, atol=rounding)
        assert decoded.log_left_out[row] == pytest.approx(math.log(rest / total) if rest else EMPTY, abs=rounding)


@pytest.mark.parametrize("name", SHARDS)
def test_each_probability_is_stored_as_its_nearest_level_and_none_as_zero(name):
    targets = shard(name)
    encoded = power(targets).encode(targets)
    most, exponent = encoded.parameters["levels"], encoded.parameters["exponent"]
    for row in range(len(targets.ids)):
        weights, rest = naive_weights(encoded.arrays, encoded.parameters, row)
        true, true_rest = naive_row(targets, row)
        pairs = [*((true[i], weights[i]) for i in true), (true_rest, rest)]
        assert all((p > 0) == (weight > 0) for p, weight in pairs)
        stored = [(p**exponent, most * weight**exponent) for p, weight in pairs if p > 0]
        lowest = max((level - 0.51) / power for power, level in stored if level > 1.01)
        highest = min((level + 0.51) / power for power, level in stored)
        assert lowest <= highest  # there is a scale of the row at which each level is the nearest, or the least
        assert lowest <= most + 0.51


TEMPERATURES = (1.2, 1.5, 2, 3, 4, 6, 15)


def tempered(targets, decoded, temperature):
    """Return the KL (n,) between the kept tokens of true and decoded rows, tempered and scaled to 1, in float64."""
    rows = []
    for row in range(len(targets.ids)):
        true = naive_row(targets, row)[0]
        read = dict(zip(decoded.ids[row].tolist(), decoded.log_probs[row].tolist(), strict=True))
        logs = np.array([[math.log(true[i]), read[i]] for i in true]).reshape(-1, 2).T / temperature
        if logs.size:
            logs -= np.logaddexp.reduce(logs, axis=1, keepdims=True)
        rows.append(float((np.exp(logs[0]) * (logs[0] - logs[1])).sum()))
    return np.array(rows)


def peaked(rest, n=300, k=64, seed=0):
    """Return rows in which one token has all but ``rest``, nine tenths of which the other kept ones share."""
    rng = np.random.default_rng(seed)
    others = np.exp(2 * rng.normal(size=(n, k - 1)))
    others *= 0.9 * rest / others.sum(axis=1, keepdims=True)
    return targets_of(np.column_stack([np.full(n, 1 - rest), others, np.full(n, 0.1 * rest)]), V)


def joined(parts):
    return Targets(*(np.concatenate(values) for values in zip(*(vars(part).values() for part in parts), strict=True)))


@pytest.mark.parametrize("budget", BUDGETS)
def test_no_group_of_rows_costs_more_than_twenty_budgets_at_any_temperature(budget):
    groups = {f"peaked {rest}": peaked(rest, 100) for rest in (0.5, 1e-2, 1e-4, 1e-6, 1e-8)}
    groups |= {name: shard(name, 100, 64) for name in ("random", "peaked", "ragged", "nothing left out")}
    together = joined(groups.values())
    _, decoded = coded(DeltaPower(64, V, budget), together)
    for number, name in enumerate(groups):
        part = slice(100 * number, 100 * (number + 1))
        true, read = (Targets(*(values[part] for values in vars(rows).values())) for rows in (together, decoded))
        for temperature in TEMPERATURES:
            assert tempered(true, read, temperature).mean() <= 20 * budget, (name, temperature)


@pytest.mark.parametrize("temperatures", [(2.0,), (4.0, 15.0), (0.5, 1.0, 3.0)])
@pytest.mark.parametrize("budget", BUDGETS)
def test_a_shard_keeps_its_budget_at_every_declared_temperature_and_tells_the_error(budget, temperatures):
    targets = joined([peaked(rest, 60) for rest in (0.5, 1e-2, 1e-4, 1e-6)])
    encoded, decoded = coded(DeltaPower(64, V, budget, temperatures), targets)
    assert encoded.kl_nats.mean() <= budget
    assert set(encoded.tempered_kl_nats) == set(temperatures) - {1.0}
    for temperature, kl in encoded.tempered_kl_nats.items():
        assert kl.mean() <= budget
        rounding = 4 * EPSILON * 40  # of decoded log-probabilities, whose weights reach down to e ** -40
        np.testing.assert_allclose(kl, tempered(targets, decoded, temperature), rtol=1e-3, atol=rounding**2 + 1e-9)


def test_a_temperature_that_needs_more_levels_than_there_are_is_refused_with_its_name():
    targets = joined([peaked(rest, 60) for rest in (1e-4, 1e-6)])
    with pytest.raises(ValueError, match=r"at temperature 4, above the budget max_kl_nats = 1\.0e-11"):
        DeltaPower(64, V, 1e-11, (4.0,)).encode(targets)


def test_decoded_rows_are_distributions():
    targets = shard("ragged", 500, 40)
    _, decoded = coded(power(targets), targets)
    mass = np.exp(decoded.log_probs, dtype=np.float64).sum(axis=1) + np.exp(decoded.log_left_out, dtype=np.float64)
    np.testing.assert_allclose(mass, 1, atol=1e-6)


@pytest.mark.parametrize("k", [1, 8, 300])
@pytest.mark.parametrize("kept", ["one", "none"])
def test_rows_without_anything_to_round_take_the_fewest_levels_at_once(kept, k):
    weights = np.zeros((3000, k + 1))
    weights[:, 0 if kept == "one" else k] = 1
    targets, start = targets_of(weights, V), time.process_time()
    encoded, decoded = coded(power(targets, 1e-6), targets)
    assert time.process_time() - start < 2
    assert encoded.kl_nats.max() < 1e-6
    assert encoded.parameters["levels"] == 15
    assert np.allclose(naive_kl(targets, decoded)[:50], 0, atol=1e-9)


def test_a_budget_out_of_reach_is_refused_with_what_to_change():
    targets = shard("random")
    with pytest.raises(ValueError, match=r"max_kl_nats = 1\.0e-12.*'exact: true'"):
        power(targets, 1e-12).encode(targets)


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_large_shard_whose_sample_misleads_still_holds_the_budget(budget):
    weights = shards(20_000, 16)["random"]
    weights[::5, 1:] = 0  # every row that the estimate of the levels looks at
    targets = targets_of(weights, V)
    encoded, decoded = coded(power(targets, budget), targets)
    assert 0.5 * budget < encoded.kl_nats.mean() <= budget
    assert np.allclose(encoded.kl_nats, kl_nats(targets, decoded), rtol=1e-4, atol=1e-8)
    some = slice(7001, 7050)
    true, found = (Targets(*(values[some] for values in vars(rows).values())) for rows in (targets, decoded))
    assert np.allclose(encoded.kl_nats[some], naive_kl(true, found), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("k", [1, 2, 7, 64, 129])
def test_any_run_of_rows_decodes_like_the_whole_into_any_arrays(k):
    targets = shard("ragged", 5000, k)
    codec = power(targets)
    encoded, whole = coded(codec, targets)
    out = empty_targets(5000, k)
    for values in vars(out).values():
        values[...] = 77
    assert codec.decode(encoded.arrays, encoded.parameters, out) is out
    assert same(out, whole)
    for rows in [slice(0, 1), slice(1, 4), slice(2047, 2050), slice(3, 4999), slice(9, 9), slice(4999, 5000)]:
        expected = Targets(*(values[rows] for values in vars(whole).values()))
        assert same(codec.decode(take(encoded.arrays, rows), encoded.parameters), expected)
        part = Targets(*(values[rows] for values in vars(out).values()))
        codec.decode(take(encoded.arrays, rows), encoded.parameters, part)
    assert same(out, whole)


def test_out_of_another_shape_is_refused():
    targets = shard("random")
    encoded = power(targets).encode(targets)
    with pytest.raises(ValueError, match="300 rows of 8 slots do not fit"):
        power(targets).decode(encoded.arrays, encoded.parameters, empty_targets(300, 7))


def test_threads_may_decode_slices_of_one_shard_at_the_same_time():
    targets = shard("ragged", 12_000, 32)
    codec = power(targets)
    encoded, whole = coded(codec, targets)
    out = empty_targets(12_000, 32)

    def decode(start):
        rows = slice(start, start + 500)
        part = Targets(*(values[rows] for values in vars(out).values()))
        codec.decode(take(encoded.arrays, rows), encoded.parameters, part)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, range(0, 12_000, 500)))
    assert same(out, whole)


@pytest.mark.parametrize("exact", [False, True])
def test_neither_the_order_of_slots_nor_the_ids_of_empty_ones_matter(exact):
    targets = shard("ragged", 400, 20)
    codec = DeltaFloat32(20, V) if exact else power(targets)
    order = np.random.default_rng(5).permuted(np.tile(np.arange(20), (400, 1)), axis=1)
    mixed = Targets(
        np.take_along_axis(targets.ids, order, axis=1),
        np.take_along_axis(targets.log_probs, order, axis=1),
        targets.log_left_out,
    )
    mixed.ids[mixed.log_probs == EMPTY] = 3
    before = mixed.ids.copy()
    left, right = codec.encode(targets), codec.encode(mixed)
    assert np.array_equal(mixed.ids, before)
    assert left.parameters == right.parameters
    assert all(left.arrays[name].tobytes() == right.arrays[name].tobytes() for name in codec.array_types())
    empty = codec.decode(left.arrays, left.parameters).log_probs == EMPTY
    assert empty.any()
    assert not any(left.arrays[name][empty].any() for name in ("ids", "ids_high"))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.integers(0, 6), st.floats(0, 12), st.sampled_from(BUDGETS), st.integers(0, 2**32 - 1))
def test_any_shard_is_within_the_budget_in_arrays_of_the_stated_types(k, n, scale, budget, seed):
    rng = np.random.default_rng(seed)
    weights = np.exp(rng.normal(0, scale, (n, k + 1))) * (rng.random((n, k + 1)) < 0.8)
    weights[:, rng.integers(k + 1)] += 1e-3
    targets = targets_of(weights, V, seed)
    codec = power(targets, budget)
    encoded, decoded = coded(codec, targets)
    types = {name: (values.shape[1:], values.dtype) for name, values in encoded.arrays.items()}
    assert types == codec.array_types()
    assert encoded.kl_nats.sum() <= budget * n
    assert naive_kl(targets, decoded).sum() <= (budget + 1e-9) * n


def likeliest(row, k):
    """Return the k most likely tokens of a row, of equals the lower id, ascending."""
    return sorted(sorted(row, key=lambda token: (-row[token], token))[:k])


@pytest.mark.parametrize("small", [1, 3, 7, 8])
@pytest.mark.parametrize("name", SHARDS[:-1])
def test_narrowed_power_rows_keep_the_likeliest_and_leave_the_rest_out(name, small):
    targets = shard(name)
    codec = power(targets)
    encoded, whole = coded(codec, targets)
    narrowed, arrays, parameters = narrow(codec, encoded.arrays, encoded.parameters, small)
    decoded = narrowed.decode(arrays, parameters)
    assert_canonical(decoded)
    assert narrowed == DeltaPower(small, V, 5e-5)
    assert not narrowed.broken_rows(arrays, parameters)["a level is above the highest"].any()
    for row in range(len(targets.ids)):
        before, rest = naive_weights(encoded.arrays, encoded.parameters, row)
        after, left_out = naive_weights(arrays, encoded.parameters, row)
        assert list(after) == likeliest(before, small)
        assert all(after[token] == before[token] for token in after)
        dropped = rest + math.fsum(before[token] for token in before.keys() - after.keys())
        exponent = encoded.parameters["exponent"]
        step = encoded.parameters["levels"] * abs(left_out**exponent - dropped**exponent)
        assert step < (0.51 if len(after) < len(before) else 1e-9)
        used = decoded.log_probs[row] > EMPTY
        kept = np.isin(whole.ids[row], decoded.ids[row, used])
        change = whole.log_probs[row, kept] - decoded.log_probs[row, used]
        assert len(change) == 0 or np.ptp(change) < 1e-5
    if small == 8:
        assert same(decoded, whole)


def test_the_left_out_mass_may_outgrow_the_highest_level_when_rows_narrow():
    targets = targets_of(np.ones((4, 87)), V)  # 15 levels; each 1 / 87 is rounded up by a fifth
    codec = power(targets)
    encoded, _ = coded(codec, targets)
    narrowed, arrays, parameters = narrow(codec, encoded.arrays, encoded.parameters, 1)
    step = 2.5 / encoded.parameters["levels"]
    odds = narrowed.decode(arrays, parameters)
    np.testing.assert_allclose(odds.log_left_out - odds.log_probs[:, 0], math.log(86), atol=0.5 * step)
    assert not narrowed.broken_rows(arrays, parameters)["a level is above the highest"].any()


@pytest.mark.parametrize("small", [1, 3, 7, 8])
@pytest.mark.parametrize("name", SHARDS[:-1])
def test_narrowed_float32_rows_keep_the_bits_of_the_likeliest(name, small):
    targets = shard(name)
    targets.log_probs[:20] = targets.log_probs[:20].round(0) - np.float32(8)  # ties
    targets.log_left_out[:20] = np.log1p(-np.exp(targets.log_probs[:20], dtype=np.float64).sum(axis=1))
    codec = DeltaFloat32(8, V)
    encoded, whole = coded(codec, targets)
    narrowed, arrays, parameters = narrow(codec, encoded.arrays, encoded.parameters, small)
    decoded = narrowed.decode(arrays, parameters)
    assert_canonical(decoded)
    for row in range(len(targets.ids)):
        (before, rest), (after, _) = naive_row(whole, row), naive_row(decoded, row)
        assert list(after) == likeliest(before, small)
        assert all(after[token] == before[token] for token in after)
        dropped = rest + math.fsum(before[token] for token in before.keys() - after.keys())
        assert decoded.log_left_out[row] == pytest.approx(math.log(dropped) if dropped else EMPTY, rel=1e-7, abs=1e-6)
    if small == 8:
        assert same(decoded, whole)


def test_what_cannot_be_narrowed_is_refused():
    for codec in (DeltaCount(4, V, 50), DenseFloat32(4, 4)):
        with pytest.raises(ValueError, match=f"rows of {codec.name} cannot be narrowed"):
            narrow(codec, {}, {}, 2)
    for small in (-1, 0, 9):
        with pytest.raises(ValueError, match=f"8 entries cannot be narrowed to {small}"):
            narrow(DeltaPower(8, V), {}, {}, small)
