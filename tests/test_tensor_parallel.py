"""A teacher over two processes says what it says in one, and the death of either ends both.

The processes have what torchrun gives them: numbers and an address. gloo stands for NCCL: the same calls.
"""

import os
import signal
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.distributed import TCPStore

import tiny
from cache_tools.errors import ConfigError, ModelError
from cache_tools.maintenance.verify import verify
from cache_tools.store.reader import Cache
from pipeline.audit.run import run_audit
from pipeline.config.capture_file import CaptureConfig
from pipeline.config.teacher import TeacherConfig
from pipeline.run import Worker, run_capture
from pipeline.teachers import tensor_parallel
from pipeline.teachers.loading import load_teacher
from pipeline.teachers.process_group import Place, join
from pipeline.teachers.tensor_parallel import run_together
from pipeline.teachers.tensor_plan import meta_model, split_plan, weight_bytes
from processes import finish, kill_at_rename, start
from store_fixtures import snapshot
from tolerances import loss_rounding

EVERYTHING = {"target": {"k": 16, "exact": True}, "hidden": {"layers": [1, "last"], "codec": "float32"}}


def settings(folder, teacher, size, cache="cache"):
    """Return a capture of three shards."""
    if not (folder / "corpus.jsonl").exists():
        tiny.write_corpus(folder / "corpus.jsonl", tiny.TEXTS[:9])
    values = tiny.capture_values(folder, teacher, tensor_parallel=size, held_out_fraction=0.3, **EVERYTHING)
    return CaptureConfig.model_validate(values | {"cache": str(folder / cache)})


def capture(config):
    def work(place):
        run_capture(config, Worker().with_groups(place), tiny.SilentReporter())

    run_together(config.teachers, work)


def audit(config):
    """Exit with 1 where the audit fails, and where it is not this process' to say."""
    audit = run_together(config.teachers, lambda _: run_audit(config, None, tiny.SilentReporter()))
    if os.environ["RANK"] == "0":
        assert audit.passed
    else:
        assert audit is None


def capture_and_die(config, rank):
    """Capture, with one process that dies while the second shard is written or its body runs for the seventh time."""
    if os.environ["RANK"] != rank:
        capture(config)
    elif rank == "0":
        kill_at_rename("toy/receipts/00001.json", partial(capture, config))
    else:
        calls = iter(range(7))
        real = tensor_parallel.receive_inputs

        def receive(*arguments):
            if next(calls) == 6:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        with patch.object(tensor_parallel, "receive_inputs", receive):
            capture(config)


def say_what_is_held(config, path):
    """Write how many numbers this process holds of a matrix that is split, and of the output matrix."""

    def record(*arguments):
        model = load(*arguments)
        local = model.model.layers[0].mlp.up_proj.weight.to_local()
        Path(f"{path}.{os.environ['RANK']}").write_text(f"{local.numel()} {model.lm_head.weight.numel()}")
        return model

    load = tensor_parallel.load_model
    with patch.object(tensor_parallel, "load_model", record), patch("pipeline.teachers.loading.load_model", record):
        capture(config)


