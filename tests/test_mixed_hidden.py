"""Hidden states of several teachers: each pair of layers reads its own teacher, through a projection of its own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import tiny
from cache_tools.errors import ConfigError
from mixture_fixtures import BOTH, config_of, sequences_of
from student_fixtures import LLAMA, curve, largest_difference, train, train_and_stop, weights
from tolerances import loss_rounding, rounding
from trainer.config.student_file import HiddenPair
from trainer.data.binding import IGNORED
from trainer.data.cached_sequences import Reading, collate
from trainer.data.opening import open_teachers
from trainer.data.sources import loss_of
from trainer.loop.distillation import distillation_of
from trainer.loop.inputs import open_inputs
from trainer.loop.projection_start import PENALTY, POSITIONS, Sums
from trainer.student.cached_loss import StudentShape
from trainer.student.student import distilled

PAIRS = [
    {"teacher": "toy", "student_layer": 1, "teacher_layer": 1, "project": "teacher"},
    {"teacher": "other", "student_layer": 1, "teacher_layer": 2, "weight": 0.5},
    {"teacher": "other", "student_layer": 2, "teacher_layer": "last", "project": "teacher"},
]
MODELS = {"toy": tiny.model(), "other": tiny.model(seed=1, hidden_size=24, num_hidden_layers=3)}
FIRST = (0, 5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    values = tiny.capture_values(folder, hidden={"layers": [1, "last"], "codec": "float32"})
    model = str(tiny.save_teacher(folder / "other", MODELS["other"]))
    other = {"name": "other", "model": model, "hidden": {"layers": ["last", 2, 1], "codec": "float32"}}
    values["teachers"].append(values["teachers"][0] | other)
    tiny.run(values)
    return Path(values["cache"])


class Batch:
    """Two sequences of the cache, a student for them, and what the teachers said live."""

    def __init__(self, cache, **loss):
        changes = {"teachers": BOTH, "loss": {"hidden": PAIRS, "kd_weight": 0} | loss}
        self.config, self.dataset = config_of(cache, **changes), sequences_of(cache, **changes)
        teachers = open_teachers(self.config)
        objective = loss_of(self.config, teachers)
        torch.manual_seed(2)
        self.module = distilled(tiny.model(seed=5), self.config.loss, *teachers, objective=objective)
        self.batch = collate([self.dataset[i] for i in FIRST])
        self.kept = self.batch["gold_ids"] != IGNORED

    def states(self, model):
        """Return the hidden states of a model at the kept positions, by the name of the layer, in float64."""
        inputs = {name: self.batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            states = model.double()(**inputs, output_hidden_states=True).hidden_states
        model.float()
        return {str(layer): states[layer][self.kept] for layer in range(len(states))} | {"last": states[-1][self.kept]}


def naive_hidden_loss(batch):
    """Return the sum over pairs and positions, in float64, with the teachers asked anew."""
    mine, total = batch.states(batch.module.student), 0.0
    for pair, matrix in zip(batch.config.loss.hidden, batch.module.loss.match.parameters(), strict=True):
        student, teacher = mine[str(pair.student_layer)], batch.states(MODELS[pair.teacher])[pair.layer]
        w = matrix.detach().double()
        student, teacher = (student, teacher @ w.T) if pair.project == "teacher" else (student @ w.T, teacher)
        total += pair.weight * float(((student - teacher) ** 2).mean(dim=1).sum())
    return total


def test_the_cached_loss_is_that_of_teachers_asked_anew(cache):
    batch = Batch(cache)
    shapes = [tuple(matrix.shape) for matrix in batch.module.loss.match.parameters()]
    assert shapes == [(32, 32), (24, 32), (32, 24)]
    torch.manual_seed(3)
    for matrix in batch.module.loss.match.parameters():
        torch.nn.init.normal_(matrix)
    with torch.no_grad():
        found = batch.module(**batch.batch)
    assert float(found["hidden_loss"]) == pytest.approx(naive_hidden_loss(batch), rel=1e-4)


@pytest.mark.parametrize("kd_weight", [0, 0.4, 1])
def test_hidden_states_are_added_to_whatever_else_the_mixture_is(cache, kd_weight):
    together, alone = Batch(cache, kd_weight=kd_weight), Batch(cache, kd_weight=kd_weight, hidden=[])
    assert alone.module.loss.match is None
    with torch.no_grad():
        found, without = together.module(**together.batch), alone.module(**alone.batch)
    positions = int(together.kept.sum())
    assert float(found["loss"]) == pytest.approx(
        float(without["loss"] + found["hidden_loss"] / positions), rel=rounding(torch.float32, positions)
    )
    assert ("weight_toy" in found) == (kd_weight > 0)


def test_without_predictions_the_loss_is_text_and_hidden_states(cache):
    batch = Batch(cache)
    with torch.no_grad():
        found = batch.module(**batch.batch)
        inputs = {name: batch.batch[name] for name in ("input_ids", "attention_mask")}
        logits = batch.module.student(**inputs).logits[batch.kept]
    text = F.cross_entropy(logits, batch.batch["gold_ids"][batch.kept])
    expected = float(text) + float(found["hidden_loss"]) / len(logits)
    assert float(found["loss"]) == pytest.approx(expected, rel=loss_rounding(batch.module.student.config, 48, logits))


def test_of_each_teacher_the_layers_of_its_own_pairs_are_read_and_no_more(cache):
    batch = Batch(cache)
    assert [part.reading for part in batch.dataset.parts] == [Reading(layers=("1",)), Reading(layers=("2", "last"))]
    assert set(batch.batch["hidden"]) == {"toy/1", "other/2", "other/last"}


def test_a_stopped_run_continues_to_the_same_weights_and_logs_the_norm_of_the_projections(cache, tmp_path):
    pairs = [PAIRS[0], PAIRS[1] | {"start": "ridge"}, PAIRS[2]]
    changes = {"teachers": BOTH, "loss": {"hidden": pairs, "kd_weight": 0.5}, "max_steps": 4, "save_steps": 2}
    changes["student"] = {"config": LLAMA | {"hidden_size": 16}}
    straight = train(cache, tmp_path / "straight", **changes)
    train_and_stop(3, cache, tmp_path / "stopped", **changes)
    assert largest_difference(weights(straight), weights(train(cache, tmp_path / "stopped", **changes))) == 0
    norms = [line["projection_norm"] for line in curve(tmp_path / "straight")]
    assert norms == [line["projection_norm"] for line in curve(tmp_path / "stopped")]
    assert 0 < min(norms) < max(norms)


def naive_ridge(x, y):
    """Return the W of least |y - x W'|^2 + penalty |W|^2, by least squares with the penalty as further rows."""
    penalty = np.sqrt(PENALTY * (x**2).sum(axis=0).mean()) * np.eye(x.shape[1])
    rows, targets = np.concatenate([x, penalty]), np.concatenate([y, np.zeros((len(penalty), y.shape[1]))])
    return np.linalg.lstsq(rows, targets, rcond=None)[0].T


