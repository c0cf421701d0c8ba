"""Counts take the singular at one, and no time above 0 is shown as nothing."""

import pytest

from cache_tools.quantities import counted, duration_words


def test_only_one_is_singular():
    assert [counted(n, "shard") for n in (0, 1, 2, 1001)] == ["0 shards", "1 shard", "2 shards", "1,001 shards"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.2, "less than 1 s"),
        (1, "1 s"),
        (59.7, "1 min 0 s"),
        (3725, "1 h 2 min"),
        (3.6e6, "1,000 h 0 min"),
    ],
)
def test_times_are_in_the_units_in_which_they_show(seconds, words):
    assert duration_words(seconds) == words