def as_process(port, rank, world, work, *arguments):
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()} | {
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    work(*arguments)


def together(world, work, *arguments):
    """Run work in processes as torchrun would start them; return their exit codes."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun's own, which outlives the ranks
    running = [start(as_process, store.port, rank, world, work, *arguments) for rank in range(world)]
    return [finish(process) for process in running]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny.save_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def straight(tmp_path_factory, teacher):
    """A cache made by two processes."""
    folder = tmp_path_factory.mktemp("straight")
    assert together(2, capture, settings(folder, teacher, 2)) == [0, 0]
    return folder


def tree(cache):
    """Return every file of a cache by path; of receipts all but when and where they were written."""
    return {key: content.split(b'"provenance"')[0] for key, content in snapshot(cache).items()}


def difference(one, two):
    """Return the largest difference between what two caches hold of their teachers, which are exact."""
    assert one.encoding.shards == two.encoding.shards
    found = [0.0]
    for shard in range(len(one.encoding.shards)):
        span = one.shard_rows(shard)
        same = one.targets(*span).ids == two.targets(*span).ids
        assert same.mean() > 0.99  # two tokens may be as likely but for rounding
        found += [np.abs(one.targets(*span).log_probs - two.targets(*span).log_probs).max()]
        found += [np.abs(one.scalar(name, *span) - two.scalar(name, *span)).max() for name in one.manifest.scalars]
        found += [np.abs(one.hidden(layer, *span) - two.hidden(layer, *span)).max() for layer in one.manifest.hidden]
    return max(found)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_two_processes_with_half_of_each_matrix_say_what_one_says(tmp_path, tied):
    folder = tiny.save_teacher(tmp_path / "teacher", tiny.model(tie_word_embeddings=tied))
    assert together(2, say_what_is_held, settings(tmp_path, folder, 2, "two"), tmp_path / "held") == [0, 0]
    capture(settings(tmp_path, folder, 1, "one"))
    assert verify(tmp_path / "two", deep=True) == []
    one, two = (Cache(tmp_path / name).encoding("main").teacher("toy") for name in ("one", "two"))
    assert one.manifest == two.manifest  # with the hash of the kept head
    config = tiny.model().config
    logsumexp = np.concatenate([one.scalar("logsumexp", *one.shard_rows(shard)) for shard in range(3)])
    logits = 2 * np.abs(logsumexp).max()  # above the highest; the lowest lies about as far below 0
    assert 0 < difference(one, two) < loss_rounding(config, 48, logits)
    part, head = 48 // 2 * 32, 300 * 32
    assert [(tmp_path / f"held.{rank}").read_text() for rank in range(2)] == [f"{part} {head}"] * 2


@pytest.mark.slow
def test_groups_share_the_shards(tmp_path, teacher, straight):
    assert together(4, capture, settings(tmp_path, teacher, 2)) == [0] * 4
    assert tree(tmp_path / "cache") == tree(straight / "cache")


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_death_ends_both_and_the_same_command_continues(tmp_path, teacher, straight, rank):
    config = settings(tmp_path, teacher, 2)
    assert sorted(together(2, capture_and_die, config, rank)) == [-signal.SIGKILL, 1]
    assert len(list((tmp_path / "cache").rglob("receipts/*.json"))) < len(
        list((straight / "cache").rglob("receipts/*.json"))
    )
    assert together(2, capture, config) == [0, 0]
    assert tree(tmp_path / "cache").items() >= tree(straight / "cache").items()
    assert verify(tmp_path / "cache", deep=True) == []


@pytest.mark.slow
def test_a_cache_of_one_process_passes_the_audit_of_two(tmp_path, teacher):
    capture(settings(tmp_path, teacher, 1))
    assert together(2, audit, settings(tmp_path, teacher, 2)) == [0, 0]


@pytest.mark.parametrize("tied", [False, True])
def test_planned_weights_are_those_of_one_process(tmp_path, tied):
    folder = tiny.save_teacher(tmp_path, tiny.model(tie_word_embeddings=tied))
    model = meta_model(TeacherConfig(name="toy", model=str(folder)), "causal", folder)
    matrices = 2 * (4 * 32 * 32 + 3 * 32 * 48)
    embeddings = 300 * 32 // (1 if tied else 2)
    whole = weight_bytes(model) - 4 * (matrices + 300 * 32 + (0 if tied else 300 * 32))
    assert weight_bytes(model, 2) == 4 * (matrices // 2 + embeddings + (0 if tied else 300 * 32)) + whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device_map": "auto"}, "tensor_parallel and device_map exclude each other"),
        ({"device": "cpu"}, "tensor_parallel and device exclude each other"),
        ({"compile": True}, "tensor_parallel and compile exclude each other"),
        ({"gpus": 2}, "gpus: 2 needs device_map: auto"),
    ],
)
def test_refuses_what_does_not_go_together(changes, message):
    with pytest.raises(ValueError, match=message):
        TeacherConfig(name="toy", model="toy", tensor_parallel=2, **changes)


def test_teachers_of_one_file_take_as_many_processes(tmp_path, teacher):
    values = tiny.capture_values(tmp_path, teacher)
    values["teachers"].append(values["teachers"][0] | {"name": "other", "tensor_parallel": 2})
    with pytest.raises(ValueError, match="need the same tensor_parallel"):
        CaptureConfig.model_validate(values)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "tensor_parallel: 2 needs 2 processes .*torchrun --nproc-per-node 2"),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0"}, r"a multiple of 2, found 3"),
    ],
)
def test_refuses_a_wrong_number_of_processes(monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        join(2)


def test_other_commands_say_that_they_cannot(tmp_path, teacher):
    config = TeacherConfig(name="toy", model=str(teacher), tensor_parallel=2)
    with pytest.raises(ConfigError, match="tensor_parallel works only in capture and audit"):
        load_teacher(config, teacher, "causal")


@pytest.mark.parametrize(
    ("made", "size", "message"),
    [
        (lambda: tiny.model("bert"), 2, "no plan to split this architecture"),
        (tiny.model, 3, "tensor_parallel: 3 does not divide the attention heads"),
        (lambda: tiny.model(num_key_value_heads=1), 2, "a divisor of num_key_value_heads, found 1"),
    ],
)
def test_refuses_a_teacher_that_cannot_be_split(made, size, message):
    with pytest.raises(ModelError, match=message):
        split_plan(made(), size)


def test_groups_are_workers():
    worker = Worker(1, 3, wait_minutes=5).with_groups(Place(group=1, groups=2, rank=0))
    assert worker == Worker(3, 6, wait_minutes=5)
