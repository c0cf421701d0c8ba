"""The table of what is exact, taken at its word: every verdict is measured against the full divergence.

A vocabulary of 12 suffices: the verdicts are statements about sums over outcomes, and a small
teacher that draws often makes expectations visible in a second.
"""

import itertools
import math
from typing import get_args

import pytest
import torch
import yaml
from click.testing import CliRunner

import kinds
from cache_tools.codecs.registry import DeltaPower
from cache_tools.errors import ConfigError
from logitcask import cli
from loss_fixtures import loss, naive_sum, random_logits, top_k, with_gradient
from store_fixtures import make_cache, teacher_manifest
from student_fixtures import python, student_values
from tolerances import log_prob_rounding
from trainer.config.student_file import Divergence, HiddenPair, LossConfig, TailPolicy
from trainer.losses.full import full_divergence
from trainer.losses.sparse import divergence
from trainer.losses.tails import SparseTargets
from trainer.losses.tempering import at_temperature, normaliser_names
from trainer.verdicts.compatibility import (
    FAMILIES,
    LEVELS,
    RULES,
    TEMPERED,
    TargetSummary,
    check_loss,
    explain,
    verdict_at_1,
)

VOCABULARY, DRAWS, ROWS = 12, 4, 40_000
CAPTURED = normaliser_names(2.0)
FLOOR = ("logsumexp", "tail_minimum")
SOURCES = {
    "hidden": TargetSummary("hidden"),
    "whole": TargetSummary("whole"),
    "likeliest": TargetSummary("likeliest"),
    "likeliest, tempered": TargetSummary("likeliest", CAPTURED),
    "likeliest, floored": TargetSummary("likeliest", FLOOR),
    "sampled": TargetSummary("drawn"),
    "hybrid": TargetSummary("drawn"),
}
CASES = [
    (name, kind, tail, temperature)
    for name, kind, tail, temperature in itertools.product(SOURCES, get_args(Divergence), get_args(TailPolicy), (1, 2))
    if (name != "hidden" or tail == "ghost") and (name != "likeliest, floored" or tail == "minimum")
]
TEACHER, STUDENT = random_logits(1, VOCABULARY, seed=5) / 2, random_logits(1, VOCABULARY, seed=6) / 2


def settings_of(name, kind, tail, temperature):
    return loss(kind, None if name == "hidden" else tail, temperature=temperature)


def verdict_of(case):
    return explain(SOURCES[case[0]], settings_of(*case))


def cases(*levels):
    """Parametrise with every loss on every kind of target that has one of these verdicts."""
    chosen = [case for case in CASES if verdict_of(case).level in levels]
    return pytest.mark.parametrize("case", chosen, ids=["-".join(map(str, case)) for case in chosen])


def drawn(head):
    """Return ROWS captures of the teacher's row: its ``head`` likeliest tokens exactly, and DRAWS draws of the rest."""
    p_V = TEACHER.double().softmax(1)[0]
    exact_V = torch.zeros(VOCABULARY, dtype=torch.bool)
    exact_V[p_V.topk(head).indices] = True
    tail_V = torch.where(exact_V, 0, p_V)
    generator = torch.Generator().manual_seed(0)
    draws = torch.multinomial(tail_V.expand(ROWS, -1), DRAWS, replacement=True, generator=generator)
    counts = torch.zeros(ROWS, VOCABULARY, dtype=torch.float64).scatter_add_(1, draws, torch.ones(ROWS, DRAWS).double())
    weights = torch.where(exact_V, p_V, counts / DRAWS * tail_V.sum())
    ids = torch.arange(VOCABULARY).expand(ROWS, -1)
    return SparseTargets(ids, weights.log().float(), torch.full((ROWS,), -math.inf))


def targets_of(name, settings):
    if name in ("sampled", "hybrid"):
        return drawn(3 if name == "hybrid" else 0)
    targets = top_k(TEACHER, VOCABULARY if name == "whole" else 4)
    held = {CAPTURED[0]: TEACHER.logsumexp(1), CAPTURED[1]: (TEACHER / 2).logsumexp(1), "tail_minimum": TEACHER.amin(1)}
    names = SOURCES[name].scalars_for(settings)
    return at_temperature(
        targets, VOCABULARY, settings, None if names is None else {each: held[each] for each in names}
    )


