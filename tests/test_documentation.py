"""The documentation's blocks are true: YAML is valid, commands parse, and what it shows of the code is the code."""

import importlib
import re

import click
import pytest
import yaml

from cache_tools.configuration import load_config
from cache_tools.errors import ConfigError
from doc_blocks import GUIDES, ROOT, all_blocks, logitcask_arguments
from logitcask import COMMANDS, cli
from pipeline.config.capture_file import CaptureConfig
from pipeline.config.generation import GenerateConfig
from trainer.config.student_file import StudentConfig

OTHER = {"other", "ray"}
CAPTURE = {
    "cache": "c",
    "corpus": {"paths": ["p"]},
    "teachers": [{"name": "t", "model": "m"}],
}
STUDENT = {"cache": "c", "student": {"pretrained": "m"}, "training": {"output_dir": "o"}}
GENERATE = {"output": "o", "policy": {"model": "m"}, "prompts": {"paths": ["p"]}}


@pytest.fixture
def docs(monkeypatch):
    """Return a function that imports a module of docs/."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module


def completed(values, minimal):
    """Return a fragment with the required keys that it leaves out; ``caches`` takes the place of ``cache``."""
    merged = minimal | values
    if "caches" in values:
        merged.pop("cache", None)
    if "training" in values and "output_dir" not in values["training"]:
        merged["training"] = minimal["training"] | values["training"]
    return merged


def problems(values, tmp_path):
    """Return what is wrong with a fragment as a file of each kind; None where it is right."""
    found = []
    for model, minimal in ((CaptureConfig, CAPTURE), (StudentConfig, STUDENT), (GenerateConfig, GENERATE)):
        path = tmp_path / "file.yaml"
        path.write_text(yaml.safe_dump(completed(values, minimal)))
        try:
            load_config(path, model)
            found.append(None)
        except ConfigError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("block", [b for b in all_blocks("yaml") if not OTHER & set(b.marks)], ids=str)
def test_yaml_is_a_file_of_a_command_or_a_part_of_one(block, tmp_path):
    found = problems(yaml.safe_load(block.text), tmp_path)
    assert None in found, found


def test_training_arguments_in_yaml_are_those_of_transformers():
    arguments = importlib.import_module("transformers").TrainingArguments.__dataclass_fields__
    files = [yaml.safe_load(block.text) for block in all_blocks("yaml") if not OTHER & set(block.marks)]
    used = {key for values in files for key in values.get("training", {})}
    assert "learning_rate" in used
    assert used - set(arguments) == set()


def test_a_misspelt_key_in_a_block_would_be_noticed(tmp_path):
    assert None not in problems({"loss": {"kd_wight": 0.9}}, tmp_path)


def test_yaml_of_other_tools_is_marked_and_parses():
    others = [block for block in all_blocks("yaml") if OTHER & set(block.marks)]
    assert others
    assert all(isinstance(yaml.safe_load(block.text), dict) for block in others)


CALLS = [(block, call) for block in all_blocks("bash") for call in logitcask_arguments(block.text)]


@pytest.mark.parametrize(("block", "arguments"), CALLS, ids=[f"{b} {' '.join(a[:1])}" for b, a in CALLS])
def test_command_lines_are_accepted_by_the_command(block, arguments):
    name, *rest = arguments
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, name
    assert command.make_context(name, rest, parent=click.Context(cli)).info_name == name


def test_an_option_that_does_not_exist_would_be_noticed():
    [[name, *rest]] = logitcask_arguments("logitcask capture mine.yaml --ranks 3")
    with pytest.raises(click.NoSuchOption):
        cli.get_command(click.Context(cli), name).make_context(name, rest)


def test_calls_are_found_behind_launchers_operators_and_continued_lines():
    script = """
    CUDA_VISIBLE_DEVICES=$rank logitcask capture mine.yaml --rank $rank 2> rank$rank.log &
    torchrun --nproc-per-node 2 logitcask.py train mine.yaml \\
      --set a=1  # two ranks
    ray exec cluster.yaml --tmux 'logitcask capture mine.yaml'
    logitcask verify c || { echo failed; exit 1; }
    """
    assert logitcask_arguments(script) == [
        ["capture", "mine.yaml", "--rank", "0"],
        ["train", "mine.yaml", "--set", "a=1"],
        ["capture", "mine.yaml"],
        ["verify", "c"],
    ]


def test_every_command_is_used_in_a_tutorial_or_a_guide():
    used = {
        call[0]
        for block in all_blocks("bash")
        if ROOT / block.page in GUIDES
        for call in logitcask_arguments(block.text)
    }
    assert set(COMMANDS) - used == {"demo"}  # `make demo` runs it
    assert "make demo" in (ROOT / "docs/tutorial/demo.md").read_text()


@pytest.mark.parametrize("page", [page for page in GUIDES if page.stem != "index"], ids=lambda page: page.stem)
def test_every_guide_is_linked_from_the_index_of_its_part(page):
    assert f"({page.name})" in (page.parent / "index.md").read_text() or page.parent.name == "tutorial"


def test_files_that_blocks_name_exist():
    named = {
        path
        for page in GUIDES
        for path in re.findall(r"\b(?:configs|docs|tests|benchmarks)/[\w./-]+\.(?:yaml|py|md)", page.read_text())
    }
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_the_picture_shows_every_room_and_nothing_but_imports(docs):
    rooms = docs("rooms")
    picture = rooms.picture()
    for name in rooms.PACKAGES:
        package = rooms.read(name)
        folders = {path.parent.name for path in (ROOT / name).glob("*/__init__.py")}
        assert package.subpackages == folders
        assert [room for room in package.imports if f">{room}</text>" not in picture] == []
        assert all(target in package.imports[room] for room, target in rooms.direct_arrows(package.imports))


def test_a_room_stands_above_what_it_imports_and_arrows_that_follow_are_left_out(docs):
    rooms = docs("rooms")
    imports = {"a": frozenset("bc"), "b": frozenset("c"), "c": frozenset(), "d": frozenset("c")}
    assert rooms.levels(imports) == [["c"], ["b", "d"], ["a"]]
    assert rooms.direct_arrows(imports) == {("a", "b"), ("b", "c"), ("d", "c")}
    assert rooms.upward(imports) == {}


def test_of_a_circle_of_rooms_every_import_is_drawn(docs):
    rooms = docs("rooms")
    imports = {"a": frozenset("b"), "b": frozenset("a"), "c": frozenset("a")}
    arrows = rooms.direct_arrows(imports) | {(a, b) for a, up in rooms.upward(imports).items() for b in up}
    assert arrows == {("a", "b"), ("b", "a"), ("c", "a")}


def test_the_table_of_losses_holds_every_verdict(docs):
    compatibility = importlib.import_module("trainer.verdicts.compatibility")
    table = docs("losses").tables()
    reasons = [rule.verdict.reason for rule in compatibility.RULES] + [
        v.reason for v in compatibility.TEMPERED.values()
    ]
    assert [reason for reason in reasons if reason[1:] not in table] == []
    assert all(f"## Targets: {title}" in table for title in compatibility.FAMILIES.values())


def test_links_to_files_that_pages_show_lead_to_those_pages(docs):
    pytest.importorskip("sphinx")
    conf = docs("conf")
    page = ROOT / "docs/results/glmd.md"
    text = conf.point_links_at_pages("[recipe](../../configs/demo/capture.yaml) [f](../../FORMAT.md#seals)", page, page)
    assert text == "[recipe](../../configs/demo/capture.yaml) [f](../reference/format.md#seals)"
