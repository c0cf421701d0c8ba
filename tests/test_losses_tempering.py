"""Tempering stored targets against tempering the teacher's own logits."""

import math

import numpy as np
import pytest
import torch

from cache_tools.format.layout import tempered_name
from cache_tools.store.predictions import SCALAR_STEP_NATS, from_steps, to_steps
from loss_fixtures import loss, ragged, random_logits, top_k, with_gradient
from tolerances import log_prob_rounding, rounding
from trainer.losses.sparse import divergence
from trainer.losses.tempering import at_temperature, tempered
from trainer.verdicts.compatibility import normaliser_names

TEMPERATURES = [0.5, 1.25, 2.0, 10.0]
temperatures = pytest.mark.parametrize("temperature", TEMPERATURES)


def scalars_of(logits, temperature, step_nats=0.0):
    """Return both normalisers as a cache with this step gives them back."""
    exact = (logits.double().logsumexp(1), (logits.double() / temperature).logsumexp(1))
    return {
        name: torch.from_numpy(from_steps(to_steps(value.numpy().astype(np.float32), step_nats), step_nats))
        for name, value in zip(normaliser_names(temperature), exact, strict=True)
    }


def tempering_rounding(logits, temperature):
    """Return the rounding of log-probabilities and normalisers at T = 1, and of both at a temperature."""
    largest = 2 * logits.abs().max()
    return log_prob_rounding(logits.shape[1], largest) + 2 * rounding(torch.float32, 3, largest / min(1, temperature))


def truth(logits, targets, temperature):
    """Return (log-probabilities, left-out mass) at a temperature, from the logits."""
    p = (logits.double() / temperature).softmax(1)
    kept = torch.where(targets.used, p.gather(1, targets.ids), 0)
    return kept.log(), 1 - kept.sum(1)


@temperatures
@pytest.mark.parametrize("prepare", [lambda targets: targets, ragged], ids=["whole", "ragged"])
def test_stored_normalisers_temper_kept_tokens_and_the_rest_exactly(temperature, prepare):
    logits = random_logits(7, 300)
    targets = prepare(top_k(logits, 12))
    found = tempered(targets, temperature, scalars_of(logits, temperature))
    log_probs, left_out = truth(logits, targets, temperature)
    tolerance = tempering_rounding(logits, temperature)
    torch.testing.assert_close(found.log_probs.double(), log_probs, rtol=0, atol=tolerance)
    torch.testing.assert_close(found.log_left_out.exp().double(), left_out, rtol=0, atol=tolerance)


@temperatures
def test_scalars_stored_in_steps_move_a_row_by_no_more_than_stated(temperature):
    logits = random_logits(500, 40)
    targets = top_k(logits, 39)
    found = tempered(targets, temperature, scalars_of(logits, temperature, SCALAR_STEP_NATS))
    log_probs, left_out = truth(logits, targets, temperature)
    bound, tolerance = (1 + 1 / temperature) * SCALAR_STEP_NATS / 2, tempering_rounding(logits, temperature)
    assert (found.log_probs - log_probs).abs().max() <= bound + tolerance
    assert (found.log_left_out.exp() - left_out).abs().max() <= bound + tolerance
    assert (found.log_probs - log_probs).abs().max() > bound / 4  # so that the bound says something
    masses = found.log_probs.exp().sum(1) + found.log_left_out.exp()
    torch.testing.assert_close(masses, torch.ones(500), rtol=0, atol=tolerance)


@temperatures
def test_rows_of_the_whole_vocabulary_need_no_scalars(temperature):
    logits = random_logits(5, 30)
    targets = top_k(logits, 30)
    found = tempered(targets, temperature, None)
    expected, tolerance = truth(logits, targets, temperature)[0], tempering_rounding(logits, temperature)
    torch.testing.assert_close(found.log_probs.double(), expected, rtol=0, atol=tolerance)
    assert (found.log_left_out == -math.inf).all()


def test_without_scalars_the_left_out_tokens_are_forgotten():
    logits = random_logits(5, 300)
    found = tempered(top_k(logits, 12), 2.0, None)
    assert (found.log_left_out == -math.inf).all()
    assert truth(logits, top_k(logits, 12), 2.0)[1].min() > 0.1


def test_temperature_1_changes_nothing():
    targets = top_k(random_logits(5, 30), 4)
    assert tempered(targets, 1.0, None) is targets


@pytest.mark.parametrize("scalars", [None, scalars_of(random_logits(2, 9), 2.0)])
def test_a_row_without_entries_stays_without(scalars):
    targets = top_k(random_logits(2, 9), 3)
    targets.log_probs.fill_(-math.inf)
    found = tempered(targets, 2.0, scalars)
    assert not found.used.any()
    assert not found.log_left_out.any()


@temperatures
def test_the_scalar_is_the_one_that_stage_one_writes(temperature):
    assert normaliser_names(temperature)[1] == tempered_name(temperature)


@pytest.mark.parametrize("temperature", [1.0, 5.0, 15.0])
def test_with_the_lowest_logit_the_loss_is_that_of_the_teacher_whose_other_logits_are_all_the_lowest(temperature):
    teacher, student = random_logits(6, 90), random_logits(6, 90, seed=1)
    targets, settings = top_k(teacher, 7), loss(tail="minimum", temperature=temperature)
    scalars = {"logsumexp": teacher.logsumexp(1), "tail_minimum": teacher.amin(1)}
    found = with_gradient(
        lambda z: divergence(z, at_temperature(targets, 90, settings, scalars), targets.ids[:, 0], settings), student
    )
    floored = (
        teacher.double().amin(1, keepdim=True).expand(-1, 90).scatter(1, targets.ids, teacher.double().topk(7).values)
    )

    def naive(z):
        log_p, log_q = (floored / temperature).log_softmax(1), (z / temperature).log_softmax(1)
        return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(1)

    tolerance = 2 * temperature**2 * tempering_rounding(torch.cat([teacher, student]), temperature)
    for mine, its in zip(found, with_gradient(naive, student.double()), strict=True):
        torch.testing.assert_close(mine.double(), its, rtol=0, atol=tolerance)