def measured(case, student):
    """Return (values, gradients) per captured row, of a student (1, V)."""
    name, settings = case[0], settings_of(*case)
    if name == "hidden":
        return with_gradient(full_divergence, student, TEACHER, settings)
    targets = targets_of(name, settings)
    rows = len(targets.ids)
    gold = torch.full((rows,), int(STUDENT.argmax()))
    return with_gradient(divergence, student.expand(rows, -1), targets, gold, settings)


def tolerance(case):
    """Return the rounding of a value or gradient: of both sides' log-probabilities, times the factor of the loss."""
    factor = max(1, settings_of(*case).temperature) ** 2
    return 2 * factor * log_prob_rounding(VOCABULARY, torch.cat([TEACHER, STUDENT]).abs().max() + math.log(VOCABULARY))


def full(case, student):
    """Return (value, gradient) of the divergence from the teacher's whole distribution, in float64."""
    settings = settings_of(*case)
    p = (TEACHER.double() / settings.temperature).softmax(1)
    return with_gradient(lambda z: naive_sum(p, (z / settings.temperature).softmax(1), settings), student.double())


def mean_and_error(rows):
    rows = rows.double()
    return rows.mean(0), rows.std(0) / math.sqrt(len(rows))


@cases("exact")
def test_what_is_called_exact_equals_the_full_divergence_and_its_gradient(case):
    for found, expected in zip(measured(case, STUDENT), full(case, STUDENT), strict=True):
        torch.testing.assert_close(found.double().squeeze(), expected.squeeze(), rtol=0, atol=tolerance(case))


@cases("unbiased")
def test_what_is_called_unbiased_has_the_full_gradient_in_expectation(case):
    gradient, error = mean_and_error(measured(case, STUDENT)[1])
    assert ((gradient - full(case, STUDENT)[1][0]).abs() < 5 * error + 1e-6).all()
    assert error.max() < 0.005


@pytest.mark.parametrize("name", ["sampled", "hybrid"])
def test_a_drawn_forward_kl_is_a_value_only_with_the_stored_entropy(name):
    case = (name, "forward_kl", "ghost", 1)
    values, targets, truth = (
        measured(case, STUDENT)[0].double(),
        targets_of(name, settings_of(*case)),
        full(case, STUDENT)[0],
    )
    own_entropy = -torch.where(targets.used, targets.log_probs.exp() * targets.log_probs, 0).sum(1)
    stored_entropy = torch.distributions.Categorical(logits=TEACHER.double()).entropy()
    mean, error = mean_and_error(values + own_entropy - stored_entropy)
    assert abs(mean - truth) < 5 * error
    mean, error = mean_and_error(values)
    assert mean - truth > 50 * error


@cases("lower bound")
def test_what_is_called_a_lower_bound_is_one_and_zero_at_the_teacher(case):
    students = [random_logits(1, VOCABULARY, seed=seed) for seed in range(20)]
    below = [float(full(case, student)[0] - measured(case, student)[0]) for student in students]
    assert min(below) > -tolerance(case)
    assert max(below) > 1e-3  # or it would have to be called exact
    value, gradient = measured(case, TEACHER)
    assert abs(float(value)) < tolerance(case)
    if case[1] != "total_variation":  # whose slope is not continuous there
        assert gradient.abs().max() < tolerance(case)
    assert measured(case, STUDENT)[0] > 1e-3


@cases("biased")
def test_what_is_called_biased_pushes_a_student_away_that_equals_the_teacher(case):
    gradient, error = mean_and_error(measured(case, TEACHER)[1].repeat(2, 1))
    largest = gradient.abs().max()
    if case[1] == "total_variation":
        assert largest > 1e-3
    assert largest > 5e-3
    assert largest > 20 * error[gradient.abs().argmax()]


