"""KL between two sparse rows: the smallest of a float64 search, and never above the true divergence."""

import math

import numpy as np
import pytest

from cache_tools.codecs.rows import (
    BLOCK_ROWS,
    EMPTY_ID,
    LOG_SMALLEST_MASS,
    Targets,
    by_id,
    empty_targets,
    with_possible_rest,
)
from cache_tools.inspection.divergence import divergence, likeliest

V = 40
GRID = 60


def targets(probabilities, k):
    """Keep the k likeliest of full distributions (n, V), as a decoded row would."""
    order = np.argsort(-probabilities, axis=1)[:, :k]
    kept = np.take_along_axis(probabilities, order, axis=1)
    with np.errstate(divide="ignore"):
        ids, logs = by_id(order.astype(np.uint32), np.log(kept).astype(np.float32))
        left = np.log(np.maximum(1 - kept.sum(axis=1), 0) * (k < V)).astype(np.float32)
    return Targets(ids, logs, left)


def distributions(seed, n=60):
    weights = np.exp(np.random.default_rng(seed).normal(0, 2, (n, V)))
    return weights / weights.sum(axis=1, keepdims=True)


def full_kl(p, q):
    return (p * np.log(p / q)).sum(axis=1)


def naive_kl(a, b, row):
    """The smallest KL over a grid of ways to split what each row left out, in plain Python."""
    p, q = (
        {int(i): math.exp(x) for i, x in zip(t.ids[row], t.log_probs[row], strict=True) if x > -math.inf}
        for t in (a, b)
    )
    (p_left, p_total), (q_left, q_total) = ((m, sum(d.values()) + m) for d, m in ((p, left(a, row)), (q, left(b, row))))
    common = sum(term(p[i] / p_total, q[i] / q_total) for i in p.keys() & q.keys())
    only_p, only_q = (sum(x[i] for i in x.keys() - y.keys()) for x, y in ((p, q), (q, p)))
    only_p, only_q, p_left, q_left = only_p / p_total, only_q / q_total, p_left / p_total, q_left / q_total
    steps = [i / GRID for i in range(GRID + 1)]
    return common + min(
        term(only_p, t * q_left) + term(s * p_left, only_q) + term((1 - s) * p_left, (1 - t) * q_left)
        for s in steps
        for t in steps
    )


def left(targets, row):
    return math.exp(targets.log_left_out[row])


def term(x, y):
    return 0.0 if x == 0 else math.inf if y == 0 else x * math.log(x / y)


@pytest.mark.parametrize(("k", "m"), [(1, 1), (3, 8), (8, 3), (16, 16)])
def test_kl_is_the_smallest_that_the_kept_rows_allow(k, m):
    """A grid never finds a smaller one than the formula, and comes close to it."""
    a, b = targets(distributions(1, 20), k), targets(distributions(2, 20), m)
    found = divergence(a, b)
    for kl, (x, y) in ((found.kl_ab_nats, (a, b)), (found.kl_ba_nats, (b, a))):
        naive = np.array([naive_kl(x, y, row) for row in range(20)])
        assert (kl <= naive + 1e-7).all()
        assert np.allclose(kl, naive, atol=2e-3)
        assert np.ptp(kl) > 0.05


