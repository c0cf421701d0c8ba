"""Nothing from a cache is run or asks to be: tokenizers are data, of the recorded vocabulary, in every command."""

import io
import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import tiny
from cache_tools.errors import FormatError, IdentityError, LogitcaskError, ModelError
from cache_tools.format.manifest import ObjectRecord
from cache_tools.format.sealed import sealed_bytes
from cache_tools.format.tokenizer_files import is_tokenizer_file, without_code
from cache_tools.store.reader import Cache
from pipeline.audit.run import _tokenizer
from pipeline.encoding.tokenizer import tokenizer_files
from student_fixtures import train
from trainer.evaluation.evaluate import evaluate_folder
from trainer.tokenizers.cached import student_tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    tiny.capture(folder)
    return folder / "cache"


@pytest.fixture
def crafted(made, tmp_path, monkeypatch):
    """Return a function that puts files into a copy of the cache, with hashes and seal that fit; a user says yes."""
    shutil.copytree(made, tmp_path / "cache")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))

    def craft(files):
        encoding = tmp_path / "cache" / "encodings" / "main"
        manifest = json.loads((encoding / "zarr.json").read_text())
        attributes = manifest["attributes"]["logitcask"]
        for key, content in files.items():
            (encoding / key).parent.mkdir(exist_ok=True, parents=True)
            (encoding / key).write_bytes(content)
            attributes["files"][key] = ObjectRecord.of(content).model_dump()
        attributes["seal"] = "0" * 64
        (encoding / "zarr.json").write_bytes(sealed_bytes(manifest))
        return tmp_path / "cache"

    return craft


def settings_of(made, **changes):
    path = made / "encodings/main/tokenizer/tokenizer_config.json"
    return {"tokenizer/tokenizer_config.json": json.dumps(json.loads(path.read_text()) | changes).encode()}


NO_DATA = [
    "evil.py",
    "evil",
    "evil.pkl",
    "evil.bin",
    "evil.pt",
    "evil.so",
    "evil.json.py",
    "sub/evil.json",
    "sub/evil.py",
]
NO_DATA += ["additional_chat_templates/evil.py", "a.safetensors", "evil.PY", "evil.pth", "evil.sh", "evil.pyc"]


@pytest.mark.parametrize("name", NO_DATA)
def test_a_cache_that_lists_more_than_data_is_refused_by_every_reader(made, crafted, tmp_path, name):
    cache = crafted({f"tokenizer/{name}": b"x"})
    with pytest.raises(FormatError, match=f"tokenizer/{name} is not a tokenizer's file"):
        Cache(cache).encoding()
    with pytest.raises(FormatError, match=f"tokenizer/{name} is not a tokenizer's file"):
        train(cache, tmp_path / "run", max_steps=1)