def test_none_is_a_weaker_bound_than_ghost():
    for kind in ("jensen_shannon", "total_variation"):
        weak, strong = (measured(("likeliest", kind, tail, 1), STUDENT)[0] for tail in ("none", "ghost"))
        assert weak < strong - 1e-3


def test_a_ghost_is_exact_where_student_and_teacher_shape_the_tail_alike():
    student = TEACHER.clone()
    student[0, TEACHER[0].topk(4).indices] = torch.tensor([0.3, -0.1, 0.2, 1.0])
    for kind in get_args(Divergence):
        case = ("likeliest", kind, "ghost", 1)
        assert abs(float(measured(case, student)[0] - full(case, student)[0])) < tolerance(case)


def test_every_loss_has_a_verdict_and_every_rule_is_needed():
    used = {
        id(verdict_at_1(*loss_)) for loss_ in itertools.product(FAMILIES, get_args(Divergence), get_args(TailPolicy))
    }
    assert used == {id(rule.verdict) for rule in RULES}
    assert {verdict_of(case).level for case in CASES} == set(LEVELS)
    assert {family for family, _ in TEMPERED} == set(FAMILIES)


def manifest(kind="topk", k=4, vocabulary=1000, scalars=(), hidden=None):
    made = teacher_manifest({}, vocabulary, k, (kind, DeltaPower(k, vocabulary)), hidden=hidden or {})
    return made.model_copy(update={"scalars": (*made.scalars, *scalars)})


@pytest.mark.parametrize(
    ("made", "family"),
    [
        (manifest(), "likeliest"),
        (manifest("topp"), "likeliest"),
        (manifest(k=9, vocabulary=9), "whole"),
        (manifest("topp", k=9, vocabulary=9), "likeliest"),
        (manifest("dense", k=9, vocabulary=9), "whole"),
        (manifest("sampled"), "drawn"),
        (manifest("hybrid"), "drawn"),
    ],
)
def test_a_manifest_says_which_line_of_the_table_counts(made, family):
    assert TargetSummary.of(made, LossConfig()).family == family
    assert TargetSummary.of(made, LossConfig(source="hidden")).family == "hidden"


def test_the_default_loss_is_accepted_on_every_kind():
    levels = [check_loss(manifest(kind), LossConfig()).level for kind in ("topk", "topp", "sampled", "hybrid")]
    assert levels == ["lower bound", "lower bound", "unbiased", "unbiased"]


def test_captured_temperatures_are_found_by_name():
    made = manifest(scalars=["logsumexp_t2", "logsumexp_t1.5"])
    for temperature, found in ((2, True), (2.0, True), (1.5, True), (3, False)):
        source = TargetSummary.of(made, LossConfig(temperature=temperature))
        assert (source.scalars_for(LossConfig(temperature=temperature)) is not None) == found
    assert TargetSummary.of(made, LossConfig()).scalars_for(LossConfig()) is None


def refusal(made, **settings):
    with pytest.raises(ConfigError) as error:
        check_loss(made, LossConfig(**settings))
    return str(error.value)


def test_refuses_a_biased_loss_and_says_why_and_what_to_do():
    assert refusal(manifest(), tail="renormalise") == (
        "loss: this loss is biased on this cache (expected a loss that is exact, unbiased or a lower bound, "
        "found forward_kl, tail renormalise, temperature 1, on topk, topp). "
        "Its minimum gives the left-out tokens no probability at all. "
        "Set loss.tail: ghost; or accept it with loss.allow_biased: true."
    )


def test_accepts_a_biased_loss_if_asked_and_a_refused_one_never():
    assert check_loss(manifest(), LossConfig(tail="gold", allow_biased=True)).level == "biased"
    message = refusal(manifest("sampled"), divergence="reverse_kl", allow_biased=True)
    assert message.endswith(
        "Tokens that were not drawn have weight 0, which makes reverse KL infinite. Set loss.divergence: forward_kl."
    )


def test_refuses_a_temperature_that_was_not_captured_and_names_the_key_that_captures_it():
    message = refusal(manifest(hidden=kinds.EVERY_HIDDEN), temperature=2.5)
    assert "temperature 2.5, on topk, topp" in message
    assert message.endswith(
        "Set loss.temperature: 1; or set loss.source: hidden; or capture with target.temperatures: [2.5]; "
        "or accept it with loss.allow_biased: true."
    )


