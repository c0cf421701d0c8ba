"""Hugging Face datasets as a corpus: read by the library itself from local files, and known by what they are.

The hub is played by a builder that says, like the library's own, which commit its files belong to.
That suffices because nothing else about the hub is looked at: rows and errors come through the same iterator.
"""

import json
import os
import re
import sys
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets.data_files import DataFilesList

import tiny
from cache_tools.errors import CorpusError, IdentityError
from cache_tools.format.shards import read_file_tables
from cache_tools.store.reader import Encoding
from pipeline.config.capture_file import CaptureConfig
from pipeline.corpus.config import CorpusConfig
from pipeline.corpus.documents import corpus_sources, read_documents
from store_fixtures import snapshot

RECORDS = [{"id": f"row{number}", "text": text} for number, text in enumerate(tiny.TEXTS[:10])]
OLD, NEW = "a" * 40, "b" * 40
HUB = {"path": "someone/corpus", "name": "en", "streaming": True}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    datasets.disable_progress_bars()


def write_files(folder):
    """Write the records as JSON lines, as one JSON array, and as a folder of Parquet files with two splits."""
    (folder / "parquet").mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    (folder / "rows.json").write_text(json.dumps(RECORDS))
    for name, rows in (("train-0", RECORDS[:6]), ("train-1", RECORDS[6:]), ("test-0", RECORDS[:2])):
        pa.parquet.write_table(pa.Table.from_pylist(rows), folder / "parquet" / f"{name}.parquet")
    return folder


def blocks(folder):
    return {
        "lines": {"path": "json", "data_files": [str(folder / "rows.jsonl")]},
        "array": {"path": "json", "data_files": [str(folder / "rows.json")]},
        "folder": {"path": str(folder / "parquet")},
        "files": {"path": "parquet", "data_files": [str(folder / "parquet" / "train-*.parquet")]},
    }


def read(block, **fields):
    config = CorpusConfig(datasets=[block], **fields)
    return list(read_documents(corpus_sources(config).values(), config, set()))


def identity(*given):
    return {name: source.sha256() for name, source in corpus_sources(CorpusConfig(datasets=given)).items()}


def run(folder, *given, append=False, **corpus):
    values = tiny.capture_values(folder, folder)
    values["corpus"] = {"datasets": given, "held_out_fraction": 0.2, **corpus}
    return tiny.encode(CaptureConfig.model_validate(values), tiny.tokenizer(), append)


class FakeHub:
    """Stands in for ``load_dataset_builder``: rows of a commit, and a connection that may break after some of them."""

    def __init__(self, commit=OLD, rows=RECORDS, breaks=False, promised=None):
        self.commit, self.rows, self.breaks, self.promised = commit, rows, breaks, promised

    def __call__(self, path, name, data_dir, data_files, revision):
        url = f"hf://datasets/{path}@{revision or self.commit}/{name}/train.parquet"
        files = {"train": DataFilesList([url], [(path, revision or self.commit)])}
        splits = {"train": SimpleNamespace(num_examples=self.promised, num_bytes=None)} if self.promised else None
        return SimpleNamespace(
            config=SimpleNamespace(data_files=files),
            info=SimpleNamespace(splits=splits),
            as_streaming_dataset=lambda split: self._stream(),
        )

    def _stream(self):
        yield from self.rows
        if self.breaks:
            raise ConnectionError("the line went dead")


@pytest.fixture
def hub(monkeypatch):
    def connect(**changes):
        monkeypatch.setattr(datasets, "load_dataset_builder", FakeHub(**changes))

    return connect


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["lines", "array", "folder", "files"])
def test_rows_are_the_same_by_every_way_to_name_them(tmp_path, name, streaming):
    block = blocks(write_files(tmp_path))[name]
    found = read(block | {"streaming": streaming})
    assert [(d.id, d.text) for d in found] == [(record["id"], record["text"]) for record in RECORDS]


