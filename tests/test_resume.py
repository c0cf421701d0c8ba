"""Kill a capture anywhere, run it again, and get the bytes of a capture that nobody killed.

Captures run in real processes and die by SIGKILL, so nothing gets to clean up. The processes
are forked from one server that has imported torch once; each takes a fraction of a second.
"""

import os
import signal
import threading
from functools import partial
from unittest.mock import patch

import pytest

import pipeline.capture.predict
import pipeline.run
import tiny
from cache_tools.errors import IdentityError
from cache_tools.maintenance.verify import verify
from cache_tools.store.reader import Cache
from cache_tools.store.root import create_cache
from pipeline.config.capture_file import CaptureConfig
from pipeline.encoding.tokenizer import load_tokenizer
from pipeline.run import Worker, run_capture
from processes import TIMEOUT_SECONDS, finish, start
from store_fixtures import snapshot


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny.save_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def straight(tmp_path_factory, teacher):
    """What a capture that nobody killed leaves behind."""
    return tree(capture(tmp_path_factory.mktemp("straight"), teacher))


def settings(folder, teacher):
    """Return a capture of three shards, two of them training, with a kept head."""
    if not (folder / "corpus.jsonl").exists():
        tiny.write_corpus(folder / "corpus.jsonl", tiny.TEXTS[:9])
    changes = {"hidden": {"layers": ["last"]}, "batch_tokens": 200, "held_out_fraction": 0.3}
    return CaptureConfig.model_validate(tiny.capture_values(folder, teacher, **changes))


def capture(folder, teacher, worker=Worker(), reporter=None):  # noqa: B008
    config = settings(folder, teacher)
    run_capture(config, worker, reporter or tiny.SilentReporter())
    return config.cache


def tree(cache):
    """Return every file of a cache by path; of receipts all but when and where they were written."""
    files = snapshot(cache)
    return {key: content.split(b'"provenance"')[0] for key, content in files.items()}


def is_partial(key):
    return key.endswith(".partial")


def killed_before_rename(folder, teacher, suffix):
    """Run a capture that dies when a file is written but not yet in its place."""

    def renaming(real, source, destination):
        if str(destination).endswith(suffix):
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, destination)

    patches = [patch(f"os.{name}", partial(renaming, getattr(os, name))) for name in ("replace", "link")]
    with patches[0], patches[1]:
        capture(folder, teacher)


def killed_before_batch(folder, teacher, number):
    """Run a capture that dies before the teacher reads its batch of this number."""
    calls = iter(range(number))

    def predict(*arguments, real=pipeline.capture.predict._predict_batch):
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    with patch("pipeline.capture.predict._predict_batch", predict):
        capture(folder, teacher)


def test_the_straight_capture_has_several_shards_and_batches(straight):
    assert {key for key in straight if "receipts" in key} >= {
        f"encodings/main/teachers/toy/receipts/0000{shard}.json" for shard in range(3)
    }


def slow(*cases):
    """Mark cases whose like is among the fast ones."""
    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(
    "suffix",
    [
        "main/parts/00000/shards.arrow",
        "main/zarr.json",
        "toy/hidden/last/c/1/0",
        "toy/receipts/00001.json",
        *slow(
            "main/sequences/00001.arrow",
            "main/parts/00000/files.arrow",
            "main/tokenizer/tokenizer.json",
            "main/teachers/zarr.json",
            "toy/ids/c/0/0",
            "toy/logsumexp/c/1",
            "toy/receipts/00000.json",
        ),
    ],
)
def test_a_capture_killed_before_a_rename_continues_to_the_same_bytes(tmp_path, teacher, straight, suffix):
    assert finish(start(killed_before_rename, tmp_path, teacher, suffix)) == -signal.SIGKILL
    left = tree(tmp_path / "cache")
    assert any(suffix in key for key in left if is_partial(key))
    assert not any(key.endswith(suffix) for key in left)
    assert tree(capture(tmp_path, teacher)) == straight


@pytest.mark.parametrize(
    "suffix",
    ["toy/zarr.json", *slow("encodings/zarr.json", "cache/zarr.json", "toy/levels/zarr.json", "toy/head.safetensors")],
)
def test_files_that_several_workers_may_write_leave_at_most_a_partial_file_behind(tmp_path, teacher, straight, suffix):
    assert finish(start(killed_before_rename, tmp_path, teacher, suffix)) == -signal.SIGKILL
    continued = tree(capture(tmp_path, teacher))
    assert {key: content for key, content in continued.items() if not is_partial(key)} == straight


@pytest.mark.parametrize("number", [1, *slow(0, 4)])
def test_a_capture_killed_inside_a_shard_continues_to_the_same_bytes(tmp_path, teacher, straight, number):
    assert finish(start(killed_before_batch, tmp_path, teacher, number)) == -signal.SIGKILL
    assert len(tree(tmp_path / "cache")) < len(straight)
    assert tree(capture(tmp_path, teacher)) == straight


