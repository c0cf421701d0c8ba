"""Configuration is read as it is written; what YAML would lose or blow up is refused with its line."""

import os
import time
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from cache_tools.configuration import Config, load_config
from cache_tools.errors import ConfigError
from cache_tools.storage import CachePath


class Inner(Config):
    name: str
    place: CachePath


class Written(Config):
    """Every kind of field that reads text, numbers or both."""

    place: CachePath | None = None
    name: str | None = None
    path: Path | None = None
    choice: Literal["no", "off", "1"] | None = None
    layer: int | Literal["last"] | None = None
    names: tuple[str, ...] = ()
    devices: dict[str, int | str] | None = None
    number: float = 0.0
    count: int = 0
    flag: bool = False
    inner: tuple[Inner, ...] = ()
    anything: dict[str, Any] = Field(default_factory=dict)


@pytest.fixture
def load(tmp_path):
    def _load(text, *overrides):
        path = tmp_path / "written.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config(path, Written, overrides)

    return _load


def refusal(load, text, *overrides):
    with pytest.raises(ConfigError) as error:
        load(text, *overrides)
    return str(error.value)


LOOKS_LIKE_SOMETHING_ELSE = [
    *("2024-13-45", "2024-01-31", "2024-01-31T10:00:00", "0x_", "0x10", "0o17", "010", "1e5", "1_000", "1:30", "-7"),
    *("yes", "no", "on", "off", "y", "true", "False", ".inf", ".nan", "+.5", "=", "9" * 5000),
]


@pytest.mark.parametrize("written", LOOKS_LIKE_SOMETHING_ELSE, ids=lambda text: text[:12])
def test_text_is_the_text_that_is_written(load, written):
    text = f"name: {written}\npath: {written}\nnames: [{written}]\nplace: {written}\n"
    text += f"devices: {{{written[:900]}: {written}}}\ninner: [{{name: {written}, place: {written}}}]"
    config, overridden = load(text), load("flag: true", f"name={written}", f"place={written}")
    assert (config.name, config.names, str(config.path), str(config.place)) == (written, (written,), written, written)
    assert (config.inner[0].name, str(config.inner[0].place), [*config.devices]) == (written, written, [written[:900]])
    assert (overridden.name, str(overridden.place)) == (written, written)


@pytest.mark.parametrize("value", ["no", "off", "1"])
def test_a_choice_between_words_is_read_as_a_word(load, value):
    assert load(f"choice: {value}").choice == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), (".5E3", 500), ("010", 10), ("0x10", 16), ("0o17", 15), ("-3", -3), ("1.", 1), ("1_000", 1000)],
)
def test_a_number_is_a_number(load, text, value):
    assert load(f"number: {text}").number == value


def test_what_may_be_a_number_or_a_word_is_either(load):
    assert (load("layer: 3").layer, load("layer: last").layer) == (3, "last")
    assert load("devices: {a: 1, b: cpu}").devices == {"a": 1, "b": "cpu"}
    assert load("anything: {a: 1, b: 1.5, c: true, d: no, e: ~, f: '1', g: [2]}").anything == {
        "a": 1,
        "b": 1.5,
        "c": True,
        "d": "no",
        "e": None,
        "f": "1",
        "g": [2],
    }


@pytest.mark.parametrize("null", ["null", "~", ""])
def test_null_is_nothing_where_nothing_is_allowed(load, null):
    assert load(f"name: {null}").name is None


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e999", "9" * 5000, "1" + 400 * "0"])
def test_numbers_are_finite(load, value):
    assert "number: " in refusal(load, f"number: {value}")


@pytest.mark.parametrize("key", ["place", "name", "path", "count"])
@pytest.mark.parametrize("value", ["[a]", "{a: b}"])
def test_a_list_or_mapping_is_no_text(load, key, value):
    assert f"\n  {key}: " in refusal(load, f"{key}: {value}")


