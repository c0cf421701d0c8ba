"""Losses on hidden states against a naive float64 sum."""

import pytest
import torch

from tolerances import rounding
from trainer.config.student_file import HiddenPair
from trainer.losses.hidden import HiddenMatch

KEPT = torch.tensor([[True, False, True, False], [False, True, True, True]])
WIDTHS = {"2": 6, "last": 3}
SUMS = 5 + 3 * 6 + 6 * 5
"""Roundings of a loss: a projection, three sums over a state, and five pairs of them added and multiplied."""


def states(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def student(width=5, dtype=torch.float32):
    return [states(2, 4, width, seed=layer, dtype=dtype) for layer in range(3)]


def teacher():
    return {layer: states(5, width, seed=9) for layer, width in WIDTHS.items()}


def pair(kind="mse", layer="last", student_layer=1, weight=1.0, **keys):
    return HiddenPair(student_layer=student_layer, teacher_layer=layer, kind=kind, weight=weight, **keys)


def naive(match, student_BLD, teacher_PE):
    """Return the loss per kept position, one after another."""
    places = [(b, t) for b in range(2) for t in range(4) if KEPT[b, t]]
    rows = []
    for row, (b, t) in enumerate(places):
        total = torch.zeros((), dtype=torch.float64)
        for one, projection in zip(match.pairs, match.projections, strict=True):
            mine = student_BLD[one.student_layer][b, t].double()
            its = teacher_PE[one.state][row].double()
            if one.project == "student":
                mine = projection.weight.double() @ mine
            else:
                its = projection.weight.double() @ its
            mse = ((mine - its) ** 2).sum() / len(its)
            cosine = 1 - (mine @ its) / (mine.norm() * its.norm())
            total = total + one.weight * (mse if one.kind == "mse" else cosine)
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize(
    "pairs",
    [
        [pair("mse")],
        [pair("cosine")],
        [pair("mse", 2, 0, weight=0.5), pair("cosine", "last", 2, weight=3), pair("mse", "last", 2)],
        [pair("mse", project="teacher")],
        [pair("cosine", 2, project="teacher", weight=2), pair("mse", "last", 2)],
    ],
)
def test_value_and_gradients_are_those_of_the_naive_sum(pairs):
    torch.manual_seed(0)
    match, mine = HiddenMatch(pairs, 5, WIDTHS), [layer.requires_grad_() for layer in student()]
    leaves = [mine[one.student_layer] for one in pairs[:1]] + list(match.parameters())
    found, expected = match(mine, KEPT, teacher()), naive(match, mine, teacher())
    assert (found.shape, found.dtype) == ((5,), torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=rounding(torch.float32, SUMS, expected))
    for gradient, its in zip(
        torch.autograd.grad(found.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
    ):
        torch.testing.assert_close(gradient, its, rtol=0, atol=rounding(torch.float32, 2 * SUMS, its))


def test_states_outside_the_kept_positions_have_no_influence():
    torch.manual_seed(0)
    match, mine = HiddenMatch([pair()], 5, WIDTHS), student()
    expected = match(mine, KEPT, teacher())
    mine[1][~KEPT] = 1e9
    assert torch.equal(match(mine, KEPT, teacher()), expected)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_distances_of_a_bfloat16_student_are_taken_in_float32(side):
    torch.manual_seed(0)
    match = HiddenMatch([pair(project=side)], 5, WIDTHS).to(torch.bfloat16)
    found = match(student(dtype=torch.bfloat16), KEPT, teacher())
    assert found.dtype == torch.float32
    expected = naive(match, student(dtype=torch.bfloat16), teacher())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=rounding(torch.bfloat16, 2, expected))


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_a_student_of_the_teacher_s_width_begins_without_a_change_of_basis(kind):
    match, mine = HiddenMatch([pair(kind)], 3, WIDTHS), student(3)
    found = match(mine, KEPT, {"last": mine[1][KEPT]})
    torch.testing.assert_close(found, torch.zeros(5), rtol=0, atol=rounding(torch.float32, SUMS))


def test_a_mapped_teacher_can_be_made_to_say_nothing_and_the_norm_in_the_log_shows_it():
    """The danger that the documentation names: no states, no map, no loss."""
    match = HiddenMatch([pair(project="teacher"), pair(layer=2, project="teacher")], 5, WIDTHS)
    nothing = [torch.zeros_like(layer) for layer in student()]
    assert float(match(nothing, KEPT, teacher()).detach().min()) > 0
    expected = sum(float(matrix.detach().double().square().sum() ** 0.5) for matrix in match.parameters()) / 2
    assert float(match.norm()) == pytest.approx(expected)
    torch.nn.init.zeros_(match.projections[0].weight)
    torch.nn.init.zeros_(match.projections[1].weight)
    assert float(match(nothing, KEPT, teacher()).detach().max()) == float(match.norm()) == 0


def test_cosine_does_not_depend_on_lengths():
    torch.manual_seed(0)
    match, its = HiddenMatch([pair("cosine")], 5, WIDTHS), teacher()
    longer = {name: 1000 * values for name, values in its.items()}
    one, other = (match(student(), KEPT, states) for states in (its, longer))
    torch.testing.assert_close(one, other, rtol=0, atol=rounding(torch.float32, SUMS))


def test_projections_are_trained_towards_the_teacher():
    torch.manual_seed(0)
    match, mine, its = HiddenMatch([pair("mse")], 5, WIDTHS), student(), teacher()
    before = float(match(mine, KEPT, its).detach().sum())
    optimizer = torch.optim.SGD(match.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        match(mine, KEPT, its).sum().backward()
        optimizer.step()
    assert float(match(mine, KEPT, its).detach().sum()) < before / 2
