"""Gathered receipts make opening cheap, and are never believed against the receipts themselves.

Files hold 8 receipts here instead of 1,024. ``memory://`` stands for a bucket: each request passes the gate, which
counts.
"""

import os
import shutil
import time
from contextlib import suppress

import numpy as np
import pytest

from cache_tools.errors import DamageError, IncompleteError
from cache_tools.format import layout
from cache_tools.inspection.summary import describe_teacher
from cache_tools.maintenance.copying import copy_cache
from cache_tools.maintenance.drop import drop_hidden
from cache_tools.maintenance.repair import repair
from cache_tools.maintenance.subset import Choice, subset_cache
from cache_tools.maintenance.verify import verify
from cache_tools.requests import in_flight
from cache_tools.storage import store_path
from cache_tools.store import gathered, teacher
from cache_tools.store.gathered import Gathering, gather, gather_all, gathered_files, receipt_contents
from cache_tools.store.reader import Cache
from store_fixtures import make_cache, snapshot

SHARDS, PER_FILE = 30, 8


class CountingGate(in_flight.Gate):
    """Counts requests."""

    def __init__(self):
        super().__init__(in_flight.IN_FLIGHT)
        self.requests = 0

    def holding(self, places):
        self.requests += places
        return super().holding(places)


@pytest.fixture
def requests(monkeypatch):
    gate = CountingGate()
    monkeypatch.setattr(in_flight, "GATE", gate)
    return gate


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(gathered, "GATHERED_SHARDS", PER_FILE)
    monkeypatch.setattr(gathered, "FEWEST_SHARDS", 4)
    monkeypatch.setattr(teacher, "FEW_RECEIPTS", 4)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("made"), shards=SHARDS)


@pytest.fixture
def tiny(made, tmp_path):
    """A copy of the cache whose receipts are older than anything that a test writes."""
    shutil.copytree(made.path, tmp_path / "cache")
    folder = tmp_path / "cache" / made.teacher.relative_to(made.path)
    age(folder)
    return Cache(tmp_path / "cache").encoding().teacher()


def age(folder):
    """Let all receipts be a minute old, as those of a capture that takes its time."""
    before = time.time() - 60
    for path in (folder / "receipts").iterdir():
        os.utime(path, (before, before))


def reopened(opened):
    return Cache(opened.encoding.path.parent.parent).encoding().teacher()


def alone(opened, monkeypatch):
    """Return the names of the receipts that opening the teacher for training reads themselves."""
    names, read = [], gathered.read_object

    def counted(path, *largest):
        names.append(path.name)
        return read(path, *largest)

    with monkeypatch.context() as patch:
        patch.setattr(gathered, "read_object", counted)
        reopened(opened).require_complete("train")
    return [name for name in names if name.endswith(".json")]


