"""The loss on sparse targets against a naive float64 sum over outcomes."""

import math

import pytest
import torch
import torch.nn.functional as F

from loss_fixtures import PAIRS, loss, naive_divergence, ragged, random_logits, top_k, with_gradient
from tolerances import log_prob_rounding, rounding, softmax_roundings
from trainer.config.student_file import LossConfig
from trainer.losses.masses import log_masses
from trainer.losses.sparse import divergence, loss_terms
from trainer.losses.tails import SparseTargets

SHAPES = [(7, 507, 12), (5, 123, 1), (4, 31, 31)]
"""(positions, vocabulary, k): an odd vocabulary, a single entry, and a vocabulary kept whole."""

pairs = pytest.mark.parametrize(("tail", "kind"), PAIRS)
shapes = pytest.mark.parametrize(("positions", "vocabulary", "k"), SHAPES)


def assert_close(found, expected, vocabulary, *logits, factor=1):
    """Assert that a loss, or its gradient, is right up to the rounding of the log-probabilities in it.

    Args:
        found: Values in float32, or a gradient in the student's type, to which it is rounded once.
        expected: The same in float64.
        vocabulary: Entries of the softmax.
        logits: Of teacher and student; their largest is that of a log-probability, up to its sum.
        factor: By which the loss is multiplied, or 1.
    """
    largest = max(float(values[values.isfinite()].abs().max()) for values in logits) + math.log(vocabulary)
    tolerance = 2 * factor * log_prob_rounding(vocabulary, largest)
    if found.dtype == torch.bfloat16:
        tolerance += rounding(found.dtype, 1, expected)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


def golds(targets, vocabulary):
    """Return gold tokens of which every other one is kept, the first slot's, and the rest is any."""
    anything = torch.arange(len(targets.ids)) * 17 % vocabulary
    return torch.where(torch.arange(len(targets.ids)) % 2 == 0, targets.ids[:, 0], anything)


