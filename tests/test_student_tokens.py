"""A finished student keeps its own tokenizer, chat template, special tokens and generation settings."""

import json
import shutil
from importlib.util import find_spec

import pytest
from transformers import AutoTokenizer, GenerationConfig

import tiny
from student_fixtures import LLAMA, train, train_and_stop
from trainer.tokenizers.student_tokens import joined

TEMPLATE = "{% for m in messages %}{{ m.content }}<|turn|>{% endfor %}"
END, TURN = "<|end|>", "<|turn|>"
SETTINGS = {"temperature": 0.7, "top_p": 0.8, "do_sample": True, "repetition_penalty": 1.1}
FILES = ("generation_config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja", "config.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base teacher's cache, and an instruct student with the same vocabulary."""
    folder = tmp_path_factory.mktemp("tokens")
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [TURN]})
    size = {"vocab_size": len(tokenizer)}
    tiny.save_teacher(folder / "teacher", tiny.model(**size))
    tokenizer.save_pretrained(folder / "teacher")
    turn, end = (tokenizer.convert_tokens_to_ids(token) for token in (TURN, END))
    student = tiny.model(seed=1, **size, bos_token_id=5, eos_token_id=[turn, end])
    student.generation_config = GenerationConfig(eos_token_id=[turn, 7], pad_token_id=end, bos_token_id=5, **SETTINGS)
    student.save_pretrained(folder / "student")
    tokenizer.eos_token, tokenizer.chat_template = TURN, TEMPLATE
    tokenizer.pad_token = TURN
    tokenizer.save_pretrained(folder / "student")
    tiny.capture(folder, folder / "teacher")
    return folder


def read(folder, name):
    return json.loads((folder / name).read_text())


def kept(final, folder):
    """Assert that a saved student has all that its start had."""
    before, after = (read(part, "generation_config.json") for part in (folder / "student", final))
    assert after["eos_token_id"] == before["eos_token_id"]
    assert {name: after[name] for name in (*SETTINGS, "pad_token_id", "bos_token_id")} == {
        name: before[name] for name in (*SETTINGS, "pad_token_id", "bos_token_id")
    }
    before, after = (read(part, "config.json") for part in (folder / "student", final))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert after[name] == before[name], name
    before, after = (AutoTokenizer.from_pretrained(part) for part in (folder / "student", final))
    assert after.chat_template == before.chat_template == TEMPLATE
    assert after.special_tokens_map == before.special_tokens_map
    assert after.get_vocab() == before.get_vocab()
    chat = [{"role": "user", "content": "the value of a token"}]
    assert after.apply_chat_template(chat)["input_ids"] == before.apply_chat_template(chat)["input_ids"]


def pretrained(folder, **more):
    return {"pretrained": str(folder / "student"), **more}


def test_a_pretrained_student_keeps_what_is_its_own_in_every_folder(folder, tmp_path):
    final = train(folder / "cache", tmp_path, student=pretrained(folder), max_steps=2, save_steps=1)
    kept(final, folder)
    kept(tmp_path / "checkpoint-1", folder)


@pytest.mark.skipif(not find_spec("peft"), reason="peft is not installed")
def test_a_merged_adapter_keeps_it_too(folder, tmp_path):
    kept(train(folder / "cache", tmp_path, student=pretrained(folder, lora={}), max_steps=1), folder)


def test_a_continued_run_writes_the_same_files(folder, tmp_path):
    final = train(folder / "cache", tmp_path / "straight", student=pretrained(folder), save_steps=1)
    train_and_stop(2, folder / "cache", tmp_path / "stopped", student=pretrained(folder), save_steps=1)
    again = train(folder / "cache", tmp_path / "stopped", student=pretrained(folder), save_steps=1)
    for name in FILES:
        assert (again / name).read_bytes() == (final / name).read_bytes(), name


def test_a_student_from_random_weights_has_the_tokens_of_the_cache(folder, tmp_path):
    final = train(folder / "cache", tmp_path, student={"config": LLAMA | {"eos_token_id": 9}}, max_steps=1)
    teacher = AutoTokenizer.from_pretrained(folder / "teacher")
    assert read(final, "generation_config.json")["eos_token_id"] == teacher.eos_token_id
    assert AutoTokenizer.from_pretrained(final).special_tokens_map == teacher.special_tokens_map
    assert AutoTokenizer.from_pretrained(final).chat_template is None


@pytest.mark.parametrize(
    ("own", "more", "ids"),
    [
        (None, None, None),
        (None, 3, 3),
        (3, None, 3),
        (3, 3, 3),
        (3, 4, [3, 4]),
        ([3, 5], 4, [3, 5, 4]),
        ([3, 5], 5, [3, 5]),
        ([], 4, 4),
        ([3, 5], None, [3, 5]),
    ],
)
def test_no_end_token_is_lost_and_none_comes_twice(own, more, ids):
    assert joined(own, more) == ids


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_settings_that_transformers_loads_but_does_not_save_are_kept(folder, tmp_path, lora):
    if lora and find_spec("peft") is None:
        pytest.skip("needs peft")
    shutil.copytree(folder / "student", tmp_path / "student")
    settings = read(folder / "student", "generation_config.json") | {"do_sample": False}
    (tmp_path / "student" / "generation_config.json").write_text(json.dumps(settings))
    student = {"pretrained": str(tmp_path / "student")} | ({"lora": lora} if lora else {})
    final = train(folder / "cache", tmp_path / "run", student=student, save_steps=1, max_steps=2)
    kept_settings = read(final, "generation_config.json")
    assert {name: kept_settings.get(name, False) for name in SETTINGS} == SETTINGS | {"do_sample": False}
    assert kept_settings["eos_token_id"] == settings["eos_token_id"]