def test_a_gathered_cache_is_opened_with_a_request_per_file_and_not_per_shard(tiny, requests):
    place = store_path("memory://gathered")
    copy_cache(Cache(tiny.encoding.path.parent.parent), place)
    for path in gathered_files(layout.teacher_folder(place / "encodings/tiny", "toy")):
        store_path(f"memory://gathered/encodings/tiny/teachers/toy/gathered/{path.name}").unlink()
    counts = []
    for _ in range(2):
        before = requests.requests
        opened = Cache(place).encoding().teacher()
        opened.require_complete("train")
        counts.append(requests.requests - before)
        gather_all(opened.path, SHARDS)
    without, with_files = counts
    assert without - with_files == SHARDS - -(-SHARDS // PER_FILE)
    assert with_files <= 12 + SHARDS // PER_FILE


def test_what_is_read_is_the_same_with_and_without_gathered_receipts(tiny):
    before, facts = dict(receipt_contents(tiny.path, SHARDS)), describe_teacher(tiny)
    rows = tiny.targets(3, 12)
    assert len(gather_all(tiny.path, SHARDS)) == 4
    opened = reopened(tiny)
    assert dict(receipt_contents(tiny.path, SHARDS)) == before
    assert describe_teacher(opened) == facts
    assert np.array_equal(opened.targets(3, 12).log_probs, rows.log_probs)
    opened.require_complete("train")
    opened.require_complete("held_out", "hidden/last")


def test_nothing_but_the_folder_of_copies_is_written(tiny):
    before = snapshot(tiny.path)
    gather_all(tiny.path, SHARDS)
    after = snapshot(tiny.path)
    assert {key: content for key, content in after.items() if not key.startswith("gathered/")} == before
    assert len(after) == len(before) + 4


def test_a_deleted_receipt_is_missing_whatever_its_copy_says(tiny):
    gather_all(tiny.path, SHARDS)
    layout.receipt_file(tiny.path, 11).unlink()
    opened = reopened(tiny)
    assert opened.missing_shards() == [11]
    assert opened.incomplete_shards(range(SHARDS)) == [11]
    with pytest.raises(IncompleteError, match="missing shards 11"):
        opened.require_complete("train")


def test_a_receipt_that_is_newer_or_larger_than_its_copy_is_read_itself(tiny, monkeypatch):
    gather_all(tiny.path, SHARDS)
    assert alone(tiny, monkeypatch) == []
    newer, larger = (layout.receipt_file(tiny.path, shard) for shard in (3, 17))
    os.utime(newer, (time.time() + 60,) * 2)
    assert alone(tiny, monkeypatch) == ["00003.json"]
    times = larger.stat()
    larger.write_bytes(larger.read_bytes() + b"\n")
    os.utime(larger, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DamageError, match="the receipt cannot be read"):
        alone(tiny, monkeypatch)


def test_rows_are_decoded_by_the_receipt_and_never_by_its_copy(tiny):
    gather_all(tiny.path, SHARDS)
    path = layout.receipt_file(tiny.path, 5)
    times, content = path.stat(), path.read_bytes()
    path.write_bytes(content.replace(b'"positions": 12', b'"positions": 13'))  # same size, same time: rot
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    opened = reopened(tiny)
    opened.require_complete("train")
    with pytest.raises(DamageError, match="the receipt cannot be read"):
        opened.targets(5 * 16, 5 * 16 + 1)


def test_a_damaged_file_of_copies_is_ignored_reported_and_replaced(tiny, monkeypatch):
    gather_all(tiny.path, SHARDS)
    file = layout.gathered_folder(tiny.path) / gathered_files(tiny.path)[1].name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert alone(tiny, monkeypatch) == [f"{shard:05d}.json" for shard in range(8, 16)]
    root = tiny.encoding.path.parent.parent
    (problem,) = verify(root)
    assert problem.where == str(file)
    assert "its hash is not that of its name" in problem.message
    mended, left = repair(root, deep=False)
    assert (len(mended), left, verify(root)) == (1, [], [])
    assert alone(tiny, monkeypatch) == []
    assert len(gathered_files(tiny.path)) == 4


def test_deep_verify_finds_a_copy_that_is_not_the_receipt(tiny):
    gather_all(tiny.path, SHARDS)
    path = layout.receipt_file(tiny.path, 9)
    times, other = path.stat(), layout.receipt_file(tiny.path, 8).read_bytes()
    receipts = dict(receipt_contents(tiny.path, SHARDS))
    content = gathered.gathered_bytes({9: other[: len(receipts[9])]})
    name = layout.gathered_name(1, gathered.sha256(content))
    (layout.gathered_folder(tiny.path) / name).write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    (problem,) = verify(tiny.encoding.path.parent.parent, deep=True)
    assert problem.message == "the gathered receipt of shard 9 is not the receipt"
    assert problem.where.endswith(name)


def test_the_process_that_commits_the_last_shard_of_a_file_gathers_it(made, tmp_path):
    shutil.copytree(made.path, tmp_path / "cache")
    opened = Cache(tmp_path / "cache").encoding().teacher()
    receipts = [layout.receipt_file(opened.path, shard) for shard in range(PER_FILE)]
    contents = [path.read_bytes() for path in receipts]
    for path in receipts:
        path.unlink()
    ranks = [Gathering(opened.path, SHARDS, range(rank, PER_FILE, 2)) for rank in range(2)]
    for shard in range(PER_FILE):
        assert gathered_files(opened.path) == []
        receipts[shard].write_bytes(contents[shard])
        ranks[shard % 2].committed(shard)
    assert [file.number for file in gathered_files(opened.path)] == [0]


def test_a_file_is_written_again_when_a_receipt_changed_and_the_older_one_goes(tiny):
    first = gather_all(tiny.path, SHARDS)
    assert gather_all(tiny.path, SHARDS) == []
    drop_hidden(tiny, "1")
    files = gathered_files(tiny.path)
    assert [file.number for file in files] == [0, 1, 2, 3]
    assert not {file.name for file in files} & set(first)
    opened = reopened(tiny)
    assert opened.groups == ["targets", "hidden/last"]
    assert opened.incomplete_shards(range(SHARDS)) == []


def test_copies_and_subsets_are_gathered(tiny, tmp_path):
    source = Cache(tiny.encoding.path.parent.parent)
    copy_cache(source, tmp_path / "copy")
    subset_cache(source, tmp_path / "subset", Choice(split="train"))
    copy, subset = (Cache(tmp_path / name).encoding().teacher() for name in ("copy", "subset"))
    assert [len(gathered_files(opened.path)) for opened in (copy, subset)] == [4, 4]
    assert dict(receipt_contents(copy.path, SHARDS)) == dict(receipt_contents(tiny.path, SHARDS))


def test_receipts_that_are_damaged_missing_or_few_are_not_gathered(tiny):
    layout.receipt_file(tiny.path, 2).write_bytes(b"{}")
    layout.receipt_file(tiny.path, 12).unlink()
    assert gather(tiny.path, SHARDS, 0) is None
    assert gather(tiny.path, SHARDS, 1) is None
    assert gather(tiny.path, 18, 2) is None
    assert gathered_files(tiny.path) == []


def test_a_process_that_dies_at_any_write_loses_nothing_and_the_next_one_gathers(tiny, monkeypatch):
    before, write = dict(receipt_contents(tiny.path, SHARDS)), gathered.write_object
    for moment in ("before", "after"):
        for number in range(4):

            def die(path, content, moment=moment):
                if moment == "after":
                    write(path, content)
                raise KeyboardInterrupt

            with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
                patch.setattr(gathered, "write_object", die)
                gather(tiny.path, SHARDS, number)
            assert dict(receipt_contents(tiny.path, SHARDS)) == before
    gather_all(tiny.path, SHARDS)
    assert [file.number for file in gathered_files(tiny.path)] == [0, 1, 2, 3]


def test_foreign_names_are_no_receipts_and_no_files_of_copies(tiny):
    (tiny.path / "receipts" / "000001.json").write_bytes(b"")
    (tiny.path / "receipts" / ("9" * 40 + ".json")).write_bytes(b"")
    folder = layout.gathered_folder(tiny.path)
    folder.mkdir()
    (folder / "00000.arrow").write_bytes(b"")
    (folder / f"{9:05d}-{'0' * 32}.arrow").write_bytes(b"")
    assert tiny.missing_shards() == []
    assert [file.number for file in gathered_files(tiny.path)] == [9]
    assert len(dict(receipt_contents(tiny.path, SHARDS))) == SHARDS
