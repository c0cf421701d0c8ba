"""Captures of half-precision teachers keep every bit of their rows by default; one that began otherwise goes on."""

import json
import shutil

import numpy as np
import pytest

import tiny
from cache_tools.errors import LogitcaskError
from cache_tools.maintenance.copying import copy_cache
from cache_tools.maintenance.repair import repair
from cache_tools.maintenance.subset import Choice, subset_cache
from cache_tools.maintenance.verify import verify
from cache_tools.store.reader import Cache
from pipeline.capture import target as target_module
from pipeline.config.targets import TargetConfig
from store_fixtures import flip_bit
from student_fixtures import largest_difference, train, weights

HALF = {"dtype": "bfloat16"}


def teacher_of(cache):
    return cache.encoding().teacher()


def codec_name(cache):
    return teacher_of(cache).manifest.target.codec["name"]


def every_row(cache):
    teacher = teacher_of(cache)
    spans = [teacher.shard_rows(shard) for shard in range(len(teacher.encoding.shards))]
    return [teacher.targets(*span) for span in spans]


def same_bits(left, right):
    return all(
        np.array_equal(a.view(np.uint32), b.view(np.uint32))
        for one, other in zip(left, right, strict=True)
        for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def half(tmp_path_factory, model):
    """A cache of a bfloat16 teacher about whose codec the capture file says nothing."""
    return tiny.capture(tmp_path_factory.mktemp("half"), model, **HALF)


@pytest.fixture
def copy(half, tmp_path):
    """A copy of it with its corpus, which a test may change."""
    shutil.copytree(half.path.parent, tmp_path, dirs_exist_ok=True)
    return Cache(tmp_path / "cache")


@pytest.fixture(scope="module")
def plain(tmp_path_factory, model):
    """A cache of the same teacher in float32."""
    folder = tmp_path_factory.mktemp("plain")
    return tiny.capture(folder, model, target={"k": 16, "exact": True, "rank_ids": False}, **HALF)


def test_a_half_precision_teacher_is_kept_bit_for_bit(half, plain):
    assert (codec_name(half), codec_name(plain)) == ("ranked-grid", "delta-float32")
    assert same_bits(every_row(half), every_row(plain))
    shards = range(len(teacher_of(half).encoding.shards))
    assert all(teacher_of(half).receipt(shard).statistics["codec_kl_nats"] == 0 for shard in shards)
    assert verify(half.path, deep=True) == []


@pytest.mark.parametrize(
    ("target", "dtype", "exact"),
    [
        ({"k": 4}, "bfloat16", False),
        ({"k": 4, "exact": True}, "bfloat16", True),
        ({"k": 4, "exact": True}, "float32", True),
        ({"k": 4, "temperatures": [2.0]}, "bfloat16", True),
        ({"k": 4, "temperatures": [2.0]}, "float32", False),
    ],
)
def test_scalars_are_float32_where_steps_would_undo_the_exactness_of_the_rows(tmp_path, model, target, dtype, exact):
    cache = tiny.capture(tmp_path, model, target=target, **HALF | {"dtype": dtype})
    assert (teacher_of(cache).manifest.scalar_step_nats == 0) == exact


@pytest.mark.parametrize(
    ("target", "dtype", "name"),
    [
        ({}, "float32", "delta-power"),
        ({}, "float16", "ranked-grid"),
        ({"max_kl_nats": 1e-4}, "bfloat16", "delta-power"),
        ({"exact": False}, "bfloat16", "delta-power"),
        ({"exact": True}, "float32", "ranked-grid"),
        ({"rank_ids": True}, "float32", "ranked-power"),
        ({"kind": "topp", "p": 0.9}, "bfloat16", "ranked-grid"),
        ({"kind": "hybrid", "draws": 5}, "bfloat16", "delta-power"),
        ({"kind": "hybrid", "draws": 5, "exact": True}, "bfloat16", "delta-float32"),
        ({"kind": "sampled", "draws": 5}, "bfloat16", "delta-count"),
    ],
)
def test_which_codec_a_capture_file_means(target, dtype, name):
    config = TargetConfig.model_validate(target)
    resolved = target_module.read_target(config, half_precision=dtype != "float32")
    assert resolved.codec(300).to_dict()["name"] == name


@pytest.mark.parametrize("loss", [{}, {"tail": "uniform", "allow_biased": True}, {"divergence": "reverse_kl"}], ids=str)
def test_students_learn_the_same_from_steps_as_from_float32(tmp_path, half, plain, loss):
    students = [train(cache.path, tmp_path / name, loss=loss) for name, cache in (("half", half), ("plain", plain))]
    assert largest_difference(*map(weights, students)) == 0


@pytest.mark.parametrize("begun", [{"k": 16, "exact": False}, {"k": 16, "exact": True, "rank_ids": False}])
def test_a_capture_goes_on_in_the_codec_that_it_began_with(tmp_path, model, begun):
    """As the defaults of an earlier version left it."""
    cache = tiny.capture(tmp_path, model, target=begun, **HALF)
    before, rows = codec_name(cache), every_row(cache)
    teacher = teacher_of(cache)
    (teacher.path / "receipts/00000.json").unlink()
    plain = {key: value for key, value in begun.items() if value is True or key == "k"}
    plain.pop("rank_ids", None)
    captured = tiny.run(tiny.capture_values(tmp_path, model, target=plain, **HALF))
    assert captured == {"toy": 1}
    assert codec_name(Cache(cache.path)) == before
    assert same_bits(every_row(Cache(cache.path)), rows)


def test_another_codec_that_was_asked_for_is_refused(tmp_path, model):
    tiny.capture(tmp_path, model, target={"k": 16, "exact": False}, **HALF)
    with pytest.raises(LogitcaskError, match="already holds another teacher"):
        tiny.run(tiny.capture_values(tmp_path, model, target={"k": 16, "exact": True}, **HALF))


def test_tables_are_learned_once_and_a_shard_is_redone_to_the_same_bytes(tmp_path, model, copy):
    teacher = teacher_of(copy)
    tables, receipt = (teacher.path / "ranks.safetensors").read_bytes(), teacher.receipt(0)
    (teacher.path / "receipts/00000.json").unlink()
    tiny.run(tiny.capture_values(tmp_path, model, **HALF))
    again = teacher_of(Cache(copy.path))
    assert (again.path / "ranks.safetensors").read_bytes() == tables
    assert again.receipt(0).objects == receipt.objects


def test_appended_documents_are_kept_by_the_same_tables(tmp_path, model):
    (tmp_path / "corpus").mkdir()
    tiny.write_corpus(tmp_path / "corpus/a.jsonl", tiny.TEXTS[:20])
    cache = tiny.capture(tmp_path, model, paths=[str(tmp_path / "corpus")], **HALF)
    tables, shards = (teacher_of(cache).path / "ranks.safetensors").read_bytes(), len(cache.encoding().shards)
    new = [json.dumps({"id": f"new{i}", "text": f"Quite another text, number {i}."}) for i in range(20)]
    (tmp_path / "corpus/b.jsonl").write_text("\n".join(new))
    values = tiny.capture_values(tmp_path, model, paths=[str(tmp_path / "corpus")], **HALF)
    assert tiny.run(values, append=True)["toy"] > 0
    after = teacher_of(Cache(cache.path))
    assert (after.path / "ranks.safetensors").read_bytes() == tables
    assert len(after.encoding.shards) > shards
    assert verify(cache.path, deep=True) == []


def test_damaged_tables_are_told_before_a_row_is_read(copy):
    flip_bit(teacher_of(copy).path / "ranks.safetensors", -1)
    assert any(problem.where.endswith("ranks.safetensors") for problem in verify(copy.path, deep=True))
    with pytest.raises(LogitcaskError, match=r"ranks\.safetensors"):
        every_row(Cache(copy.path))


def test_copies_and_subsets_keep_the_tables(tmp_path, half):
    copy_cache(half, tmp_path / "copy")
    assert same_bits(every_row(Cache(tmp_path / "copy")), every_row(half))
    subset_cache(half, tmp_path / "subset", Choice(k=5))
    smaller = teacher_of(Cache(tmp_path / "subset"))
    assert smaller.codec.k == 5
    assert verify(tmp_path / "subset", deep=True) == []


def test_a_repair_keeps_the_tables(tmp_path, model, copy):
    stored = teacher_of(copy)
    flip_bit(stored.path / "steps/c/0/0", 40)
    repair(copy.path)
    assert stored.encoding.teacher("toy").missing_shards() == [0]
    tiny.run(tiny.capture_values(tmp_path, model, **HALF))
    assert verify(copy.path, deep=True) == []