CODE = [
    {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"},
    {"auto_map": ["somebody/evil--evil.Evil", None], "tokenizer_class": "Evil"},
    {"auto_map": {"AutoTokenizer": ["evil.Evil", None], "AutoConfig": "evil.Config"}},
    {"tokenizer_class": "BertJapaneseTokenizer", "mecab_kwargs": {"mecab_option": "-r /etc/passwd"}},
    {"tokenizer_class": "MistralCommonBackend"},
    {"tokenizer_class": "os.system"},
    {"tokenizer_class": 3},
    {"tokenizer_file": "/etc/passwd", "vocab_file": "/etc/passwd", "fast_tokenizer_files": ["../../../etc/passwd"]},
    {"init_inputs": ["/etc/passwd"], "name_or_path": "somebody/evil", "tokenizer_object": 3},
]


@pytest.mark.parametrize("changes", CODE, ids=lambda changes: ",".join(changes))
def test_settings_that_name_code_or_other_files_change_nothing(made, crafted, changes, capsys):
    cache = crafted(settings_of(made, **changes))
    encoding = Cache(cache).encoding()
    for loaded in (student_tokenizer(None, encoding), _tokenizer(encoding)):
        assert isinstance(loaded, PreTrainedTokenizerFast)
        assert loaded("the shard")["input_ids"] == tiny.tokenizer()("the shard")["input_ids"]
    assert "[y/N]" not in "".join(capsys.readouterr())


def test_a_finished_student_holds_no_such_setting(made, crafted, tmp_path):
    cache = crafted(settings_of(made, auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, tokenizer_class="Evil"))
    final = train(cache, tmp_path / "run", max_steps=1)
    assert "auto_map" not in (final / "tokenizer_config.json").read_text()
    assert not list(final.rglob("*.py"))


DEEP = b"[" * 100_000
GARBAGE = [
    b"not a tokenizer",
    b"",
    b"{}",
    b"[]",
    b"3",
    b"null",
    b"\xff\xfe",
    DEEP,
    b'{"version": "1.0"}',
    b'{"model": {"type": "BPE"}}',
]


@pytest.mark.parametrize("content", GARBAGE, ids=lambda content: repr(content[:12]))
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_unreadable_files_are_one_sentence_that_names_the_cache(crafted, name, content):
    cache = crafted({f"tokenizer/{name}": content})
    encoding = Cache(cache).encoding()
    for load in (lambda: student_tokenizer(None, encoding), lambda: _tokenizer(encoding)):
        message = refusal(load)
        if message is None:
            assert name == "tokenizer_config.json"  # an empty one leaves a tokenizer without special tokens
        else:
            assert message.startswith(f"{cache}/encodings/main: the tokenizer's files ")


def refusal(load):
    try:
        load()
    except LogitcaskError as error:
        return str(error)
    return None


def test_a_tokenizer_of_another_vocabulary_is_refused(made, crafted, tmp_path):
    state = json.loads((made / "encodings/main/tokenizer/tokenizer.json").read_text())
    ids = state["model"]["vocab"]
    first, second = [token for token in ids if len(token) > 2][:2]
    ids[first], ids[second] = ids[second], ids[first]
    exchanged = json.dumps(state).encode()
    Tokenizer.from_str(exchanged.decode())
    cache = crafted({"tokenizer/tokenizer.json": exchanged})
    with pytest.raises(
        IdentityError, match="encodings/main: the tokenizer's files are not those of the recorded tokenizer"
    ):
        train(cache, tmp_path / "run", max_steps=1)
    assert not (tmp_path / "run" / "final").exists()


def test_what_is_data_and_what_is_not():
    names = ["tokenizer.json", "vocab.txt", "merges.txt", "chat_template.jinja", "tokenizer.model"]
    assert all(map(is_tokenizer_file, [*names, "additional_chat_templates/tool_use.jinja"]))
    assert not any(map(is_tokenizer_file, [*NO_DATA, "../tokenizer.json", ".json", "", "a\n.json", "tokenizer.json\n"]))
    assert without_code("tokenizer.json", b'{"auto_map": 1}') == b'{"auto_map": 1}'
    assert json.loads(without_code("tokenizer_config.json", b'{"auto_map": 1, "a_file": 2, "eos_token": "x"}')) == {
        "eos_token": "x"
    }


def test_a_tokenizer_that_came_with_code_is_captured_as_data(monkeypatch):
    tokenizer = tiny.tokenizer()
    save = tokenizer.save_pretrained

    def with_code(folder):
        save(folder)
        (Path(folder) / "evil.py").touch()
        path = Path(folder) / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))

    monkeypatch.setattr(tokenizer, "save_pretrained", with_code)
    files = tokenizer_files(tokenizer)
    assert set(files) == {"tokenizer.json", "tokenizer_config.json"}
    assert b"auto_map" not in files["tokenizer_config.json"]


def test_several_chat_templates_survive_a_capture(tmp_path):
    teacher = tiny.save_teacher(tmp_path / "teacher")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(teacher)
    cache = tiny.capture(tmp_path, teacher)
    assert student_tokenizer(None, cache.encoding()).chat_template == tokenizer.chat_template


@pytest.mark.parametrize(
    "escape", ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__.os }}"]
)
def test_chat_templates_of_a_cache_run_in_a_sandbox(made, crafted, escape):
    cache = crafted({"tokenizer/chat_template.jinja": escape.encode()})
    loaded = student_tokenizer(None, Cache(cache).encoding())
    with pytest.raises(Exception, match=r"unsafe|undefined|not allowed"):
        loaded.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)


def test_a_students_folder_cannot_ask_to_run_its_code(made, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 100))
    final = train(made, tmp_path / "run", max_steps=1)
    mark = tmp_path / "CODE-RAN"
    (final / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Evil: pass\n")
    for name, key in (("config.json", "AutoModelForCausalLM"), ("tokenizer_config.json", "AutoTokenizer")):
        content = json.loads((final / name).read_text())
        for changes in ({"model_type": "evil"}, {}):
            value = ["evil.Evil", "evil.Evil"] if key == "AutoTokenizer" else "evil.Evil"
            auto_map = {"AutoConfig": "evil.Evil", key: value}
            (final / name).write_text(json.dumps(content | {"auto_map": auto_map} | changes))
            with suppress(ModelError):
                evaluate_folder(final, Cache(made).encoding().teacher(), "held_out")
            with suppress(LogitcaskError):
                train(made, tmp_path / "next", max_steps=1, student={"pretrained": str(final)})
            assert not mark.exists()
        (final / name).write_text(json.dumps(content))
