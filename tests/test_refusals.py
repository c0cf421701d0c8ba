"""Every refusal at the command line: exit code 1, one ``Error:`` line that names the cause, nothing harmed.

Most run in this process, because importing torch takes seconds; two in a process of their
own show that this changes nothing.
"""

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from cache_tools import layout
from logitcask import main
from store_fixtures import snapshot
from student_fixtures import student_values

ROOT = Path(__file__).parents[1]


class Good:
    """A finished capture that every refusal must leave as it is.

    Attributes:
        folder: Holds ``corpus.jsonl``, ``teacher`` and ``cache``.
        values: Its capture file.
    """

    def __init__(self, folder):
        self.folder, self.cache = folder, folder / "cache"
        self.values = tiny.capture_values(folder, max_length_tokens=24, batch_tokens=200)
        tiny.write_corpus(folder / "corpus.jsonl", tiny.TEXTS[:9])


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    made = Good(tmp_path_factory.mktemp("good"))
    with pytest.MonkeyPatch.context() as patch:
        assert command_line(patch, "capture", write_yaml(made.folder, made.values)) == 0
    return made


def write_yaml(folder, values):
    path = folder / "settings.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


def command_line(patch, *arguments):
    """Run the console command in this process and return its exit code."""
    patch.setattr("sys.argv", ["logitcask", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return end.code or 0


@pytest.fixture
def refused(good, monkeypatch, capsys):
    """Run a command that is refused and return its message."""

    def _refused(*arguments, code=1):
        before = snapshot(good.cache)
        capsys.readouterr()
        assert command_line(monkeypatch, *arguments) == code
        out, err = capsys.readouterr()
        assert snapshot(good.cache) == before
        return message_of(out, err)

    return _refused


def message_of(out, err):
    """Return what follows the one ``Error:``, which must be the last thing that is said."""
    assert "Traceback" not in out + err
    assert [line.startswith("Error: ") for line in err.splitlines()].count(True) == 1
    assert not out
    return err[err.index("Error: ") :]


def changed(good, folder, **changes):
    """Return the good capture file with blocks updated: ``encoding={…}``, ``teacher={…}``, ``paths=[…]``, ``cache``."""
    values = json.loads(json.dumps(good.values))
    values["teachers"][0] |= changes.pop("teacher", {})
    values["encoding"] |= changes.pop("encoding", {})
    values["corpus"] |= changes
    return write_yaml(folder, values)


def other_tokenizer(folder):
    tiny.model().save_pretrained(folder)
    tiny.tokenizer(280).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(good, tmp_path):
    """A copy of the good cache, to be damaged."""
    shutil.copytree(good.cache, tmp_path / "copy")
    return tmp_path / "copy"


def readers_of(cache, folder, good):
    """Return the commands that read a cache."""
    student = write_yaml(folder, student_values(cache, folder / "student"))
    evaluate = ["evaluate", good.folder / "teacher", cache]
    return {
        "inspect": ["inspect", cache],
        "verify": ["verify", cache],
        "train": ["train", student],
        "evaluate": evaluate,
    }


# Another tokenizer, teacher or corpus


def test_refuses_another_tokenizer_for_a_captured_encoding(good, tmp_path, refused):
    teacher = other_tokenizer(tmp_path / "other")
    message = refused("capture", changed(good, tmp_path, teacher={"model": str(teacher)}))
    assert f"{good.cache}/encodings/main: the cache holds this encoding from another corpus, tokenizer" in message
    assert "tokenizer.vocabulary: " in message


def test_refuses_a_teacher_whose_tokenizer_is_not_the_encodings(good, tmp_path, refused):
    second = good.values["teachers"][0] | {"name": "second", "model": str(other_tokenizer(tmp_path / "other"))}
    values = good.values | {"teachers": [*good.values["teachers"], second]}
    message = refused("capture", write_yaml(tmp_path, values))
    assert f"{tmp_path}/other: teacher 'second' has another tokenizer than the encoding" in message


def test_refuses_a_student_whose_tokenizer_is_not_the_caches(good, tmp_path, refused):
    student = other_tokenizer(tmp_path / "other")
    values = student_values(good.cache, tmp_path / "run", student={"pretrained": str(student)})
    for arguments in (["train", write_yaml(tmp_path, values)], ["evaluate", student, good.cache]):
        assert f"{student}: the student has another tokenizer than the cache" in refused(*arguments)


def test_refuses_other_weights_under_the_same_name(good, tmp_path, refused):
    teacher = tiny.save_teacher(tmp_path / "other", tiny.model(seed=1))
    message = refused("capture", changed(good, tmp_path, teacher={"model": str(teacher)}))
    assert f"{good.cache}/encodings/main/teachers/toy: the cache already holds another teacher" in message
    assert "weights: " in message


@pytest.mark.parametrize(
    ("teacher", "key"),
    [
        ({"dtype": "bfloat16"}, "dtype: "),
        ({"target": {"k": 8}}, "target.k: 16 -> 8"),
        ({"hidden_layers": [1]}, "hidden.1"),
    ],
)
def test_refuses_other_capture_parameters_under_the_same_name(good, tmp_path, refused, teacher, key):
    message = refused("capture", changed(good, tmp_path, teacher=teacher))
    assert "the cache already holds another teacher under the name 'toy'" in message
    assert key in message


def test_refuses_a_changed_corpus(good, tmp_path, refused):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text((good.folder / "corpus.jsonl").read_text().replace("kept", "left", 1))
    message = refused("capture", changed(good, tmp_path, paths=[str(corpus)]))
    assert f"{good.cache}/encodings/main: the cache holds this encoding" in message
    assert "corpus.sha256: " in message


# Files that are not what they should be


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a word"}\n{"text": \n', ":2: this line is not JSON"),
        (
            '{"text": "a word"}\n\n{"body": "a word", "id": 3}\n',
            ":3: the field 'text' is missing (expected a str, found",
        ),
        ('{"text": "a word"}\n{"id": "mute", "text": ""}\n', ":2 (id 'mute'): this document has no token"),
        ('{"text": "a word", "id": "\\ud800"}\n', ":1: this is not valid Unicode"),
        ("\n", ": the corpus is empty"),
    ],
)
def test_refuses_a_corpus_and_names_file_and_line(good, tmp_path, refused, content, message):
    corpus = tmp_path / "new.jsonl"
    corpus.write_text(content)
    config = changed(good, tmp_path, paths=[str(corpus)])
    assert refused("capture", config, "--set", f"cache={tmp_path / 'new'}").startswith(f"Error: {corpus}{message}")
    assert not list((tmp_path / "new").rglob("*.arrow"))