def test_two_sure_teachers_that_keep_no_token_in_common_are_far_apart():
    sure = [Targets(np.array([[i]], np.uint32), np.log(np.float32([[0.9]])), np.log(np.float32([0.1]))) for i in (3, 8)]
    expected = 0.9 * math.log(0.9 / 0.1) + 0.1 * math.log(0.1 / 0.9)
    assert divergence(*sure).kl_ab_nats[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("k", [1, 4, 20, V])
def test_kl_is_a_lower_bound_that_is_reached_when_everything_is_kept(k):
    p, q = distributions(1), distributions(2)
    found = divergence(targets(p, k), targets(q, k))
    for bound, true in ((found.kl_ab_nats, full_kl(p, q)), (found.kl_ba_nats, full_kl(q, p))):
        assert (bound <= true + 1e-5).all()
        assert np.allclose(bound, true, rtol=1e-4) == (k == V)


def test_both_sides_are_treated_alike():
    a, b = targets(distributions(1), 5), targets(distributions(2), 9)
    there, back = divergence(a, b), divergence(b, a)
    assert np.array_equal(there.kl_ab_nats, back.kl_ba_nats)
    assert np.array_equal(there.mean_kl_nats, back.mean_kl_nats)
    assert np.array_equal(there.same_top1, back.same_top1)


def test_a_teacher_is_at_distance_zero_from_itself():
    a = targets(distributions(1), 7)
    found = divergence(a, a)
    assert (found.mean_kl_nats == 0).all()
    assert found.same_top1.all()


def test_ruling_out_what_the_other_does_not_is_infinitely_far_one_way_only():
    closed = Targets(np.array([[3, EMPTY_ID]], np.uint32), np.array([[0, -np.inf]], np.float32), np.float32([-np.inf]))
    open_ = Targets(np.array([[3, 8]], np.uint32), np.log(np.float32([[0.5, 0.25]])), np.log(np.float32([0.25])))
    found = divergence(closed, open_)
    assert found.kl_ab_nats[0] == pytest.approx(math.log(2))
    assert found.kl_ba_nats[0] == np.inf


def test_a_row_that_says_nothing_has_no_divergence_and_agrees_with_nobody():
    a = targets(distributions(1, 3), 4)
    a.ids[1], a.log_probs[1], a.log_left_out[1] = EMPTY_ID, -np.inf, 0
    for found in (divergence(a, targets(distributions(2, 3), 4)), divergence(a, a)):
        assert found.compared.tolist() == [True, False, True]
        assert np.isnan(found.mean_kl_nats).tolist() == [False, True, False]
        assert not found.same_top1[1]


def test_rows_beyond_one_block_are_compared_with_their_own():
    n = BLOCK_ROWS + 5
    a, b = targets(distributions(1, n), 4), targets(distributions(2, n), 4)
    assert divergence(a, b).kl_ab_nats[-1] == pytest.approx(naive_kl(a, b, n - 1), abs=2e-3)


def test_the_likeliest_token_is_that_of_a_dictionary():
    p = distributions(4)
    ids, probability = likeliest(targets(p, 6))
    assert np.array_equal(ids, p.argmax(axis=1))
    assert np.allclose(probability, p.max(axis=1), rtol=1e-6)


def test_no_rows_have_no_divergence_and_different_numbers_are_refused():
    assert divergence(empty_targets(0, 3), empty_targets(0, 4)).kl_ab_nats.shape == (0,)
    with pytest.raises(ValueError, match="1 rows cannot be compared with 2"):
        divergence(targets(distributions(1, 1), 2), targets(distributions(1, 2), 2))


@pytest.mark.parametrize("k", [1, 4, 20])
def test_a_row_that_holds_some_tokens_only_rules_out_no_other(k):
    a, b = targets(distributions(1), k), targets(distributions(2), k)
    closed = Targets(b.ids, b.log_probs, np.full_like(b.log_left_out, -np.inf))
    assert np.isinf(divergence(a, closed).kl_ab_nats).any()
    found = divergence(a, closed, (V, V))
    assert np.isfinite(found.kl_ab_nats).all()
    assert (found.kl_ab_nats <= 24 * math.log(2) + 1).all()  # all of A's mass where B has its least


def test_the_rest_that_a_closed_row_may_have_is_bounded_by_its_least_likely_token():
    logs = np.log(np.float32([[0.5, 0.5, np.nan], [1, 1e-12, np.nan], [1, np.nan, np.nan], [0.5, 0.25, 0.25]]))
    logs[np.isnan(logs)] = -np.inf
    closed = Targets(np.tile(np.arange(3, dtype=np.uint32), (4, 1)), logs, np.full(4, -np.inf, np.float32))
    assert with_possible_rest(closed, 3).log_left_out.tolist() == pytest.approx(
        [LOG_SMALLEST_MASS, math.log(1e-12), LOG_SMALLEST_MASS, -math.inf], rel=1e-6
    )
    assert with_possible_rest(closed, 102).log_left_out.tolist() == pytest.approx(
        [LOG_SMALLEST_MASS, math.log(100e-12), LOG_SMALLEST_MASS, LOG_SMALLEST_MASS], rel=1e-6
    )
    silent = Targets(
        np.full((2, 3), EMPTY_ID, np.uint32), np.full((2, 3), -np.inf, np.float32), np.zeros(2, np.float32)
    )
    assert with_possible_rest(silent, 9) is silent
