"""Nothing is written into what is read, whatever the two places are called."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

import tiny
from cache_tools.errors import ConfigError, LogitcaskError
from cache_tools.maintenance.copying import copy_cache
from cache_tools.maintenance.subset import Choice, subset_cache
from cache_tools.separate_places import is_inside
from cache_tools.storage import store_path
from cache_tools.store.reader import Cache
from kinds import make
from logitcask import cli
from store_fixtures import snapshot
from trainer.config.student_file import StudentConfig
from trainer.run.train import run_training


@pytest.fixture
def cache(tmp_path):
    """A cache in ``tmp_path/runs/cache``, and a link to it beside it."""
    made = make("topk", tmp_path)
    (tmp_path / "runs").mkdir()
    os.rename(made.path, tmp_path / "runs/cache")
    (tmp_path / "link").symlink_to(tmp_path / "runs/cache")
    return tmp_path / "runs/cache"


INSIDE = {
    "the same": "{cache}",
    "with a slash": "{cache}/",
    "a folder in it": "{cache}/copy",
    "deep in it": "{cache}/encodings/tiny/teachers/copy",
    "by a detour": "{cache}/../cache/copy",
    "through a link": "{root}/link/copy",
    "a link": "{root}/link",
    "as a URL": "file://{cache}/copy",
    "a detour in a URL": "file://{root}/runs/../link/copy",
    "what contains it": "{root}/runs",
    "what contains what contains it": "{root}",
}


@pytest.mark.parametrize("place", INSIDE)
@pytest.mark.parametrize("write", ["copy", "subset"])
def test_a_copy_or_subset_into_its_own_source_is_refused_before_anything_is_written(cache, tmp_path, place, write):
    before = snapshot(tmp_path)
    target = store_path(INSIDE[place].format(cache=cache, root=tmp_path))
    for source in (cache, tmp_path / "link"):
        with pytest.raises(ConfigError, match="lies inside"):
            copy_cache(Cache(source), target) if write == "copy" else subset_cache(Cache(source), target, Choice())
    result = CliRunner().invoke(cli, [write, f"file://{cache}", str(target)])
    assert result.exit_code == 1
    assert snapshot(tmp_path) == before


def test_a_relative_target_is_refused_too(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(cache)
    with pytest.raises(ConfigError):
        copy_cache(Cache(cache), Path("copy"))
    with pytest.raises(ConfigError):
        copy_cache(Cache(Path(".")), Path("../cache"))


def test_a_place_beside_the_source_with_a_name_that_begins_alike_is_taken(cache, tmp_path):
    copy_cache(Cache(cache), tmp_path / "runs/cache2")
    assert snapshot(tmp_path / "runs/cache2") == snapshot(cache)


@pytest.mark.parametrize(
    ("place", "folder", "inside"),
    [
        ("s3://b/x", "s3://b/x", True),
        ("s3://b/x/", "s3://b/x", True),
        ("s3://b/x", "s3://b/x/", True),
        ("s3://b/x/y", "s3://b/x", True),
        ("s3://b/x//y", "s3://b/x", True),
        ("s3a://b/x/y", "s3://b/x", True),
        ("gcs://b/x/y", "gs://b/x", True),
        ("s3://b/x", "s3://b", True),
        ("s3://b/x2", "s3://b/x", False),
        ("s3://b/x", "s3://b/x/y", False),
        ("s3://c/x", "s3://b/x", False),
        ("gs://b/x", "s3://b/x", False),
        ("memory://b/x/y", "memory://b/x", True),
        ("memory://b/y", "memory://b/x", False),
        ("/b/x", "s3://b/x", False),
        ("s3://b/x", "/b", False),
    ],
)
def test_prefixes_of_buckets_are_compared_key_by_key(place, folder, inside):
    assert is_inside(store_path(place), store_path(folder)) == inside


def test_a_copy_into_a_prefix_of_its_own_prefix_is_refused(cache):
    source = store_path("memory://apart/x")
    copy_cache(Cache(cache), source)
    with pytest.raises(ConfigError):
        copy_cache(Cache(source), store_path("memory://apart/x/y"))
    with pytest.raises(ConfigError):
        copy_cache(Cache(source), store_path("memory://apart"))


@pytest.mark.parametrize(
    "command",
    [
        ["report", "{cache}", "-o", "{cache}/report.html"],
        ["report", "{root}/link", "-o", "{cache}/encodings/report.html"],
        ["report", "{cache}", "-o", "{root}/link/zarr.json"],
        ["vocabulary", "{cache}", "-o", "{cache}/vocabulary"],
        ["vocabulary", "{cache}", "-o", "{root}/link"],
        ["evaluate", "{root}", "{cache}", "--plot", "{root}/link/plot.png"],
    ],
)
def test_no_command_writes_its_output_into_its_cache(cache, tmp_path, command):
    before = snapshot(tmp_path)
    result = CliRunner().invoke(cli, [word.format(cache=cache, root=tmp_path) for word in command])
    assert result.exit_code == 1
    assert "lies inside the folder that is read" in str(result.exception)
    assert snapshot(tmp_path) == before


def test_a_student_is_not_trained_into_its_cache(tmp_path):
    tiny.capture(tmp_path)
    before = snapshot(tmp_path / "cache")
    student = {"config": {"model_type": "llama"} | tiny.SHAPE}
    training = {"output_dir": str(tmp_path / "cache/run"), "max_steps": 1}
    values = {"cache": str(tmp_path / "cache"), "student": student, "training": training}
    with pytest.raises(ConfigError, match=r"training\.output_dir lies inside"):
        run_training(StudentConfig.model_validate(values))
    assert snapshot(tmp_path / "cache") == before


def test_links_in_a_circle_are_one_sentence(cache, tmp_path):
    (tmp_path / "circle").symlink_to("circle")
    result = CliRunner().invoke(cli, ["copy", str(cache), str(tmp_path / "circle")])
    assert isinstance(result.exception, LogitcaskError)
