"""Every argument of transformers' ``TrainingArguments`` is honoured or refused with a reason."""

import json
import math

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import integration_utils

import tiny
from cache_tools.errors import ConfigError
from student_fixtures import curve, largest_difference, student_values, train, train_and_stop, weights
from trainer.config.argument_rules import BOUNDS, FIELDS, FIXED, HONOURED, REFUSED
from trainer.config.student_file import StudentConfig
from trainer.config.training_arguments import training_arguments


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tiny.capture(tmp_path_factory.mktemp("cache")).path


def arguments_of(tmp_path, **changes):
    return training_arguments(
        StudentConfig.model_validate(student_values(tmp_path / "cache", tmp_path / "run", **changes))
    )


def test_every_argument_of_transformers_is_decided_on():
    assert set(FIELDS) == HONOURED | REFUSED.keys()
    assert not HONOURED & REFUSED.keys()
    assert BOUNDS.keys() <= HONOURED
    assert FIXED.keys() <= REFUSED.keys()
    assert all((reason and reason[0].islower()) or reason.startswith("'") for reason in REFUSED.values())


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_place_here_is_refused_with_its_reason(tmp_path, name):
    field = TrainingArguments.__dataclass_fields__[name]
    default = FIXED.get(name, field.default_factory() if callable(field.default_factory) else field.default)
    other = (not default) if isinstance(default, bool) else "words" if default != "words" else "others"
    with pytest.raises(ConfigError) as error:
        arguments_of(tmp_path, **{name: other})
    assert f"training.{name}: this argument cannot be used with logitcask" in str(error.value)
    assert REFUSED[name][1:] in str(error.value)
    arguments_of(tmp_path, **{name: default})


@pytest.mark.parametrize("name", sorted(HONOURED))
def test_a_letter_missing_names_the_argument_that_is_meant(tmp_path, name):
    misspelt = name[:-1] + "x"
    with pytest.raises(
        ConfigError, match=rf"^training.{misspelt}: .* no training argument of this name \(expected perhaps \w+\)"
    ):
        arguments_of(tmp_path, **{misspelt: 1})


NUMBERS = [name for name in sorted(HONOURED) if FIELDS[name].type in (int, float, int | None, float | None)]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -2.5, "many", [1], {}], ids=str)
def test_numbers_are_finite_and_in_range(tmp_path, name, value):
    if name == "max_steps" and value == -2.5:
        value = 0
    with pytest.raises(ConfigError, match=rf"training.{name}: "):
        arguments_of(tmp_path, **{name: value})


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"learning_rate": -1e-3}, "learning_rate"),
        ({"adam_beta1": 1.0}, "adam_beta1"),
        ({"seed": 2**32}, "seed"),
        ({"seed": -1}, "seed"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
        ({"save_steps": 0}, "save_steps"),
        ({"dataloader_num_workers": 1_000_000}, "dataloader_num_workers"),
        ({"save_total_limit": 0}, "save_total_limit"),
        ({"max_steps": 0}, "max_steps"),
        ({"max_steps": -5}, "max_steps"),
        ({"log_level": "loud"}, "log_level"),
        ({"log_level_replica": "loud"}, "log_level_replica"),
        ({"torch_compile_mode": "fastest"}, "torch_compile_mode"),
        ({"lr_scheduler_kwargs": "not json"}, "lr_scheduler_kwargs"),
        ({"activation_checkpointing": True, "activation_checkpointing_kwargs": {"reentrant": True}}, ""),
        ({"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "thread"}, ""),
        ({"bf16": "perhaps"}, "bf16"),
        ({"run_name": 3}, "run_name"),
        ({"output_dir": 3}, "output_dir"),
        ({"lr_scheduler_type": "linaer"}, ""),
        ({"optim": "adamw_trch"}, ""),
        ({"eval_strategy": "sometimes"}, ""),
        ({"dataloader_persistent_workers": True}, "dataloader_persistent_workers"),
        ({"dataloader_multiprocessing_context": "spawn"}, "dataloader_multiprocessing_context"),
        ({"dataloader_prefetch_factor": 2}, ""),
        ({"optim_args": "momentum=0.9"}, "optim_args.momentum"),
        ({"optim": "sgd", "optim_args": "momentun=0.9"}, "optim_args.momentun"),
        ({"optim_args": "momentum"}, "optim_args"),
        ({"fsdp_config": {"verison": 2}}, "fsdp_config.verison"),
        ({"deepspeed": "/nowhere.json"}, ""),
        ({"tf32": True}, ""),
    ],
    ids=str,
)
def test_values_that_end_in_a_traceback_of_torch_are_refused(tmp_path, changes, place):
    with pytest.raises(ConfigError, match=rf"training{'.' if place else ''}{place}: "):
        arguments_of(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({"eval_steps": 3}, "eval_strategy"),
        ({"eval_delay": 3}, "eval_strategy"),
        ({"greater_is_better": True}, "metric_for_best_model"),
        ({"activation_checkpointing_kwargs": {"use_reentrant": False}}, "activation_checkpointing"),
        ({"dataloader_in_order": False}, "dataloader_num_workers"),
        ({"run_name": "mine"}, "report_to"),
        ({"project": "mine"}, "report_to"),
        ({"trackio_space_id": "mine"}, "report_to"),
    ],
    ids=str,
)
def test_an_argument_that_needs_another_one_is_refused_without_it(tmp_path, changes, needed):
    with pytest.raises(ConfigError, match=rf"^training.{next(iter(changes))}: .* no effect .* Set {needed}, or leave"):
        arguments_of(tmp_path, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"lr_scheduler_kwargs": {"numcycles": 1}},
        {"lr_scheduler_type": "cosine_with_min_lr"},
        {"optim": "adamw_bnb_8bit"},
        {"optim": "galore_adamw"},
    ],
    ids=str,
)
def test_what_only_the_optimizer_or_schedule_can_refuse_is_one_sentence_too(cache, tmp_path, changes):
    with pytest.raises(ConfigError, match=r"training"):
        train(cache, tmp_path / "run", **changes)