@pytest.mark.parametrize("streaming", [False, True])
def test_only_the_first_rows_of_the_named_split_are_read(tmp_path, streaming):
    block = blocks(write_files(tmp_path))["folder"] | {"streaming": streaming}
    assert [d.id for d in read(block | {"max_documents": 7})] == [f"row{i}" for i in range(7)]
    assert [d.id for d in read(block | {"split": "test"})] == ["row0", "row1"]


def test_a_row_without_an_id_is_named_after_dataset_and_number_wherever_the_folder_lies(tmp_path):
    for place in ("here", "there"):
        block = blocks(write_files(tmp_path / place))["folder"]
        found = read(block | {"max_documents": 2}, id_field="none")
        assert [d.id for d in found] == ["parquet, train, row 0", "parquet, train, row 1"]
        assert found[0].place == f"{tmp_path / place / 'parquet'}, train, row 0"


def test_streaming_or_not_gives_the_same_encoding(tmp_path):
    block = blocks(write_files(tmp_path))["folder"]
    caches = []
    for streaming in (False, True):
        (tmp_path / str(streaming)).mkdir()
        caches.append(snapshot(run(tmp_path / str(streaming), block | {"streaming": streaming})))
    assert caches[0] == caches[1]


def test_files_are_read_before_datasets_and_ids_are_unique_over_both(tmp_path):
    write_files(tmp_path)
    (tmp_path / "own.jsonl").write_text(json.dumps({"id": "own", "text": "x"}) + "\n")
    block = blocks(tmp_path)["lines"]
    config = CorpusConfig(paths=[tmp_path / "own.jsonl"], datasets=[block])
    ids = [d.id for d in read_documents(corpus_sources(config).values(), config, set())]
    assert ids == ["own", *(record["id"] for record in RECORDS)]
    config = CorpusConfig(paths=[tmp_path / "rows.jsonl"], datasets=[block])
    with pytest.raises(CorpusError, match=r"json, rows\.jsonl, train, row 0: the id 'row0' occurs a second time"):
        list(read_documents(corpus_sources(config).values(), config, set()))


def test_the_identity_of_local_files_follows_their_bytes_and_not_their_place_or_time(tmp_path):
    here, there = (blocks(write_files(tmp_path / place))["folder"] for place in ("here", "there"))
    os.utime(tmp_path / "there" / "parquet" / "train-0.parquet", (1, 1))
    assert identity(here) == identity(there)
    assert len({str(identity(here | change)) for change in ({}, {"split": "test"}, {"max_documents": 3})}) == 3
    pa.parquet.write_table(pa.Table.from_pylist(RECORDS[:5]), tmp_path / "there" / "parquet" / "train-0.parquet")
    assert list(identity(here)) == list(identity(there))
    assert identity(here) != identity(there)


def test_an_encoding_continues_with_the_same_dataset_and_refuses_a_changed_one(tmp_path):
    block = blocks(write_files(tmp_path))["lines"]
    before = snapshot(run(tmp_path, block))
    assert snapshot(run(tmp_path, block)) == before
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"id": "more", "text": "more"}) + "\n")
    with pytest.raises(IdentityError, match=r"json, rows\.jsonl, train is changed"):
        run(tmp_path, block)


def test_a_dataset_is_appended_to_files(tmp_path):
    write_files(tmp_path)
    files = {"paths": [str(tmp_path / "rows.jsonl")]}
    run(tmp_path, **files)
    (tmp_path / "new.json").write_text(json.dumps([{"id": "new", "text": "something new"}]))
    block = {"path": "json", "data_files": [str(tmp_path / "new.json")]}
    with pytest.raises(IdentityError, match=r"json, new\.json, train is new.*--append"):
        run(tmp_path, block, **files)
    encoding = Encoding(run(tmp_path, block, append=True, **files), "main")
    assert list(read_file_tables(encoding.path, encoding.manifest.parts)) == ["rows.jsonl", "json, new.json, train"]


def test_an_encoding_records_the_commit_that_a_hub_dataset_was_at(tmp_path, hub):
    hub(commit=OLD)
    encoding = Encoding(run(tmp_path, HUB | {"max_documents": 5}), "main")
    names = list(read_file_tables(encoding.path, encoding.manifest.parts))
    assert names == [f"someone/corpus, en, train, first 5 @{OLD}"]


