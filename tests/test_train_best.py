"""``save_strategy: best``: the measure has a direction, and a checkpoint is kept where it got better."""

import json

import pytest

import tiny
from cache_tools.errors import ConfigError
from student_fixtures import curve, largest_difference, student_values, train, train_and_stop, weights
from trainer.config.best import GREATER_IS_BETTER
from trainer.config.student_file import StudentConfig
from trainer.config.training_arguments import training_arguments

BEST = {
    "save_strategy": "best",
    "eval_strategy": "steps",
    "eval_steps": 1,
    "metric_for_best_model": "kl_to_teacher_nats",
}
BUMPY = {**BEST, "max_steps": 8, "learning_rate": 0.1, "lr_scheduler_type": "constant"}
"""Steps so long that the student gets worse too."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tiny.capture(tmp_path_factory.mktemp("cache")).path


def measured(output, name):
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[f"eval_{name}"] for line in lines if f"eval_{name}" in line}


def saved(output):
    return sorted(int(path.name.split("-")[1]) for path in output.glob("checkpoint-*"))


@pytest.mark.parametrize("name", ["kl_to_teacher_nats", "top1_agreement"])
def test_checkpoints_are_the_steps_that_were_better_than_all_before(cache, tmp_path, name):
    train(cache, tmp_path, **BUMPY | {"metric_for_best_model": name})
    values, better = measured(tmp_path, name), []
    sign = 1 if name == "top1_agreement" else -1
    for step, value in values.items():
        if all(sign * value > sign * values[other] for other in range(1, step)):
            better.append(step)
    assert len(values) == 8
    assert 0 < len(better) < 8, "the run must have better and worse steps"
    assert saved(tmp_path) == better


def test_a_stopped_run_continues_from_its_best_to_the_same_end(cache, tmp_path):
    final = train(cache, tmp_path / "straight", **BUMPY)
    better = saved(tmp_path / "straight")
    best = next(step for step in better if step + 1 not in better)  # the step after it was measured, and is no better
    train_and_stop(best + 2, cache, tmp_path / "stopped", **BUMPY)
    assert saved(tmp_path / "stopped")[-1] == best
    continued = train(cache, tmp_path / "stopped", **BUMPY)
    assert largest_difference(weights(final), weights(continued)) == 0
    assert curve(tmp_path / "stopped") == curve(tmp_path / "straight")


@pytest.mark.parametrize("name", GREATER_IS_BETTER)
@pytest.mark.parametrize("prefix", ["", "eval_"])
def test_every_measure_knows_its_direction(cache, tmp_path, name, prefix):
    changes = BEST | {"metric_for_best_model": prefix + name}
    arguments = training_arguments(StudentConfig.model_validate(student_values(cache, tmp_path, **changes)))
    assert arguments.greater_is_better == (name in ("accuracy", "top1_agreement"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metric_for_best_model": None}, r"training.metric_for_best_model: .*expected one of cross_.*found nothing"),
        ({"metric_for_best_model": "loss"}, r"training.metric_for_best_model: .*found loss"),
        ({"eval_strategy": "no"}, r"training.eval_strategy: .* only be found if students are evaluated"),
        ({"save_strategy": "steps", "lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": None},
         r"training.metric_for_best_model: .*found loss"),
    ],
)  # fmt: skip
def test_a_best_that_could_not_be_found_is_refused_before_the_first_step(cache, tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        train(cache, tmp_path, **BEST | changes)
    assert not any(tmp_path.iterdir())
