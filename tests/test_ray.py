"""A capture on Ray: the bytes of a capture without, also when an actor is killed.

Ray is real and runs on this machine, with actors of one CPU each. One is killed by SIGKILL in the middle
of a shard, which it is in as long as its process has the title that Ray gives it.
"""

import logging
import os
import shutil
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import tiny
from cache_tools.errors import ConfigError, ModelError
from cache_tools.maintenance.verify import verify
from engine_fixtures import by_engine, engine_python
from pipeline.config.capture_file import CaptureConfig
from pipeline.config.teacher import TeacherConfig
from pipeline.run import Worker, run_capture
from store_fixtures import snapshot

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'logitcask[ray]'")
from pipeline import ray_executor  # noqa: E402
from pipeline.ray_executor import run_capture_on_ray  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_SECONDS = 600


@pytest.fixture(scope="module")
def cluster():
    """One Ray for all tests that need one; a capture uses the one that its program is connected to."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # As spelt by Ray; otherwise its actors wait for whatever else the machine does.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny.save_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def straight(tmp_path_factory, teacher):
    """The cache that a capture by one process leaves behind."""
    config = settings(tmp_path_factory.mktemp("straight"), teacher)
    run_capture(config, Worker(), tiny.SilentReporter())
    return config.cache


def settings(folder, teacher):
    """Return a capture of a dozen shards, each of several batches."""
    return CaptureConfig.model_validate(settings_values(folder, teacher))


def settings_values(folder, teacher):
    if not (folder / "corpus.jsonl").exists():
        tiny.write_corpus(folder / "corpus.jsonl", tiny.TEXTS[:12])
    return tiny.capture_values(folder, teacher, positions_per_shard=128, chunk_positions=128, batch_tokens=48)


def tree(cache):
    """Return every file of a cache by path; of receipts all but when and where they were written."""
    return {key: content.split(b'"provenance"')[0] for key, content in snapshot(cache).items()}


def receipts(cache):
    return {key: content for key, content in snapshot(cache).items() if "receipts" in key}


def capturing():
    """Return the actors of this program that are in the middle of a shard."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [process] if process.name().startswith("ray::ShardReader.capture") else []
    return found


class Killer(tiny.SilentReporter):
    """Kills an actor in the middle of a shard, as soon as another shard is committed.

    Attributes:
        committed: Receipts that there were at the kill.
        engines: Processes that the actor had started.
    """

    def __init__(self, cache):
        self.cache, self.committed, self.engines, self.name, self.thread = cache, {}, [], "", None

    def stage(self, name, *_, **__):
        self.name = name

    def advance(self, num_tokens, share_done=None):
        if self.name == "teacher toy" and self.thread is None:
            self.thread = threading.Thread(target=self.kill)
            self.thread.start()

    def kill(self):
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not self.committed and time.monotonic() < deadline:
            for process in capturing()[:1]:
                process.suspend()
                self.committed, self.engines = receipts(self.cache), process.children()
                process.kill()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_actors_continue_a_capture_to_the_same_bytes_and_a_killed_one_costs_its_shard(tmp_path, teacher, straight):
    shutil.copytree(straight.parent, tmp_path, dirs_exist_ok=True)
    config, killer = settings(tmp_path, teacher), Killer(tmp_path / "cache")
    for key in sorted(receipts(config.cache))[2:]:
        (config.cache / key).unlink()
    assert run_capture_on_ray(config, "local", 2, killer) == {"toy": len(receipts(straight)) - 2}
    assert tree(config.cache) == tree(straight)
    assert verify(config.cache, deep=True) == []
    assert 3 <= len(killer.committed) < len(receipts(straight))
    assert receipts(config.cache).items() >= killer.committed.items()  # with the time of writing: none was redone


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_actors_with_engines_write_the_bytes_of_one_engine_and_none_outlives_its_actor(tmp_path, teacher, monkeypatch):
    """The engine's Python is named relative to the driver's folder, which actors do not share.

    There is one actor at a time: the one that is killed, then the one that Ray starts in its place.
    """
    monkeypatch.chdir(tmp_path)
    python = engine_python(tmp_path).relative_to(tmp_path)
    caches = {}
    for name in ("straight", "ray"):
        (tmp_path / name).mkdir()
        values = by_engine(settings_values(tmp_path / name, teacher), f"./{python}")
        caches[name] = CaptureConfig.model_validate(values)
    run_capture(caches["straight"], Worker(), tiny.SilentReporter())
    killer = Killer(tmp_path / "ray" / "cache")
    run_capture_on_ray(caches["ray"], "local", 1, killer)
    assert tree(caches["ray"].cache) == tree(caches["straight"].cache)
    assert verify(caches["ray"].cache, deep=True) == []
    assert killer.committed
    assert len(killer.engines) == 1
    assert psutil.wait_procs(killer.engines, TIMEOUT_SECONDS)[1] == []


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_error_in_an_actor_is_the_error_of_a_capture_without_ray(tmp_path):
    broken = tiny.model()
    broken.get_output_embeddings().weight.data[:] = float("nan")
    config = settings(tmp_path, tiny.save_teacher(tmp_path / "teacher", broken))
    with pytest.raises(ModelError, match="the teacher's logits are not numbers") as plain:
        run_capture(config, Worker(), tiny.SilentReporter())
    with pytest.raises(ModelError) as remote:
        run_capture_on_ray(config, "local", None, tiny.SilentReporter())
    assert remote.type is ModelError
    assert (str(remote.value), vars(remote.value)) == (str(plain.value), vars(plain.value))


