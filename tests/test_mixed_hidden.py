"""Hidden states of several teachers: each pair of layers reads its own teacher, through a projection of its own."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import tiny
from cache_tools.errors import ConfigError
from mixture_fixtures import BOTH, config_of, sequences_of
from student_fixtures import LLAMA, curve, largest_difference, train, train_and_stop, weights
from tolerances import loss_rounding, rounding
from trainer.data.binding import IGNORED
from trainer.data.cached_sequences import Reading, collate
from trainer.data.opening import open_teachers
from trainer.data.sources import loss_of
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
    changes = {"teachers": BOTH, "loss": {"hidden": PAIRS, "kd_weight": 0.5}, "max_steps": 4, "save_steps": 2}
    changes["student"] = {"config": LLAMA | {"hidden_size": 16}}
    straight = train(cache, tmp_path / "straight", **changes)
    train_and_stop(3, cache, tmp_path / "stopped", **changes)
    assert largest_difference(weights(straight), weights(train(cache, tmp_path / "stopped", **changes))) == 0
    norms = [line["projection_norm"] for line in curve(tmp_path / "straight")]
    assert norms == [line["projection_norm"] for line in curve(tmp_path / "stopped")]
    assert 0 < min(norms) < max(norms)


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
