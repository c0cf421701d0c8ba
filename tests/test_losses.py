import math

import pytest
import torch

from student_fixtures import naive_kl_nats
from trainer.losses import sparse_forward_kl

SHAPES = [(7, 507, 12), (5, 123, 1), (4, 31, 31)]
"""(positions, vocabulary, k): an odd vocabulary, a single entry, and a vocabulary kept whole."""

tails = pytest.mark.parametrize("tail", ["ghost", "renormalise"])
shapes = pytest.mark.parametrize(("positions", "vocabulary", "k"), SHAPES)


def random_logits(positions, vocabulary, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(positions, vocabulary, generator=generator)).to(dtype)


def top_k(logits, k):
    """Return (ids, log-probabilities, log left-out mass) of the k most likely tokens; nothing is left out at k = V."""
    log_p = logits.double().log_softmax(dim=1)
    log_probs, ids = log_p.topk(k, dim=1)
    left_out = log_p.scatter(1, ids, -math.inf).logsumexp(dim=1)
    return ids, log_probs.float(), left_out.float()


def ragged(ids, log_probs, log_left_out):
    """Empty the last i % k slots of row i, their mass left out; what stands in an empty slot is any legal id."""
    ids, k = ids.clone(), ids.shape[1]
    empty = torch.arange(k) >= k - torch.arange(len(ids))[:, None] % k
    moved = torch.where(empty, log_probs.exp(), 0).sum(dim=1)
    ids[empty] = 0
    return ids, log_probs.masked_fill(empty, -math.inf), (log_left_out.exp() + moved).log()


def with_gradient(function, logits, *target):
    leaf = logits.clone().requires_grad_()
    values = function(leaf, *target)
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), gradient


@tails
@shapes
@pytest.mark.parametrize("prepare", [lambda *target: target, ragged], ids=["whole", "ragged"])
@pytest.mark.parametrize(("dtype", "gradient_tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 4e-3)])
def test_value_and_gradient_are_those_of_the_naive_sum(
    positions, vocabulary, k, tail, prepare, dtype, gradient_tolerance
):
    target = prepare(*top_k(random_logits(positions, vocabulary), k))
    student = random_logits(positions, vocabulary, seed=1, dtype=dtype)
    values, gradient = with_gradient(sparse_forward_kl, student, *target, tail)
    expected, expected_gradient = with_gradient(naive_kl_nats, student.double(), *target, tail)
    assert values.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=0, atol=gradient_tolerance)


@shapes
def test_a_student_that_equals_the_teacher_has_no_ghost_loss(positions, vocabulary, k):
    logits = random_logits(positions, vocabulary)
    values, gradient = with_gradient(sparse_forward_kl, logits + 5, *top_k(logits, k), "ghost")
    assert values.abs().max() < 1e-5
    assert gradient.abs().max() < 1e-5


@shapes
def test_ghost_is_a_lower_bound_of_the_full_divergence_and_exact_for_the_whole_vocabulary(positions, vocabulary, k):
    teacher, student = random_logits(positions, vocabulary), random_logits(positions, vocabulary, seed=1)
    log_p, log_q = teacher.double().log_softmax(1), student.double().log_softmax(1)
    full = (log_p.exp() * (log_p - log_q)).sum(1)
    ghost = sparse_forward_kl(student, *top_k(teacher, k), "ghost").double()
    assert (ghost <= full + 1e-5).all()
    assert torch.allclose(ghost, full, rtol=1e-5, atol=1e-5) == (k == vocabulary)


def test_renormalising_wants_no_mass_outside_the_kept_tokens_and_ghost_wants_the_teacher_s():
    teacher = random_logits(1, 50)
    target, pushed_tail = top_k(teacher, 5), {}
    for tail in ("ghost", "renormalise"):
        _, gradient = with_gradient(sparse_forward_kl, teacher, *target, tail)
        pushed_tail[tail] = float(gradient.scatter(1, target[0], 0).sum())
    assert abs(pushed_tail["ghost"]) < 1e-6
    assert pushed_tail["renormalise"] == pytest.approx(float(target[2].exp()), rel=1e-4)


@tails
def test_ids_in_empty_slots_have_no_influence(tail):
    ids, log_probs, left_out = ragged(*top_k(random_logits(8, 40), 6))
    student = random_logits(8, 40, seed=1)
    expected = with_gradient(sparse_forward_kl, student, ids, log_probs, left_out, tail)
    for anything in (ids[:, :1], ids.new_full((8, 1), 39), student.argmax(dim=1, keepdim=True)):
        other = torch.where(log_probs > -math.inf, ids, anything)
        found = with_gradient(sparse_forward_kl, student, other, log_probs, left_out, tail)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@tails
def test_a_logit_of_minus_infinity_outside_the_target_does_no_harm(tail):
    ids, log_probs, left_out = ragged(*top_k(random_logits(8, 40), 6))
    ruled_out = next(token for token in range(40) if token not in ids)
    student = random_logits(8, 40, seed=1)
    student[:, ruled_out] = -math.inf
    ids = torch.where(log_probs > -math.inf, ids, ruled_out)
    values, gradient = with_gradient(sparse_forward_kl, student, ids, log_probs, left_out, tail)
    assert values.isfinite().all()
    assert gradient.isfinite().all()


@tails
@pytest.mark.parametrize("log_left_out", [-math.inf, math.log(1e-7), math.log(0.1)])
@pytest.mark.parametrize("gap", [20, 22, 40, 1000])
def test_a_student_with_almost_no_mass_outside_the_kept_tokens_stays_finite(gap, log_left_out, tail):
    ids, log_probs, _ = top_k(random_logits(16, 500), 8)
    log_probs = log_probs.log_softmax(dim=1) + math.log1p(-math.exp(log_left_out))
    student = random_logits(16, 500, seed=1) / 3
    student.scatter_add_(1, ids, torch.full(ids.shape, float(gap)))
    rest = student.double().softmax(1).scatter(1, ids, 0).sum(1)
    assert rest.max() < 1e-6
    values, gradient = with_gradient(
        sparse_forward_kl, student, ids, log_probs, torch.full((16,), float(log_left_out)), tail
    )
    assert values.isfinite().all()
    assert gradient.abs().max() <= 1  # as of any KL in its logits


@tails
def test_a_row_without_entries_costs_nothing(tail):
    student = random_logits(2, 9)
    nothing = (torch.zeros(2, 3, dtype=torch.int64), torch.full((2, 3), -math.inf), torch.zeros(2), tail)
    values, gradient = with_gradient(sparse_forward_kl, student, *nothing)
    assert not values.any()
    assert not gradient.any()
