"""The command line: help that helps, data on stdout, one sentence and an exit code for every error."""

import json
import shlex
import shutil

import click
import pytest
from click.testing import CliRunner

import tiny
from cache_tools.format import layout
from cache_tools.store.reader import Cache
from logitcask import COMMANDS, cli, main

PARSED = click.Context(cli)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tiny.capture(tmp_path_factory.mktemp("cache"), hidden={"layers": ["last"]}).path


@pytest.fixture
def unfinished(tmp_path, cache):
    """A copy of the cache without its second shard."""
    shutil.copytree(cache, tmp_path / "cache")
    layout.receipt_file(Cache(tmp_path / "cache").encoding().teacher().path, 1).unlink()
    return tmp_path / "cache"


def run(*arguments):
    """Run the command line as far as click goes; our own errors pass through."""
    return CliRunner(catch_exceptions=False).invoke(cli, [str(argument) for argument in arguments])


def run_main(monkeypatch, capsys, *arguments):
    """Run the console command and return (exit code, stdout, stderr)."""
    monkeypatch.setattr("sys.argv", ["logitcask", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    return exit_.value.code or 0, *capsys.readouterr()


def command(name):
    found = cli.get_command(PARSED, name)
    assert found is not None
    return found


def help_of(name):
    return " ".join(run(name, "--help").stdout.split())


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_shows_an_example(name, flag, monkeypatch):
    """click remembers a command's help option; a test that called the command by itself left one without ``-h``."""
    monkeypatch.setattr(command(name), "_help_option", None)
    result = run(name, flag)
    assert result.exit_code == 0
    assert f"Example: logitcask {name}" in " ".join(result.stdout.split())


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_the_root_shows_where_to_start(flag):
    result = run(flag)
    assert result.exit_code == 0
    assert "Start here: logitcask demo" in " ".join(result.stdout.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_is_accepted_by_it(name):
    example = help_of(name).split("Example: logitcask ")[1].split(" Options:")[0]
    arguments = shlex.split(example)
    assert command(name).make_context(arguments[0], arguments[1:]).info_name == name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_and_argument_is_documented(name):
    for parameter in command(name).params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]}"
        else:
            assert parameter.human_readable_name in command(name).help


@pytest.mark.parametrize("name", COMMANDS)
def test_the_short_help_of_a_command_is_one_sentence_and_not_cut_off(name):
    sentence = command(name).help.split("\n\n")[0]
    assert " ".join(sentence.split()) in " ".join(
        CliRunner().invoke(cli, ["--help"], terminal_width=160).stdout.split()
    )


def test_commands_are_listed_in_the_order_of_work():
    listed = run("--help").stdout.split("Commands:\n")[1].splitlines()
    assert [line.split()[0] for line in listed] == [
        "demo", "generate", "plan", "capture", "import", "vocabulary", "align", "train", "evaluate", "inspect", "show",
        "view", "report", "diff", "audit", "verify", "repair", "copy", "subset", "export", "card", "publish", "drop",
    ]  # fmt: skip


def test_a_misspelt_command_is_answered_with_the_one_that_is_meant():
    result = run("inspct")
    assert result.exit_code == 2
    assert "Did you mean 'inspect'?" in result.stderr


def test_the_version_is_shown():
    assert run("--version").stdout.startswith("logitcask, version ")


@pytest.mark.parametrize("name", ["inspect", "verify"])
def test_our_own_errors_are_one_message_and_exit_code_1(tmp_path, monkeypatch, capsys, name):
    code, out, err = run_main(monkeypatch, capsys, name, tmp_path / "nothing")
    assert (code, out) == (1, "")
    assert err.startswith(f"Error: {tmp_path}/nothing/zarr.json: there is no readable cache manifest here")
    assert err.count("\n") == 1


def test_inspect_shows_splits_and_teachers(cache):
    result = run("inspect", cache)
    assert result.exit_code == 0
    for expected in (
        "encoding main",
        "causal",
        "vocabulary 300",
        "held_out",
        "teacher toy",
        "8 of 8 shards",
        "hidden/last",
    ):
        assert expected in result.stdout


def test_inspect_shows_how_far_an_unfinished_capture_is(unfinished):
    result = run("inspect", unfinished)
    assert result.exit_code == 0
    assert "7 of 8 shards" in result.stdout
    (teacher,) = json.loads(run("inspect", "--json", unfinished).stdout)["encodings"][0]["teachers"]
    assert (teacher["shards_done"], teacher["shards"]) == (7, 8)


def test_inspect_json_has_these_keys(cache):
    summary = json.loads(run("inspect", "--json", cache).stdout)
    (encoding,) = summary["encodings"]
    (teacher,) = encoding["teachers"]
    assert set(summary) == {"path", "format", "software", "encodings"}
    assert set(encoding) == {
        "name", "fingerprint", "parts", "objective", "vocabulary_size", "positions_per_shard", "splits",
        "sequence_bytes", "teachers", "chat_sequences_without_beginning",
        "written_by", "wholly_written", "alignments", "context",
    }  # fmt: skip
    assert set(teacher) == {
        "name", "fingerprint", "model", "vocabulary_size", "target", "scalars", "hidden", "shards_done", "shards",
        "positions", "stored_bytes", "bytes_per_position", "bytes_by_array", "positions_by_group",
        "positions_by_split", "statistics", "positions_expected", "provenance", "made_by", "sample",
    }  # fmt: skip
    for split in ("train", "held_out"):
        assert set(encoding["splits"][split]) == {"documents", "sequences", "tokens", "positions", "shards"}
        assert {"cross_entropy_nats", "perplexity", "entropy_nats", "kept_mass", "codec_kl_nats"} <= set(
            teacher["statistics"][split]
        )
    assert (
        teacher["stored_bytes"]
        == sum(teacher["bytes_by_array"].values())
        + (Cache(cache).encoding().teacher().path / layout.HEAD).stat().st_size
    )


@pytest.mark.parametrize("deep", [[], ["--deep"]])
def test_verify_of_a_whole_cache_exits_0(cache, deep):
    result = run("verify", *deep, cache)
    assert (result.exit_code, result.stdout[:11]) == (0, "no problems")
    assert json.loads(run("verify", "--json", *deep, cache).stdout) == {
        "path": str(cache), "deep": bool(deep), "problems": []
    }  # fmt: skip


def test_verify_of_a_broken_cache_exits_1_and_lists_every_problem(unfinished):
    teacher = Cache(unfinished).encoding().teacher()
    next((teacher.path / "ids" / "c").glob("2/0")).unlink()
    result, as_json = run("verify", unfinished), run("verify", "--json", unfinished)
    assert (result.exit_code, as_json.exit_code) == (1, 1)
    *problems, total = result.stdout.splitlines()
    assert total == "2 problems"
    assert [problem.split(":")[0] for problem in problems] == ["missing", "damage"]
    listed = json.loads(as_json.stdout)["problems"]
    assert [f"{problem['kind']}: {problem['where']}: {problem['message']}" for problem in listed] == problems


def write_capture_file(folder):
    path = folder / "capture.yaml"
    path.write_text(json.dumps(tiny.capture_values(folder)))  # JSON is YAML
    return path


def test_capture_prints_the_cache_on_stdout_and_what_it_did_on_stderr(tmp_path):
    path = write_capture_file(tmp_path)
    first, second = run("capture", path), run("capture", path)
    assert first.stdout == second.stdout == f"{tmp_path / 'cache'}\n"
    assert "teacher toy: 8 shards captured now" in first.stderr
    assert "teacher toy: nothing left to do" in second.stderr


def test_capture_takes_overrides_and_a_share_of_the_work(tmp_path):
    path, other = write_capture_file(tmp_path), tmp_path / "other"
    result = run("capture", path, "--set", f"cache={other}", "--set", "teachers.0.name=small", "--world-size", "2")
    assert result.stdout == f"{other}\n"
    assert Cache(other).encoding().teacher("small").missing_shards() == [1, 3, 5, 7]


@pytest.mark.parametrize(("rank", "world_size"), [(1, 1), (3, 2), (-1, 1), (0, 0)])
def test_capture_refuses_a_rank_outside_the_world(tmp_path, monkeypatch, rank, world_size):
    monkeypatch.setattr("pipeline.run.run_capture", lambda *_: pytest.fail("it ran"))
    result = run("capture", write_capture_file(tmp_path), "--rank", rank, "--world-size", world_size)
    assert result.exit_code == 2
    assert "--rank" in result.stderr or "--world-size" in result.stderr
