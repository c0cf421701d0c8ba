"""Mixtures of teachers against float64 sums that write every outcome of every teacher down."""

import math

import pytest
import torch

from loss_fixtures import PAIRS, loss, naive_divergence, naive_sum, ragged, random_logits, top_k, with_gradient
from tolerances import ELEMENTWISE, rounding, softmax_roundings
from trainer.config.mixture import MixtureConfig
from trainer.losses.mixture import mixed_loss_terms, mixed_targets, union
from trainer.losses.mixture_weights import LEAST_LOSS_NATS, teacher_weights
from trainer.losses.sparse import loss_terms
from trainer.losses.tails import SparseTargets
from trainer.verdicts.compatibility import TargetSummary
from trainer.verdicts.mixture import explain_mixture

POSITIONS, VOCABULARY, SLOTS = 11, 23, (5, 3, 9)
GOLD = torch.arange(POSITIONS) % VOCABULARY
STUDENT = random_logits(POSITIONS, VOCABULARY, seed=9)
TEMPERATURES = (1.0, 2.0)


def teachers(slots=SLOTS, alike=0.7):
    """Return teachers of ragged rows: some tokens are kept by all, some by one, and in some rows nothing by one."""
    shared = alike * random_logits(POSITIONS, VOCABULARY, seed=3)
    made = [ragged(top_k(shared + random_logits(POSITIONS, VOCABULARY, seed=t), k)) for t, k in enumerate(slots)]
    made[1].log_probs[4], made[1].log_left_out[4] = -math.inf, 0.0
    return made


def complete(slots=SLOTS):
    """Return teachers that keep the whole vocabulary, and their probabilities (N, T, V) in float64."""
    logits = [random_logits(POSITIONS, VOCABULARY, seed=t) for t in range(len(slots))]
    return [top_k(z, VOCABULARY) for z in logits], torch.stack([z.double().softmax(1) for z in logits], dim=1)


def some_weights(zero=True):
    weights = torch.rand(POSITIONS, len(SLOTS), generator=torch.Generator().manual_seed(1)) + 0.05
    if zero:
        weights[2, 0] = 0
    return weights / weights.sum(dim=1, keepdim=True)


def naive_losses(logits, targets, weights, settings):
    each = [naive_divergence(logits, t, GOLD, settings) for t in targets]
    return sum(weights[:, t].double() * value for t, value in enumerate(each))


def naive_mean(targets, weights):
    """Return the mean of targets as one, whose slots are the vocabulary."""
    p = torch.zeros(POSITIONS, VOCABULARY, dtype=torch.float64)
    rest = torch.zeros(POSITIONS, dtype=torch.float64)
    for t, each in enumerate(targets):
        for n in range(POSITIONS):
            rest[n] += weights[n, t] * math.exp(each.log_left_out[n])
            for token, log_p in zip(each.ids[n].tolist(), each.log_probs[n].tolist(), strict=True):
                p[n, token] += weights[n, t] * math.exp(log_p)
    return SparseTargets(torch.arange(VOCABULARY).expand(POSITIONS, -1), p.log(), rest.log())


def of_losses(logits, targets, weights, settings):
    return mixed_loss_terms(logits, targets, weights, GOLD, settings)[0]


def of_distributions(logits, targets, weights, settings):
    return loss_terms(logits, mixed_targets(targets, weights), GOLD, settings)[0]


def assert_equal(found, expected, tolerance=3e-5):
    for mine, true in zip(found, expected, strict=True):
        assert torch.isfinite(mine).all()
        assert float((mine - true).abs().max()) < tolerance * max(1, float(true.abs().max()))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("tail", "divergence"), PAIRS)
def test_a_mixture_of_losses_equals_the_weighted_sum_and_its_gradient(tail, divergence, temperature):
    settings = loss(divergence, tail, temperature=temperature)
    found = with_gradient(of_losses, STUDENT, teachers(), some_weights(), settings)
    assert_equal(found, with_gradient(naive_losses, STUDENT.double(), teachers(), some_weights(), settings))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("tail", "divergence"), PAIRS)
def test_a_mixture_of_distributions_equals_the_loss_on_their_mean(tail, divergence, temperature):
    settings, mean = loss(divergence, tail, temperature=temperature), naive_mean(teachers(), some_weights())
    found = with_gradient(of_distributions, STUDENT, teachers(), some_weights(), settings)
    assert_equal(found, with_gradient(naive_divergence, STUDENT.double(), mean, GOLD, settings))


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon", "total_variation"])
def test_teachers_that_keep_everything_are_mixed_exactly(divergence):
    targets, p = complete()
    weights, settings = some_weights(zero=False), loss(divergence)

    def full(logits, outcomes):
        return torch.stack([naive_sum(a, q, settings) for a, q in zip(outcomes, logits.softmax(1), strict=True)])

    def summed(logits):
        return sum(weights[:, t].double() * full(logits, p[:, t]) for t in range(len(targets)))

    mean = (weights.double()[:, :, None] * p).sum(dim=1)
    assert_equal(with_gradient(of_losses, STUDENT, targets, weights, settings), with_gradient(summed, STUDENT.double()))
    found = with_gradient(of_distributions, STUDENT, targets, weights, settings)
    assert_equal(found, with_gradient(full, STUDENT.double(), mean))