@pytest.mark.parametrize(
    "text",
    [
        "name: a\nname: b",
        "name: a\n'name': b",
        "inner: [{name: a, place: p,\n name: b}]",
        "1: a\n1: b",
        "<<: {}\nname: a\nname: b",
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_line(load, text):
    message = refusal(load, text)
    assert f"line {len(text.splitlines())}, " in message
    assert "stands twice" in message


def test_aliases_and_merged_mappings_are_read(load):
    text = (
        "anything:\n  base: &base {a: 1, b: 2}\n  more: {<<: *base, b: 3}\n  both: {<<: [{a: 4}, *base]}\n  same: *base"
    )
    base, more, both, same = load(text).anything.values()
    assert (base, more, both, same) == ({"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 4, "b": 2}, {"a": 1, "b": 2})


BOMBS = {
    "laughs": "anything:\n  a0: &a0 [x]\n"
    + "".join(f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
    "merged": "anything:\n  a0: &a0 {x: 1}\n"
    + "".join(f"  a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)),
    "endless": "anything: &a {b: *a}",
    "endless list": "names: &a [*a]",
    "endless merge": "anything: &a {<<: *a}",
    "chained": "anything:\n  a0: &a0 [x]\n"
    + "".join(f"  a{i}: &a{i} {'[' * 40}*a{i - 1}{']' * 40}\n" for i in range(1, 90)),
    "deep": f"place: {'[' * 5000}{']' * 5000}",
    "deep mapping": f"anything: {'{a: ' * 5000}{'}' * 5000}",
    "large": "names: [" + "a, " * 500_000 + "]",
    "many values": "names: [" + "a, " * 150_000 + "]",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_small_file_cannot_become_a_large_one(load, bomb):
    started = time.process_time()
    message = refusal(load, bomb)
    assert "is not YAML" in message or "too large" in message
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    "bomb", [BOMBS["laughs"].partition("\n")[2].replace("  a0", "{a0", 1), "[" * 5000, "{a: " * 5000, "a: &a [*a]"]
)
def test_neither_can_an_override(load, bomb):
    assert "--set anything=" in refusal(load, "flag: true", f"anything={bomb}")


@pytest.mark.parametrize(
    "value",
    ["!!int many", "!!float x", "!!timestamp x", "!!python/name:os.system", "!own x", "!!binary aGk=", "!!set {a}"],
)
def test_tags_are_refused(load, value):
    assert "the tag " in refusal(load, f"name: {value}")
    assert "the tag " in refusal(load, "flag: true", f"name={value}")


@pytest.mark.parametrize("text", ["? [a]\n: b", "? {a: b}\n: c", "[a]: b"])
def test_keys_are_text(load, text):
    assert "a key is text" in refusal(load, text)


@pytest.mark.parametrize(
    "text",
    [
        b"name: \xff\xfe",
        "name: x".encode("utf-16"),
        b"name: a\x00b",
        b'name: "a\\0b"',
        b'name: "\\ud800"',
        b"name: a\n\tflag: true",
        b"name: a\n---\nname: b",
        b"name: [a",
        b"name: *nowhere",
        b"%YAML 3.0\n---\nname: a",
        b"name: \x07",
        b"name: a: b",
    ],
)
def test_what_is_not_one_yaml_document_in_utf8_is_refused(load, text):
    refusal(load, text)


def test_a_byte_order_mark_is_no_text(load):
    assert load("\ufeffname: a".encode()).name == "a"


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (
        tmp_path,
        tmp_path / "pipe",
        Path(os.devnull),
        tmp_path / "missing",
        Path("a\0b"),
        tmp_path / ("x" * 300),
    ):
        with pytest.raises(ConfigError, match="cannot read the configuration"):
            load_config(path, Written)


@pytest.mark.parametrize("override", ["name.deep=1", "inner.x.name=1", "inner.5.name=a", "flag.deep.er=1", "names.a=b"])
def test_an_override_that_leads_nowhere_is_one_sentence(load, override):
    message = refusal(load, "name: a\nflag: true\nnames: [a]\ninner: [{name: a, place: b}]", override)
    assert message.startswith(f"--set {override.partition('=')[0]}: this key does not lead anywhere")
    assert "object has no attribute" not in message
