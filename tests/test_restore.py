"""What the corpus determines is written again from it, the same to the byte, and no prediction is lost with it."""

import shutil
from itertools import product

import pytest
from click.testing import CliRunner

import tiny
from cache_tools.errors import DamageError, IdentityError
from cache_tools.maintenance.commands import repair_command
from cache_tools.maintenance.copying import copy_cache
from cache_tools.maintenance.repair import repair
from cache_tools.maintenance.verify import verify
from cache_tools.store.reader import Cache
from pipeline.encoding.encode import is_encoded, is_whole
from store_fixtures import flip_bit, snapshot


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    """A finished cache of two parts, each of two corpus files, and its capture file."""
    folder = tmp_path_factory.mktemp("captured")
    for number in range(4):
        tiny.write_corpus(folder / f"{number}.jsonl", [f"part {number}: {text}" for text in tiny.TEXTS[number::4]])
        text = (folder / f"{number}.jsonl").read_text().replace('"doc', f'"{number}-doc')
        (folder / f"{number}.jsonl").write_text(text)
    paths = [str(folder / f"{number}.jsonl") for number in (1, 0)]
    values = tiny.capture_values(folder, paths=paths, positions_per_shard=256)
    tiny.run(values)
    values["corpus"]["paths"] = [str(folder / f"{number}.jsonl") for number in (3, 1, 2, 0)]
    tiny.run(values, append=True)
    return values


@pytest.fixture
def values(captured, tmp_path):
    """The same with a copy of the cache, which a test may damage."""
    shutil.copytree(captured["cache"], tmp_path / "cache")
    return captured | {"cache": str(tmp_path / "cache")}


def torn(path):
    path.write_bytes(path.read_bytes()[:-9])


def gone(path):
    path.unlink()


def flipped(path):
    flip_bit(path, -3)


FILES = [
    "sequences/00000.arrow",
    "sequences/00004.arrow",
    "parts/00000/shards.arrow",
    "parts/00001/shards.arrow",
    "parts/00000/files.arrow",
    "parts/00001/files.arrow",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
]


def test_the_captured_cache_is_sound(captured):
    assert verify(captured["cache"], deep=True) == []


def harm_of(harm, name):
    """Return one case; slow where its like is among the others."""
    usual = harm is torn or name in (FILES[0], FILES[4])
    return pytest.param(harm, name, marks=[] if usual else [pytest.mark.slow], id=f"{harm.__name__}-{name}")


@pytest.mark.parametrize(("harm", "name"), [harm_of(*case) for case in product((torn, flipped, gone), FILES)])
def test_repair_and_capture_bring_back_the_same_bytes_and_run_no_teacher(values, tmp_path, name, harm):
    cache = tmp_path / "cache"
    before = snapshot(cache)
    harm(cache / "encodings/main" / name)
    if harm is not gone:
        assert CliRunner().invoke(repair_command, [str(cache)]).exit_code == 0
    assert tiny.run(values) == {"toy": 0}
    assert snapshot(cache) == before


@pytest.mark.parametrize("name", FILES)
def test_a_capture_does_not_succeed_over_a_torn_file(values, tmp_path, name):
    torn(tmp_path / "cache/encodings/main" / name)
    before = snapshot(tmp_path / "cache")
    with pytest.raises(DamageError, match="'logitcask repair'"):
        tiny.run(values)
    assert snapshot(tmp_path / "cache") == before


def test_everything_but_the_manifests_and_one_table_of_files_comes_back_at_once(values, tmp_path):
    cache = tmp_path / "cache"
    before = snapshot(cache)
    shutil.rmtree(cache / "encodings/main/sequences")
    shutil.rmtree(cache / "encodings/main/tokenizer")
    for name in FILES[2:5]:
        gone(cache / "encodings/main" / name)
    tiny.run(values)
    assert snapshot(cache) == before


@pytest.mark.parametrize("name", FILES[:6])
def test_with_another_corpus_nothing_is_written_and_the_changed_file_is_named(values, tmp_path, name):
    cache = tmp_path / "cache"
    gone(cache / "encodings/main" / name)
    before = snapshot(cache)
    other = tmp_path / "0.jsonl"
    other.write_text('{"id": "other", "text": "other words"}\n')
    paths = [str(other) if path.endswith("/0.jsonl") else path for path in values["corpus"]["paths"]]
    changed = values | {"corpus": values["corpus"] | {"paths": paths}}
    with pytest.raises(IdentityError) as error:
        tiny.run(changed)
    assert name == FILES[4] or "0.jsonl is changed" in str(error.value)
    assert snapshot(cache) == before


def test_a_file_that_comes_out_otherwise_is_not_written(values, tmp_path, monkeypatch):
    """As with another version of pyarrow or transformers, whose bytes differ."""
    cache = tmp_path / "cache"
    gone(cache / "encodings/main" / FILES[0])
    gone(cache / "encodings/main" / FILES[7])
    before = snapshot(cache)
    monkeypatch.setattr("pipeline.encoding.encode.tokenizer_files", lambda _: {"tokenizer_config.json": b"other"})
    with pytest.raises(IdentityError, match="cannot be restored: encoding the corpus again gives another file"):
        tiny.run(values)
    assert snapshot(cache) == before


def test_workers_wait_until_rank_0_has_written_what_is_missing(values, tmp_path):
    folder = tmp_path / "cache/encodings/main"
    sources = ["0.jsonl", "1.jsonl", "2.jsonl", "3.jsonl"]
    assert is_whole(folder)
    assert is_encoded(folder, sources)
    gone(folder / FILES[0])
    assert not is_whole(folder)
    assert not is_encoded(folder, sources)


def test_a_copy_brings_back_what_a_later_damage_took(values, tmp_path):
    copy_cache(Cache(tmp_path / "cache"), tmp_path / "copy")
    before = snapshot(tmp_path / "copy")
    for name in FILES:
        torn(tmp_path / "copy/encodings/main" / name)
    repair(tmp_path / "copy")
    repair(tmp_path / "copy")
    copy_cache(Cache(tmp_path / "cache"), tmp_path / "copy")
    assert snapshot(tmp_path / "copy") == before
