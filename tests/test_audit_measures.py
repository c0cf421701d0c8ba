"""The measures of an audit against a naive float64 reference, and what each of them must not be fooled by."""

import math
from dataclasses import astuple

import numpy as np
import pytest

from cache_tools.codecs.registry import DeltaCount
from cache_tools.codecs.rows import EMPTY_ID, Targets
from pipeline.audit.measures import (
    LOWEST_NATS,
    Rows,
    difference,
    exact_part,
    excess_surprisal,
    fitted_temperature,
    joined,
    kl_nats,
    left_out_mass,
    proven_shift,
)
from pipeline.audit.summary import by_probability, top1_agreement
from pipeline.audit.verdict import TOLERANCES, TWO_ROUNDINGS_NATS, checks_of_sample, diagnose
from store_fixtures import teacher_manifest

VOCABULARY, K, N = 50, 6, 40


def distributions(seed=0, n=N):
    logits = np.random.default_rng(seed).normal(0, 2, (n, VOCABULARY))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def rows_of(live, stored, ids, left_out=None, **changes):
    """Rows of the tokens ``ids`` (n, k), stored as one distribution says and live as another; -1 is an empty slot."""
    used, safe = ids >= 0, np.maximum(ids, 0)
    held = np.where(used, np.take_along_axis(stored, safe, axis=1), -np.inf)
    if left_out is None:
        left_out = np.log(1 - np.exp(held).sum(axis=1))
    nothing = np.full(len(ids), -np.inf)
    values = {
        "log_probs": np.where(used, np.take_along_axis(live, safe, axis=1), -np.inf),
        "top_log_prob": live.max(axis=1),
        "head_log_prob": nothing,
        "surprisal": np.zeros((len(ids), 3)),
        "same_tokens": np.ones(len(ids), dtype=bool),
        "entropy": -(np.exp(live) * live).sum(axis=1),
    }
    packed = np.where(used, ids, EMPTY_ID).astype(np.uint32)
    return Rows(Targets(packed, held.astype(np.float32), left_out.astype(np.float32)), **values | changes)


def top_ids(log_probs, k=K):
    return np.sort(np.argsort(-log_probs, axis=1)[:, :k], axis=1)


def ragged_ids(log_probs):
    """The most likely tokens, of which row i lacks i % K."""
    ids = np.argsort(-log_probs, axis=1)[:, :K]
    return np.where(np.arange(K) < K - np.arange(len(ids))[:, None] % K, ids, -1)


def test_kl_equals_its_definition():
    live, stored = distributions(0), distributions(0) + 0.1 * distributions(1)
    stored -= np.log(np.exp(stored).sum(axis=1, keepdims=True))
    ids = ragged_ids(live)
    rows = rows_of(live, stored, ids)
    for row, found in enumerate(kl_nats(rows)):
        kept = [i for i in ids[row] if i >= 0]
        p, q = ([math.exp(side[row, i]) for i in kept] for side in (live, stored))
        p, q = [*p, 1 - sum(p)], [*q, 1 - sum(q)]
        assert found == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)), rel=1e-4)


def test_kl_is_finite_where_a_row_leaves_out_what_is_there_and_zero_where_nothing_is():
    live = distributions()
    ids = top_ids(live)
    closed = kl_nats(rows_of(live, live, ids, left_out=np.full(N, -np.inf)))
    assert np.isfinite(closed).all()
    assert (closed > 0.1).all()
    everything = np.tile(np.arange(VOCABULARY), (N, 1))
    whole = rows_of(live, live, everything, left_out=np.full(N, -np.inf))
    assert kl_nats(whole).max() < 1e-6
    assert left_out_mass(whole.log_probs).max() < 1e-12