def test_a_capture_killed_again_and_again_ends_with_the_same_bytes(tmp_path, teacher, straight):
    for suffix in ("main/sequences/00002.arrow", "toy/receipts/00000.json", "toy/entropy/c/1", "receipts/00002.json"):
        assert finish(start(killed_before_rename, tmp_path, teacher, suffix)) == -signal.SIGKILL
    assert tree(capture(tmp_path, teacher)) == straight
    assert verify(tmp_path / "cache", deep=True) == []


def test_a_capture_continues_without_the_shards_it_has(tmp_path, teacher):
    finish(start(killed_before_rename, tmp_path, teacher, "receipts/00001.json"))
    assert run_capture(settings(tmp_path, teacher), Worker(), tiny.SilentReporter()) == {"toy": 2}


def test_a_finished_capture_has_nothing_left_to_do(tmp_path, teacher):
    before = snapshot(capture(tmp_path, teacher))
    assert run_capture(settings(tmp_path, teacher), Worker(), tiny.SilentReporter()) == {"toy": 0}
    assert snapshot(tmp_path / "cache") == before


def test_refuses_to_continue_with_other_weights(tmp_path):
    teacher = tiny.save_teacher(tmp_path / "teacher", tiny.model(seed=1))
    before = snapshot(capture(tmp_path, teacher))
    tiny.save_teacher(teacher, tiny.model(seed=2))
    with pytest.raises(IdentityError, match=r"already holds another teacher under the name 'toy'.*weights: "):
        capture(tmp_path, teacher)
    assert snapshot(tmp_path / "cache") == before


@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_together_write_what_one_process_writes(tmp_path, teacher, straight, world_size):
    settings(tmp_path, teacher)  # writes the corpus
    workers = [start(capture, tmp_path, teacher, Worker(rank, world_size)) for rank in reversed(range(world_size))]
    assert [finish(worker) for worker in workers] == [0] * world_size
    assert tree(tmp_path / "cache") == straight


def test_each_worker_does_its_own_share(tmp_path, teacher):
    done = [run_capture(settings(tmp_path, teacher), Worker(rank, 2), tiny.SilentReporter()) for rank in (0, 1)]
    assert done == [{"toy": 2}, {"toy": 1}]


class Waiting(tiny.SilentReporter):
    """Says when a capture begins to wait for rank 0 to do something."""

    def __init__(self, what):
        self.event, self.name = threading.Event(), f"waiting for rank 0 to {what}"

    def stage(self, name, *_, **__):
        if name.startswith(self.name):
            self.event.set()


@pytest.fixture
def one_load_at_a_time(monkeypatch):
    """Let threads load models in turn: transformers replaces a method of all models meanwhile, for the whole process.

    Two that overlapped would leave the replacement behind, and tests to come with models that tie no weights. Real
    workers are processes.
    """
    lock, load = threading.Lock(), pipeline.run.open_teacher

    def locked(*arguments):
        with lock:
            return load(*arguments)

    monkeypatch.setattr(pipeline.run, "open_teacher", locked)


@pytest.mark.usefixtures("one_load_at_a_time")
def test_a_worker_that_starts_first_waits_for_the_teacher_to_be_declared(tmp_path, teacher, straight, monkeypatch):
    monkeypatch.setattr(pipeline.run, "POLL_SECONDS", 0.01)
    config, reporter = settings(tmp_path, teacher), Waiting("declare")
    create_cache(config.cache)
    tiny.encode(config, load_tokenizer(teacher))
    second = threading.Thread(target=capture, args=(tmp_path, teacher, Worker(1, 2), reporter), daemon=True)
    second.start()
    assert reporter.event.wait(TIMEOUT_SECONDS)
    second.join(0.5)
    assert second.is_alive()
    assert Cache(config.cache).encoding().teachers == []
    capture(tmp_path, teacher, Worker(0, 2))
    second.join(TIMEOUT_SECONDS)
    assert tree(tmp_path / "cache") == straight


@pytest.mark.usefixtures("one_load_at_a_time")
def test_a_worker_that_starts_first_waits_for_the_encoding(tmp_path, teacher, straight, monkeypatch):
    monkeypatch.setattr(pipeline.run, "POLL_SECONDS", 0.01)
    reporter = Waiting("encode")
    settings(tmp_path, teacher)
    second = threading.Thread(target=capture, args=(tmp_path, teacher, Worker(1, 2), reporter), daemon=True)
    second.start()
    assert reporter.event.wait(TIMEOUT_SECONDS)
    second.join(0.5)
    assert second.is_alive()
    assert not (tmp_path / "cache").exists()
    capture(tmp_path, teacher, Worker(0, 2))
    second.join(TIMEOUT_SECONDS)
    assert tree(tmp_path / "cache") == straight
