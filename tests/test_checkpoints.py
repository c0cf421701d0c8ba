"""A run continues to the same weights from whatever it finds, or says which file is damaged; it never starts afresh."""

import json
import os
import shutil

import pytest
import torch

import tiny
from cache_tools.errors import DamageError, IdentityError, LogitcaskError
from student_fixtures import LLAMA, largest_difference, train, train_and_stop, weights
from trainer.run.checkpoints import HASHES, damage, last_checkpoint, numbered, remove_oldest, write_hashes

KEYS = {"max_steps": 6, "save_steps": 2}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tiny.capture(tmp_path_factory.mktemp("cache")).path


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """The weights of a run that nothing stopped."""
    return weights(train(cache, tmp_path_factory.mktemp("whole"), **KEYS))


@pytest.fixture(scope="module")
def stopped(cache, tmp_path_factory):
    """A run with checkpoints 2 and 4."""
    output = tmp_path_factory.mktemp("stopped")
    train_and_stop(5, cache, output, **KEYS)
    return output


@pytest.fixture
def run(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run"


def flip(path, place=2 / 5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 0x40
    path.write_bytes(content)


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FILES = ["model.safetensors", "config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
DAMAGES = {
    "bit": flip,
    "half": half,
    "empty": lambda path: path.write_bytes(b""),
    "gone": os.unlink,
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", [*FILES, HASHES])
def test_every_damage_to_every_file_is_found(run, name, how):
    DAMAGES[how](run / "checkpoint-4" / name)
    if name == HASHES and how in ("gone", "bit", "longer"):
        return  # without its hashes it is one of an older version; a bit or NUL may change nothing that is read
    assert damage(run / "checkpoint-4") is not None
    assert last_checkpoint(run) == str(run / "checkpoint-2")
    shutil.rmtree(run / "checkpoint-2")
    with pytest.raises(DamageError, match=rf"checkpoint-4: this checkpoint is damaged: {name} .*delete checkpoint-4"):
        last_checkpoint(run)


def test_of_a_damaged_checkpoint_the_run_goes_back_to_the_one_before_and_says_so(cache, whole, run, caplog):
    flip(run / "checkpoint-4" / "optimizer.pt")
    assert largest_difference(weights(train(cache, run, **KEYS)), whole) == 0
    assert "checkpoint-4 is damaged: optimizer.pt has changed since it was written" in caplog.text
    assert "continues from checkpoint-2" in caplog.text
    assert damage(run / "checkpoint-4") is None
    assert (run / "checkpoint-4.damaged" / "optimizer.pt").exists()


def test_with_no_other_checkpoint_nothing_is_changed(cache, run):
    shutil.rmtree(run / "checkpoint-2")
    flip(run / "checkpoint-4" / "model.safetensors")
    before = sorted(path.name for path in run.rglob("*"))
    with pytest.raises(DamageError, match=r"model.safetensors has changed since it was written"):
        train(cache, run, **KEYS)
    assert sorted(path.name for path in run.rglob("*")) == before


def test_a_checkpoint_of_an_older_version_is_continued_with_a_warning(cache, whole, run, caplog):
    for step in (2, 4):
        (run / f"checkpoint-{step}" / HASHES).unlink()
    assert largest_difference(weights(train(cache, run, **KEYS)), whole) == 0
    assert f"checkpoint-4 has no {HASHES}" in caplog.text


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_without_hashes_a_missing_file_is_found_all_the_same(run, name):
    for step in (2, 4):
        (run / f"checkpoint-{step}" / HASHES).unlink()
        (run / f"checkpoint-{step}" / name).unlink()
    with pytest.raises(DamageError, match=r"checkpoint-4: .* is missing"):
        last_checkpoint(run)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("how", ["half", "empty"])
def test_without_hashes_an_unreadable_file_is_one_sentence(cache, run, name, how):
    shutil.rmtree(run / "checkpoint-2")
    (run / "checkpoint-4" / HASHES).unlink()
    DAMAGES[how](run / "checkpoint-4" / name)
    with pytest.raises(DamageError, match=r"checkpoint-4: this checkpoint cannot be read"):
        train(cache, run, **KEYS)


def unfinished(folder):
    shutil.copytree(folder / "checkpoint-4", folder / "checkpoint-6")
    (folder / "checkpoint-6" / HASHES).unlink()
    half(folder / "checkpoint-6" / "trainer_state.json")


@pytest.mark.parametrize("leave", [unfinished, lambda folder: (folder / "checkpoint-6").mkdir()], ids=["torn", "empty"])
def test_what_was_never_finished_is_removed(cache, whole, run, leave, caplog):
    leave(run)
    (run / "checkpoint-6" / "leftover").touch()
    assert largest_difference(weights(train(cache, run, **KEYS)), whole) == 0
    assert not (run / "checkpoint-6" / "leftover").exists()
    assert "damaged" not in caplog.text


def test_nothing_finished_at_all_is_a_run_from_the_start(cache, whole, run):
    for step in (2, 4):
        for name in (HASHES, "trainer_state.json"):
            (run / f"checkpoint-{step}" / name).unlink()
    assert largest_difference(weights(train(cache, run, **KEYS)), whole) == 0


ODD = [
    "checkpoint-old",
    "checkpoint-",
    "checkpoint-4-copy",
    "checkpoint-04",
    "checkpoint-9.damaged",
    "checkpoint--1",
    "checkpoint-٣",
]


def test_folders_of_other_names_are_neither_read_nor_deleted(cache, whole, run):
    for name in ODD:
        shutil.copytree(run / "checkpoint-2", run / name)
    (run / "checkpoint-8").touch()
    final = train(cache, run, **KEYS | {"save_total_limit": 1})
    assert largest_difference(weights(final), whole) == 0
    assert {path.name for path in run.glob("checkpoint-*")} == {*ODD, "checkpoint-6", "checkpoint-8"}


def test_a_limit_is_kept_by_number_and_spares_the_newest_and_the_best(tmp_path):
    for step in (2, 4, 6, 8, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    remove_oldest(tmp_path, None, None)
    assert len(numbered(tmp_path)) == 5
    remove_oldest(tmp_path, 3, str(tmp_path / "checkpoint-4"))
    assert [path.name for path in numbered(tmp_path)] == ["checkpoint-4", "checkpoint-8", "checkpoint-10"]
    remove_oldest(tmp_path, 1, str(tmp_path / "checkpoint-4"))
    assert [path.name for path in numbered(tmp_path)] == ["checkpoint-4", "checkpoint-10"]


def test_of_a_link_the_link_alone_is_removed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint-2").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run" / "checkpoint-4").mkdir()
    remove_oldest(tmp_path / "run", 1, None)
    assert (tmp_path / "elsewhere" / "precious").exists()
    assert not (tmp_path / "run" / "checkpoint-2").is_symlink()


def test_hashes_are_there_before_an_older_checkpoint_goes(cache, tmp_path, monkeypatch):
    seen = []

    def removing(output, keep, best):
        seen.append([damage(path) for path in numbered(output)])
        remove_oldest(output, keep, best)

    monkeypatch.setattr("trainer.run.checkpointing_trainer.remove_oldest", removing)
    train(cache, tmp_path, **KEYS | {"save_total_limit": 1})
    assert seen == [[None], [None, None], [None, None]]
    assert [path.name for path in numbered(tmp_path)] == ["checkpoint-6"]


def test_projections_and_nested_folders_have_hashes_too(cache, tmp_path):
    (tmp_path / "global_step3" / "deep").mkdir(parents=True)
    (tmp_path / "global_step3" / "deep" / "states.pt").write_bytes(b"states")
    write_hashes(tmp_path)
    assert json.loads((tmp_path / HASHES).read_text())["files"].keys() == {"global_step3/deep/states.pt"}
    flip(tmp_path / "global_step3" / "deep" / "states.pt")
    assert damage(tmp_path) == "global_step3/deep/states.pt has changed since it was written"


# run.json, metrics and the finished student


RUN_FILES = DAMAGES | {
    "list": lambda path: path.write_text("[1]"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "other": lambda path: path.write_text('{"identity": 3}'),
    "binary": lambda path: path.write_bytes(b"\xff\xfe"),
}
del RUN_FILES["bit"]  # may be in a part that nobody compares


@pytest.mark.parametrize("how", RUN_FILES)
def test_a_damaged_run_json_is_one_sentence(cache, run, how):
    RUN_FILES[how](run / "run.json")
    with pytest.raises(DamageError, match=r"another training.output_dir"):
        train(cache, run, **KEYS)


@pytest.mark.parametrize("how", ["half", "empty", "gone", "bit"])
def test_damaged_metrics_are_written_anew(cache, whole, run, how):
    DAMAGES[how](run / "metrics.jsonl")
    assert largest_difference(weights(train(cache, run, **KEYS)), whole) == 0
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [*range(1, 7), 6]


@pytest.mark.parametrize("left", ["empty folder", "no weights", "no origin", "file", "dangling link"])
def test_what_is_no_finished_student_is_not_taken_for_one(cache, run, left):
    final = run / "final"
    if left == "file":
        final.touch()
    elif left == "dangling link":
        final.symlink_to("nowhere")
    else:
        final.mkdir()
        for name in {"empty folder": [], "no weights": ["logitcask.json", "config.json"], "no origin": ["config.json"]}[
            left
        ]:
            (final / name).touch()
    with pytest.raises(DamageError, match=r"final: this folder is not a finished student .* Move it away"):
        train(cache, run, **KEYS)


def test_what_a_killed_process_left_of_the_finished_student_does_not_stay(cache, whole, run):
    (run / "final.partial").mkdir()
    (run / "final.partial" / "stale.safetensors").touch()
    final = train(cache, run, **KEYS)
    assert largest_difference(weights(final), whole) == 0
    assert not (final / "stale.safetensors").exists()
    assert not (run / "final.partial").exists()


def test_a_finished_run_reads_no_checkpoint(cache, run):
    train(cache, run, **KEYS)
    flip(run / "checkpoint-6" / "model.safetensors")
    assert train(cache, run, **KEYS) == run / "final"


def test_a_run_that_was_stopped_after_its_last_step_makes_no_further_one(cache, tmp_path):
    changes = KEYS | {"lr_scheduler_type": "constant"}
    final = train(cache, tmp_path, **changes)
    whole = weights(final)
    shutil.rmtree(final)
    assert largest_difference(weights(train(cache, tmp_path, **changes)), whole) == 0
    assert [path.name for path in numbered(tmp_path)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


def test_adapters_have_hashes(cache, tmp_path):
    pytest.importorskip("peft")
    start = train(cache, tmp_path / "start", max_steps=1)
    student = {"pretrained": str(start), "lora": {"r": 2}}
    whole = weights(train(cache, tmp_path / "whole", student=student, **KEYS))
    train_and_stop(5, cache, tmp_path / "run", student=student, **KEYS)
    flip(tmp_path / "run" / "checkpoint-4" / "adapter_model.safetensors")
    assert last_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-2")
    assert largest_difference(weights(train(cache, tmp_path / "run", student=student, **KEYS)), whole) == 0


def test_another_run_is_still_refused(cache, run):
    with pytest.raises(IdentityError):
        train(cache, run, **KEYS, student={"config": LLAMA | {"num_hidden_layers": 1}})


def test_errors_of_the_first_process_reach_the_others(run):
    from trainer.run.checkpoints import broadcast_choice

    shutil.rmtree(run / "checkpoint-2")
    flip(run / "checkpoint-4" / "optimizer.pt")
    sent = []
    with pytest.raises(DamageError):
        broadcast_choice(run, 0, sent.extend)

    def receive(outcome):
        outcome[:] = sent

    with pytest.raises(LogitcaskError, match=r"optimizer\.pt"):
        broadcast_choice(run, 1, receive)


def test_torch_is_not_asked_to_unpickle_what_is_no_data(cache, run):
    """A checkpoint without hashes that holds code is refused by torch itself, in one sentence."""
    shutil.rmtree(run / "checkpoint-2")
    (run / "checkpoint-4" / HASHES).unlink()

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(run / "evil"),)

    torch.save(Evil(), run / "checkpoint-4" / "optimizer.pt")
    with pytest.raises(DamageError, match="cannot be read"):
        train(cache, run, **KEYS)
    assert not (run / "evil").exists()


def test_hashes_that_leave_out_a_file_do_not_hide_that_it_is_missing(cache, run, whole):
    hashes = run / "checkpoint-4" / "sha256.json"
    records = json.loads(hashes.read_text())
    del records["files"]["optimizer.pt"]
    hashes.write_text(json.dumps(records))
    (run / "checkpoint-4" / "optimizer.pt").unlink()
    assert damage(run / "checkpoint-4") == "optimizer.pt is missing"


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_lies_in_the_place_of_the_unfinished_student_is_replaced(cache, run, tmp_path, kind):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    if kind == "link":
        (run / "final.partial").symlink_to(outside)
    else:
        (run / "final.partial").touch()
    assert train(cache, run, **KEYS).is_dir()
    assert (outside / "precious").exists()
