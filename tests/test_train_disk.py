"""A full disk in ``train`` is one sentence wherever it happens, and the same command continues to the same weights."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

import tiny
from cache_tools.errors import StorageError
from student_fixtures import largest_difference, train, weights
from trainer.run import checkpoints
from trainer.run.checkpoints import saving

KEYS = {"max_steps": 4, "save_steps": 2}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tiny.capture(tmp_path_factory.mktemp("cache")).path


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    return weights(train(cache, tmp_path_factory.mktemp("whole"), **KEYS))


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def torch_on_a_full_disk(state, path, *_, **__):
    """Leave half a file and raise what torch raises then; it does not say why."""
    Path(path).write_bytes(b"half")
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 5312 vs 5204")


def rust_on_a_full_disk(*_, **__):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def tokenizers_on_a_full_disk(*_, **__):
    raise Exception("No space left on device (os error 28)")


def full_at(name, replace=os.replace):
    """Refuse the last step of writing one file or folder, its renaming."""
    return lambda source, target: full() if Path(target).name == name else replace(source, target)


PLACES = {
    "weights": ("transformers.modeling_utils.safe_save_file", rust_on_a_full_disk),
    "configuration": ("transformers.PreTrainedConfig.save_pretrained", full),
    "tokenizer": ("transformers.PreTrainedTokenizerFast.save_pretrained", tokenizers_on_a_full_disk),
    "optimizer": ("torch.save", torch_on_a_full_disk),
    "state": ("transformers.trainer_callback.TrainerState.save_to_json", full),
    "hashes": ("trainer.run.checkpointing_trainer.write_hashes", full),
    "run.json": ("os.replace", full_at("run.json")),
    "metrics": ("os.replace", full_at("metrics.jsonl")),
    "final": ("os.replace", full_at("final")),
    "origin": ("trainer.run.train.final_record", full),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_full_disk_is_one_sentence_and_the_same_command_continues(cache, whole, tmp_path, monkeypatch, place):
    name, failing = PLACES[place]
    with monkeypatch.context() as patch:
        patch.setattr(name, failing)
        patch.setattr(checkpoints, "_probe", lambda _: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(StorageError) as error:
            train(cache, tmp_path, **KEYS)
    assert str(error.value).startswith(str(tmp_path))
    assert "the disk is full" in str(error.value)
    assert "Free some space and run the same command again; it continues" in str(error.value)
    assert largest_difference(weights(train(cache, tmp_path, **KEYS)), whole) == 0
    assert {path.name for path in tmp_path.iterdir()} - {"curves.png"} == {
        *("run.json", "metrics.jsonl", "final", "checkpoint-2", "checkpoint-4")
    }


def test_a_disk_that_refuses_later_does_not_cost_the_checkpoint_before(cache, whole, tmp_path, monkeypatch):
    save, saved = torch.save, []

    def second_time(state, path, *arguments, **named):
        saved.append(path)
        (torch_on_a_full_disk if "checkpoint-4" in str(path) else save)(state, path, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr("torch.save", second_time)
        patch.setattr(checkpoints, "_probe", lambda _: OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))
        with pytest.raises(StorageError, match=r"checkpoint-4: the disk is full"):
            train(cache, tmp_path, **KEYS)
    assert checkpoints.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert largest_difference(weights(train(cache, tmp_path, **KEYS)), whole) == 0


def test_a_folder_that_may_not_be_written_is_one_sentence(cache, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write: Not a directory"):
        train(cache, tmp_path / "file" / "run")


def test_what_torch_loses_is_asked_of_the_disk_again(tmp_path, monkeypatch):
    with (
        pytest.raises(StorageError, match=r"cannot write: .*unexpected pos"),
        saving(tmp_path / "missing" / "checkpoint-2"),
    ):
        torch_on_a_full_disk(None, tmp_path / "optimizer.pt")
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match="checkpoint-2: the disk is full"), saving(tmp_path / "checkpoint-2"):
        torch_on_a_full_disk(None, tmp_path / "optimizer.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["optimizer.pt"]


def test_a_real_refusal_of_the_system_is_recognised(tmp_path):
    """A limit on the size of files: torch's writer meets it and does not say so."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        with pytest.raises(StorageError, match="cannot write: File too large"), saving(tmp_path):
            torch.save(torch.zeros(100_000), tmp_path / "optimizer.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("CUDA out of memory"), KeyError("a")])
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)), saving(tmp_path):
        raise error


@pytest.mark.parametrize("place", ["/dev/null", "/proc/run", "file"])
def test_a_run_folder_that_cannot_be_made_is_one_sentence(cache, tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=rf"{place}: cannot write: "):
        train(cache, tmp_path / place, max_steps=1)
