"""Results become JSON whose keys are the fields of their dataclasses."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cache_tools.json_output import FLAT, json_ready, json_text
from json_schema import mismatches


@dataclass(frozen=True)
class Inner:
    loss_nats: float | None
    positions: int


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = field(metadata=FLAT)
    settings: dict[str, object] = field(metadata=FLAT)
    parts: tuple[Inner, ...]


VALUE = Outer("a", Inner(0.5, 3), {"device": "cpu"}, (Inner(None, 0),))


def test_fields_are_keys_in_order_and_flat_ones_stand_beside_the_others():
    assert list(json_ready(VALUE)) == ["name", "loss_nats", "positions", "device", "parts"]
    assert json_ready(VALUE)["parts"] == [{"loss_nats": None, "positions": 0}]


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_what_json_has_no_number_for_is_null(number):
    assert json.loads(json_text(Inner(number, 1))) == {"loss_nats": None, "positions": 1}


def test_paths_are_text_and_other_objects_are_refused():
    assert json_ready([Path("a/b")]) == ["a/b"]
    with pytest.raises(TypeError, match="bytes has no form in JSON"):
        json_ready({"key": b"bytes"})


def test_the_schema_of_a_result_is_its_dataclass():
    stated = json.loads(json_text(VALUE))
    assert mismatches(stated, Outer) == []
    assert mismatches({**stated, "device": 3}, Outer) == []  # a flat mapping of objects allows any further key
    assert mismatches({**stated, "positions": 0.5}, Outer) == ["$.positions: 0.5 is no <class 'int'>"]
    del stated["positions"]
    assert mismatches(stated, Outer) == ["$.positions: missing"]
    assert mismatches({"loss_nats": 1, "positions": 2, "more": 3}, Inner) == ["$.more: not in Inner"]
