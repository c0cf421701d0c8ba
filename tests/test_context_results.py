"""The table of ``benchmarks.context``: shares within a seed, and a control that reads another document's example."""

import statistics

import pytest

from benchmarks.context import OTHER, OWN, Measured, table
from benchmarks.intervals import t_interval
from configs.smollm2.styles import SOLVED, examples_of, kind_of, styled, swapped


def question(kind):
    content = f"What does the {kind} a.b of Python's standard library do?"
    return {"id": kind, "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "…"}]}


@pytest.mark.parametrize("kind", SOLVED)
def test_the_control_reads_the_example_of_the_other_kind_and_nothing_else_changes(kind):
    (own,) = styled([question(kind)])
    other = swapped(own)
    assert kind_of(own) == kind
    assert own["examples"] == examples_of(kind) != other["examples"]
    assert {key for key in own if own[key] != other[key]} == {"examples"}


def test_shares_are_taken_within_a_seed():
    first = Measured(0.8, 4.0, 3.0, 60)
    after = {OWN: [0.2, 0.4, 0.3], OTHER: [0.8, 0.9, 1.0]}
    made = {arm: [Measured(kl, 1.0, 2.0, 120) for kl in values] for arm, values in after.items()}
    result = table(first, (0.4, 1.0), made, answers_in_style=0.5, positions=7)
    assert (result.shared_percent, result.first_shared_percent) == pytest.approx((50, 75))
    shares = {arm: [100 * (0.8 - kl) / 0.8 for kl in values] for arm, values in after.items()}
    for row in result.arms:
        assert (row.recovered_percent, row.recovered_interval_percent) == pytest.approx(t_interval(shares[row.name]))
        assert row.kl_nats == pytest.approx(statistics.fmean(after[row.name]))
        assert row.first_recovered_percent == pytest.approx(75)
        assert row.core_minutes == 2
    differences = [own - other for own, other in zip(shares[OWN], shares[OTHER], strict=True)]
    assert (result.difference_percent, result.difference_interval_percent) == pytest.approx(t_interval(differences))
    assert (result.seeds, result.before_nats) == (3, 0.8)


def test_a_single_seed_has_no_interval():
    first, made = Measured(0.8, 4.0, 3.0, 60), {arm: [Measured(0.4, 1.0, 2.0, 60)] for arm in (OWN, OTHER)}
    result = table(first, (0.4, 1.0), made, 0.5, 7)
    assert [(row.recovered_percent, row.recovered_interval_percent) for row in result.arms] == [(50, None)] * 2
    assert result.difference_interval_percent is None
