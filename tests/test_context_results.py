"""The table of ``benchmarks.context``: shares within a seed, and a control that reads another document's example."""

import statistics

import pytest

from benchmarks.context import CONTEXTS, OTHER, OWN, UNASKED
from benchmarks.context_table import Measured, table
from benchmarks.intervals import t_interval
from configs.smollm2.styles import MARKS, SOLVED, examples_of, kind_of, styled


def question(kind):
    content = f"What does the {kind} a.b of Python's standard library do?"
    return {"id": kind, "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "…"}]}


@pytest.mark.parametrize("arm", CONTEXTS)
@pytest.mark.parametrize("kind", MARKS)
def test_a_control_reads_an_example_of_another_kind_and_nothing_else_changes(kind, arm):
    (own,) = styled([question(kind)])
    other = CONTEXTS[arm](own)
    assert kind_of(own) == kind
    assert own["examples"] == examples_of(kind) != other["examples"]
    assert {key for key in own if own[key] != other[key]} == {"examples"}


def test_the_kind_that_nobody_asks_about_has_a_style_that_no_answer_is_in():
    (kind,) = SOLVED.keys() - MARKS
    assert not SOLVED[kind][1].startswith(tuple(MARKS.values()))
    assert all(CONTEXTS[UNASKED](question(asked))["examples"] == examples_of(kind) for asked in MARKS)


def test_shares_are_taken_within_a_seed():
    first = Measured(0.8, 4.0, 3.0, 60)
    after = {OWN: [0.2, 0.4, 0.3], OTHER: [0.8, 0.9, 1.0], UNASKED: [0.8, 1.6, 2.4]}
    made = {arm: [Measured(kl, 1.0, 2.0, 120) for kl in values] for arm, values in after.items()}
    result = table(first, {OTHER: 0.4}, made, answers_in_style=0.5, positions=7)
    shares = {arm: [100 * (0.8 - kl) / 0.8 for kl in values] for arm, values in after.items()}
    for row in result.arms:
        assert (row.recovered_percent, row.recovered_interval_percent) == pytest.approx(t_interval(shares[row.name]))
        assert row.kl_nats == pytest.approx(statistics.fmean(after[row.name]))
        assert row.first_recovered_percent == pytest.approx(75)
        assert row.core_minutes == 2
    assert [row.teacher_percent for row in result.arms] == [None, pytest.approx(50), None]
    assert (result.seeds, result.before_nats) == (3, 0.8)


def test_a_single_seed_has_no_interval():
    first, made = Measured(0.8, 4.0, 3.0, 60), {arm: [Measured(0.4, 1.0, 2.0, 60)] for arm in (OWN, OTHER)}
    result = table(first, {OTHER: 0.4}, made, 0.5, 7)
    assert [(row.recovered_percent, row.recovered_interval_percent) for row in result.arms] == [(50, None)] * 2