def test_forward_kl_of_whole_teachers_pulls_alike_in_both_mixtures_and_differs_by_a_constant():
    targets, p = complete()
    weights, settings = some_weights(zero=False), loss()
    losses, gradient = with_gradient(of_losses, STUDENT, targets, weights, settings)
    mixed, other = with_gradient(of_distributions, STUDENT, targets, weights, settings)
    mean = (weights.double()[:, :, None] * p).sum(dim=1, keepdim=True)
    constant = (weights.double() * (p * (p / mean).log()).sum(dim=2)).sum(dim=1)
    assert_equal([gradient, losses - mixed], [other, constant])
    assert float(constant.min()) > 0.01


@pytest.mark.parametrize("function", [of_losses, of_distributions])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon", "total_variation"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_one_teacher_of_weight_1_is_no_mixture_bit_for_bit(function, divergence, temperature):
    (alone,) = teachers(SLOTS[:1] + SLOTS[1:2])[:1]
    order = torch.where(alone.used, alone.ids, VOCABULARY).argsort(dim=1, stable=True)  # ascending, as decoded
    alone = SparseTargets(alone.ids.gather(1, order), alone.log_probs.gather(1, order), alone.log_left_out)
    settings = loss(divergence, temperature=temperature)
    found = with_gradient(function, STUDENT, [alone], torch.ones(POSITIONS, 1), settings)
    expected = with_gradient(lambda z: loss_terms(z, alone, GOLD, settings)[0], STUDENT)
    assert all(torch.equal(mine, true) for mine, true in zip(found, expected, strict=True))


def test_the_union_holds_each_kept_token_once():
    targets = teachers()
    together = union(targets)
    for n in range(POSITIONS):
        kept = [set(each.ids[n][each.used[n]].tolist()) for each in targets]
        mine = together.ids[n][together.used[n]].tolist()
        assert mine == sorted(set.union(*kept))
    ids, used = (torch.cat([getattr(each, name) for each in targets], dim=1) for name in ("ids", "used"))
    assert torch.equal(together.ids.gather(1, together.slots)[used], ids[used])
    assert not together.used.gather(1, together.slots)[~used].any()


def test_the_cross_entropy_of_a_mixture_is_the_students_own():
    expected = torch.nn.functional.cross_entropy(STUDENT, GOLD, reduction="none")
    for temperature in TEMPERATURES:
        found = mixed_loss_terms(STUDENT, teachers(), some_weights(), GOLD, loss(temperature=temperature))[1]
        assert_equal([found], [expected])


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon", "total_variation"])
def test_a_mixture_of_topk_losses_is_a_lower_bound_of_the_full_sum(divergence):
    whole, p = complete()
    weights, settings = some_weights(), loss(divergence)
    kept = [top_k(p[:, t].log(), k) for t, k in enumerate(SLOTS)]
    found, full = (of_losses(STUDENT, each, weights, settings) for each in (kept, whole))
    assert (found <= full + 1e-5).all()
    assert float((full - found).max()) > 0.01


def test_entries_of_a_mixture_of_topk_are_too_low_by_no_more_than_the_stated_bound():
    _, p = complete()
    weights = some_weights()
    kept = [top_k(p[:, t].log(), k) for t, k in enumerate(SLOTS)]
    mean, found = (weights.double()[:, :, None] * p).sum(dim=1), mixed_targets(kept, weights)
    entries = torch.zeros_like(mean).scatter_add_(1, found.ids, found.log_probs.exp().double())
    in_union = torch.zeros_like(mean).scatter_add_(1, found.ids, found.used.double()) > 0
    missing = torch.where(in_union, mean - entries, 0.0)
    bounds = [torch.minimum(each.log_left_out, each.log_probs.amin(dim=1)).exp() for each in kept]
    assert float(missing.min()) > -1e-6
    assert (missing.amax(dim=1) <= (weights * torch.stack(bounds, dim=1)).sum(dim=1) + 1e-6).all()
    assert (missing.amax(dim=1) > 1e-3).any()
    left_out = (weights * torch.stack([each.log_left_out.exp() for each in kept], dim=1)).sum(dim=1)
    assert (missing.sum(dim=1) <= left_out + 1e-6).all()


def test_a_mixture_of_topk_distributions_pulls_at_a_student_that_equals_the_mean_and_one_of_whole_ones_does_not():
    whole, p = complete()
    weights = some_weights(zero=False)
    kept = [top_k(p[:, t].log(), k) for t, k in enumerate(SLOTS)]
    mean = (weights.double()[:, :, None] * p).sum(dim=1).log().float()
    pull = [
        float(with_gradient(of_distributions, mean, each, weights, loss())[1].abs().max()) for each in (whole, kept)
    ]
    assert pull[0] < rounding(torch.float32, softmax_roundings(p.shape[-1])) < 1e-3 < pull[1]


