"""The plan of batches: everything once, within the budget, decided by lengths and budget alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cache_tools.format.sequences import Sequence
from pipeline.teachers.batches import pack, pad, token_budget_batches

lengths_and_budget = given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200))


def plan(lengths, budget):
    return list(token_budget_batches(lengths, budget))


@lengths_and_budget
def test_every_sequence_is_in_exactly_one_batch(lengths, budget):
    assert sorted(index for batch in plan(lengths, budget) for index in batch) == list(range(len(lengths)))


@lengths_and_budget
def test_no_batch_exceeds_the_budget_padding_included(lengths, budget):
    for batch in plan(lengths, budget):
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@lengths_and_budget
def test_longest_first_and_equal_lengths_in_their_order(lengths, budget):
    order = [(-lengths[index], index) for batch in plan(lengths, budget) for index in batch]
    assert order == sorted(order)


@lengths_and_budget
def test_no_batch_could_have_taken_the_next_sequence(lengths, budget):
    batches = plan(lengths, budget)
    for batch in batches[:-1]:
        assert (len(batch) + 1) * max(lengths[i] for i in batch) > budget


def test_a_sequence_above_the_budget_is_a_batch_of_its_own():
    assert plan([5, 100, 5], 10) == [[1], [0, 2]]


def test_no_sequences_make_no_batches():
    assert plan([], 10) == []


@lengths_and_budget
def test_the_order_of_sequences_does_not_change_which_lengths_go_together(lengths, budget):
    def lengths_together(lengths):
        return [[lengths[index] for index in batch] for batch in plan(lengths, budget)]

    assert lengths_together(lengths) == lengths_together(lengths[::-1])


def sequence(number, ids, kept=None):
    mask = np.array(kept if kept is not None else [True] * len(ids), dtype=bool)
    return Sequence(number, "doc", "doc", 0, np.array(ids, np.uint32), mask, None, "", np.zeros(len(ids), np.uint32))


SEQUENCES = [
    sequence(0, [11, 12, 13], [True, True, False]),
    sequence(1, [21], [False]),
    sequence(2, [31, 32, 33, 34], [False, True, False, True]),
    sequence(3, [2**32 - 2, 42], [True, False]),
]


@pytest.mark.parametrize(
    ("indices", "ids", "attention", "kept"),
    [
        ([0], [[11, 12, 13]], [[1, 1, 1]], [0, 1]),
        ([1, 0], [[21, 0, 0], [11, 12, 13]], [[1, 0, 0], [1, 1, 1]], [3, 4]),
        ([2, 3], [[31, 32, 33, 34], [2**32 - 2, 42, 0, 0]], [[1, 1, 1, 1], [1, 1, 0, 0]], [1, 3, 4]),
    ],
)
def test_pads_the_chosen_sequences_on_the_right_in_the_given_order(indices, ids, attention, kept):
    batch = pad(SEQUENCES, indices)
    assert batch.indices == indices
    assert batch.input_ids.tolist() == ids
    assert batch.attention_mask.tolist() == attention
    assert batch.kept.tolist() == kept
    assert batch.position_ids is None
    assert {batch.input_ids.dtype, batch.attention_mask.dtype, batch.kept.dtype} == {torch.int64}


def test_packs_the_chosen_sequences_into_one_row_each_with_its_own_positions():
    batch = pack(SEQUENCES, [2, 1, 3])
    assert batch.input_ids.tolist() == [[31, 32, 33, 34, 21, 2**32 - 2, 42]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 0, 1]]
    assert batch.attention_mask is None
    assert batch.kept.tolist() == [1, 3, 5]


@pytest.mark.parametrize("together", [pad, pack])
def test_every_kept_position_knows_its_sequence_and_its_place_there(together):
    batch = together(SEQUENCES, [3, 0, 2])
    assert batch.sequence_ids.tolist() == [3, 0, 0, 2, 2]
    assert batch.positions.tolist() == [0, 0, 1, 1, 3]
    ids = batch.input_ids.flatten()[batch.kept].tolist()
    assert ids == [SEQUENCES[s].input_ids[p] for s, p in zip([3, 0, 0, 2, 2], batch.positions.tolist(), strict=True)]


@lengths_and_budget
def test_packed_batches_hold_no_more_tokens_than_the_budget(lengths, budget):
    found = list(token_budget_batches(lengths, budget, packed=True))
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or sum(lengths[i] for i in batch) <= budget for batch in found)
