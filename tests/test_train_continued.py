"""Runs that stop, are killed, or are shared by several processes end as the straight run does."""

import errno
import fcntl
import importlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import tiny
import trainer.run.train
from cache_tools.errors import IdentityError, StorageError
from cache_tools.store.claims import LOCK, only_process
from processes import PROCESSES, TIMEOUT_SECONDS, finish, start
from ranks import train_on
from student_fixtures import (
    LLAMA,
    assert_same_run,
    curve,
    largest_difference,
    train,
    train_and_stop,
    weights,
)
from trainer.run.checkpoints import last_checkpoint, write_hashes
from trainer.run.progress import StepProgress

LONG = {"max_steps": 14, "save_steps": 2}
"""A run into its second epoch: the cache's 70 training sequences make 8 steps."""

MIXTURE = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4}
"""A student whose files name its experts otherwise than the module does."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tiny.capture(tmp_path_factory.mktemp("cache")).path


@pytest.fixture(scope="module")
def straight(cache, tmp_path_factory):
    """A long run that nothing stopped."""
    output = tmp_path_factory.mktemp("straight")
    train(cache, output, **LONG)
    return output


@pytest.fixture
def steps_made(monkeypatch):
    """The steps that runs make from here on."""
    made = []

    class Counting(StepProgress):
        def on_step_end(self, args, state, control, **named):
            made.append(state.global_step)
            super().on_step_end(args, state, control, **named)

    monkeypatch.setattr("trainer.run.train.StepProgress", Counting)
    return made


@pytest.mark.parametrize(
    ("step", "checkpoint"),
    [*(pytest.param(*steps, marks=pytest.mark.slow) for steps in ((1, 0), (5, 4))), (9, 8), (12, 10)],
    ids=["before any checkpoint", "epoch 0", "epoch end", "epoch 1"],
)
def test_a_stopped_run_continues_to_the_same_curve_and_weights(cache, straight, tmp_path, steps_made, step, checkpoint):
    train_and_stop(step, cache, tmp_path, **LONG)
    assert not (tmp_path / "final").exists()
    final = train(cache, tmp_path, **LONG)
    assert steps_made == list(range(checkpoint + 1, 15))
    assert [line["step"] for line in curve(tmp_path)] == list(range(1, 15))
    assert curve(tmp_path) == curve(straight)
    assert largest_difference(weights(final), weights(straight / "final")) == 0


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_neox"])
def test_weights_that_files_name_otherwise_are_continued_too(cache, tmp_path, model_type):
    config = MIXTURE if model_type == "mixtral" else LLAMA | {"model_type": model_type}
    changes = {"student": {"config": config}, "save_steps": 2, "max_steps": 4}
    final = train(cache, tmp_path / "straight", **changes)
    train_and_stop(3, cache, tmp_path / "stopped", **changes)
    continued = train(cache, tmp_path / "stopped", **changes)
    assert largest_difference(weights(final), weights(continued)) == 0


class Killed(StepProgress):
    """A progress bar that kills its process behind the fifth step."""

    def on_step_end(self, args, state, control, **named):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)


def train_until_killed(cache, output):
    trainer.run.train.StepProgress = Killed
    train(cache, output, **LONG)


@pytest.mark.slow
def test_a_process_that_is_killed_continues_to_the_same_weights(cache, straight, tmp_path):
    assert finish(start(train_until_killed, cache, tmp_path)) == -signal.SIGKILL
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    final = train(cache, tmp_path, **LONG)
    assert curve(tmp_path) == curve(straight)
    assert largest_difference(weights(final), weights(straight / "final")) == 0


def test_a_run_continues_with_its_batches_cut_otherwise(cache, straight, tmp_path):
    train_and_stop(5, cache, tmp_path, **LONG)
    final = train(cache, tmp_path, **LONG | {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2})
    assert_same_run(final, straight / "final", steps=LONG["max_steps"])


def test_a_run_does_not_continue_with_batches_of_another_size(cache, tmp_path):
    train_and_stop(2, cache, tmp_path, **LONG)
    with pytest.raises(IdentityError, match="batch_sequences: 8 -> 4"):
        train(cache, tmp_path, **LONG | {"per_device_train_batch_size": 4})


def test_checkpoints_are_ordered_by_number(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step in (2, 10, 9, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if step != 11:
            for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
                (tmp_path / f"checkpoint-{step}" / name).touch()
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
            write_hashes(tmp_path / f"checkpoint-{step}")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_a_checkpoint_that_was_not_written_to_its_end_is_ignored(cache, straight, tmp_path):
    train_and_stop(5, cache, tmp_path, **LONG)
    (tmp_path / "checkpoint-4" / "trainer_state.json").unlink()
    (tmp_path / "checkpoint-4" / "model.safetensors").write_bytes(b"half")
    final = train(cache, tmp_path, **LONG)
    assert largest_difference(weights(final), weights(straight / "final")) == 0


def test_what_does_not_change_the_weights_may_change_between_a_run_and_its_continuation(cache, straight, tmp_path):
    train_and_stop(5, cache, tmp_path, **LONG)
    final = train(cache, tmp_path, **LONG | {"save_steps": 3, "logging_steps": 5, "dataloader_num_workers": 1})
    assert largest_difference(weights(final), weights(straight / "final")) == 0


def test_a_second_process_is_refused_while_one_trains_and_continues_when_that_one_is_killed(cache, straight, tmp_path):
    reached = PROCESSES.Event()
    first = start(train_and_wait, reached, cache, tmp_path)
    try:
        assert reached.wait(TIMEOUT_SECONDS)
        before = files(tmp_path)
        with pytest.raises(StorageError, match=f"another process is at work.*process {first.pid} on "):
            train(cache, tmp_path, **LONG)
        assert files(tmp_path) == before
    finally:
        first.kill()
    finish(first)
    assert (tmp_path / LOCK).exists()
    final = train(cache, tmp_path, **LONG)
    assert not (tmp_path / LOCK).exists()
    assert curve(tmp_path) == curve(straight)
    assert largest_difference(weights(final), weights(straight / "final")) == 0


def train_and_wait(reached, cache, output):
    """Train, with a worker that reads the data, and stand still after step 5 until killed."""

    class Waiting(StepProgress):
        def on_step_end(self, args, state, control, **named):
            if state.global_step == 5:
                reached.set()
                signal.pause()
            super().on_step_end(args, state, control, **named)

    trainer.run.train.StepProgress = Waiting
    train(cache, output, **LONG, dataloader_num_workers=1)


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_process_that_waited_while_another_finished_the_run_returns_its_student(cache, tmp_path, monkeypatch):
    looks = iter([False])
    monkeypatch.setattr("trainer.run.train.is_finished", lambda output: next(looks, True))
    final = train(cache, tmp_path, **LONG)
    assert final == tmp_path / "final"
    assert not final.exists(), "it trained all the same"


def test_a_lock_that_its_holder_removes_at_this_moment_is_made_anew(tmp_path, monkeypatch):
    lock, removed = fcntl.lockf, []

    def late(file, operation):
        if not removed:
            removed.append((tmp_path / LOCK).unlink())
        lock(file, operation)

    monkeypatch.setattr("fcntl.lockf", late)
    with only_process(tmp_path):
        assert json.loads((tmp_path / LOCK).read_bytes())["process"] == os.getpid()
    assert not any(tmp_path.iterdir())


def test_where_no_lock_can_be_had_the_run_goes_on_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", refuse)
    with only_process(tmp_path):
        pass
    assert "cannot be locked: No locks available" in caplog.text


@pytest.mark.parametrize("left", ["link", "folder"])
def test_what_cannot_be_a_lock_is_refused_in_one_sentence(tmp_path, left):
    target, lock = tmp_path / "elsewhere", tmp_path / "run" / LOCK
    lock.parent.mkdir()
    lock.symlink_to(target) if left == "link" else lock.mkdir()
    with pytest.raises(StorageError, match="cannot write"), only_process(lock.parent):
        pass
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 1000, b"\xff"])
def test_the_holder_is_left_out_where_the_lock_does_not_name_it(tmp_path, content):
    (tmp_path / LOCK).write_bytes(content)
    ready = PROCESSES.Event()
    other = start(lock_only, tmp_path / LOCK, ready)
    try:
        assert ready.wait(TIMEOUT_SECONDS)
        with pytest.raises(StorageError, match=r"at work in this folder\. Two"), only_process(tmp_path):
            pass
    finally:
        other.kill()
    finish(other)


def lock_only(path, ready):
    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        ready.set()
        signal.pause()


def test_a_training_process_never_touches_the_teacher(tmp_path):
    teacher = tmp_path / "teacher"
    cache = tiny.capture(tmp_path).path
    shutil.rmtree(teacher)
    assert finish(start(train_without, str(teacher), cache, tmp_path / "run")) == 0
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()


def train_without(teacher, cache, output):
    """Train where opening a file of the teacher, or importing any module of ``pipeline``, is an error."""

    def refuse(event, arguments):
        if event == "open" and not isinstance(arguments[0], int):
            assert not os.path.abspath(os.fsdecode(arguments[0])).startswith(teacher), arguments
        assert event != "import" or arguments[0].partition(".")[0] != "pipeline", arguments

    for name in [name for name in sys.modules if name.partition(".")[0] == "pipeline"]:
        del sys.modules[name]
    sys.addaudithook(refuse)
    for refused in (lambda: Path(teacher, "config.json").read_text(), lambda: importlib.import_module("pipeline.run")):
        with pytest.raises(AssertionError):
            refused()
    train(cache, output, save_steps=2)


@pytest.mark.slow
def test_two_ranks_end_as_one_process_does_even_when_stopped_in_their_second_epoch(cache, tmp_path):
    changes = {"max_steps": 7, "save_steps": 5, "optim": "sgd"}
    two = changes | {"per_device_train_batch_size": 8}
    train_on(2, cache, tmp_path / "two", stop_after=6, **two)
    final = train_on(2, cache, tmp_path / "two", **two)
    one = train(cache, tmp_path / "one", **changes, per_device_train_batch_size=16)
    first, second = (load_file(tmp_path / f"two-rank{rank}.safetensors") for rank in range(2))
    assert largest_difference(first, second) == largest_difference(first, weights(final)) == 0
    assert_same_run(final, one, steps=7, optim="sgd")