def test_a_hub_dataset_that_moved_is_refused_until_its_old_commit_is_named(tmp_path, hub):
    hub(commit=OLD)
    before = snapshot(run(tmp_path, HUB))
    hub(commit=NEW)
    for append in (False, True):
        with pytest.raises(IdentityError, match=rf"someone/corpus, en, train @{OLD} is gone.*revision"):
            run(tmp_path, HUB, append=append)
    run(tmp_path, HUB | {"revision": OLD})
    assert snapshot(tmp_path / "cache" / "encodings" / "main") == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"breaks": True}, "someone/corpus, en, train: this cannot be read to its end"),
        ({"breaks": True, "rows": []}, "found ConnectionError: the line went dead"),
        ({"promised": 11}, "someone/corpus, en, train: the dataset ended too early (expected 11 rows"),
    ],
)
def test_a_stream_that_breaks_or_ends_early_commits_nothing_and_can_be_run_again(tmp_path, hub, changes, message):
    """A file is there already: what breaks is an appended part."""
    write_files(tmp_path)
    (tmp_path / "own.jsonl").write_text(json.dumps({"id": "own", "text": "my own words"}) + "\n")
    files = {"paths": [str(tmp_path / "own.jsonl")]}
    before = snapshot(run(tmp_path, **files))
    hub(**changes)
    with pytest.raises(CorpusError, match=re.escape(message)):
        run(tmp_path, HUB, append=True, **files)
    assert snapshot(tmp_path / "cache" / "encodings" / "main") == before
    hub()
    encoding = Encoding(run(tmp_path, HUB, append=True, **files), "main")
    assert sum(totals.documents for totals in encoding.manifest.splits.values()) == 11


def test_a_card_that_promises_more_than_is_asked_for_is_no_early_end(hub):
    hub(promised=1000)
    assert len(read(HUB | {"max_documents": 10})) == 10
    with pytest.raises(CorpusError, match="expected 11 rows, as its card says, found 10"):
        read(HUB | {"max_documents": 11})


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"path": "json", "data_files": ["no.such.json"]}, "json: this dataset cannot be opened (found FileNotFound"),
        (
            {"path": "{folder}", "name": "no"},
            "{folder}: this dataset cannot be opened (found ValueError: BuilderConfig",
        ),
        ({"path": "{folder}", "split": "no"}, "{folder}: the dataset has no split 'no' (expected train, test)"),
        ({"path": "json"}, "json: a reader needs files to read"),
        ({"path": "{saved}"}, "{saved}: this dataset was saved to disk. Name its folder in corpus.paths instead."),
        ({"path": "json", "data_files": ["{broken}"]}, "json, broken.json, train: this cannot be read to its end"),
        ({"path": "json", "data_files": ["{broken}"], "streaming": True}, "json, broken.json, train: this cannot be"),
    ],
)
def test_refuses_a_dataset_that_cannot_be_read(tmp_path, monkeypatch, block, message):
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    datasets.Dataset.from_list(RECORDS).save_to_disk(tmp_path / "saved")
    (tmp_path / "broken.json").write_text('{"id": "a", "text": ')
    places = {"{folder}": "parquet", "{saved}": "saved", "{broken}": "broken.json"}
    text = json.dumps(block)
    for key, name in places.items():
        text, message = text.replace(key, str(tmp_path / name)), message.replace(key, str(tmp_path / name))
    with pytest.raises(CorpusError) as error:
        read(json.loads(text))
    assert str(error.value).startswith(message)


def test_without_the_datasets_library_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CorpusError, match=r"someone/corpus: .*pip install 'logitcask\[datasets\]'"):
        read(HUB)


@pytest.mark.parametrize("change", [{"trust_remote_code": True}, {"split": "train[:10%]"}, {"max_documents": 0}])
def test_refuses_settings_that_have_no_meaning_here(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        CorpusConfig(datasets=[HUB | change])
