"""Configuration files: what is accepted, what is refused, and whether the message helps."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, PositiveInt, field_validator

from cache_tools.configuration import Config, assignments, configured, load_config
from cache_tools.errors import ConfigError


class TeacherBlock(Config):
    name: str
    revision: str | None = None


class Boat(Config):
    kind: Literal["boat"]
    sails: int


class Car(Config):
    kind: Literal["car"]
    wheels: int


class Example(Config):
    """A configuration of every shape that the real ones have: scalar, blocks, lists, one of two blocks."""

    steps: PositiveInt = 10
    rate: float = 0.5
    main: TeacherBlock = TeacherBlock(name="default")
    spare: TeacherBlock | None = None
    vehicle: Boat | Car | None = Field(default=None, discriminator="kind")
    teachers: list[TeacherBlock] = Field(default_factory=list)
    training: dict[str, object] = Field(default_factory=dict)

    @field_validator("rate")
    @classmethod
    def _rate_is_a_share(cls, rate: float) -> float:
        if rate > 1:
            raise ValueError("a rate is a share, at most 1")
        return rate


@pytest.fixture
def load(tmp_path):
    """Write a YAML file and load it as an Example."""

    def _load(text, *overrides):
        path = tmp_path / "example.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, Example, overrides)

    return _load


def refusal(load, text, *overrides):
    """Return the message with which the configuration is refused."""
    with pytest.raises(ConfigError) as error:
        load(text, *overrides)
    return str(error.value)


def test_defaults_fill_what_the_file_leaves_out(load):
    assert load("steps: 3") == Example(steps=3)


def test_overrides_win_over_the_file_and_the_file_over_defaults(load):
    config = load("steps: 3\nrate: 0.25", "steps=4")
    assert (config.steps, config.rate, config.main.name) == (4, 0.25, "default")


def test_the_last_of_two_overrides_wins(load):
    assert load("steps: 3", "steps=4", "steps=5").steps == 5


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("main.name=x", lambda config: config.main.name == "x"),
        ("teachers.1.name=x", lambda config: [t.name for t in config.teachers] == ["a", "x"]),
        ("teachers=[{name: x}]", lambda config: [t.name for t in config.teachers] == ["x"]),
        ("training.lr=1e-4", lambda config: config.training == {"lr": 1e-4}),
        ("training.lr=.5E3", lambda config: config.training == {"lr": 500.0}),
        ("spare.name=a=b", lambda config: config.spare.name == "a=b"),
        ("main.revision=", lambda config: config.main.revision is None),
    ],
)
def test_overrides_reach_blocks_and_list_items(load, override, read):
    assert read(load("teachers: [{name: a}, {name: b}]\nmain: {name: m, revision: r}", override))


@pytest.mark.parametrize(
    "override", ["steps", "=4", "teachers.2.name=x", "teachers.one.name=x", "steps.deep=1", "steps.deep.er=1"]
)
def test_refuses_an_override_that_leads_nowhere_by_its_text(load, override):
    assert refusal(load, "steps: 3\nteachers: [{name: a}, {name: b}]", override).startswith(
        f"--set {override.partition('=')[0]}"
    )


def test_refuses_an_override_whose_value_is_not_yaml(load):
    assert "the value is not YAML" in refusal(load, "steps: 3", "steps=[1")


def test_an_override_is_checked_like_the_file(load):
    assert "stepz: unknown key; did you mean steps?" in refusal(load, "steps: 3", "stepz=4")


def test_an_unknown_key_is_reported_with_the_known_ones(load):
    message = refusal(load, "stepz: 3")
    assert (
        "stepz: unknown key; did you mean steps? known here: steps, rate, main, spare, vehicle, teachers, training"
        in message
    )


def test_a_key_that_resembles_nothing_gets_no_suggestion(load):
    message = refusal(load, "qqq: 3")
    assert "qqq: unknown key; known here: steps" in message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{kind: car, whels: 4}", "vehicle.whels: unknown key; did you mean wheels? known here: kind, wheels"),
        ("{kind: boat, sials: 4}", "vehicle.sials: unknown key; did you mean sails? known here: kind, sails"),
        ("{kind: car, wheels: x}", "vehicle.wheels: Input should be a valid integer"),
        ("{kind: bike}", "vehicle: Input tag 'bike' found using 'kind' does not match any of the expected tags"),
    ],
)
def test_a_problem_of_one_of_several_blocks_is_reported_by_its_key_as_it_is_written(load, text, problem):
    assert problem in refusal(load, f"vehicle: {text}")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("main: {name: a, nmae: b}", "main.nmae"),
        ("spare: {name: a, nmae: b}", "spare.nmae"),
        ("teachers: [{name: a}, {name: b, nmae: c}]", "teachers.1.nmae"),
    ],
)
def test_an_unknown_key_of_a_block_is_reported_with_the_keys_of_that_block(load, text, key):
    assert f"{key}: unknown key; did you mean name? known here: name, revision" in refusal(load, text)


def test_all_problems_are_reported_at_once(load):
    message = refusal(load, "steps: -1\nrate: 2\nstepz: 3\nmain: {revision: a}")
    assert "4 problems:" in message
    for problem in ("steps: Input should be greater than 0", "stepz: unknown key", "main.name: Field required"):
        assert f"\n  {problem}" in message
    assert "\n  rate: a rate is a share, at most 1" in message


def test_one_problem_is_not_called_problems(load):
    assert ": 1 problem:\n" in refusal(load, "steps: -1")


def test_the_message_begins_with_the_path(load, tmp_path):
    assert refusal(load, "steps: -1").startswith(f"{tmp_path / 'example.yaml'}: ")


def test_refuses_yaml_that_would_run_code(load, tmp_path):
    victim = tmp_path / "victim"
    message = refusal(load, f"steps: !!python/object/apply:pathlib.Path.touch [!!python/name:x '{victim}']")
    assert "this is not YAML" in message
    assert "python/object" in message
    assert not victim.exists()


@pytest.mark.parametrize("override", ["steps=!!python/object/apply:os.getpid []"])
def test_refuses_an_override_that_would_run_code(load, override):
    assert "the value is not YAML" in refusal(load, "steps: 3", override)


@pytest.mark.parametrize("text", ["steps: [1", "steps: 1\n\tno: tabs", "a: b: c"])
def test_refuses_broken_yaml(load, text):
    assert "this is not YAML" in refusal(load, text)


@pytest.mark.parametrize(
    ("text", "found"),
    [("", "nothing"), ("# words", "nothing"), ("~", "a single value"), ("- 1", "a list"), ("words", "a single value")],
)
def test_refuses_a_file_that_is_no_mapping(load, text, found):
    assert f"a configuration is a mapping of keys (found {found})" in refusal(load, text)


def test_refuses_a_missing_file_by_its_path(tmp_path):
    message = r"nowhere\.yaml: cannot read the configuration \(found No such file .*\)\. Check the path"
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "nowhere.yaml", Example)


def test_refuses_a_file_that_is_not_text(tmp_path):
    path = Path(tmp_path / "example.yaml")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(path, Example)


def test_a_configuration_cannot_be_changed_afterwards(load):
    config = load("steps: 3")
    with pytest.raises(ValueError, match="frozen"):
        config.steps = 4


def test_a_file_a_mapping_and_a_checked_configuration_mean_the_same_from_python(tmp_path):
    path, overrides = tmp_path / "example.yaml", {"main.name": "x", "teachers.0.revision": None}
    path.write_text("steps: 3\nteachers: [{name: a, revision: b}]")
    checked = configured(path, Example, {})
    sources = [path, str(path), {"steps": 3, "teachers": ({"name": "a", "revision": "b"},)}, checked]
    assert {configured(source, Example, {}).model_dump_json() for source in sources} == {checked.model_dump_json()}
    changed = [configured(source, Example, overrides) for source in sources]
    assert len({config.model_dump_json() for config in changed}) == 1
    assert (changed[0].main.name, changed[0].teachers[0].revision, checked.main.name) == ("x", None, "default")


def test_values_from_python_keep_their_type_and_paths_become_text(tmp_path):
    config = configured({"main": {"name": tmp_path}}, Example, {"training.steps": "007", "training.warm": 1.5})
    assert (config.main.name, config.training) == (str(tmp_path), {"steps": "007", "warm": 1.5})


def test_a_mapping_of_overrides_is_not_changed_by_its_use():
    overrides = {"main": {"name": "x"}, "main.revision": "r"}
    assert configured({}, Example, overrides).main.revision == "r"
    assert overrides == {"main": {"name": "x"}, "main.revision": "r"}


@pytest.mark.parametrize("key", ["steps.deep", "teachers.2.name", "steps.deep.er"])
def test_an_override_from_python_that_leads_nowhere_is_refused_by_its_key(key):
    with pytest.raises(ConfigError, match="does not lead anywhere") as error:
        configured({"steps": 3, "teachers": [{"name": "a"}]}, Example, {key: 1})
    assert str(error.value).startswith(f"overrides[{key!r}]: ")
    assert "object" not in str(error.value)


def test_a_wrong_value_from_python_is_reported_like_one_in_a_file():
    with pytest.raises(ConfigError, match="did you mean steps"):
        configured({"stepz": 3}, Example, {})


def test_assignments_become_overrides_with_the_values_of_yaml():
    changes = assignments(["main.name=7", "teachers=[{name: a}]", "rate=0.25"])
    config = configured({}, Example, changes)
    assert (config.main.name, config.rate, config.teachers[0].name) == ("7", 0.25, "a")
