"""Every refusal at the command line: exit code 1, one ``Error:`` line that names the cause, nothing harmed.

Most run in this process, because importing torch takes seconds; two in a process of their
own show that this changes nothing.
"""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import refusal_fixtures
import tiny
from refusal_fixtures import (
    changed,
    command_line,
    other_tokenizer,
    write_yaml,
)
from store_fixtures import snapshot
from student_fixtures import student_values

good, refused = refusal_fixtures.good, refusal_fixtures.refused


# Another tokenizer, teacher or corpus


def test_refuses_another_tokenizer_for_a_captured_encoding(good, tmp_path, refused):
    teacher = other_tokenizer(tmp_path / "other")
    message = refused("capture", changed(good, tmp_path, teacher={"model": str(teacher)}))
    assert (
        f"{good.cache}/encodings/main: the cache holds this encoding with another tokenizer or other settings"
        in message
    )
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
        ({"target": {"k": 16, "exact": True}}, 'target.codec.name: "delta-power" -> "ranked-grid"'),
        ({"target": {"k": 16, "max_kl_nats": 1e-3}}, "target.codec.max_kl_nats"),
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
    assert "from another corpus (expected the files it was made from, found corpus.jsonl is changed)" in message


def test_refuses_a_new_file_unless_it_is_to_be_appended(good, tmp_path, refused, monkeypatch):
    more = tiny.write_corpus(tmp_path / "more.jsonl", ["something new"])
    more.write_text(more.read_text().replace("doc0", "new"))
    shutil.copytree(good.cache, tmp_path / "cache")
    paths = [str(good.folder / "corpus.jsonl"), str(more)]
    command = ["capture", changed(good, tmp_path, paths=paths), "--set", f"cache={tmp_path / 'cache'}"]
    message = refused(*command)
    assert "found more.jsonl is new). Run the capture with --append to add what is new" in message
    assert snapshot(tmp_path / "cache") == snapshot(good.cache)
    assert command_line(monkeypatch, *command, "--append") == 0
    assert command_line(monkeypatch, "verify", "--deep", tmp_path / "cache") == 0


# Files that are not what they should be


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a word"}\n{"text": \n', ":2: this line is not JSON"),
        (
            '{"text": "a word"}\n\n{"body": "a word", "id": 3}\n',
            ":3: the field 'text' is missing (expected a str, found",
        ),
        ('{"text": ""}\n{"id": "mute", "text": ""}\n', ": no document has a token that a teacher could predict"),
        ('{"text": "a word", "id": "\\ud800"}\n', ":1: this is not valid Unicode"),
        ("\n", ": the corpus is empty"),
    ],
)
def test_refuses_a_corpus_and_names_file_and_line(good, tmp_path, refused, content, message):
    corpus = tmp_path / "new.jsonl"
    corpus.write_text(content)
    config = changed(good, tmp_path, paths=[str(corpus)])
    assert refused("capture", config, "--set", f"cache={tmp_path / 'new'}").startswith(f"Error: {corpus}{message}")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("paths", "message"), [(["nothing"], "no such file or folder"), (["."], "no readable file found")]
)
def test_refuses_a_corpus_without_files(good, tmp_path, refused, paths, message):
    (tmp_path / "empty").mkdir()
    where = [str(tmp_path / "empty" / path) for path in paths]
    config = changed(good, tmp_path, paths=where)
    assert f"Error: {Path(where[0])}: {message}" in refused("capture", config, "--set", f"cache={tmp_path / 'new'}")
    assert not (tmp_path / "new").exists()


def test_refuses_a_damaged_corpus(good, tmp_path, refused):
    corpus = tmp_path / "corpus.jsonl.gz"
    corpus.write_bytes(b"\x1f\x8b not gzip at all")
    message = refused("capture", changed(good, tmp_path, paths=[str(corpus)]), "--set", f"cache={tmp_path / 'new'}")
    assert f"Error: {corpus}: this cannot be read to its end" in message
    assert not (tmp_path / "new").exists()


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
        (only_pickled, "this folder holds no safetensors weights. Other formats use pickle, which can run code"),
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
