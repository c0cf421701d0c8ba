"""Draws: unbiased, the same wherever a position is computed, and different from each other."""

import numpy as np
import pytest
import torch

from pipeline.capture.draws import _mixed, draw, position_keys, uniforms

VOCABULARY, DRAWS, ROWS = 40, 50, 4000
GOLDEN, WORD = 0x9E3779B97F4A7C15, 2**64


def splitmix64(value):
    """The published finaliser, on Python's unbounded integers."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % WORD
    return value ^ (value >> 31)


def keys(rows=ROWS, seed=0):
    return position_keys(seed, torch.arange(rows) // 7, torch.arange(rows) % 7)


def probabilities(rows=ROWS):
    weights = np.exp(np.random.default_rng(0).normal(0, 2, VOCABULARY))
    weights[[3, VOCABULARY - 1]] = 0
    return torch.from_numpy(weights / weights.sum()).float().repeat(rows, 1)


def shares(ids, counts):
    """Return how often each token was drawn, as a share of the draws: (rows, VOCABULARY)."""
    return torch.zeros(len(ids), VOCABULARY, dtype=torch.float64).scatter_add_(1, ids, counts.double()) / DRAWS


@pytest.mark.parametrize("value", [0, 1, -1, 2**63 - 1, -(2**63), 1234567890123456789])
def test_the_hash_is_splitmix64(value):
    assert int(_mixed(torch.tensor([value]))) % WORD == splitmix64(value % WORD)


def test_uniform_numbers_follow_the_counter_of_splitmix64():
    key = int(keys(1)[0])
    expected = [(splitmix64((key + i * GOLDEN) % WORD) >> 11) * 2.0**-53 for i in range(1, 6)]
    assert uniforms(keys(1), 5)[0].tolist() == expected


def test_uniform_numbers_are_uniform_and_independent_of_their_neighbours():
    numbers = uniforms(keys(), DRAWS).numpy()
    assert ((numbers >= 0) & (numbers < 1)).all()
    standard_error = (1 / 12 / numbers.size) ** 0.5
    assert abs(numbers.mean() - 0.5) < 5 * standard_error
    for left, right in ((numbers[1:], numbers[:-1]), (numbers[:, 1:], numbers[:, :-1])):
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 5 / left.size**0.5


def test_the_mean_over_many_draws_is_the_distribution():
    p = probabilities()
    found = shares(*draw(p, keys(), DRAWS)).mean(dim=0)
    true = p[0].double()
    standard_error = (true * (1 - true) / (ROWS * DRAWS)).sqrt()
    assert (abs(found - true) <= 5 * standard_error + 1e-9).all()


def test_a_token_of_probability_zero_is_never_drawn():
    found = shares(*draw(probabilities(), keys(), DRAWS))
    assert float(found[:, [3, VOCABULARY - 1]].sum()) == 0


@pytest.mark.parametrize("draws", [1, 5, 20, 50, 200])
def test_distinct_tokens_grow_with_the_draws_as_they_should(draws):
    p = probabilities(1000)
    _, counts = draw(p, keys(1000), draws)
    distinct = (counts > 0).sum(dim=1).double()
    expected = float((1 - (1 - p[0].double()) ** draws).sum())
    assert abs(float(distinct.mean()) - expected) <= 5 * float(distinct.std()) / 1000**0.5 + 1e-6


def test_counts_add_up_and_ids_ascend_with_unused_slots_at_the_end():
    ids, counts = draw(probabilities(100), keys(100), DRAWS)
    assert (counts.sum(dim=1) == DRAWS).all()
    used = counts > 0
    assert not (used[:, 1:] & ~used[:, :-1]).any()
    assert ((ids[:, 1:] > ids[:, :-1]) | ~used[:, 1:]).all()


def test_a_position_draws_the_same_in_any_company():
    p, all_keys = probabilities(50), keys(50)
    whole = draw(p, all_keys, DRAWS)
    order = torch.from_numpy(np.random.default_rng(1).permutation(50))
    shuffled = draw(p[order], all_keys[order], DRAWS)
    alone = draw(p[7:8], all_keys[7:8], DRAWS)
    for together, mixed, single in zip(whole, shuffled, alone, strict=True):
        assert torch.equal(together[order], mixed)
        assert torch.equal(together[7:8], single)


def test_seed_sequence_and_position_each_change_the_draws():
    sequence, position = torch.tensor([5, 5, 6, 5]), torch.tensor([2, 3, 2, 2])
    found = torch.cat([position_keys(0, sequence, position), position_keys(1, sequence[:1], position[:1])])
    assert found[0] == found[3]
    assert len(set(found.tolist())) == 4


def test_all_mass_on_the_last_token_is_drawn():
    p = torch.zeros(3, VOCABULARY)
    p[:, -1] = 0.3
    ids, counts = draw(p, keys(3), DRAWS)
    assert ids[:, 0].tolist() == [VOCABULARY - 1] * 3
    assert counts[:, 0].tolist() == [DRAWS] * 3
