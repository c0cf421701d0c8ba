"""The sparse codec against the rule of its module docstring, spelt out naively in float64."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools.codec import EMPTY_ID, DeltaPower, Targets, kl_nats
from cache_tools.errors import FormatError
from store_fixtures import by_id, close, random_targets

VOCABULARIES = (3, 65_536, 65_537, 131_071, 131_072, 151_936, 262_144, 2**32 - 1)
NO_MASS = -math.inf


def row(ids, probs, left_out, k=None):
    """Return one row as Targets, padded to k slots by empty ones."""
    padding = (k or len(ids)) - len(ids)
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.array([*probs, *[0] * padding]))
        log_left_out = np.log(np.array([left_out]))
    padded = np.array([*ids, *[0] * padding], dtype=np.uint32)
    return Targets(padded[None], log_probs[None].astype(np.float32), log_left_out.astype(np.float32))


def through(codec, targets):
    return codec.decode(codec.encode(targets))


def reference_decode(codec, arrays, i):
    """Return ({id: log p}, log left-out) of stored row i, one entry at a time."""
    ids, weights, running = [], [], 0
    for slot in range(codec.k):
        high = int(arrays["ids_high"][i, slot]) if "ids_high" in arrays else 0
        running += int(arrays["ids"][i, slot]) + (high << 16)
        stored = int(arrays["levels"][i, slot])
        if stored:
            ids.append(running)
            weights.append(((stored - 1 + int(arrays["floor"][i])) / codec.levels) ** (1 / codec.exponent))
    left_out = (int(arrays["left_out"][i]) / codec.levels) ** (1 / codec.exponent)
    total = sum(weights) + left_out
    logs = {i: math.log(weight / total) for i, weight in zip(ids, weights, strict=True)}
    return logs, math.log(left_out / total) if left_out else NO_MASS


def reference_kl(true, decoded, i):
    """Return KL(true || decoded) of row i over its entries and the rest."""
    p, q = by_id(true)[i], by_id(decoded)[i]
    pairs = [(math.exp(p[token]), q[token]) for token in p]
    if true.log_left_out[i] > NO_MASS:
        pairs.append((math.exp(true.log_left_out[i]), float(decoded.log_left_out[i])))
    total, total_q = math.fsum(weight for weight, _ in pairs), math.fsum(math.exp(log_q) for _, log_q in pairs)
    return math.fsum(w / total * (math.log(w / total) - log_q + math.log(total_q)) for w, log_q in pairs)


def half_steps_kl(codec, targets):
    """Return sum(p * step**2) / 8 per row: the KL if every log p were wrong by half a step."""
    log_p = np.concatenate([targets.log_probs, targets.log_left_out[:, None]], axis=1).astype(np.float64)
    p = np.exp(log_p)
    step = 1 / (codec.exponent * codec.levels * np.where(p > 0, p, 1) ** codec.exponent)
    return (p * step**2).sum(axis=1) / 8


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_a_round_trip_keeps_ids_exactly(vocabulary):
    targets = random_targets(np.random.default_rng(0), 40, 3, vocabulary)
    decoded = through(DeltaPower(3, vocabulary), targets)
    assert [sorted(entries) for entries in by_id(targets)] == [list(entries) for entries in by_id(decoded)]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_the_first_and_the_last_id_of_a_vocabulary_survive(vocabulary):
    decoded = through(DeltaPower(2, vocabulary), row([vocabulary - 1, 0], [0.5, 0.25], 0.25))
    assert decoded.ids.tolist() == [[0, vocabulary - 1]]


@pytest.mark.parametrize("vocabulary", [1000, 70_000])
@pytest.mark.parametrize("levels", [255, 1000])
def test_decoding_equals_the_stated_rule(vocabulary, levels):
    codec = DeltaPower(5, vocabulary, levels)
    arrays = codec.encode(random_targets(np.random.default_rng(1), 50, 5, vocabulary))
    decoded = codec.decode(arrays)
    for i, entries in enumerate(by_id(decoded)):
        logs, log_left_out = reference_decode(codec, arrays, i)
        assert entries == pytest.approx(logs, abs=1e-5)
        assert decoded.log_left_out[i] == pytest.approx(log_left_out, abs=1e-5)


def test_what_comes_back_sums_to_one():
    decoded = through(DeltaPower(8, 1000), random_targets(np.random.default_rng(2), 100, 8, 1000))
    mass = np.exp(decoded.log_probs).sum(axis=1) + np.exp(decoded.log_left_out)
    assert close(mass, np.ones(100), 1e-5)


def test_the_error_is_the_stated_share_of_squared_steps():
    codec, targets = DeltaPower(64, 131_072), random_targets(np.random.default_rng(3), 2000, 64, 131_072)
    kl = kl_nats(targets, through(codec, targets)).mean()
    assert kl == pytest.approx(half_steps_kl(codec, targets).mean() * 8 / 24, rel=0.2)
    assert kl < 4.6e-5


def test_finer_levels_give_a_smaller_error():
    targets = random_targets(np.random.default_rng(4), 200, 16, 1000)
    errors = [kl_nats(targets, through(DeltaPower(16, 1000, levels), targets)).mean() for levels in (63, 255, 4095)]
    assert errors[0] > 4 * errors[1] > 64 * errors[2] > 0


@pytest.mark.parametrize(("levels", "dtype"), [(255, np.uint8), (256, np.uint16), (65_535, np.uint16)])
def test_levels_are_as_wide_as_they_must_be(levels, dtype):
    codec = DeltaPower(2, 1000, levels)
    arrays = codec.encode(row([1, 2], [1 - 1e-7, 1e-7], 0))
    assert {name: rows.dtype for name, rows in arrays.items()} == {
        name: type_ for name, (_, type_) in codec.array_types().items()
    }
    assert arrays["levels"].dtype == arrays["floor"].dtype == arrays["left_out"].dtype == dtype
    assert by_id(codec.decode(arrays))[0] == pytest.approx({1: 0, 2: math.log(1e-7)}, abs=0.1)


def test_only_vocabularies_beyond_16_bits_have_high_ids():
    assert "ids_high" not in DeltaPower(1, 65_536).array_types()
    assert "ids_high" in DeltaPower(1, 65_537).array_types()


def test_empty_slots_come_back_empty_and_last():
    targets = Targets(
        ids=np.array([[9, 4, 7, 2]], dtype=np.uint32),
        log_probs=np.log(np.array([[0.5, 0.25, 1, 0.125]], dtype=np.float32)),
        log_left_out=np.log(np.array([0.125], dtype=np.float32)),
    )
    targets.log_probs[0, 2] = NO_MASS
    decoded = through(DeltaPower(4, 10), targets)
    assert decoded.ids.tolist() == [[2, 4, 9, EMPTY_ID]]
    assert decoded.log_probs[0, 3] == NO_MASS
    assert close(np.exp(decoded.log_probs[0, :3]), np.array([0.125, 0.25, 0.5]), 5e-3)


def test_one_entry_is_enough():
    decoded = through(DeltaPower(1, 10), row([3], [0.75], 0.25))
    assert decoded.ids.tolist() == [[3]]
    assert math.exp(decoded.log_probs[0, 0]) == pytest.approx(0.75, abs=5e-3)


def test_all_mass_on_one_token_is_exact():
    decoded = through(DeltaPower(3, 10), row([7], [1], 0, k=3))
    assert decoded.ids.tolist() == [[7, EMPTY_ID, EMPTY_ID]]
    assert decoded.log_probs.tolist() == [[0, NO_MASS, NO_MASS]]
    assert decoded.log_left_out.tolist() == [NO_MASS]


def test_an_empty_row_leaves_everything_out():
    decoded = through(DeltaPower(2, 10), row([], [], 1, k=2))
    assert decoded.ids.tolist() == [[EMPTY_ID, EMPTY_ID]]
    assert decoded.log_probs.tolist() == [[NO_MASS, NO_MASS]]
    assert decoded.log_left_out.tolist() == [0]


def test_no_rows_are_no_rows():
    decoded = through(DeltaPower(2, 10), Targets(*(a[:0] for a in vars(row([1, 2], [0.5, 0.5], 0)).values())))
    assert decoded.ids.shape == decoded.log_probs.shape == (0, 2)


def test_ties_stay_ties():
    decoded = through(DeltaPower(4, 100), row([30, 10, 40, 20], [0.2, 0.2, 0.2, 0.2], 0.2))
    assert len({*decoded.log_probs[0].tolist(), *decoded.log_left_out.tolist()}) == 1


def test_a_probability_above_zero_never_becomes_zero():
    decoded = through(DeltaPower(2, 10), row([1, 2], [1, 1e-30], 1e-30))
    assert decoded.ids.tolist() == [[1, 2]]
    assert np.isfinite(decoded.log_probs).all()
    assert np.isfinite(decoded.log_left_out).all()


def test_accepts_rounding_in_the_mass():
    decoded = through(DeltaPower(2, 10), row([1, 2], [0.5, 0.5 + 5e-4], 0))
    assert np.exp(decoded.log_probs).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        (row([1, 2], [0.5, 0.5 + 2e-3], 0), "the mass differs from 1"),
        (row([1, 2], [0.5, 0.25], 0.25 + 2e-3), "the mass differs from 1"),
        (row([1, 2], [0.5, math.nan], 0.25), "a value is NaN"),
        (row([1, 2], [0.5, 0.25], math.nan), "a value is NaN"),
        (row([2, 2], [0.5, 0.25], 0.25), "an id occurs twice"),
        (row([1, 10], [0.5, 0.25], 0.25), "an id is not below the vocabulary size 10"),
        (row([1, EMPTY_ID], [0.5, 0.25], 0.25), "an id is not below the vocabulary size 10"),
    ],
)
def test_refuses_rows_that_are_no_distributions(bad, rule):
    good = row([1, 2], [0.5, 0.25], 0.25)
    rows = Targets(*(np.concatenate(pair) for pair in zip(vars(good).values(), vars(bad).values(), strict=True)))
    with pytest.raises(ValueError, match=f"row 1 cannot be stored: {rule}"):
        DeltaPower(2, 10).encode(rows)


def test_the_ids_of_empty_slots_do_not_matter():
    targets = row([4, 4, 99], [0.5, 0, 0], 0.5)
    assert through(DeltaPower(3, 10), targets).ids.tolist() == [[4, EMPTY_ID, EMPTY_ID]]


def test_encoding_leaves_its_input_alone():
    targets = random_targets(np.random.default_rng(5), 10, 4, 1000)
    before = [array.copy() for array in vars(targets).values()]
    DeltaPower(4, 1000).encode(targets)
    assert all(np.array_equal(a, b) for a, b in zip(before, vars(targets).values(), strict=True))


def test_the_manifest_entry_restores_the_codec():
    codec = DeltaPower(4, 1000, levels=1023, exponent=0.25)
    assert DeltaPower.from_dict(codec.to_dict(), 4, 1000) == codec


def test_refuses_an_unknown_codec():
    with pytest.raises(FormatError, match=r"expected delta-power, found 'other'"):
        DeltaPower.from_dict({"name": "other"}, 4, 1000)


def test_kl_equals_the_naive_sum():
    targets = random_targets(np.random.default_rng(6), 60, 5, 1000)
    decoded = through(DeltaPower(5, 1000, levels=31), targets)
    expected = [reference_kl(targets, decoded, i) for i in range(60)]
    assert close(kl_nats(targets, decoded), np.array(expected), 1e-7)


def test_kl_measures_distributions_whatever_the_mass():
    whole, part = row([1, 2], [0.5, 0.3], 0.2), row([1, 2], [0.25, 0.15], 0.1)
    decoded = through(DeltaPower(2, 10, levels=15), whole)
    assert kl_nats(part, decoded)[0] == pytest.approx(kl_nats(whole, decoded)[0], abs=1e-6)


def test_kl_of_a_row_without_a_rest_is_finite():
    targets = row([1, 2], [0.75, 0.25], 0)
    decoded = through(DeltaPower(2, 10), targets)
    assert kl_nats(targets, decoded)[0] == pytest.approx(reference_kl(targets, decoded, 0), abs=1e-7)


@st.composite
def rows(draw):
    """Draw (codec, one row): up to k distinct ids of any vocabulary, weights over twelve orders of magnitude."""
    k = draw(st.integers(1, 8))
    vocabulary = draw(st.sampled_from(VOCABULARIES[1:]))
    ids = draw(st.lists(st.integers(0, vocabulary - 1), unique=True, max_size=k))
    weight = st.floats(-12, 0).map(lambda exponent: 10**exponent)
    weights = np.array(draw(st.lists(weight, min_size=len(ids) + 1, max_size=len(ids) + 1)))
    *probs, left_out = weights / weights.sum()
    return DeltaPower(k, vocabulary, draw(st.sampled_from([255, 4095]))), row(ids, probs, left_out, k)


@given(rows())
@settings(max_examples=200, deadline=None)
def test_any_row_comes_back_with_its_ids_and_a_small_error(codec_and_row):
    codec, targets = codec_and_row
    decoded = through(codec, targets)
    assert list(by_id(decoded)[0]) == sorted(by_id(targets)[0])
    assert kl_nats(targets, decoded)[0] <= 1.2 * half_steps_kl(codec, targets)[0] + 1e-6