@pytest.mark.parametrize(
    ("paths", "message"), [(["nothing"], "no such file or folder"), (["."], "no readable file found")]
)
def test_refuses_a_corpus_without_files(good, tmp_path, refused, paths, message):
    (tmp_path / "empty").mkdir()
    where = [str(tmp_path / "empty" / path) for path in paths]
    config = changed(good, tmp_path, paths=where)
    assert f"Error: {Path(where[0])}: {message}" in refused("capture", config, "--set", f"cache={tmp_path / 'new'}")


def test_refuses_a_damaged_corpus(good, tmp_path, refused):
    corpus = tmp_path / "corpus.jsonl.gz"
    corpus.write_bytes(b"\x1f\x8b not gzip at all")
    message = refused("capture", changed(good, tmp_path, paths=[str(corpus)]), "--set", f"cache={tmp_path / 'new'}")
    assert f"Error: {corpus}: this cannot be read to its end" in message


def test_refuses_all_unknown_and_wrong_keys_at_once(good, tmp_path, refused):
    config = changed(good, tmp_path, texts_field="text", teacher={"kk": 1}, encoding={"max_length_tokens": -1})
    message = refused("capture", config, "--set", "cash=somewhere")
    assert message.startswith(f"Error: {config}: 4 problems:")
    assert message.count("\n") == 5
    for problem in (
        "corpus.texts_field: unknown key; did you mean text_field?",
        "teachers.0.kk: unknown key;",
        "cash: unknown key; did you mean cache?",
        "encoding.max_length_tokens: Input should be greater than 0",
    ):
        assert f"\n  {problem}" in message


@pytest.mark.parametrize("command", ["capture", "train"])
def test_refuses_a_configuration_that_is_not_there(tmp_path, refused, command):
    assert f"Error: {tmp_path}/no.yaml: cannot read the configuration" in refused(command, tmp_path / "no.yaml")