FAMILIES = [
    (("likeliest", "likeliest"), "losses", "lower bound"),
    (("likeliest", "likeliest"), "distributions", "biased"),
    (("whole", "whole"), "distributions", "exact"),
    (("whole", "drawn"), "distributions", "unbiased"),
    (("whole", "drawn"), "losses", "unbiased"),
    (("whole", "likeliest"), "losses", "lower bound"),
    (("drawn", "likeliest"), "distributions", "biased"),
    (("likeliest",), "distributions", "lower bound"),
]


@pytest.mark.parametrize(("families", "of", "level"), FAMILIES)
def test_verdicts(families, of, level):
    sources = [TargetSummary(family) for family in families]
    assert explain_mixture(sources, loss(), MixtureConfig(of=of)).level == level


def test_the_worst_teacher_decides():
    sources = [TargetSummary("likeliest"), TargetSummary("drawn")]
    assert explain_mixture(sources, loss("reverse_kl"), MixtureConfig()).level == "refused"
    assert explain_mixture(sources, loss("jensen_shannon"), MixtureConfig()).level == "biased"


GIVEN = torch.tensor([[1.0, 2.0, 0.0], [3.0, 1.0, 1.0]])
SPOKE = torch.ones(2, 3, dtype=torch.bool)
LOG_GOLD = torch.tensor([[-0.5, -2.0, -0.1], [0.0, -3.0, -1.0]])
ENTROPY = torch.tensor([[0.2, 1.5, 0.0], [2.0, 0.0, 0.7]])
RULES = {
    "fixed": (None, lambda b, x: b),
    "inverse_loss": (LOG_GOLD, lambda b, x: b / max(-x, LEAST_LOSS_NATS)),
    "gold_likelihood": (LOG_GOLD, lambda b, x: b * math.exp(x)),
    "entropy": (ENTROPY, lambda b, x: b * math.exp(-x)),
    "discounted": (LOG_GOLD, lambda b, x: b / (1 - x)),
}


@pytest.mark.parametrize("rule", RULES)
def test_weights_follow_their_formula(rule):
    scalars, formula = RULES[rule]
    found = teacher_weights(rule, GIVEN, SPOKE, scalars)
    for n in range(2):
        row = [formula(float(GIVEN[n, t]), 0 if scalars is None else float(scalars[n, t])) for t in range(3)]
        total = 1 if rule == "discounted" else sum(row)
        assert found[n].tolist() == pytest.approx(
            [w / total for w in row], rel=rounding(torch.float32, 3 + 3 * ELEMENTWISE)
        )


@pytest.mark.parametrize("temperature", [0.25, 3.0])
@pytest.mark.parametrize("rule", ["inverse_loss", "gold_likelihood", "entropy"])
def test_a_temperature_raises_the_factor_of_a_rule_to_its_inverse_and_leaves_the_given_weight(rule, temperature):
    scalars, formula = RULES[rule]
    weights = teacher_weights(rule, GIVEN, SPOKE, scalars, temperature)
    for n in range(2):
        factors = [formula(1.0, float(scalars[n, t])) ** (1 / temperature) for t in range(3)]
        row = [float(GIVEN[n, t]) * factors[t] for t in range(3)]
        tolerance = rounding(torch.float32, 3 + 3 * ELEMENTWISE) * 8 / min(1, temperature)  # logs below 8 are divided
        assert weights[n].tolist() == pytest.approx([w / sum(row) for w in row], rel=tolerance)


@pytest.mark.parametrize("rule", RULES)
def test_a_teacher_that_said_nothing_counts_nothing(rule):
    scalars, spoke = RULES[rule][0], SPOKE.clone()
    spoke[1, 0] = False
    found = teacher_weights(rule, GIVEN, spoke, scalars)
    assert found[1, 0] == 0
    assert torch.equal(
        found[1, 1:], teacher_weights(rule, GIVEN[:, 1:], SPOKE[:, 1:], None if scalars is None else scalars[:, 1:])[1]
    )


@pytest.mark.parametrize("rule", ["inverse_loss", "gold_likelihood"])
def test_teachers_that_all_ruled_the_gold_token_out_count_as_given(rule):
    found = teacher_weights(rule, GIVEN, SPOKE, torch.full((2, 3), -math.inf))
    assert torch.allclose(found, GIVEN / GIVEN.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "discounted"])
def test_the_weight_of_a_single_teacher_is_exactly_1(rule):
    scalars = RULES[rule][0]
    found = teacher_weights(rule, torch.full((2, 1), 0.3), SPOKE[:, :1], None if scalars is None else scalars[:, :1])
    assert found.tolist() == [[1.0], [1.0]]


def test_discounted_weights_make_no_distribution():
    with pytest.raises(ValueError, match="cannot mix distributions"):
        MixtureConfig(weights="discounted", of="distributions")