def test_projections_start_at_the_ridge_solution_of_the_states_before_training(cache):
    """Of one pair that maps the teacher and one that maps the student; the third starts as it would."""
    pairs = [PAIRS[0] | {"start": "ridge"}, PAIRS[1] | {"start": "ridge"}, PAIRS[2]]
    batch = Batch(cache)
    batch.batch = collate([batch.dataset[i] for i in range(len(batch.dataset))])
    batch.kept = batch.batch["gold_ids"] != IGNORED
    assert int(batch.kept.sum()) < POSITIONS
    config, student = config_of(cache, teachers=BOTH, loss={"hidden": pairs, "kd_weight": 0}), batch.module.student
    student.train()
    torch.manual_seed(7)
    made = distillation_of(config, open_inputs(config), student)
    assert student.training
    mine = batch.states(student)
    toy, other = (batch.states(MODELS[name]) for name in ("toy", "other"))
    first, second, third = (matrix.detach().double() for matrix in made.loss.match.parameters())
    expected = [naive_ridge(x.numpy(), y.numpy()) for x, y in ((toy["1"], mine["1"]), (mine["1"], other["2"]))]
    for matrix, solution in zip((first, second), expected, strict=True):
        np.testing.assert_allclose(matrix.numpy(), solution, atol=1e-3 * np.abs(solution).max())
    torch.manual_seed(7)
    plain = config_of(cache, teachers=BOTH, loss={"hidden": PAIRS, "kd_weight": 0})
    before = [*distillation_of(plain, open_inputs(plain), student).loss.match.parameters()]
    assert torch.equal(third, before[2].double())
    layers = [mine[str(number)] for number in range(3)]
    for states, solved, start in ((toy["1"], first, before[0].double()),):
        assert ((layers[1] - states @ solved.T) ** 2).mean() < ((layers[1] - states @ start.T) ** 2).mean()


def test_a_solution_needs_the_student_itself(cache):
    config = config_of(cache, teachers=BOTH, loss={"hidden": [PAIRS[0] | {"start": "ridge"}], "kd_weight": 0})
    inputs = open_inputs(config)
    with pytest.raises(ConfigError, match="cannot start at their solution"):
        distillation_of(config, inputs, StudentShape(inputs.vocabulary.size, 32))


def test_states_of_zeros_have_a_start_of_zeros():
    nothing = torch.zeros(3, 3, dtype=torch.float64)
    assert not Sums(nothing, nothing).solution().any()


def test_a_run_that_began_before_projections_could_be_solved_is_the_same_run():
    pair = {"student_layer": 1, "teacher_layer": 1}
    recorded = {"teacher": None, "project": "student", "kind": "mse", "weight": 1.0, **pair}
    assert HiddenPair(**pair).model_dump(mode="json") == recorded
    assert HiddenPair(**pair, start="ridge").model_dump(mode="json") == recorded | {"start": "ridge"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teachers": BOTH, "loss": {"hidden": [PAIRS[0] | {"teacher": None}]}}, "must name one of them as teacher"),
        (
            {"teachers": BOTH, "loss": {"hidden": [PAIRS[0] | {"teacher": "nobody"}]}},
            "must name one of them as teacher",
        ),
        ({"teacher": "toy", "loss": {"hidden": PAIRS[:1]}}, "without, none may"),
    ],
)
def test_pairs_that_do_not_say_whose_layer_they_mean_are_refused(cache, changes, message):
    with pytest.raises(ValueError, match=message):
        config_of(cache, **changes)


def test_a_layer_that_the_other_teacher_keeps_is_not_there_for_this_one(cache):
    pair = PAIRS[0] | {"teacher_layer": 2}
    with pytest.raises(ConfigError, match=r"on teacher toy: the loss needs hidden states .* \(expected layer 2"):
        sequences_of(cache, teachers=BOTH, loss={"hidden": [pair]})