def test_refuses_the_lowest_logit_where_it_was_not_captured_and_names_the_key_that_captures_it():
    message = refusal(manifest(scalars=CAPTURED), tail="minimum", temperature=2, allow_biased=True)
    assert "The cache does not hold the lowest logit. Set loss.tail: ghost; or capture" in message
    assert message.endswith("with target.scalars: [tail_minimum].")
    assert check_loss(manifest(scalars=FLOOR[1:]), LossConfig(tail="minimum", temperature=3, allow_biased=True))


def test_a_teacher_of_fewer_tokens_than_logits_is_whole_when_all_of_those_are_kept():
    made = manifest("topk", k=9, vocabulary=1000)
    asked = made.target.model_copy(update={"settings": {"tokens": 9}})
    assert TargetSummary.of(made, LossConfig()).family == "likeliest"
    assert TargetSummary.of(made.model_copy(update={"target": asked}), LossConfig()).family == "whole"


@pytest.mark.parametrize("kind", ["sampled", "hybrid"])
def test_refuses_to_temper_draws(kind):
    message = refusal(manifest(kind, scalars=CAPTURED), temperature=2, allow_biased=True)
    assert message.endswith(
        "Draws made at temperature 1 cannot be tempered; capture others for it. Set loss.temperature: 1."
    )


def test_refuses_hidden_layers_that_the_cache_does_not_hold():
    assert refusal(manifest(), source="hidden") == (
        "loss: the loss needs hidden states that this cache does not hold "
        "(expected layer last, found no hidden states). "
        "Name the layers in the teacher's hidden.layers and run 'logitcask capture' again; it adds them."
    )
    pair = HiddenPair(student_layer=0, teacher_layer=7)
    message = refusal(manifest(hidden=kinds.EVERY_HIDDEN), kd_weight=0, hidden=[pair])
    assert "(expected layer 7, found layer last, 0, 1)" in message


def test_a_loss_on_the_text_alone_uses_no_predictions():
    assert check_loss(manifest(), LossConfig(kd_weight=0, tail="renormalise")) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beta": 0.3}, "beta is used by jensen_shannon only; divergence is forward_kl"),
        ({"source": "hidden", "tail": "ghost"}, "tail is not used with source: hidden, which leaves no mass out"),
        ({"divergence": "kl"}, "'forward_kl', 'reverse_kl', 'jensen_shannon' or 'total_variation'"),
        ({"temperature": 0}, "greater than or equal to 0.001"),
        ({"hidden": [{"student_layer": -1, "teacher_layer": "last"}]}, "greater than or equal to 0"),
    ],
)
def test_refuses_keys_that_do_not_fit_each_other(values, message):
    with pytest.raises(ValueError, match=message):
        LossConfig.model_validate(values)


@pytest.fixture
def student_file(tmp_path):
    """Write a student file over a cache without a model; return its path."""
    path = tmp_path / "student.yaml"
    values = student_values(make_cache(tmp_path, committed=0).path, tmp_path / "run", loss={"tail": "gold"})
    path.write_text(yaml.safe_dump(values))
    return path


def test_explain_prints_the_table_and_the_verdict_and_trains_nothing(student_file):
    result = CliRunner().invoke(cli, ["train", str(student_file), "--explain"], terminal_width=120)
    assert result.exit_code == 0, result.output
    for level in LEVELS:
        assert level in result.stdout
    assert result.stdout.endswith(
        "This file: forward_kl, tail gold, temperature 1, on topk, topp (toy, topk)\n"
        "biased: the left-out mass is assumed to belong to the gold token.\n"
    )
    assert not (student_file.parent / "run").exists()


def test_explain_needs_manifests_only_and_no_model_library(student_file):
    script = "import sys; from logitcask import cli; cli.main(sys.argv[1:], standalone_mode=False)"
    script += "; assert not {'torch', 'transformers'} & set(sys.modules)"
    process = python(script, "train", student_file, "--explain")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "lower bound" in out
