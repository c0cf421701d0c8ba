"""Sparse targets against their definition, written out naively in float64."""

import math

import numpy as np
import pytest
import torch

from cache_tools.format.manifest import Kind
from pipeline.capture.keep import Keep, sparse_targets
from tolerances import rounding, softmax_roundings

ROWS, VOCABULARY = 7, 123


def normal(scale=3.0, offset=0.0):
    return np.random.default_rng(0).normal(offset, scale, (ROWS, VOCABULARY)).astype(np.float32)


def dominated(by):
    logits = normal(1.0)
    logits[np.arange(ROWS), np.arange(ROWS) * 11] = by
    return logits


def one_hopeless():
    logits = normal()
    logits[:, 7] = -60.0
    return logits


def partly_impossible(share):
    logits = normal()
    logits[np.random.default_rng(1).random(logits.shape) < share] = -np.inf
    logits[:, 50] = 0.5  # one possible token at least
    return logits


LOGITS = {
    "ordinary": normal(),
    "flat": normal(1e-3),
    "equal": np.zeros((ROWS, VOCABULARY), np.float32),
    "tied": np.round(normal()),
    "far apart": normal(1e4),
    "far from zero": normal(3.0, 1e5),
    "far below zero": normal(3.0, -1e5),
    "one dominant": dominated(60.0),
    "one overwhelming": dominated(1e4),
    "one hopeless": one_hopeless(),
    "half impossible": partly_impossible(0.5),
    "almost all impossible": partly_impossible(0.98),
    "one possible": partly_impossible(1.0),
}
GOLD = np.arange(ROWS) * 17


def kept(name, k):
    """Return the targets of LOGITS[name] as numpy arrays: ids, log_probs, log_left_out, scalars."""
    targets = sparse_targets(torch.from_numpy(LOGITS[name].copy()), torch.from_numpy(GOLD), Keep(k=k))
    return targets.ids.numpy(), targets.log_probs.numpy(), targets.log_left_out.numpy(), targets.scalars


