"""Damage: no flipped bit and no cut file goes unnoticed, and repair forgets exactly what is damaged.

``python -m benchmarks.damage`` flips ten thousand bits; here it is a few hundred, of which each
kind of file gets its share.
"""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

import tiny
from benchmarks.damage import GOLDEN, damage, kind_of, tally
from cache_tools.errors import DamageError, FormatError
from cache_tools.format import layout
from cache_tools.maintenance.commands import repair_command
from cache_tools.maintenance.repair import repair
from cache_tools.maintenance.subset import Choice, subset_cache
from cache_tools.maintenance.verify import verify
from cache_tools.store import chunk_reader
from cache_tools.store.reader import Cache
from kinds import make
from store_fixtures import flip_bit, snapshot


@pytest.fixture
def cache(tmp_path):
    """A cache with hidden states in every codec, which repair may change."""
    return make("hidden", tmp_path)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


# Found and never misread


MANY = [pytest.param(name, 250, seed, marks=pytest.mark.slow) for name, seed in (("hidden", 1), ("sampled", 3))]


@pytest.mark.parametrize(("name", "damages", "seed"), [("sampled", 80, 2), *MANY])
def test_every_damage_is_found_and_nothing_is_misread(tmp_path, name, damages, seed):
    path = shutil.copytree(GOLDEN / f"format1-{name}", tmp_path / "cache")
    before = snapshot(path)
    counts, failed = tally(damage(path, damages, seed))
    assert failed == []
    assert set(counts) == {kind_of(key) for key in before}
    assert snapshot(path) == before


@pytest.mark.parametrize("left", [0, 3, 7])
def test_an_object_cut_to_a_few_bytes_is_refused_and_read_again_once_restored(cache, left):
    path = cache.objects(0)[0]
    content = path.read_bytes()
    chunk_reader._indexes.clear()
    path.write_bytes(content[:left])
    with pytest.raises(DamageError, match="shorter than its receipt says"):
        cache.open().targets(0, 12)
    path.write_bytes(content)
    assert len(cache.open().targets(0, 12).ids) == 12


# Repair


def test_repair_of_a_clean_cache_changes_nothing(cache):
    before = snapshot(cache.path)
    assert repair(cache.path) == ([], [])
    assert snapshot(cache.path) == before


@pytest.mark.parametrize("harm", [flip_bit, cut, lambda path: path.unlink()])
def test_repair_forgets_the_shards_with_a_damaged_object_and_no_other(cache, harm):
    before = snapshot(cache.path)
    harm(cache.objects(1)[0])
    harm(cache.objects(1)[-1])
    mended, left = repair(cache.path)
    assert ({problem.shard for problem in mended}, left) == ({1}, [])
    assert [cache.receipt_file(shard).exists() for shard in range(3)] == [True, False, True]
    cache.commit(1)
    assert snapshot(cache.path) == before


@pytest.mark.parametrize("harm", [flip_bit, cut])
def test_repair_forgets_a_damaged_receipt(cache, harm):
    before = snapshot(cache.path)
    harm(cache.receipt_file(2))
    mended, left = repair(cache.path)
    assert ([problem.shard for problem in mended], left) == ([2], [])
    cache.commit(2)
    assert snapshot(cache.path) == before


@pytest.mark.parametrize("name", ["ids", "entropy", "hidden/last", "hidden", "hidden/1"])
def test_repair_rewrites_damaged_metadata_and_forgets_no_shard_for_it(cache, name):
    before = snapshot(cache.path)
    flip_bit(cache.teacher / name / layout.MANIFEST)
    mended, left = repair(cache.path)
    assert ({problem.remedy for problem in mended}, left) == ({"metadata"}, [])
    assert snapshot(cache.path) == before


@pytest.mark.parametrize("group", ["encodings", "encodings/tiny/teachers"])
def test_repair_rewrites_a_bare_group(cache, group):
    before = snapshot(cache.path)
    flip_bit(cache.path / group / layout.MANIFEST, 9)
    assert len(repair(cache.path)[0]) == 1
    assert snapshot(cache.path) == before


FORGOTTEN = [
    "encodings/tiny/sequences/00001.arrow",
    "encodings/tiny/parts/00000/shards.arrow",
    "encodings/tiny/parts/00000/files.arrow",
    "encodings/tiny/tokenizer/tokenizer.json",
]
"""What the corpus determines; ``test_restore.py`` shows that a capture writes it again."""

KEPT = [
    "encodings/tiny/zarr.json",
    "encodings/tiny/teachers/toy/zarr.json",
    "encodings/tiny/teachers/toy/head.safetensors",
    "encodings/tiny/teachers/toy/transforms/1.safetensors",
]