def test_words_are_read_as_truth_values_and_not_as_true(tmp_path):
    assert [arguments_of(tmp_path, bf16=word).bf16 for word in ("no", "off", "false", "yes")] == [
        False,
        False,
        False,
        True,
    ]
    assert arguments_of(tmp_path, learning_rate="1e-4", max_steps="7").max_steps == 7


def logged(run, name):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def test_measuring_at_the_start_needs_no_other_argument(cache, tmp_path):
    train(cache, tmp_path, max_steps=1, eval_on_start=True)
    assert logged(tmp_path, "eval_kl_to_teacher_nats")
    assert logged(tmp_path, "step")[0] == 0


def test_measured_memory_is_logged(cache, tmp_path):
    train(cache, tmp_path, max_steps=1, skip_memory_metrics=False)
    assert logged(tmp_path, "train_mem_cpu_alloc_delta") or pytest.importorskip("psutil") is None


@pytest.fixture(scope="module")
def plain(cache, tmp_path_factory):
    output = tmp_path_factory.mktemp("plain")
    train(cache, output, max_steps=2, eval_strategy="steps", eval_steps=2)
    return output


def test_neftune_adds_noise_to_training_alone(cache, plain, tmp_path):
    changes = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True}
    train(cache, tmp_path / "noisy", neftune_noise_alpha=5.0, **changes)
    final = train(cache, tmp_path / "quiet", neftune_noise_alpha=0.0, **changes)
    first = [curve(run)[0]["loss"] for run in (plain, tmp_path / "quiet", tmp_path / "noisy")]
    assert first[0] == first[1] != first[2]
    at_start = [logged(tmp_path / run, "eval_kl_to_teacher_nats")[0] for run in ("quiet", "noisy")]
    assert at_start[0] == at_start[1]  # with the weights of the start, and no noise
    assert weights(final).keys() == weights(tmp_path / "noisy" / "final").keys() == weights(plain / "final").keys()
    assert largest_difference(weights(final), weights(plain / "final")) == 0
    assert "neftune" not in "".join(path.read_text() for path in final.glob("config.json"))


def test_a_run_with_neftune_continues_to_the_same_weights(cache, tmp_path):
    changes = {"max_steps": 6, "save_steps": 2, "neftune_noise_alpha": 5.0}
    straight = train(cache, tmp_path / "straight", **changes)
    train_and_stop(5, cache, tmp_path / "stopped", **changes)
    assert largest_difference(weights(straight), weights(train(cache, tmp_path / "stopped", **changes))) == 0


def test_full_determinism_is_accepted(cache, tmp_path):
    try:
        train(cache, tmp_path, max_steps=1, full_determinism=True)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", sorted(integration_utils.INTEGRATION_TO_CALLBACK))
def test_a_tracker_whose_package_is_missing_is_refused_before_anything_is_written(tmp_path, cache, monkeypatch, name):
    for check in [
        check for check in dir(integration_utils) if check.startswith("is_") and check.endswith("_available")
    ]:
        monkeypatch.setattr(integration_utils, check, lambda: False)
    with pytest.raises(ConfigError, match=rf"^training.report_to: the package of tracker '{name}' is not installed"):
        train(cache, tmp_path / "run", report_to=name)
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"^training.report_to: transformers does not support this tracker .*found wandbb"
    ):
        arguments_of(tmp_path, report_to=["wandbb"])


def test_a_tracker_can_be_switched_on_when_a_run_is_continued(tmp_path, cache, monkeypatch):
    told = []
    tracker = type("Tracker", (TrainerCallback,), {"on_log": lambda *_, **named: told.append(named)})
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", tracker)
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: True)
    train_and_stop(2, cache, tmp_path / "run", save_steps=1)
    train(cache, tmp_path / "run", save_steps=1, report_to="wandb", run_name="second")
    assert told