@pairs
@shapes
@pytest.mark.parametrize("prepare", [lambda targets: targets, ragged], ids=["whole", "ragged"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_are_those_of_the_naive_sum(positions, vocabulary, k, tail, kind, prepare, dtype):
    teacher = random_logits(positions, vocabulary)
    targets = prepare(top_k(teacher, k))
    student = random_logits(positions, vocabulary, seed=1, dtype=dtype)
    arguments = targets, golds(targets, vocabulary), loss(kind, tail)
    values, gradient = with_gradient(divergence, student, *arguments)
    expected, expected_gradient = with_gradient(naive_divergence, student.double(), *arguments)
    assert values.dtype == torch.float32
    assert gradient.dtype == dtype
    assert_close(values, expected, vocabulary, teacher, student)
    assert_close(gradient, expected_gradient, vocabulary, teacher, student)


@pytest.mark.parametrize("settings", [{"beta": 0.1}, {"beta": 0.9}, {"temperature": 3.0}, {"temperature": 0.5}])
def test_settings_of_the_divergence_are_those_of_the_naive_sum(settings):
    teacher, student = random_logits(6, 90), random_logits(6, 90, seed=1)
    targets, factor = ragged(top_k(teacher, 8)), max(1, settings.get("temperature", 1)) ** 2
    for tail, kind in [("ghost", "jensen_shannon")] if "beta" in settings else PAIRS:
        arguments = targets, golds(targets, 90), loss(kind, tail, **settings)
        found = with_gradient(divergence, student, *arguments)
        expected = with_gradient(naive_divergence, student.double(), *arguments)
        for mine, its in zip(found, expected, strict=True):
            assert_close(mine, its, 90, 2 * teacher, 2 * student, factor=factor)  # at half the temperature


@shapes
def test_masses_are_those_of_the_softmax_and_their_gradients_too(positions, vocabulary, k):
    targets = ragged(top_k(random_logits(positions, vocabulary), k))
    student = random_logits(positions, vocabulary, seed=1)
    gold, weights = golds(targets, vocabulary), random_logits(positions, k, seed=2)
    weight_of_rest, weight_of_gold = random_logits(positions, 2, seed=3).unbind(1)

    def weighted(log_q, log_rest, log_gold):
        kept = torch.where(targets.used, log_q, 0) * weights
        rest = torch.where(log_rest > -math.inf, log_rest, 0) * weight_of_rest
        return kept.sum(1) + rest + log_gold * weight_of_gold

    def naive(logits):
        log_q = logits.log_softmax(1)
        inside = torch.zeros(logits.shape, dtype=torch.bool)
        for row, (ids, used) in enumerate(zip(targets.ids, targets.used, strict=True)):
            inside[row, ids[used]] = True
        rest = torch.where(inside, 0, log_q.exp()).sum(1)
        gold_log_q = log_q.gather(1, gold[:, None])[:, 0]
        return weighted(log_q.gather(1, targets.ids), torch.where(rest > 0, rest, 1).log(), gold_log_q)

    found = with_gradient(lambda logits: weighted(*log_masses(logits, targets.ids, targets.used, gold)), student)
    expected = with_gradient(naive, student.double())
    largest = max(float(values.abs().max()) for values in (weights, weight_of_rest, weight_of_gold))
    for mine, its in zip(found, expected, strict=True):
        assert_close(mine, its, vocabulary, student, factor=(k + 2) * largest)


@pairs
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_cross_entropy_comes_along_whatever_the_divergence(tail, kind, temperature):
    targets, student = ragged(top_k(random_logits(9, 70), 6)), random_logits(9, 70, seed=1)
    gold = golds(targets, 70)
    settings = loss(kind, tail, temperature=temperature)
    found = with_gradient(lambda logits: loss_terms(logits, targets, gold, settings)[1], student)
    expected = with_gradient(lambda logits: F.cross_entropy(logits, gold, reduction="none"), student.double())
    for mine, its in zip(found, expected, strict=True):
        assert_close(mine, its, 70, student)


@pytest.mark.parametrize("gap", [10, 20, 40, 80])
def test_a_tail_far_below_float32_s_step_at_1_is_still_pulled_up_exactly(gap):
    """1 - sum(q) would be 0 from a gap of 20 on."""
    targets, student = top_k(random_logits(3, 60), 5), random_logits(3, 60, seed=1)
    student.scatter_add_(1, targets.ids, torch.full(targets.ids.shape, float(gap)))
    gold, settings = targets.ids[:, 0], loss()
    _, gradient = with_gradient(divergence, student, targets, gold, settings)
    _, expected = with_gradient(naive_divergence, student.double(), targets, gold, settings)
    others = torch.ones_like(student).scatter(1, targets.ids, 0).bool()
    assert (expected[others] < 0).all()
    relative = log_prob_rounding(60, student) + rounding(torch.float32, softmax_roundings(60))
    torch.testing.assert_close(gradient[others].double(), expected[others], rtol=relative, atol=1e-12)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jensen_shannon", "total_variation"])
@shapes
def test_a_student_that_equals_the_teacher_has_no_ghost_loss(positions, vocabulary, k, kind):
    logits = random_logits(positions, vocabulary)
    targets = top_k(logits, k)
    values, gradient = with_gradient(divergence, logits + 5, targets, targets.ids[:, 0], loss(kind))
    assert_close(values, torch.zeros(positions).double(), vocabulary, logits + 5)
    if kind != "total_variation":  # whose slope is not continuous there
        assert_close(gradient, torch.zeros(positions, vocabulary).double(), vocabulary, logits + 5)


@pairs
def test_ids_in_empty_slots_have_no_influence(tail, kind):
    targets, student = ragged(top_k(random_logits(8, 40), 6)), random_logits(8, 40, seed=1)
    gold, settings = golds(targets, 40), loss(kind, tail)
    expected = with_gradient(divergence, student, targets, gold, settings)
    for anything in (targets.ids[:, :1], torch.full((8, 1), 39), student.argmax(dim=1, keepdim=True)):
        ids = torch.where(targets.used, targets.ids, anything)
        found = with_gradient(
            divergence, student, SparseTargets(ids, targets.log_probs, targets.log_left_out), gold, settings
        )
        for mine, its in zip(found, expected, strict=True):
            assert_close(mine, its.double(), 40, student)


@pytest.mark.parametrize(("tail", "kind"), [pair for pair in PAIRS if pair[0] != "uniform"])
def test_a_logit_of_minus_infinity_outside_the_target_does_no_harm(tail, kind):
    targets, student = ragged(top_k(random_logits(8, 40), 6)), random_logits(8, 40, seed=1)
    ruled_out = next(token for token in range(40) if token not in targets.ids)
    student[:, ruled_out] = -math.inf
    ids = torch.where(targets.used, targets.ids, ruled_out)
    targets = SparseTargets(ids, targets.log_probs, targets.log_left_out)
    values, gradient = with_gradient(divergence, student, targets, ids[:, 0], loss(kind, tail))
    assert values.isfinite().all()
    assert gradient.isfinite().all()


@pairs
@pytest.mark.parametrize("log_left_out", [-math.inf, math.log(1e-7), math.log(0.1)])
@pytest.mark.parametrize("gap", [20, 40, 1000])
def test_a_student_with_almost_no_mass_outside_the_kept_tokens_stays_finite(gap, log_left_out, tail, kind):
    targets = top_k(random_logits(16, 500), 8)
    log_probs = targets.log_probs.log_softmax(dim=1) + math.log1p(-math.exp(log_left_out))
    targets = SparseTargets(targets.ids, log_probs, torch.full((16,), float(log_left_out)))
    student = random_logits(16, 500, seed=1) / 3
    student.scatter_add_(1, targets.ids, torch.full(targets.ids.shape, float(gap)))
    values, gradient = with_gradient(divergence, student, targets, targets.ids[:, 0], loss(kind, tail))
    assert values.isfinite().all()
    assert gradient.abs().max() < (10 if kind == "reverse_kl" else 1)


@pytest.mark.parametrize(("tail", "kind"), [pair for pair in PAIRS if pair[0] != "gold"])
def test_a_student_without_other_tokens_is_not_asked_for_the_rest(tail, kind):
    """As after padding ids that the student lacks were moved into the left-out mass."""
    targets, student = top_k(random_logits(3, 9), 9), random_logits(3, 9, seed=1)
    moved = SparseTargets(targets.ids, targets.log_probs, torch.full((3,), -3.0))
    arguments = targets.ids[:, 0], loss(kind, tail)
    found, expected = (with_gradient(divergence, student, some, *arguments) for some in (moved, targets))
    for mine, its in zip(found, expected, strict=True):
        assert_close(mine, its.double(), 9, student)


@pytest.mark.parametrize(("tail", "kind"), [pair for pair in PAIRS if pair[0] not in ("gold", "uniform")])
def test_a_row_without_entries_costs_nothing(tail, kind):
    student = random_logits(2, 9)
    nothing = SparseTargets(torch.zeros(2, 3, dtype=torch.int64), torch.full((2, 3), -math.inf), torch.zeros(2))
    values, gradient = with_gradient(divergence, student, nothing, torch.zeros(2, dtype=torch.int64), loss(kind, tail))
    assert_close(values, torch.zeros(2).double(), 9, student)
    assert_close(gradient, torch.zeros(2, 9).double(), 9, student)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_gradients_keep_their_size_at_a_high_temperature(kind):
    """Of the whole vocabulary and small logits, where Hinton's argument is exact in the limit."""
    teacher, student = random_logits(4, 30) / 30, random_logits(4, 30, seed=1) / 30
    sizes = []
    for temperature in (20.0, 80.0):
        targets = top_k(teacher / temperature, 30)
        arguments = targets, targets.ids[:, 0], loss(kind, temperature=temperature)
        sizes.append(float(with_gradient(divergence, student, *arguments)[1].norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


def test_the_default_is_forward_kl_with_ghost_at_temperature_1():
    assert LossConfig() == loss("forward_kl", "ghost", temperature=1.0)
