"""The public Python interface: light to import, the same as the commands, and true to its own documentation."""

import ast
import dataclasses
import inspect
import json
import math
import os
import re
import shutil
import textwrap

import numpy as np
import pytest
from click.testing import CliRunner

import logitcask
import tiny
from cache_tools.errors import ConfigError, IncompleteError
from cache_tools.store.reader import Cache
from doc_blocks import ROOT
from logitcask import capture, cli, evaluate, plan, train
from pipeline.config.capture_file import CaptureConfig
from reader_folder import reader_folder, run
from student_fixtures import student_values, without_pictures
from trainer.config.student_file import StudentConfig

FUNCTIONS = [getattr(logitcask, name) for name in logitcask.PUBLIC if name != "Cache"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def captured(folder):
    return capture(tiny.capture_values(folder))


@pytest.fixture(scope="module")
def trained(folder, captured):
    with without_pictures():
        return train(student_values(captured.cache, folder / "student"))


def test_public_names_are_those_that_are_listed_and_no_others():
    assert sorted(logitcask.PUBLIC) == sorted(logitcask.__all__)
    assert logitcask.Cache is Cache
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        _ = logitcask.distil


def test_a_plan_expects_what_the_capture_then_holds(folder, captured):
    planned = plan(tiny.capture_values(folder), tokens_per_s=1000)
    assert planned.exact
    [teacher] = planned.teachers
    assert planned.splits["train"].positions == captured.train_positions
    assert planned.splits["held_out"].positions == captured.held_out_positions
    assert (planned.remaining_bytes, teacher.remaining.cost.hours) == (0, 0)
    tokens = sum(extent.tokens for extent in planned.splits.values())
    assert teacher.whole.hours == pytest.approx(tokens / 1000 / 3600)
    assert planned.stored_bytes > teacher.whole.stored.stored_bytes > 0


def test_a_capture_counts_what_it_committed_and_a_second_one_has_nothing_to_do(folder, captured):
    shards = Cache(captured.cache).encoding().shards
    assert captured.committed_shards == {"toy": len(shards)}
    assert captured.train_positions + captured.held_out_positions == sum(shard.positions for shard in shards)
    again = capture(CaptureConfig.model_validate(tiny.capture_values(folder)))
    assert again.committed_shards == {"toy": 0}
    assert again.train_positions == captured.train_positions


def test_workers_share_the_shards(tmp_path):
    values = tiny.capture_values(tmp_path)
    results = [capture(values, rank=rank, world_size=2) for rank in range(2)]
    counts = [result.committed_shards["toy"] for result in results]
    assert sum(counts) == len(Cache(values["cache"]).encoding().shards)
    assert min(counts) > 0


def test_appending_adds_the_positions_of_new_files(tmp_path):
    values = tiny.capture_values(tmp_path)
    before = capture(values)
    (tmp_path / "more.jsonl").write_text('{"id": "another", "text": "A further document of one sentence."}\n')
    paths = {"corpus.paths": [tmp_path / "corpus.jsonl", tmp_path / "more.jsonl"]}
    after = capture(values, overrides=paths, append=True)
    total = before.train_positions + before.held_out_positions
    assert after.train_positions + after.held_out_positions > total


def test_training_names_its_folders_its_steps_and_the_last_loss_that_was_logged(trained, folder):
    assert (trained.output_dir, trained.student) == (folder / "student", folder / "student" / "final")
    logged = [json.loads(line) for line in (folder / "student" / "metrics.jsonl").read_text().splitlines()]
    assert trained.loss_nats == [entry["loss"] for entry in logged if "loss" in entry][-1]
    assert trained.steps == 3


def test_a_finished_run_is_returned_and_not_repeated(trained, captured, folder):
    again = train(StudentConfig.model_validate(student_values(captured.cache, folder / "student")))
    assert again == trained


def test_evaluation_returns_what_the_command_prints(trained, captured):
    printed = json.loads(
        CliRunner().invoke(cli, ["evaluate", f"{trained.student}", f"{captured.cache}", "--json"]).stdout
    )
    result = dataclasses.asdict(evaluate(trained.student, captured.cache))
    result["reliability"] = list(result["reliability"])
    assert result | {"seconds": printed["seconds"]} == printed
    assert result["positions"] == captured.held_out_positions


def test_measures_that_a_cache_does_not_allow_are_none(tmp_path, trained, folder):
    values = tiny.capture_values(tmp_path, folder / "teacher", target={"kind": "sampled", "draws": 8})
    result = evaluate(trained.student, capture(values).cache)
    assert (result.acceptance, result.acceptance_is, result.kl_to_teacher_is) == (None, None, "unbiased")


def test_an_empty_split_is_refused_and_not_reported_as_finished(tmp_path, trained, folder, capfd):
    cache = capture(tiny.capture_values(tmp_path, folder / "teacher", held_out_fraction=0)).cache
    capfd.readouterr()
    with pytest.raises(IncompleteError, match="the held_out split is empty"):
        evaluate(trained.student, cache)
    assert "nothing left to do" not in capfd.readouterr().err


def test_wrong_arguments_are_refused_as_errors_of_ours(captured, trained, folder):
    values = tiny.capture_values(folder)
    calls = [
        lambda: plan(values, tokens_per_s=0),
        lambda: plan(values, tokens_per_s=math.nan),
        lambda: plan(values, overrides={"corpus": {}}),
        lambda: capture(values, rank=2, world_size=2),
        lambda: capture(values, overrides={"teachers.0.tensor_parallel": 2}),
        lambda: capture(StudentConfig.model_validate(student_values(captured.cache, folder / "other"))),
        lambda: capture(folder / "missing.yaml"),
        lambda: train({"cash": 1}),
        lambda: train(student_values(captured.cache, folder / "other"), overrides=["loss.kd_weight=1"]),
        lambda: evaluate(trained.student, captured.cache, split="validation"),
        lambda: evaluate(trained.student, captured.cache, positions="some"),
        lambda: evaluate(trained.student, captured.cache, batch_size=0),
    ]
    for call in calls:
        with pytest.raises(ConfigError):
            call()


def itself():
    values = {"cache": "cache"}
    values["corpus"] = values
    return values


WRONG_TYPES = {
    "plan(config=…)": lambda: plan(None),
    "plan(overrides=…)": lambda: plan({}, overrides=["cache"]),
    "plan(tokens_per_s=…)": lambda: plan({}, tokens_per_s="fast"),
    "plan(measure=…)": lambda: plan({}, measure=2),
    "capture(config=…)": lambda: capture(7),
    "capture(rank=…)": lambda: capture({}, rank="0"),
    "capture(world_size=…)": lambda: capture({}, world_size=2.0),
    "train(config=…)": lambda: train(b"student.yaml"),
    "evaluate(student=…)": lambda: evaluate(None, "cache"),
    "evaluate(cache=…)": lambda: evaluate("student", 3),
    "evaluate(batch_size=…)": lambda: evaluate("student", "cache", batch_size="8"),
    "evaluate(trust_remote_code=…)": lambda: evaluate("student", "cache", trust_remote_code="no"),
    "evaluate(split=…)": lambda: evaluate("student", "cache", split=1),
}


@pytest.mark.parametrize("argument", WRONG_TYPES)
def test_an_argument_of_another_type_is_refused_in_one_sentence_that_names_it(argument):
    with pytest.raises(ConfigError, match="another type than it needs") as refusal:
        WRONG_TYPES[argument]()
    assert argument in str(refusal.value)


@pytest.mark.parametrize("place", [None, 3, b"cache", ["cache"]])
def test_a_cache_is_opened_by_text_or_a_path_and_nothing_else(place):
    with pytest.raises(ConfigError, match="a place is a path or a URL"):
        Cache(place)


@pytest.mark.parametrize("call", [plan, train, lambda values: plan("capture.yaml", overrides=values)])
def test_a_mapping_that_contains_itself_is_refused(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "capture.yaml").write_text("cache: cache\n")
    with pytest.raises(ConfigError, match="nested too deeply"):
        call(itself())


def test_numbers_of_numpy_and_paths_of_any_kind_are_arguments_like_others(captured, trained):
    result = evaluate(os.fspath(trained.student), trained.student.parents[1] / captured.cache, batch_size=np.int64(4))
    expected = evaluate(trained.student, captured.cache, batch_size=4)
    assert result == dataclasses.replace(expected, seconds=result.seconds)


def test_training_from_a_cache_that_is_not_captured_yet_is_refused(tmp_path):
    values = tiny.capture_values(tmp_path)
    capture(values, rank=0, world_size=1000)  # the first shard alone
    with pytest.raises(IncompleteError):
        train(student_values(values["cache"], tmp_path / "student"))


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_parameter_every_error_and_an_example_are_documented(function):
    text = inspect.getdoc(function)
    arguments = text.partition("\nArgs:\n")[2].partition("\nReturns:\n")[0]
    assert re.findall(r"^    (\w+): ", arguments, re.MULTILINE) == list(inspect.signature(function).parameters)
    assert "\nRaises:\n" in text
    assert ast.parse(example(function)).body


def test_results_are_frozen_and_every_field_is_described():
    for function in FUNCTIONS:
        result = inspect.get_annotations(function)["return"]
        texts = [inspect.getdoc(kind) for kind in reversed(result.__mro__) if dataclasses.is_dataclass(kind)]
        described = re.findall(r"^    (\w+): ", "\n".join(texts), re.MULTILINE)
        assert described == [field.name for field in dataclasses.fields(result)]
        assert result.__dataclass_params__.frozen


def example(function):
    """Return the program in a docstring."""
    return textwrap.dedent(inspect.getdoc(function).partition("Example:\n    ::\n")[2])


def python_of_the_readme():
    [block] = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return block


@pytest.mark.slow
def test_examples_and_the_lines_of_the_readme_run_one_after_another(tmp_path):
    """In a folder as it is after the demo, with a tiny cache in place of the demo's."""
    folder = reader_folder(tmp_path)
    tiny.write_corpus(folder / "runs/demo/corpus.jsonl", 6 * tiny.TEXTS)  # of which some are held out
    programs = [example(getattr(logitcask, name)) for name in ("plan", "capture", "train", "distillation", "evaluate")]
    with without_pictures():
        output = run(folder, "python", "\n".join(programs))
        assert "MB" in output
        assert "nats on" in output
        shutil.rmtree(folder / "runs/demo/cache")  # of another teacher than the demo's
        (folder / "runs/python/cache").rename(folder / "runs/demo/cache")
        assert "nats" in run(folder, "python", python_of_the_readme())
