"""Several workers on one cache: they give up on a dead rank 0, two ranks 0 do no harm, and options fit together.

A rank 0 that is in another's way is stopped by SIGSTOP with a file half-way to its place, and goes on
when the other is done.
"""

import os
import signal
import sys
import time
from functools import partial
from unittest.mock import patch

import pytest
from click.testing import CliRunner

import pipeline.run
import tiny
from cache_tools.errors import ConfigError, IncompleteError
from cache_tools.format import layout
from cache_tools.maintenance.verify import verify
from cache_tools.store.root import create_cache
from logitcask import cli
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
    """What one process leaves behind."""
    folder = tmp_path_factory.mktemp("straight")
    capture(folder, teacher)
    return tree(folder / "cache")


def settings(folder, teacher):
    """Return a capture of three shards with a kept head."""
    if not (folder / "corpus.jsonl").exists():
        tiny.write_corpus(folder / "corpus.jsonl", tiny.TEXTS[:9])
    changes = {"hidden": {"layers": ["last"]}, "held_out_fraction": 0.3}
    return CaptureConfig.model_validate(tiny.capture_values(folder, teacher, **changes))


def capture(folder, teacher, worker=Worker()):  # noqa: B008
    run_capture(settings(folder, teacher), worker, tiny.SilentReporter())


def tree(cache):
    """Return every file of a cache by path; of receipts all but when and where they were written."""
    return {key: content.split(b'"provenance"')[0] for key, content in snapshot(cache).items()}


def stopped_before_rename(folder, teacher, suffix):
    """Run a capture that stops once, and may be continued, when a file is written but not yet in its place."""
    first = iter([True])

    def renaming(real, source, destination):
        if str(destination).endswith(suffix) and next(first, False):
            os.kill(os.getpid(), signal.SIGSTOP)
        real(source, destination)

    patches = [patch(f"os.{name}", partial(renaming, getattr(os, name))) for name in ("replace", "link")]
    with patches[0], patches[1]:
        capture(folder, teacher)


def wait_until_stopped(process):
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        with open(f"/proc/{process.pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "T":
                return
        time.sleep(0.01)
    raise TimeoutError


@pytest.mark.parametrize(
    "suffix",
    [
        "main/sequences/00001.arrow",
        "main/parts/00000/files.arrow",
        "main/zarr.json",
        "toy/head.safetensors",
        "toy/zarr.json",
        "toy/ids/c/1/0",
        "toy/receipts/00000.json",
    ],
)
def test_two_ranks_0_write_the_same_bytes_whoever_overtakes_whom(tmp_path, teacher, straight, suffix):
    settings(tmp_path, teacher)  # writes the corpus
    slow = start(stopped_before_rename, tmp_path, teacher, suffix)
    try:
        wait_until_stopped(slow)
        capture(tmp_path, teacher)
        finished = tree(tmp_path / "cache")
    finally:
        os.kill(slow.pid, signal.SIGCONT)
    assert finish(slow) == 0
    assert {key: content for key, content in finished.items() if not key.endswith(".partial")} == straight
    assert tree(tmp_path / "cache").items() >= straight.items()
    assert verify(tmp_path / "cache", deep=True) == []


def test_two_ranks_0_that_start_together_write_what_one_writes(tmp_path, teacher, straight):
    settings(tmp_path, teacher)
    both = [start(capture, tmp_path, teacher) for _ in range(2)]
    assert [finish(process) for process in both] == [0, 0]
    assert tree(tmp_path / "cache").items() >= straight.items()
    assert verify(tmp_path / "cache", deep=True) == []


@pytest.mark.parametrize("encoded", [False, True])
def test_a_worker_gives_up_on_a_silent_rank_0(tmp_path, teacher, monkeypatch, encoded):
    monkeypatch.setattr(pipeline.run, "POLL_SECONDS", 0.01)
    config = settings(tmp_path, teacher)
    if encoded:
        create_cache(config.cache)
        tiny.encode(config, load_tokenizer(teacher))
    what = "declare toy" if encoded else "encode"
    with pytest.raises(IncompleteError, match=rf"nothing for 0\.001 minutes\. This worker waits for it to {what}\."):
        capture(tmp_path, teacher, Worker(1, 2, wait_minutes=0.001))


def test_a_shard_of_sequences_is_a_sign_of_life(tmp_path, teacher, monkeypatch):
    """The clock is ours: rank 0 writes a shard each 40 minutes, then none; the worker has a patience of an hour."""
    config, minutes = settings(tmp_path, teacher), iter(range(0, 1000, 40))
    folder = layout.encoding_folder(config.cache, "main") / "sequences"

    def pass_time():
        if (now := next(minutes)) < 200:
            folder.mkdir(parents=True, exist_ok=True)
            layout.sequences_file(folder.parent, now // 40).touch()
        times.append(now)
        return 60.0 * now

    times = []
    monkeypatch.setattr(pipeline.run, "POLL_SECONDS", 0)
    monkeypatch.setattr("pipeline.run.time.monotonic", pass_time)
    with pytest.raises(IncompleteError, match="written nothing for 60 minutes"):
        capture(tmp_path, teacher, Worker(1, 2))
    assert 200 < times[-1] <= 320


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--executor", "ray", "--rank", "0"], "--rank cannot be combined with --executor ray"),
        (["--executor", "ray", "--world-size", "2"], "--world-size cannot be combined with --executor ray"),
        (["--executor", "ray", "--wait-minutes", "2"], "--wait-minutes cannot be combined with --executor ray"),
        (["--workers", "2"], "--workers cannot be combined with --executor local"),
        (["--address", "10.0.0.1:6379"], "--address cannot be combined with --executor local"),
    ],
)
def test_refuses_options_of_the_other_executor(options, message):
    result = CliRunner().invoke(cli, ["capture", "capture.yaml", *options])
    assert result.exit_code == 2
    assert message in result.stderr


def test_without_ray_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # so that importing it fails
    monkeypatch.delitem(sys.modules, "pipeline.ray_executor", raising=False)
    with pytest.raises(ConfigError) as error:
        CliRunner(catch_exceptions=False).invoke(cli, ["capture", "configs/demo/capture.yaml", "--executor", "ray"])
    assert str(error.value) == "--executor ray: Ray is not installed. Install it: pip install 'logitcask[ray]'."
