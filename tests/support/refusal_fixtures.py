"""The command line in this process, and a finished capture that every refusal must leave as it is."""

import json
import shutil

import pytest

import tiny
from logitcask import main
from store_fixtures import snapshot
from student_fixtures import student_values


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
