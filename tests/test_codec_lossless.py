"""Ids of any vocabulary, and the codecs that give every bit back: draws, exact rows, all classes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools.codecs.float32 import HIGHEST, put_bounded
from cache_tools.codecs.registry import EMPTY_ID, DeltaCount, DeltaFloat32, DeltaPower, DenseFloat32, Targets
from cache_tools.codecs.rows import empty_targets
from codec_fixtures import EMPTY, assert_canonical, coded, same, shards, take, targets_of

VOCABULARIES = [10, 256, 65_536, 65_537, 131_071, 131_072, 151_936, 262_144, 2**24, 2**24 + 1, 2**32 - 1]
NOTHING = np.float32(EMPTY)


def row(ids, log_probs, left_out=EMPTY):
    """Return Targets of one row."""
    return Targets(np.array([ids], np.uint32), np.array([log_probs], np.float32), np.array([left_out], np.float32))


def bits(targets):
    """Return each row as {id: bits of its log-probability}, and the bits of the left-out masses."""
    words = targets.log_probs.view(np.uint32).tolist()
    kept = targets.log_probs > EMPTY
    rows = [
        {i: word for i, word, used in zip(*slots, strict=True) if used}
        for slots in zip(targets.ids.tolist(), words, kept.tolist(), strict=True)
    ]
    return rows, targets.log_left_out.tobytes()


def exact(targets, vocabulary=50_000):
    """Return what delta-float32 makes of targets, which must have every bit."""
    codec = DeltaFloat32(targets.ids.shape[1], vocabulary)
    encoded, decoded = coded(codec, targets)
    assert_canonical(decoded)
    assert bits(decoded) == bits(targets)
    assert encoded.parameters == {}
    assert not encoded.kl_nats.any()
    assert {name: values.dtype for name, values in encoded.arrays.items()} == {
        name: dtype for name, (_, dtype) in codec.array_types().items()
    }
    return decoded


def draws_of(counts, k, vocabulary=50_000, seed=0):
    """Return sampled targets with these counts (n, at most k), as float32 log(count / N), in slots of no order."""
    counts, rng = np.asarray(counts), np.random.default_rng(seed)
    padded = np.zeros((len(counts), k), np.int64)
    padded[:, : counts.shape[1]] = counts
    targets = targets_of(np.column_stack([np.ones((len(counts), k)), np.zeros(len(counts))]), vocabulary, seed)
    with np.errstate(divide="ignore"):
        logs = np.log(rng.permuted(padded, axis=1) / padded.sum(axis=1, keepdims=True)).astype(np.float32)
    return Targets(targets.ids, logs, targets.log_left_out)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("kind", ["power", "float32", "count"])
def test_the_first_and_the_last_id_of_any_vocabulary_survive(kind, vocabulary):
    middle = vocabulary // 2
    ids = [[vocabulary - 1, 0], [vocabulary - 1, middle], [0, vocabulary - 1], [middle, 0], [0, 9], [vocabulary - 1, 9]]
    logs = np.full((6, 2), math.log(0.5), np.float32)
    logs[4:] = [0, EMPTY]
    targets = Targets(np.array(ids, np.uint32), logs, np.full(6, NOTHING))
    codecs = {"power": DeltaPower, "float32": DeltaFloat32, "count": lambda k, v: DeltaCount(k, v, 50)}
    _, decoded = coded(codecs[kind](2, vocabulary), targets)
    assert decoded.ids[:4].tolist() == [sorted(row) for row in ids[:4]]
    assert decoded.ids[4:].tolist() == [[0, EMPTY_ID], [vocabulary - 1, EMPTY_ID]]


@pytest.mark.parametrize(("vocabulary", "dtype"), [(2**16, "u1"), (2**16 + 1, "u2"), (2**24, "u2"), (2**24 + 1, "u4")])
def test_the_high_part_of_an_id_is_as_wide_as_the_vocabulary_needs(vocabulary, dtype):
    for codec in (DeltaPower(2, vocabulary), DeltaFloat32(2, vocabulary), DeltaCount(2, vocabulary, 50)):
        assert codec.array_types()["ids_high"][1] == np.dtype(dtype)
        assert codec.array_types()["ids"][1] == np.uint8


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from(VOCABULARIES))
def test_any_set_of_ids_survives(data, vocabulary):
    k = data.draw(st.integers(1, 9))
    ids = data.draw(st.lists(st.integers(0, vocabulary - 1), min_size=k, max_size=k, unique=True))
    targets = row(ids, np.full(k, -math.log(k)))
    assert exact(targets, vocabulary).ids.tolist() == [sorted(ids)]
    assert coded(DeltaPower(k, vocabulary), targets)[1].ids.tolist() == [sorted(ids)]


@pytest.mark.parametrize("draws", [1, 50, 300, 65_535])
def test_draws_come_back_as_the_logs_of_their_counts(draws):
    rng = np.random.default_rng(draws)
    counts = rng.multinomial(draws, rng.dirichlet(np.full(6, 0.5), 40))
    targets = draws_of(counts, 8)
    codec = DeltaCount(8, 50_000, draws)
    encoded, decoded = coded(codec, targets)
    assert_canonical(decoded)
    assert bits(decoded) == bits(targets)
    assert not encoded.kl_nats.any()
    assert encoded.arrays["ids"].shape == (40, draws)
    for number in range(40):
        found = {round(draws * math.exp(value)) for value in decoded.log_probs[number].tolist()}
        assert found - {0} == set(counts[number].tolist()) - {0}


def test_all_draws_may_differ():
    assert bits(coded(DeltaCount(300, 50_000, 300), targets := draws_of(np.ones((5, 300)), 300))[1]) == bits(targets)


def test_any_run_of_draws_decodes_like_the_whole():
    rng = np.random.default_rng(1)
    targets = draws_of(rng.multinomial(50, rng.dirichlet(np.full(6, 0.5), 4500)), 8)
    codec = DeltaCount(8, 50_000, 50)
    encoded, whole = coded(codec, targets)
    for rows in [slice(0, 1), slice(2047, 2050), slice(3, 4400), slice(9, 9)]:
        expected = Targets(*(values[rows] for values in vars(whole).values()))
        out = empty_targets(len(expected.ids), 8)
        assert same(codec.decode(take(encoded.arrays, rows), {}, out), expected)


def test_weights_that_are_no_counts_are_refused():
    codec = DeltaCount(3, 100, 4)
    for weights in ([0.5, 0.3, 0.2], [0.125, 0.125, 0.75], [0.24, 0.26, 0.5]):
        with pytest.raises(ValueError, match="row 0 cannot be stored: its weights are not counts out of 4 draws"):
            codec.encode(row([1, 2, 3], np.log(weights)))


def test_a_draw_that_never_happened_is_refused():
    with pytest.raises(ValueError, match="not counts out of 4 draws"):
        DeltaCount(3, 100, 4).encode(row([1, 2, 3], [math.log(0.25), math.log(0.75), -80]))


def test_a_total_other_than_the_draws_is_refused():
    logs = np.log(np.array([40_000, 25_534]) / 65_535)  # one draw is missing: the mass is within its tolerance
    with pytest.raises(ValueError, match="not counts out of 65535 draws"):
        DeltaCount(2, 100, 65_535).encode(row([1, 2], logs))


def test_a_sampled_row_that_leaves_something_out_is_refused():
    with pytest.raises(ValueError, match="row 0 cannot be stored: a sampled row leaves nothing out"):
        DeltaCount(2, 100, 2).encode(row([1, 2], [math.log(0.5), EMPTY], math.log(0.5)))
    with pytest.raises(ValueError, match="a sampled row leaves nothing out"):
        DeltaCount(1, 100, 2).encode(row([1], [0], -200))


def test_more_distinct_tokens_than_slots_are_refused_both_ways():
    targets = draws_of(np.ones((5, 4)), 4)
    with pytest.raises(ValueError, match="targets of 3 slots are expected"):
        DeltaCount(3, 50_000, 4).encode(targets)
    encoded = DeltaCount(4, 50_000, 4).encode(targets)
    with pytest.raises(ValueError, match="a stored row holds more than 3 distinct tokens"):
        DeltaCount(3, 50_000, 4).decode(encoded.arrays, {})


@pytest.mark.parametrize("name", list(shards(1)))
def test_exact_rows_keep_every_bit(name):
    exact(targets_of(shards(2500)[name]))


def test_exact_rows_keep_unusual_bits():
    exact(row([5, 3, 1], [-0.0, EMPTY, EMPTY]))
    exact(row([5, 3, 1], [0.0, EMPTY, EMPTY]))
    exact(row([5, 3], [EMPTY, EMPTY], -0.0))
    exact(row([5, 3], [np.nextafter(np.float32(0), np.float32(-1)), -100.5]))  # a subnormal log
    exact(row([5, 3, 7, 9], [-1e-8, -95, -103.9, -750], -110))  # subnormal or no float32 probabilities
    exact(row([5, 3], [0, np.finfo(np.float32).min], np.finfo(np.float32).min))


def test_exact_rows_are_not_renormalised():
    for mass in (1 - 9e-4, 1 + 9e-4):
        decoded = exact(row([2, 1], np.log([0.5 * mass, 0.25 * mass]), math.log(0.25 * mass)))
        total = np.exp(decoded.log_probs, dtype=np.float64).sum() + math.exp(decoded.log_left_out[0])
        assert total == pytest.approx(mass, abs=1e-6)


def test_any_run_of_exact_rows_decodes_like_the_whole():
    targets = targets_of(shards(4500)["ragged"])
    codec = DeltaFloat32(8, 50_000)
    encoded, whole = coded(codec, targets)
    for rows in [slice(0, 1), slice(2047, 2050), slice(3, 4400), slice(9, 9)]:
        expected = Targets(*(values[rows] for values in vars(whole).values()))
        out = empty_targets(len(expected.ids), 8)
        assert same(codec.decode(take(encoded.arrays, rows), {}, out), expected)


def classes(n, num_classes, seed=0):
    """Return rows of all classes in no order, some of probability zero."""
    rng = np.random.default_rng(seed)
    weights = np.exp(rng.normal(0, 5, (n, num_classes + 1))) * (rng.random((n, num_classes + 1)) < 0.8)
    weights[:, 0], weights[:, -1] = 1, 0
    targets = targets_of(weights, num_classes, seed)
    targets.ids[...] = rng.permuted(np.tile(np.arange(num_classes), (n, 1)), axis=1)
    return targets


@pytest.mark.parametrize(("n", "num_classes"), [(0, 3), (1, 1), (300, 2), (2500, 10)])
def test_all_classes_keep_every_bit_in_their_order(n, num_classes):
    targets = classes(n, num_classes)
    encoded, decoded = coded(DenseFloat32(num_classes, num_classes), targets)
    assert bits(decoded) == bits(targets)
    assert list(encoded.arrays) == ["log_probs"]
    assert not encoded.kl_nats.any()
    every = np.tile(np.arange(num_classes, dtype=np.uint32), (n, 1))
    assert np.array_equal(decoded.ids, np.where(decoded.log_probs > EMPTY, every, np.uint32(EMPTY_ID)))


def test_classes_keep_unusual_bits_and_are_not_renormalised():
    for logs in ([-0.0, EMPTY, EMPTY], [-1e-40, -104, EMPTY], np.log([0.5, 0.3, 0.2 + 9e-4])):
        targets = row([2, 0, 1], logs)
        assert bits(coded(DenseFloat32(3, 3), targets)[1]) == bits(targets)


def test_classes_that_are_not_all_of_them_are_refused():
    with pytest.raises(ValueError, match="dense targets hold all 4 classes, not 3"):
        DenseFloat32(3, 4)
    with pytest.raises(ValueError, match="row 0 cannot be stored: a row of all classes leaves nothing out"):
        DenseFloat32(2, 2).encode(row([0, 1], np.log([0.5, 0.4]), math.log(0.1)))


@pytest.mark.parametrize("word", [0x7F800001, 0xFF800001, 0x7FA00000, 0x7FC00000, 0xFFC00000, 0x7F800000, 0x7F7FFFFF])
@pytest.mark.parametrize("size", range(1, 40))
def test_no_kind_of_nan_nor_any_large_number_is_decoded_wherever_it_stands(word, size):
    """Vectors and the numbers left beside them take other paths, which differ for signalling NaNs."""
    values, out = np.full(size, word, np.uint32).view(np.float32), np.empty(size, np.float32)
    put_bounded(values, out)
    assert (out == HIGHEST).all()