# Teachers that cannot be used


def no_folder(folder):
    shutil.rmtree(folder)


def only_pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def no_configuration(folder):
    (folder / "config.json").unlink()


def unknown_architecture(folder):
    (folder / "config.json").write_text('{"model_type": "no_such_model"}')


def no_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


def broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"added_tokens": [], "model": 7}')


def half_the_weights(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_folder, "teacher 'toy' cannot be found"),
        (only_pickled, "no safetensors weights here. Pickled weights can run code"),
        (no_configuration, "no model configuration could be loaded"),
        (unknown_architecture, "no model configuration could be loaded"),
        (no_tokenizer, "no tokenizer could be loaded"),
        (broken_tokenizer, "no tokenizer could be loaded"),
        (half_the_weights, "teacher 'toy' cannot be loaded"),
    ],
)
def test_refuses_a_teacher_that_cannot_be_loaded_and_names_its_folder(good, tmp_path, refused, spoil, message):
    teacher = tmp_path / "teacher"
    shutil.copytree(good.folder / "teacher", teacher)
    spoil(teacher)
    found = refused("capture", changed(good, tmp_path, teacher={"model": str(teacher)}))
    assert f"Error: {teacher}: {message}" in found


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_refuses_a_device_that_is_not_there(good, tmp_path, refused, device):
    message = refused("capture", changed(good, tmp_path, teacher={"device": device}))
    assert f"Error: device {device}: this device cannot be used" in message


def test_a_teacher_that_cannot_run_is_refused_before_anything_is_encoded(good, tmp_path, refused):
    config = changed(good, tmp_path, teacher={"device": "banana"})
    refused("capture", config, "--set", f"cache={tmp_path / 'new'}")
    assert not (tmp_path / "new").exists()


def test_refuses_sequences_longer_than_the_teacher_can_read(good, tmp_path, refused):
    config = changed(good, tmp_path, encoding={"max_length_tokens": 129})
    message = refused("capture", config, "--set", f"cache={tmp_path / 'new'}")
    assert "Error: encoding.max_length_tokens: sequences are longer than teacher 'toy' can read" in message
    assert "(expected at most 128, found 129)" in message
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("rank", "world_size"), [(1, 1), (5, 2)])
def test_refuses_a_rank_outside_the_world_as_a_usage_error(good, tmp_path, refused, rank, world_size):
    config = changed(good, tmp_path)
    message = refused("capture", config, "--rank", rank, "--world-size", world_size, code=2)
    assert message == f"Error: --rank {rank} needs --world-size of at least {rank + 1}\n"


# Caches that cannot be used


@pytest.mark.parametrize(("command", "split"), [("train", "train"), ("evaluate", "train"), ("evaluate", "held_out")])
def test_a_missing_receipt_is_refused_by_whoever_needs_the_shard(copy, good, tmp_path, refused, command, split):
    table = json.loads((copy / "encodings/main/zarr.json").read_text())["attributes"]["logitcask"]["splits"]
    assert table["train"]["shards"] > 1
    shard = 0 if split == "train" else sum(totals["shards"] for totals in table.values()) - 1
    layout.receipt_file(copy / "encodings/main/teachers/toy", shard).unlink()
    arguments = readers_of(copy, tmp_path, good)[command]
    if command == "evaluate":
        arguments = [*arguments, "--split", split]
    message = refused(*arguments)
    assert f"Error: {copy}/encodings/main/teachers/toy: teacher 'toy' has no receipt for 1 of " in message
    assert f"missing shards {shard})" in message
    assert "Run the same 'logitcask capture' again" in message


@pytest.mark.parametrize("command", ["inspect", "verify", "train", "evaluate"])
@pytest.mark.parametrize("there", [True, False])
def test_refuses_a_path_that_is_not_a_cache(good, tmp_path, refused, command, there):
    path = good.folder / "teacher" if there else tmp_path / "nothing"
    message = refused(*readers_of(path, tmp_path, good)[command])
    assert f"Error: {path}/zarr.json: there is no readable cache manifest here" in message


