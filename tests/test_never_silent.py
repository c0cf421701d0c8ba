"""Each long command shows what it does on stderr, and its data alone on stdout."""

import json

import pytest
from click.testing import CliRunner

import tiny
from cache_tools.progress import lines as progress
from cache_tools.progress.lines import LineReporter
from logitcask import COMMANDS, cli
from refusal_fixtures import write_yaml
from student_fixtures import student_values

QUICK = {"view": "serves until it is stopped", "drop": "deletes a few folders"}

NEEDS_A_HUB = {"publish": "run against a server by tests/test_hub.py, its progress included"}

LONG = {
    "generate": ("generate", "{generation}", "--json"),
    "plan": ("plan", "{capture}", "--measure", "--json"),
    "capture": ("capture", "{capture}"),
    "audit": ("audit", "{capture}", "--json"),
    "train": ("train", "{student}"),
    "evaluate": ("evaluate", "{folder}/run/final", "{cache}", "--json"),
    "verify": ("verify", "{cache}", "--json"),
    "verify --deep": ("verify", "{cache}", "--deep", "--json"),
    "repair": ("repair", "{cache}", "--json"),
    "inspect": ("inspect", "{cache}", "--json"),
    "show": ("show", "{cache}", "--highest-loss", "--json"),
    "show --text": ("show", "{cache}", "--text", "nowhere in the corpus", "--json"),
    "diff": ("diff", "{cache}", "{other}", "--json"),
    "copy": ("copy", "{cache}", "{folder}/copy"),
    "subset": ("subset", "{cache}", "{folder}/subset", "--k", "4"),
    "card": ("card", "{cache}"),
    "export": ("export", "{cache}", "{folder}/rows", "--json"),
    "import": ("import", "{folder}/rows", "{folder}/imported", "--tokenizer", "{teacher}", "--json"),
    "vocabulary": ("vocabulary", "{cache}", "-o", "{folder}/vocabulary", "--json"),
    "vocabulary --keep": ("vocabulary", "{cache}", "--keep", "0.9", "-o", "{folder}/half", "--embeddings", "{teacher}"),
    "align": ("align", "{cache}", "--tokenizer", "{teacher}", "--json"),
    "report": ("report", "{cache}", "-o", "{folder}/report.html"),
}
"""How each long command is run, in an order in which each finds what it needs."""

WORK = {
    "generate": "completions",
    "capture": "tokens",
    "audit": "tokens",
    "train": "steps",
    "evaluate": "tokens",
    "copy": "bytes",
    "align": "tokens",
}
"""What the stage that takes longest counts."""


class Recorder(LineReporter):
    """Records every call."""

    def __init__(self, stages):
        super().__init__(lambda _: None)
        self.stages = stages

    def end(self, finished=True):
        if self.current is not None:
            self.stages.append(self.current)
            self.current.end_part(self.clock())
        self.current = None


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with two captured caches, one that is still to be, and the files that the commands take."""
    folder = tmp_path_factory.mktemp("silent")
    values = tiny.capture_values(folder)
    tiny.run(values | {"cache": str(folder / "cache")})
    other = values | {"cache": str(folder / "other")}
    other["teachers"] = [values["teachers"][0] | {"target": {"k": 8}}]
    tiny.run(other)
    capture = write_yaml(folder, values | {"cache": str(folder / "captured")})
    student = folder / "student.yaml"
    student.write_text(json.dumps(student_values(folder / "cache", folder / "run")))
    generation = folder / "generation.yaml"
    prompts = {"paths": [str(tiny.write_corpus(folder / "prompts.jsonl", ["the value", "the mass of a token"]))]}
    policy = {"model": values["teachers"][0]["model"], "dtype": "float32"}
    written = {"output": str(folder / "completions"), "policy": policy, "sampling": {"max_new_tokens": 2}}
    generation.write_text(json.dumps(written | {"prompts": prompts}))
    names = {
        "capture": capture,
        "generation": generation,
        "student": student,
        "cache": folder / "cache",
        "other": folder / "other",
    }
    return {"folder": folder, "teacher": folder / "teacher"} | names


def run(name, places):
    return CliRunner().invoke(cli, [part.format(**places) for part in LONG[name]])


def test_every_command_is_long_or_quick():
    assert {name.split()[0] for name in LONG} | {*QUICK, *NEEDS_A_HUB, "demo"} == set(COMMANDS)


@pytest.fixture(scope="module")
def shown(places):
    """What each command told its reporter."""
    stages = {name: [] for name in LONG}
    with pytest.MonkeyPatch.context() as patch:
        for name in LONG:
            recorder = lambda *_, name=name, **__: Recorder(stages[name])  # noqa: E731
            patch.setattr(progress, "open_reporter", recorder)
            patch.setattr("trainer.run.train.open_reporter", recorder)
            result = run(name, places)
            assert result.exit_code == 0, (name, result.output)
            if LONG[name][-1] == "--json":
                json.loads(result.stdout)
    return stages


@pytest.mark.parametrize("name", LONG)
def test_a_long_command_tells_its_reporter(shown, name):
    stages = shown[name]
    assert stages
    assert all(stage.name and stage.unit for stage in stages)
    if name != "vocabulary":  # two tables in memory: nothing to count
        assert any(stage.done for stage in stages)


@pytest.mark.parametrize("name", WORK)
def test_what_takes_long_is_counted_to_its_end(shown, name):
    (work,) = [stage for stage in shown[name] if stage.unit == WORK[name] and stage.done and stage.name != "encode"]
    assert work.done == work.total > 0


def test_verify_counts_every_part(shown):
    for name in ("verify", "verify --deep", "repair"):
        (work,) = shown[name]
        assert work.done == work.total > 0


def test_a_capture_and_a_training_leave_lines_in_a_log(tmp_path):
    values = tiny.capture_values(tmp_path)
    captured = CliRunner().invoke(cli, ["capture", str(write_yaml(tmp_path, values))])
    assert captured.stdout == f"{values['cache']}\n"
    assert "loading teacher toy: started\n" in captured.stderr
    assert "tokens to do\n" in captured.stderr
    assert " tokens/s\n" in captured.stderr
    student = tmp_path / "student.yaml"
    student.write_text(json.dumps(student_values(tmp_path / "cache", tmp_path / "run")))
    trained = CliRunner().invoke(cli, ["train", str(student)])
    assert trained.stdout == f"{tmp_path / 'run' / 'final'}\n"
    assert "train: 3 steps to do\n" in trained.stderr
    (end,) = [line for line in trained.stderr.splitlines() if line.startswith("train: 3 steps in ")]
    assert " tokens/s, loss " in end
    assert "\x1b" not in captured.stderr + trained.stderr