def true_log_probs(name):
    """Return log-softmax by definition: (ROWS, VOCABULARY) float64."""
    logits = LOGITS[name].astype(np.float64)
    highest = logits.max(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        return logits - highest - np.log(np.exp(logits - highest).sum(axis=1, keepdims=True))


def assert_close(found, truth):
    """Logits are moved by their highest, exactly, so that their own size costs a rounding of the result alone."""
    relative = rounding(torch.float32, 3)
    np.testing.assert_allclose(found, truth, rtol=relative, atol=rounding(torch.float32, softmax_roundings(VOCABULARY)))


@pytest.fixture(params=LOGITS)
def name(request):
    return request.param


@pytest.fixture(params=[1, 5, VOCABULARY - 1, VOCABULARY, VOCABULARY + 10])
def k(request):
    return request.param


def test_keeps_the_most_likely_tokens_with_their_log_probabilities(name, k):
    ids, log_probs, _, _ = kept(name, k)
    truth = true_log_probs(name)
    assert ids.shape == log_probs.shape == (ROWS, min(k, VOCABULARY))
    assert all(len(set(row)) == len(row) for row in ids.tolist())
    assert_close(log_probs, np.take_along_axis(truth, ids, axis=1))
    assert_close(log_probs, -np.sort(-truth, axis=1)[:, :k])


def test_what_is_left_out_is_the_mass_of_all_other_tokens(name, k):
    ids, log_probs, log_left_out, _ = kept(name, k)
    others = np.exp(true_log_probs(name))
    np.put_along_axis(others, ids, 0, axis=1)
    assert_close(np.exp(log_left_out), others.sum(axis=1))
    assert_close(np.exp(log_probs.astype(np.float64)).sum(axis=1) + np.exp(log_left_out), 1)


@pytest.mark.parametrize("k", [VOCABULARY, VOCABULARY + 10])
def test_the_whole_vocabulary_leaves_nothing_out(name, k):
    assert np.isneginf(kept(name, k)[2]).all()


@pytest.mark.parametrize("name", ["one dominant", "one overwhelming", "one possible"])
def test_one_token_with_all_the_mass_leaves_nothing_out_only_where_no_other_is_possible(name):
    _, log_probs, log_left_out, scalars = kept(name, 1)
    assert (log_probs == 0).all()
    assert (log_left_out < -50).all()
    assert np.isneginf(log_left_out).all() == (name == "one possible")
    assert (scalars["entropy"] < 1e-6).all()


SMALLEST = math.log(np.finfo(np.float32).tiny)


def left_out_in_float64(logits, ids):
    """Return the log of the mass of all tokens but ``ids`` (n, k), by definition: (n,) float64."""
    others = logits.astype(np.float64)
    total = np.logaddexp.reduce(others, axis=1)
    np.put_along_axis(others, ids, -np.inf, axis=1)
    return np.logaddexp.reduce(others, axis=1) - total


def assert_left_out(found, truth, vocabulary):
    """Check masses to float32's relative precision; those too small for it lie between 0 and the smallest number."""
    assert (np.isneginf(found) == np.isneginf(truth)).all()
    plain = truth > SMALLEST + math.log(vocabulary)  # or some of the terms underflow
    found, truth, low = found[plain], truth[plain], found[~plain]
    largest = np.abs(truth) + math.log(vocabulary)  # of the differences whose exponentials are summed
    tolerance = rounding(torch.float32, softmax_roundings(vocabulary)) + 3 * np.finfo(np.float32).eps * largest
    assert (np.abs(found - truth) <= tolerance).all()
    assert (low <= SMALLEST + math.log(vocabulary)).all()


def test_the_mass_left_out_is_exact_however_small(name, k):
    ids, _, log_left_out, _ = kept(name, k)
    assert_left_out(log_left_out, left_out_in_float64(LOGITS[name], ids), VOCABULARY)


@pytest.mark.parametrize("gap", [0, 10, 17, 25, 40, 80, 200])
@pytest.mark.parametrize("kind", ["topk", "topp"])
def test_kept_probabilities_that_sum_to_one_in_float32_leave_something_out(kind, gap):
    rng, vocabulary = np.random.default_rng(gap), 5000
    logits = rng.normal(0, 2, (200, vocabulary)).astype(np.float32)
    logits[:, :64] += gap
    gold = torch.zeros(200, dtype=torch.int64)
    targets = sparse_targets(torch.from_numpy(logits.copy()), gold, Keep(Kind(kind), k=64, p=0.9))
    used = targets.log_probs.numpy() > -np.inf
    kept_ids = [ids[here] for ids, here in zip(targets.ids.numpy(), used, strict=True)]
    rows = zip(logits, kept_ids, strict=True)
    truth = np.concatenate([left_out_in_float64(row[None], ids[None]) for row, ids in rows])
    sums = np.exp(targets.log_probs.numpy()).sum(axis=1)
    assert (sums >= 1).any() == (kind == "topk" and gap >= 25)
    assert_left_out(targets.log_left_out.numpy(), truth, vocabulary)


@pytest.mark.parametrize("possible", [64, 65, 4000])
def test_a_row_leaves_nothing_out_only_if_it_holds_every_possible_token(possible):
    logits = np.full((20, 5000), -np.inf, np.float32)
    logits[:, :possible] = np.random.default_rng(0).normal(0, 2, (20, possible))
    logits[:, :64] += 300
    targets = sparse_targets(torch.from_numpy(logits), torch.zeros(20, dtype=torch.int64), Keep(k=64))
    assert np.isneginf(targets.log_left_out.numpy()).all() == (possible == 64)


def test_scalars_describe_the_whole_distribution(name, k):
    scalars, truth = kept(name, k)[3], true_log_probs(name)
    logits = LOGITS[name].astype(np.float64)
    highest = logits.max(axis=1)
    surprise = np.where(np.isneginf(truth), 0, -truth)
    assert set(scalars) == {"logsumexp", "entropy", "gold_logprob"}
    assert_close(scalars["logsumexp"], highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1)))
    assert_close(scalars["entropy"], (np.exp(truth) * surprise).sum(axis=1))
    assert_close(scalars["gold_logprob"], truth[np.arange(ROWS), GOLD])


def test_the_memory_to_work_in_does_not_matter(name, k):
    gold, keep = torch.from_numpy(GOLD), Keep(k=k, temperatures=(2.0,), scalars=("gold_rank", "tail_mean"))
    used = torch.full((3, VOCABULARY), torch.nan)  # less than all rows, too
    own, given = (
        sparse_targets(torch.from_numpy(LOGITS[name].copy()), gold, keep, scratch_MV=scratch)
        for scratch in (None, used)
    )
    assert torch.equal(own.log_probs, given.log_probs)
    for key, values in own.scalars.items():
        assert torch.equal(values, given.scalars[key]), key


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_logit_that_is_no_number_spoils_the_logsumexp_of_its_row_only(bad):
    logits = torch.from_numpy(normal())
    logits[3, 4] = bad
    finite = torch.isfinite(sparse_targets(logits, torch.from_numpy(GOLD), Keep(k=5)).scalars["logsumexp"])
    assert finite.tolist() == [row != 3 for row in range(ROWS)]