@pytest.mark.parametrize("command", ["inspect", "verify", "train", "evaluate", "capture"])
def test_refuses_a_newer_format(copy, good, tmp_path, refused, command):
    manifest = json.loads((copy / "zarr.json").read_text())
    manifest["attributes"]["logitcask"] |= {"format": 2, "software": "logitcask 9.0"}
    (copy / "zarr.json").write_text(json.dumps(manifest))
    before = snapshot(copy)
    capture = ["capture", changed(good, tmp_path), "--set", f"cache={copy}"] if command == "capture" else []
    message = refused(*(capture or readers_of(copy, tmp_path, good)[command]))
    assert f"Error: {copy}/zarr.json: this cache has another format version" in message
    assert "(expected format 1, found format 2, written by logitcask 9.0)" in message
    assert snapshot(copy) == before


def test_refuses_to_capture_into_a_folder_of_other_things(good, tmp_path, refused):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("x")
    message = refused("capture", changed(good, tmp_path), "--set", f"cache={tmp_path / 'thesis'}")
    assert f"Error: {tmp_path}/thesis: this path holds something that is not a cache" in message
    assert os.listdir(tmp_path / "thesis") == ["chapter1.tex"]


# A full disk


class FullDisk:
    """Lets some files be written; of the next one half is written, then the disk is full."""

    def __init__(self, patch, num_files):
        self.left, self.num_written, real = num_files, itertools.count(), Path.open

        def _open(path, mode="r", *arguments, **named):
            file = real(path, mode, *arguments, **named)
            if mode != "wb" or next(self.num_written) < self.left:
                return file
            with file:
                file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        patch.setattr(Path, "open", _open)


def without_provenance(cache):
    return {key: content.split(b'"provenance"')[0] for key, content in snapshot(cache).items()}


def num_files(good, folder):
    """Return how many files a capture writes by way of Path.open."""
    with pytest.MonkeyPatch.context() as patch:
        disk = FullDisk(patch, 10**6)
        command_line(patch, "capture", changed(good, folder), "--set", f"cache={folder / 'counted'}")
    return next(disk.num_written)


@pytest.mark.parametrize("share", [0, 0.04, 0.1, 0.15, 0.2, 0.35, 0.5, 0.8, 0.95, 0.999])
def test_a_full_disk_is_named_and_the_same_command_continues_after_it(good, tmp_path, refused, monkeypatch, share):
    command = ["capture", changed(good, tmp_path), "--set", f"cache={tmp_path / 'cache'}"]
    with pytest.MonkeyPatch.context() as patch:
        FullDisk(patch, int(share * num_files(good, tmp_path)))
        message = refused(*command)
    assert message.startswith(f"Error: {tmp_path / 'cache'}/")
    assert "the disk is full" in message
    assert "Free some space and run the same command again; it continues" in message
    assert command_line(monkeypatch, *command) == 0
    assert without_provenance(tmp_path / "cache") == without_provenance(good.cache)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), Exception("No space left on device (os error 28)")]
)
def test_a_disk_that_is_full_when_the_tokenizer_is_saved_is_named_too(good, tmp_path, refused, monkeypatch, error):
    """The Python part of a tokenizer raises the first of these errors, its Rust part the second."""

    def _full(*_):
        raise error

    command = ["capture", changed(good, tmp_path), "--set", f"cache={tmp_path / 'cache'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", _full)
        assert f"Error: {tmp_path}/cache/encodings/main/tokenizer: the disk is full" in refused(*command)
    assert command_line(monkeypatch, *command) == 0
    assert without_provenance(tmp_path / "cache") == without_provenance(good.cache)


# The same in a process of its own


@pytest.mark.parametrize("command", ["inspect", "capture"])
def test_a_process_ends_with_one_error_line_and_no_traceback(good, tmp_path, command):
    corpus, before = tmp_path / "corpus.jsonl", snapshot(good.cache)
    corpus.write_text("{")
    config = changed(good, tmp_path, paths=[str(corpus)])
    arguments, where = {
        "inspect": (["inspect", tmp_path], f"{tmp_path}/zarr.json: there is no readable cache manifest"),
        "capture": (["capture", config, "--set", f"cache={tmp_path / 'new'}"], f"{corpus}:1: this line is not JSON"),
    }[command]
    process = subprocess.run(
        [sys.executable, "-m", "logitcask", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 1
    assert message_of(process.stdout, process.stderr).startswith(f"Error: {where}")
    assert snapshot(good.cache) == before
