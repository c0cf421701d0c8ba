"""Capturing into a cache that has something already: more teachers, more layers; what is there stays."""

import pytest
from test_capture import run

import tiny
from cache_tools.errors import IdentityError
from cache_tools.format import layout
from cache_tools.maintenance.verify import verify
from store_fixtures import snapshot


def two_teachers(folder):
    """Return a capture file's values with two teachers of one tokenizer."""
    values = tiny.capture_values(folder, tiny.save_teacher(folder / "first", tiny.model(seed=1)))
    second = tiny.save_teacher(folder / "second", tiny.model("gpt2", seed=2))
    values["teachers"] += [values["teachers"][0] | {"name": "other", "model": str(second)}]
    return values


def test_teachers_of_one_cache_do_not_know_of_each_other(tmp_path):
    together = two_teachers(tmp_path)
    encoding = run(together)
    assert encoding.teachers == ["other", "toy"]
    for teacher in together["teachers"]:
        alone = run(together | {"cache": str(tmp_path / teacher["name"]), "teachers": [teacher]})
        assert objects(alone.teacher()) == objects(encoding.teacher(teacher["name"]))


def objects(teacher):
    """Return the bytes of every file of a teacher but the receipts."""
    return {key: content for key, content in snapshot(teacher.path).items() if "receipts" not in key}


def test_a_teacher_added_later_changes_nothing_that_was_there(tmp_path):
    together = two_teachers(tmp_path)
    run(together | {"teachers": together["teachers"][:1]})
    before = snapshot(tmp_path / "cache")
    run(together | {"teachers": together["teachers"][1:]})
    after = snapshot(tmp_path / "cache")
    assert len(after) > len(before)
    assert {key: after[key] for key in before} == before


def test_refuses_a_teacher_of_another_tokenizer_before_anything_is_written(tmp_path):
    together = two_teachers(tmp_path)
    tiny.tokenizer(290).save_pretrained(tmp_path / "second")
    with pytest.raises(IdentityError, match="teacher 'other' has another tokenizer than the encoding"):
        run(together)
    assert not (tmp_path / "cache").exists()


LAYERS = {
    "bfloat16": {"layers": ["last", 1], "codec": "bfloat16"},
    "budget": {"layers": ["last", 1], "codec": "budget"},
}


@pytest.mark.parametrize("hidden", LAYERS.values(), ids=LAYERS)
def test_layers_added_later_have_the_bytes_of_layers_captured_at_once(tmp_path, hidden):
    at_once = tiny.capture_values(tmp_path, hidden=hidden)
    teacher = tmp_path / "teacher"
    expected = objects(run(at_once | {"cache": str(tmp_path / "at_once")}).teacher())
    plain = tiny.capture_values(tmp_path, teacher)
    before = snapshot(run(plain).teacher().path)
    assert objects(run(at_once).teacher()) == expected
    kept = {key for key in before if "/c/" in key}
    assert {key: before[key] for key in kept} == {key: expected[key] for key in kept}
    assert verify(tmp_path / "cache", deep=True) == []


def test_the_targets_are_not_captured_again_for_a_layer(tmp_path, monkeypatch):
    values = tiny.capture_values(tmp_path)
    before = run(values).teacher()
    receipts = [before.receipt(shard) for shard in range(len(before.encoding.shards))]
    monkeypatch.setattr("pipeline.capture.predict.sparse_targets", None)
    after = run(tiny.capture_values(tmp_path, tmp_path / "teacher", hidden=LAYERS["bfloat16"])).teacher()
    for shard, old in enumerate(receipts):
        new = after.receipt(shard)
        assert old.objects.items() <= new.objects.items()
        assert old.provenance["targets"] == new.provenance["targets"]
        assert old.statistics.items() <= new.statistics.items()
        assert list(new.groups) == ["targets", "hidden/last", "hidden/1"]


def test_a_capture_without_a_layer_that_is_there_is_refused(tmp_path):
    encoding = run(tiny.capture_values(tmp_path, hidden=LAYERS["bfloat16"]))
    before = snapshot(encoding.path)
    with pytest.raises(IdentityError, match=r"hidden\.1"):
        run(tiny.capture_values(tmp_path, tmp_path / "teacher", hidden={"layers": ["last"]}))
    assert snapshot(encoding.path) == before


def test_a_shard_that_lost_its_receipt_is_done_again_to_the_same_bytes(tmp_path):
    values = tiny.capture_values(tmp_path, hidden=LAYERS["budget"])
    encoding = run(values)
    before = objects(encoding.teacher())
    layout.receipt_file(encoding.teacher().path, 1).unlink()
    for path in encoding.teacher().path.rglob("c/1/0"):
        path.unlink()
    assert objects(run(values).teacher()) == before
