"""Refusals at the command line, continued: caches that cannot be used, full disks, processes of their own."""

import errno
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import refusal_fixtures
from cache_tools.format import layout
from cache_tools.format.manifest import CacheManifest, write_manifest
from cache_tools.store.reader import Cache
from refusal_fixtures import (
    changed,
    command_line,
    message_of,
    readers_of,
)
from store_fixtures import snapshot

good, copy, refused = refusal_fixtures.good, refusal_fixtures.copy, refusal_fixtures.refused
ROOT = Path(__file__).parents[1]


# Caches that cannot be used


@pytest.mark.parametrize(("command", "split"), [("train", "train"), ("evaluate", "train"), ("evaluate", "held_out")])
def test_a_missing_receipt_is_refused_by_whoever_needs_the_shard(copy, good, tmp_path, refused, command, split):
    shards = Cache(copy).encoding().split_shards("train"), Cache(copy).encoding().split_shards("held_out")
    assert len(shards[0]) > 1
    shard = shards[0][0] if split == "train" else shards[1][-1]
    layout.receipt_file(copy / "encodings/main/teachers/toy", shard).unlink()
    arguments = readers_of(copy, tmp_path, good)[command]
    if command == "evaluate":
        arguments = [*arguments, "--split", split]
    message = refused(*arguments)
    assert f"Error: {copy}/encodings/main/teachers/toy: teacher 'toy' has no receipt for 1 of " in message
    assert f"missing shards {shard})" in message
    assert "Run the same 'logitcask capture' again" in message


@pytest.mark.parametrize("command", ["inspect", "verify", "train", "evaluate"])
@pytest.mark.parametrize("there", [True, False])
def test_refuses_a_path_that_is_not_a_cache(good, tmp_path, refused, command, there):
    path = good.folder / "teacher" if there else tmp_path / "nothing"
    message = refused(*readers_of(path, tmp_path, good)[command])
    assert f"Error: {path}/zarr.json: there is no readable cache manifest here" in message


@pytest.mark.parametrize("command", ["inspect", "verify", "train", "evaluate", "capture"])
def test_refuses_a_newer_format(copy, good, tmp_path, refused, command):
    write_manifest(copy, CacheManifest(format=2, software="logitcask 9.0"))
    before = snapshot(copy)
    capture = ["capture", changed(good, tmp_path), "--set", f"cache={copy}"] if command == "capture" else []
    message = refused(*(capture or readers_of(copy, tmp_path, good)[command]))
    assert f"Error: {copy}/zarr.json: this cache has another format version" in message
    assert "(expected format 1, found format 2, written by logitcask 9.0)" in message
    assert snapshot(copy) == before


def test_refuses_to_capture_into_a_folder_of_other_things(good, tmp_path, refused):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("x")
    message = refused("capture", changed(good, tmp_path), "--set", f"cache={tmp_path / 'thesis'}")
    assert f"Error: {tmp_path}/thesis: this path holds something that is not a cache" in message
    assert os.listdir(tmp_path / "thesis") == ["chapter1.tex"]


# A full disk


class FullDisk:
    """Lets some files be written; of the next one half is written, then the disk is full."""

    def __init__(self, patch, num_files):
        self.left, self.num_written, real = num_files, itertools.count(), Path.open

        def _open(path, mode="r", *arguments, **named):
            file = real(path, mode, *arguments, **named)
            if mode != "wb" or next(self.num_written) < self.left:
                return file
            with file:
                file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        patch.setattr(Path, "open", _open)


def without_provenance(cache):
    return {key: content.split(b'"provenance"')[0] for key, content in snapshot(cache).items()}


def num_files(good, folder):
    """Return how many files a capture writes by way of Path.open."""
    with pytest.MonkeyPatch.context() as patch:
        disk = FullDisk(patch, 10**6)
        command_line(patch, "capture", changed(good, folder), "--set", f"cache={folder / 'counted'}")
    return next(disk.num_written)


OFTEN = (0, 0.2, 0.8)
"""Places of a full disk that 'make test' tries, too."""


@pytest.mark.parametrize(
    "share",
    [*OFTEN, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.04, 0.1, 0.15, 0.35, 0.5, 0.95, 0.999))],
)
def test_a_full_disk_is_named_and_the_same_command_continues_after_it(good, tmp_path, refused, monkeypatch, share):
    command = ["capture", changed(good, tmp_path), "--set", f"cache={tmp_path / 'cache'}"]
    with pytest.MonkeyPatch.context() as patch:
        FullDisk(patch, int(share * num_files(good, tmp_path)))
        message = refused(*command)
    assert message.startswith(f"Error: {tmp_path / 'cache'}/")
    assert "the disk is full" in message
    assert "Free some space and run the same command again; it continues" in message
    assert command_line(monkeypatch, *command) == 0
    assert without_provenance(tmp_path / "cache") == without_provenance(good.cache)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), Exception("No space left on device (os error 28)")]
)
def test_a_disk_that_is_full_when_the_tokenizer_is_saved_is_named_too(good, tmp_path, refused, monkeypatch, error):
    """The Python part of a tokenizer raises the first of these errors, its Rust part the second."""

    def _full(*_):
        raise error

    command = ["capture", changed(good, tmp_path), "--set", f"cache={tmp_path / 'cache'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", _full)
        message = refused(*command)
    assert message.startswith(f"Error: {tempfile.gettempdir()}/")
    assert "the disk is full" in message
    assert command_line(monkeypatch, *command) == 0
    assert without_provenance(tmp_path / "cache") == without_provenance(good.cache)


# The same in a process of its own


@pytest.mark.parametrize("command", ["inspect", pytest.param("capture", marks=pytest.mark.slow)])
def test_a_process_ends_with_one_error_line_and_no_traceback(good, tmp_path, command):
    corpus, before = tmp_path / "corpus.jsonl", snapshot(good.cache)
    corpus.write_text("{")
    config = changed(good, tmp_path, paths=[str(corpus)])
    arguments, where = {
        "inspect": (["inspect", tmp_path], f"{tmp_path}/zarr.json: there is no readable cache manifest"),
        "capture": (["capture", config, "--set", f"cache={tmp_path / 'new'}"], f"{corpus}:1: this line is not JSON"),
    }[command]
    process = subprocess.run(
        [sys.executable, "-m", "logitcask", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 1
    assert message_of(process.stdout, process.stderr).startswith(f"Error: {where}")
    assert snapshot(good.cache) == before
