"""The k largest values of a row are those that torch.topk finds."""

import pytest
import torch

from pipeline.capture.topk import BLOCKS_PER_K, SECOND_BLOCK, top_k

LONG = 4 * BLOCKS_PER_K * SECOND_BLOCK
"""A row of this many values per value wanted is searched in blocks."""


def rows(length, kind):
    generator = torch.Generator().manual_seed(length)
    values = torch.randn(5, length, generator=generator)
    return {
        "random": values,
        "tied": values.round(),
        "equal": torch.zeros(5, length),
        "rising": torch.arange(5.0 * length).view(5, length),
        "falling": -torch.arange(5.0 * length).view(5, length),
        "mostly impossible": values.masked_fill(values < 2.5, -torch.inf),
        "all in one block": values - 100 * (torch.arange(length) > 40),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["random", "tied", "equal", "rising", "falling", "mostly impossible", "all in one block"]
)
@pytest.mark.parametrize("k", [1, 3, 16])
@pytest.mark.parametrize("beside", [-1, 0, 1, 777])
def test_equals_torch(kind, k, beside):
    values = rows(k * LONG + beside, kind)
    found, places = top_k(values, k)
    assert torch.equal(found, values.topk(k, dim=1).values)
    assert torch.equal(values.gather(1, places), found)
    assert all(len(set(row)) == k for row in places.tolist())


@pytest.mark.parametrize("length", [1, 5, 40])
def test_short_rows_too(length):
    values = rows(length, "random")
    for k in (1, length):
        assert torch.equal(top_k(values, k)[0], values.topk(k, dim=1).values)


def test_a_row_that_is_no_number_spoils_no_other():
    values = rows(LONG, "random")
    expected = values.topk(1, dim=1).values
    values[2, 7] = torch.nan
    assert torch.equal(top_k(values, 1)[0][[0, 1, 3, 4]], expected[[0, 1, 3, 4]])
