"""Whole runs with losses beyond sparse targets: refused early, proven at the start, measured, and continued."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tiny
from cache_tools.errors import ConfigError, IncompleteError, ModelError
from cache_tools.store.reader import Cache
from loss_fixtures import loss
from student_fixtures import LLAMA, LOSS_ROUNDING, curve, largest_difference, train, train_and_stop, weights
from trainer.config.student_file import HiddenPair
from trainer.data.cached_sequences import CachedSequences, Reading
from trainer.evaluation.evaluate import evaluate_folder
from trainer.student.signal_check import check_teacher_reaches_student
from trainer.student.student import distilled

PAIRS = [{"student_layer": 1, "teacher_layer": 1, "kind": "cosine"}, {"student_layer": 2, "teacher_layer": "last"}]
EVERYTHING = {"source": "hidden", "kd_weight": 0.5, "hidden": PAIRS, "temperature": 2}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tiny.capture(tmp_path_factory.mktemp("cache"), hidden={"layers": ["last", 1]}).path


def projections(checkpoint):
    return load_file(checkpoint / "projections.safetensors")


def test_a_stopped_run_with_projections_continues_to_the_same_weights(cache, tmp_path):
    student = {"config": LLAMA | {"hidden_size": 16}}  # or the projections would begin as the identity
    changes = {"loss": EVERYTHING, "student": student, "save_steps": 2, "max_steps": 4}
    final = train(cache, tmp_path / "straight", **changes)
    train_and_stop(3, cache, tmp_path / "stopped", **changes)
    continued = train(cache, tmp_path / "stopped", **changes)
    assert largest_difference(weights(final), weights(continued)) == 0
    assert curve(tmp_path / "straight") == curve(tmp_path / "stopped")
    ends = [projections(tmp_path / name / "checkpoint-4") for name in ("straight", "stopped")]
    assert largest_difference(*ends) == 0
    assert largest_difference(ends[0], projections(tmp_path / "straight" / "checkpoint-2")) > 1e-3


def test_the_finished_student_knows_nothing_of_teacher_or_projections(cache, tmp_path):
    final = train(cache, tmp_path / "all", loss=EVERYTHING)
    plain = train(cache, tmp_path / "plain")
    assert weights(final).keys() == weights(plain).keys()
    assert {path.name for path in final.iterdir()} == {path.name for path in plain.iterdir()}
    (line, *_) = curve(tmp_path / "all")
    assert {"kl_nats", "cross_entropy_nats", "hidden_loss"} <= line.keys()
    assert "hidden_loss" not in curve(tmp_path / "plain")[0]


def test_the_parts_that_are_logged_make_up_the_loss(cache, tmp_path):
    train(cache, tmp_path, loss=EVERYTHING, max_steps=1)
    (line,) = curve(tmp_path)
    expected = 0.5 * 4 * line["kl_nats"] + 0.5 * line["cross_entropy_nats"] + line["hidden_loss"]
    assert line["loss"] == pytest.approx(expected, rel=0, abs=4 * LOSS_ROUNDING)  # the divergence counts T² = 4 times


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"tail": "renormalise"}, "loss: this loss is biased on this cache"),
        ({"temperature": 3}, r"capture with target.temperatures: \[3\]"),
        ({"hidden": [{"student_layer": 0, "teacher_layer": 9}]}, "hidden states that this cache does not hold"),
    ],
)
def test_a_loss_that_the_cache_cannot_serve_is_refused_before_a_model_is_made(
    cache, tmp_path, monkeypatch, settings, reason
):
    monkeypatch.setattr("trainer.run.train.build_student", None)
    with pytest.raises(ConfigError, match=reason):
        train(cache, tmp_path, loss=settings)
    assert not any(tmp_path.iterdir())


def test_a_layer_that_the_student_does_not_have_is_refused(cache, tmp_path):
    with pytest.raises(
        ConfigError, match=r"layer that the student does not have \(expected student_layer from 0, .*to 2, found 3\)"
    ):
        train(cache, tmp_path, loss={"hidden": [{"student_layer": 3, "teacher_layer": "last"}]})


def test_a_layer_that_was_not_captured_to_the_end_is_refused(cache):
    teacher = Cache(cache).encoding().teacher()
    manifest = teacher.manifest
    more = manifest.model_copy(update={"hidden": manifest.hidden | {"0": manifest.hidden["1"]}})
    teacher.manifest = more
    with pytest.raises(IncompleteError, match="no receipt of hidden/0"):
        CachedSequences(teacher, "train", 300, reading=Reading(layers=("0",)))


class Start:
    """A student with its loss, and a sequence, as a run begins with them."""

    def __init__(self, cache, **settings):
        teacher, self.settings = Cache(cache).encoding().teacher(), loss(**settings)
        reading = Reading.of(teacher.manifest, self.settings)
        self.examples = [CachedSequences(teacher, "train", 300, reading=reading)[0]]
        self.module = distilled(tiny.model(seed=1, attention_dropout=0.5).train(), self.settings, teacher)

    def check(self):
        check_teacher_reaches_student(self.module, self.examples)


SETTINGS = [
    {},
    {"divergence": "total_variation", "kd_weight": 0.01},
    {"tail": None, "source": "hidden", "hidden": (HiddenPair(student_layer=1, teacher_layer="last"),)},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_self_test_passes_and_leaves_no_trace(cache, settings):
    start = Start(cache, **settings)
    before, state = copy.deepcopy(start.module.state_dict()), torch.get_rng_state()
    start.check()
    assert torch.equal(torch.get_rng_state(), state)
    assert start.module.training
    assert (start.module.loss.match is not None) == ("hidden" in settings)
    assert all(parameter.grad is None for parameter in start.module.parameters())
    assert largest_difference(before, start.module.state_dict()) == 0


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("broken", ["frozen", "deaf"])
def test_a_student_that_the_teacher_does_not_reach_is_refused(cache, settings, broken):
    start = Start(cache, **settings)
    if broken == "frozen":
        start.module.student.requires_grad_(False)
    else:
        start.module.loss.objective.terms = lambda logits, gold, said: (logits.square().sum(1), logits.exp().sum(1))
    with pytest.raises(ModelError, match="the student's gradient does not depend on the teacher's predictions"):
        start.check()


def test_a_sequence_that_the_teacher_was_silent_about_proves_nothing_and_is_passed_over(cache):
    start = Start(cache)
    (said,) = start.examples
    silent = copy.deepcopy(said)
    silent.targets.log_probs.fill(-np.inf)
    silent.targets.log_left_out.fill(0)
    start.examples = [silent, said]
    start.check()
    start.module.student.requires_grad_(False)
    with pytest.raises(ModelError, match="does not depend on the teacher"):
        start.check()


def test_a_loss_on_the_text_alone_has_no_teacher_to_miss(cache):
    start = Start(cache, kd_weight=0)
    start.module.student.requires_grad_(False)
    start.check()


def test_a_run_begins_with_the_self_test(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "trainer.losses.distillation_loss.DistillationLoss.terms",
        lambda self, logits, *_: (logits.sum(1), logits.sum(1)),
    )
    with pytest.raises(ModelError, match="does not depend on the teacher"):
        train(cache, tmp_path)


def test_a_run_may_measure_itself_on_held_out_text_without_changing_its_course(cache, tmp_path):
    student = {"config": LLAMA | {"attention_dropout": 0.5}}
    silent = train(cache, tmp_path / "silent", student=student)
    final = train(cache, tmp_path / "watched", student=student, eval_strategy="steps", eval_steps=1)
    assert largest_difference(weights(silent), weights(final)) == 0
    lines = [json.loads(line) for line in (tmp_path / "watched" / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "eval_kl_to_teacher_nats" in line]
    assert [line["step"] for line in measured] == [1, 2, 3]
    expected = evaluate_folder(final, Cache(cache).encoding().teacher(), "held_out")
    for name in ("cross_entropy_nats", "kl_to_teacher_nats", "calibration_error", "acceptance", "top1_agreement"):
        assert measured[-1][f"eval_{name}"] == pytest.approx(getattr(expected, name), rel=0, abs=LOSS_ROUNDING)
    assert measured[-1]["eval_kl_to_teacher_is"] == "exact"
    assert math.isfinite(measured[0]["eval_kl_to_teacher_nats"])


def test_measuring_a_split_that_is_empty_is_refused_before_the_first_step(tmp_path):
    cache = tiny.capture(tmp_path, held_out_fraction=0).path
    with pytest.raises(IncompleteError, match="the held_out split is empty"):
        train(cache, tmp_path / "run", eval_strategy="epoch")