@pytest.mark.parametrize("key", KEPT)
def test_repair_leaves_what_only_a_copy_can_mend_and_deletes_nothing(cache, key):
    flip_bit(cache.path / key, -3)
    before = snapshot(cache.path)
    mended, left = repair(cache.path)
    assert mended == []
    assert [problem.where.endswith(key) for problem in left] == [True]
    assert snapshot(cache.path) == before


@pytest.mark.parametrize("key", FORGOTTEN)
@pytest.mark.parametrize("harm", [partial(flip_bit, byte=-3), cut, Path.unlink])
def test_repair_forgets_a_file_that_the_corpus_determines_and_nothing_else(cache, key, harm):
    harm(cache.path / key)
    before = snapshot(cache.path)
    mended, left = repair(cache.path)
    assert ([problem.where.endswith(key) for problem in mended], left) == ([True], [])
    assert snapshot(cache.path) == {name: content for name, content in before.items() if name != key}


def test_repair_forgets_no_file_of_a_subset_which_no_corpus_determines(cache, tmp_path):
    subset_cache(Cache(cache.path), tmp_path / "subset", Choice(split="train"))
    flip_bit(tmp_path / "subset" / FORGOTTEN[0], -3)
    before = snapshot(tmp_path / "subset")
    mended, left = repair(tmp_path / "subset")
    assert (mended, len(left)) == ([], 1)
    assert snapshot(tmp_path / "subset") == before


@pytest.mark.parametrize("harm", [lambda path: flip_bit(path, -3), Path.unlink, cut])
def test_repair_writes_the_caches_own_manifest_again(cache, harm):
    before = snapshot(cache.path)
    harm(cache.path / layout.MANIFEST)
    mended, left = repair(cache.path)
    assert ([problem.remedy for problem in mended], left) == (["metadata"], [])
    assert snapshot(cache.path) == before


@pytest.mark.parametrize("content", [b"", b"[]", b'{"attributes": {"logitcask": {"format": 2}}}'])
def test_repair_makes_no_cache_of_a_folder_without_an_encoding_or_of_another_format(cache, tmp_path, content):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / layout.MANIFEST).write_bytes(content)
    with pytest.raises(FormatError):
        repair(tmp_path / "other")
    assert snapshot(tmp_path / "other") == {layout.MANIFEST: content}
    if b"format" in content:
        (cache.path / layout.MANIFEST).write_bytes(content)
        with pytest.raises(FormatError, match="another format version"):
            repair(cache.path)


def test_damage_beside_a_damaged_file_is_still_mended(cache):
    for key in FORGOTTEN[2:] + KEPT[2:]:
        flip_bit(cache.path / key, -3)
    flip_bit(cache.objects(0)[0])
    mended, left = repair(cache.path)
    assert [problem.shard for problem in mended] == [None, None, 0]
    assert len(left) == 2


def test_a_capture_after_repair_restores_the_same_bytes(tmp_path):
    values = tiny.capture_values(tmp_path, hidden={"layers": ["last", 1], "codec": "budget"})
    tiny.run(values)
    cache = Cache(tmp_path / "cache")
    teacher, before = cache.encoding().teacher(), without_receipts(tmp_path / "cache")
    shards = len(teacher.encoding.shards)
    flip_bit(teacher.path / "levels/c/0/0")
    cut(layout.receipt_file(teacher.path, 1))
    (teacher.path / "hidden/1/c/2/0").unlink()
    flip_bit(teacher.path / "ids/zarr.json")
    mended, left = repair(cache.path)
    assert ({problem.shard for problem in mended}, left) == ({0, 1, 2, None}, [])
    assert Cache(cache.path).encoding().teacher().missing_shards() == [0, 1, 2]
    assert shards > 3
    assert tiny.run(values) == {"toy": 3}
    assert without_receipts(tmp_path / "cache") == before
    assert verify(cache.path, deep=True) == []


def without_receipts(path):
    """Return a cache's files, but of receipts only what is the same whenever and wherever they are written."""
    return {key: content.split(b'"provenance"')[0] for key, content in snapshot(path).items()}


# The command


def repair_with(cache, *options):
    result = CliRunner().invoke(repair_command, [str(cache.path), *options])
    return result.exit_code, result.stdout


def test_the_command_exits_0_when_all_is_mended_and_1_when_something_is_left(cache):
    assert repair_with(cache) == (0, "0 mended, 0 left\n")
    cut(cache.objects(1)[0])
    code, output = repair_with(cache, "--quick", "--json")
    document = json.loads(output)
    assert (code, len(document["mended"]), document["left"]) == (0, 1, [])
    assert document["mended"][0]["shard"] == 1
    flip_bit(cache.path / KEPT[1], -3)
    code, output = repair_with(cache, "--json")
    document = json.loads(output)
    assert (code, document["mended"], len(document["left"])) == (1, [], 1)
    assert document["left"][0]["where"].endswith(KEPT[1])