def test_every_entry_is_in_one_bin_with_the_errors_of_its_bin():
    live = distributions(0) * 3
    live -= np.log(np.exp(live).sum(axis=1, keepdims=True))
    ids, stored = ragged_ids(live), live + 0.01 * distributions(2)
    rows = rows_of(live, stored, ids)
    bins = by_probability(rows)
    used = ids >= 0
    p = np.exp(np.take_along_axis(live, np.maximum(ids, 0), axis=1))[used]
    errors = rows.stored.log_probs[used].astype(np.float64) - rows.log_probs[used]
    assert sum(part.errors.entries for part in bins) == used.sum()
    assert len(bins) > 3
    for part in bins:
        inside = errors[(p > part.above) & (p <= part.up_to)]
        expected = (len(inside), inside.mean(), abs(inside).mean(), abs(inside).max())
        assert astuple(part.errors) == pytest.approx(expected)


def test_two_sides_that_never_occur_agree():
    never = np.array([-np.inf, -np.inf, -1.0], dtype=np.float32)
    assert difference(never, np.array([-np.inf, -2.0, -1.0])).tolist() == [0, LOWEST_NATS + 2, 0]


def drawn(log_probs, draws, seed, start=0):
    """Rows of ``draws`` draws, (ids, log weights), ids -1 in unused slots."""
    rng = np.random.default_rng(seed)
    ids, logs = np.full((len(log_probs), draws), -1), np.full((len(log_probs), VOCABULARY), -np.inf)
    for row, values in enumerate(log_probs):
        found, counts = np.unique(rng.choice(VOCABULARY, draws, p=np.exp(values)), return_counts=True)
        ids[row, : len(found)] = found
        logs[row, found] = np.log(counts / draws)
    return ids, logs


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.3])
def test_draws_have_the_entropy_as_their_surprisal_only_if_they_are_honest(temperature):
    live = distributions(n=400)
    policy = live / temperature
    policy -= np.log(np.exp(policy).sum(axis=1, keepdims=True))
    ids, weights = drawn(policy, 20, seed=1)
    excess = excess_surprisal(rows_of(live, weights, ids, left_out=np.full(400, -np.inf)))
    mean, error = excess.mean, excess.standard_error
    expected = -(np.exp(policy) * live).sum(axis=1) + (np.exp(live) * live).sum(axis=1)
    assert abs(mean - expected.mean()) < 5 * error
    assert (abs(mean) < 5 * error) == (temperature == 1)


def test_the_standard_error_of_the_draws_is_their_spread_over_seeds():
    live = distributions(n=100)
    found = [excess_surprisal(rows_of(live, *drawn(live, 20, seed)[::-1], np.full(100, -np.inf))) for seed in range(60)]
    means, errors = np.array([astuple(excess) for excess in found]).T
    assert means.std() == pytest.approx(errors.mean(), rel=0.3)


def test_few_honest_draws_pass_and_few_tempered_ones_do_not():
    live = distributions(n=60)
    cold = live / 0.5
    cold -= np.log(np.exp(cold).sum(axis=1, keepdims=True))
    manifest = teacher_manifest({}, VOCABULARY, 20, ("sampled", DeltaCount(20, VOCABULARY, 20)))

    def passes(policy, seed):
        ids, weights = drawn(policy, 20, seed)
        rows = rows_of(live, weights, ids, left_out=np.full(60, -np.inf))
        (check,) = checks_of_sample(rows, manifest, TOLERANCES["float32"])
        return check.passed

    assert all(passes(live, seed) for seed in range(30))
    assert not any(passes(cold, seed) for seed in range(30))


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_a_temperature_is_found_also_in_truncated_rows(temperature):
    live = distributions()
    ids = ragged_ids(live)
    policy = live / temperature
    policy -= np.log(np.exp(policy).sum(axis=1, keepdims=True)) + 0.3  # any constant per row
    found, unexplained = fitted_temperature(rows_of(live, policy, ids))
    assert found == pytest.approx(temperature, rel=1e-3)
    assert unexplained < 1e-3


def test_no_temperature_explains_another_distribution():
    live = distributions()
    assert fitted_temperature(rows_of(live, distributions(5), top_ids(live)))[1] > 0.5


def test_a_hybrids_head_is_told_from_its_draws():
    live = distributions()
    head = np.sort(live, axis=1)[:, -4]
    ids = top_ids(live, 12)
    wrong = np.where(live < head[:, None], np.log(0.05), live)  # draws say little about their token
    rows = rows_of(live, wrong, ids, left_out=np.full(N, -np.inf), head_log_prob=head)
    exact = exact_part(rows)
    assert ((exact.stored.ids != EMPTY_ID).sum(axis=1) <= 3).all()
    assert kl_nats(exact).max() < 1e-6
    assert kl_nats(rows).min() > 1e-3