@pytest.mark.parametrize(
    ("placement", "on_gpus", "on_cpus"),
    [
        ({}, 1, 0),
        ({"device": "cpu"}, 0, 0),
        ({"device": "cuda"}, 1, 1),
        ({"gpus": 1}, 1, 1),
        ({"device_map": "auto", "gpus": 4}, 4, 4),
        ({"device_map": "auto"}, 1, 0),
    ],
)
def test_an_actor_takes_the_gpus_that_its_teacher_needs(monkeypatch, placement, on_gpus, on_cpus):
    """Whether the cluster has GPUs now matters only where nothing says that it is to have them."""
    config = TeacherConfig(name="toy", model="toy", **placement)
    for cluster_gpus, expected in ((8, on_gpus), (0, on_cpus)):
        monkeypatch.setattr(ray_executor, "_cluster_gpus", lambda number=cluster_gpus: number)
        assert ray_executor._gpus_per_actor(config) == expected
    monkeypatch.setattr(ray_executor, "_cluster_gpus", lambda: 8)
    assert ray_executor._gpu_sets(on_gpus) == (8 // on_gpus if on_gpus else 1)


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_an_address_where_nothing_listens_is_refused_before_anything_is_encoded(tmp_path, teacher, monkeypatch, form):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    config = settings(tmp_path, teacher)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, but nobody listens
        address = form.format(f"127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(ConfigError, match=f"--address {address}: nothing answers at this address"):
            run_capture_on_ray(config, address, None, tiny.SilentReporter())
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("address", ["nowhere.invalid:6379", "127.0.0.1:66666"])
def test_an_address_that_cannot_be_is_refused(address):
    with pytest.raises(ConfigError, match="nothing answers"):
        ray_executor._check_reachable(address)


def test_an_address_where_something_listens_is_left_to_ray():
    with socket.create_server(("127.0.0.1", 0)) as server:
        ray_executor._check_reachable(f"127.0.0.1:{server.getsockname()[1]}")
    for name in ("local", "auto", "10.0.0.1"):
        ray_executor._check_reachable(name)


def test_tensor_parallelism_is_left_to_torchrun(tmp_path, teacher):
    values = tiny.capture_values(tmp_path, teacher, tensor_parallel=2)
    with pytest.raises(ConfigError, match="tensor_parallel needs torchrun"):
        run_capture_on_ray(CaptureConfig.model_validate(values), "local", None, tiny.SilentReporter())
    assert not (tmp_path / "cache").exists()
