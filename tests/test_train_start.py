"""From which weights a student started: recorded, kept with the result, and compared before a run goes on."""

import json
import shutil

import pytest
from huggingface_hub import constants
from safetensors.torch import save_file

import tiny
from cache_tools.errors import ConfigError, IdentityError, ModelError
from cache_tools.models.files import weights_sha256
from student_fixtures import LLAMA, train, train_and_stop, weights
from trainer.config.student_file import StudentModelConfig
from trainer.run.distillation_trainer import DistillationTrainer
from trainer.student.initial_weights import initial_weights


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tiny.capture(tmp_path_factory.mktemp("cache")).path


@pytest.fixture
def start(tmp_path):
    return tiny.save_teacher(tmp_path / "start", tiny.model(seed=5))


def train_on(start):
    """Change one weight of a model folder, as another training run would: names and sizes stay."""
    tensors = weights(start)
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, start / "model.safetensors", metadata={"format": "pt"})


def test_a_run_does_not_continue_from_other_initial_weights(cache, start, tmp_path):
    changes = {"student": {"pretrained": str(start)}, "save_steps": 2}
    train_and_stop(3, cache, tmp_path / "run", **changes)
    old = weights_sha256(start)
    train_on(start)
    with pytest.raises(IdentityError, match=rf'initial_weights.sha256: "{old[:30]}.* -> "{weights_sha256(start)[:30]}'):
        train(cache, tmp_path / "run", **changes)


def test_the_finished_folder_says_from_what_it_came(cache, start, tmp_path):
    final = train(cache, tmp_path / "run", student={"pretrained": str(start)}, max_steps=1)
    record = json.loads((final / "logitcask.json").read_text())
    assert record["identity"]["initial_weights"] == {"sha256": weights_sha256(start)}
    assert record["config"]["student"]["pretrained"] == str(start)


def test_a_student_from_random_weights_has_no_initial_weights(cache, tmp_path):
    final = train(cache, tmp_path, student={"config": LLAMA}, max_steps=1)
    assert json.loads((final / "logitcask.json").read_text())["identity"]["initial_weights"] is None


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_the_fingerprint_is_of_what_the_files_say_and_not_where_they_lie(start, tmp_path, name):
    fingerprint = weights_sha256(start)
    shutil.copytree(start, tmp_path / "copy")
    assert weights_sha256(tmp_path / "copy") == fingerprint
    with (tmp_path / "copy" / name).open("ab") as file:
        file.write(b" ")
    assert weights_sha256(tmp_path / "copy") != fingerprint


@pytest.mark.parametrize("revision", [None, "main", "v2"])
def test_a_student_from_the_hub_is_known_by_its_commit(tmp_path, monkeypatch, revision):
    """Offline, from a hub cache laid out by hand: a branch or tag is a file that names a commit."""
    repository = tmp_path / "models--someone--tiny"
    for branch, commit in (("main", "a" * 40), ("v2", "b" * 40)):
        for path, text in ((f"refs/{branch}", commit), (f"snapshots/{commit}/config.json", "{}")):
            (repository / path).parent.mkdir(parents=True, exist_ok=True)
            (repository / path).write_text(text)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = initial_weights(StudentModelConfig(pretrained="someone/tiny", revision=revision))
    assert found == {"commit": ("b" if revision == "v2" else "a") * 40}


def test_weights_that_are_not_there_are_refused_before_anything_is_written(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("someone/nothing", "/nowhere"):
        with pytest.raises(ModelError, match=f"{name}: the student cannot be made"):
            train(cache, tmp_path / "run", student={"pretrained": name})
    assert not (tmp_path / "run").exists()


def test_a_run_that_was_refused_before_its_first_step_can_be_mended_in_the_same_folder(cache, tmp_path):
    with pytest.raises(ConfigError, match="lr_scheduler_kwargs"):
        train(cache, tmp_path / "run", lr_scheduler_type="cosine", lr_scheduler_kwargs={"num_cyles": 3})
    assert not list((tmp_path / "run").iterdir())
    assert train(cache, tmp_path / "run", lr_scheduler_type="cosine", lr_scheduler_kwargs={"num_cycles": 3}).is_dir()


def test_a_run_that_began_since_the_first_look_is_not_mixed_with_this_one(cache, tmp_path, monkeypatch):
    signal = DistillationTrainer.check_signal

    def another_begins(trainer):
        signal(trainer)
        with monkeypatch.context() as patch:
            patch.setattr(DistillationTrainer, "check_signal", signal)
            train_and_stop(1, cache, tmp_path / "run", learning_rate=0.02)

    monkeypatch.setattr(DistillationTrainer, "check_signal", another_begins)
    with pytest.raises(IdentityError, match="another run is in this folder"):
        train(cache, tmp_path / "run")