def surprisal_beside(live, stored, ids):
    """Mean surprisal of the stored row before, of the own one and of the one behind, under each live distribution."""
    held = np.exp(np.take_along_axis(stored, ids, axis=1))
    columns = []
    for by in (1, 0, -1):
        rows, weights = np.roll(ids, by, axis=0), np.roll(held, by, axis=0)
        columns.append(-(weights * np.take_along_axis(live, rows, axis=1)).sum(axis=1))
    surprisal = np.stack(columns, axis=1)
    surprisal[[0, -1]] = np.nan
    return surprisal


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_a_shift_is_found_where_the_row_beside_is_the_right_one(shift):
    live = distributions()
    stored = np.roll(live, -shift, axis=0)  # row i - shift of the live teacher lies at i
    ids = top_ids(stored)
    rows = rows_of(live, stored, ids, surprisal=surprisal_beside(live, stored, ids))
    assert proven_shift(rows, drawn=False) == -shift
    assert proven_shift(rows_of(live, live, ids, surprisal=np.full((N, 3), np.nan)), drawn=False) == 0


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("drawn", [False, True])
def test_rows_of_another_model_are_not_called_shifted(seed, drawn):
    live, stored = distributions(seed), distributions(seed + 100)
    ids = top_ids(stored)
    surprisal = surprisal_beside(live, stored, ids)
    assert proven_shift(rows_of(live, stored, ids, surprisal=surprisal), drawn) == 0


def test_ties_agree_on_the_likeliest_token():
    live = distributions()
    ids = top_ids(live)
    assert top1_agreement(rows_of(live, live, ids)) == 1
    first = np.argsort(-live, axis=1)[:, :2]
    tied, swapped = live.copy(), live.copy()
    for row, (best, second) in enumerate(first):
        tied[row, second] = tied[row, best]
        swapped[row, [best, second]] = live[row, [second, best]]
    assert top1_agreement(rows_of(tied, swapped, ids)) == 1
    assert top1_agreement(rows_of(live, swapped, ids)) == 0


def test_joined_rows_stand_behind_each_other():
    live = distributions()
    whole = rows_of(live, live, top_ids(live))
    parts = [rows_of(live[part], live[part], top_ids(live)[part]) for part in (slice(0, 7), slice(7, N))]
    found = joined(parts)
    assert np.array_equal(found.stored.ids, whole.stored.ids)
    assert np.array_equal(kl_nats(found), kl_nats(whole))
    assert np.array_equal(found.entropy, whole.entropy)


def rounded_twice(step):
    """Rows (N, VOCABULARY) of one distribution whose logits were rounded in two ways to multiples of ``step``."""
    rng = np.random.default_rng(2)
    logits, offset = 24 + rng.normal(0, 2, (400, VOCABULARY)), rng.uniform(0, step, (400, VOCABULARY))
    sides = [np.round(logits / step) * step, np.round((logits + offset) / step) * step - offset]
    stored, live = (side - np.log(np.exp(side).sum(axis=1, keepdims=True)) for side in sides)
    return rows_of(live, stored, top_ids(live, 40), scalars={})


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (0.125 / 4, "as small as those of another dtype"),
        (0.125, "compatible with rounding alone"),
        (1, "other weights or"),
    ],
)
def test_a_verdict_says_what_the_size_of_differences_is_compatible_with(step, sentence):
    rows = rounded_twice(step)
    assert sentence in " ".join(diagnose(rows, teacher_manifest({}, VOCABULARY, 40), []))
    if step == 0.125:  # what logits from 16 to 32 are rounded to
        expected = TWO_ROUNDINGS_NATS * (1 - (np.exp(rows.log_probs) ** 2).sum(axis=1)).mean()
        values = kl_nats(rows)
        assert abs(values.mean() - expected) <= 5 * values.std() / math.sqrt(len(values))
