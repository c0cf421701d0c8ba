"""What leaves a cache in any format comes back the same, and is what the library ``datasets`` reads."""

import io
import json
import os
import resource
import signal
import sys

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from cache_tools.codecs.registry import DeltaPower, Targets, kl_nats
from cache_tools.errors import ConfigError, IdentityError, StorageError
from cache_tools.exchange.exporting import export_rows
from cache_tools.exchange.hub_dataset import to_dataset
from cache_tools.exchange.importing import import_rows
from cache_tools.exchange.plan import ImportOptions
from cache_tools.format import layout
from cache_tools.row_files.distillkit import LegacyCodec, PackedCodec
from cache_tools.row_files.formats import Columns, SourceFormat
from cache_tools.row_files.writing import table_of
from cache_tools.store.reader import Cache
from kinds import MADE
from kinds import make as make_kind
from logitcask import cli
from processes import finish, kill_at_rename, start
from refusal_fixtures import command_line
from row_fixtures import LEGACY, SILENT, made_rows, write_tokenizer
from store_fixtures import make_cache, random_targets
from student_fixtures import LOSS_ROUNDING, curve, train

IMPORTED = {"positions_per_shard": 16, "chunk_positions": 4}


def exported(cache, target, name="rows", **options):
    return export_rows(Cache(cache).encoding().teacher(), target, name, SILENT, **options)


def back(source, cache, tokenizer, **options):
    import_rows(source, cache, ImportOptions(tokenizer, **IMPORTED, **options), SILENT)
    return Cache(cache).encoding().teacher()


BY_FILE = ("held_out", "train")
"""Splits in the order of the names of their files, in which an import reads them."""


def by_document(teacher, splits=("train", "held_out")):
    """Return (document, tokens, positions, targets, scalars) of each sequence."""
    encoding, parts = teacher.encoding, []
    for split in splits:
        for shard in encoding.split_shards(split):
            for s in encoding.sequences(shard):
                scalars = {name: teacher.scalar(name, *s.rows) for name in teacher.manifest.scalars}
                parts.append((s.document_id, s.input_ids, s.positions(), teacher.targets(*s.rows), scalars))
    return parts


def joined(parts):
    """Return the targets of all sequences as one."""
    return Targets(*(np.concatenate([getattr(part[3], name) for part in parts]) for name in vars(parts[0][3])))


@pytest.mark.parametrize("kind", MADE)
def test_any_kind_comes_back_from_its_export(tmp_path, kind):
    made = make_kind(kind, tmp_path)
    teacher = made.open()
    exported(made.path, tmp_path / "rows")
    size = teacher.encoding.manifest.vocabulary_size
    other = back(tmp_path / "rows", tmp_path / "back", write_tokenizer(tmp_path / "tokenizer", size))
    before, after = by_document(teacher), by_document(other)
    assert len(before) == len(after)
    for mine, its in zip(before, after, strict=True):
        assert mine[0] == its[0]
        assert np.array_equal(mine[1], its[1])
        assert np.array_equal(mine[2], its[2])
        assert all(np.array_equal(values, its[4][name]) for name, values in mine[4].items())
    mine, its = teacher.manifest.target, other.manifest.target
    assert (its.kind, its.k, its.settings) == (mine.kind, mine.k, mine.settings)
    assert its.codec == mine.codec or teacher.codec.file  # learned tables do not leave the cache
    if isinstance(teacher.codec, DeltaPower):
        assert kl_nats(joined(before), joined(after)).mean() <= teacher.codec.max_kl_nats
    else:
        mine, its = vars(joined(before)), vars(joined(after))
        assert all(np.array_equal(values, its[name]) for name, values in mine.items())
    totals = teacher.encoding.manifest.splits, other.encoding.manifest.splits
    assert {name: t.sequences for name, t in totals[0].items()} == {name: t.sequences for name, t in totals[1].items()}


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**30), st.integers(1, 12), st.integers(12, 90), st.integers(4, 16), st.integers(1, 6))
def test_any_exact_rows_come_back_bit_for_bit(tmp_path_factory, seed, k, vocabulary, tokens, sequences):
    # a sequence must fit into a shard of 16 positions
    folder = tmp_path_factory.mktemp("rows")
    rows = made_rows(seed, sequences, tokens, k, vocabulary)
    (folder / "raw").mkdir()
    pq.write_table(table_of(rows, SourceFormat("distillkit-raw", Columns())), folder / "raw" / "a.parquet")
    tokenizer = write_tokenizer(folder / "tokenizer", vocabulary)
    first = back(folder / "raw", folder / "first", tokenizer, exact=True, first_token=1)
    for name in ("rows", "distillkit", "distillkit-raw", "axolotl"):
        exported(folder / "first", folder / name, name)
        more = {} if name == "rows" else {"first_token": 1}
        second = back(folder / name, folder / f"back-{name}", tokenizer, exact=True, **more)
        mine, its = by_document(first), by_document(second)
        for a, b in zip(mine, its, strict=True):
            assert np.array_equal(a[1], b[1])
            assert np.array_equal(a[3].ids, b[3].ids)
            assert np.array_equal(a[3].log_probs, b[3].log_probs)


CODECS = {
    "distillkit": PackedCodec(d=60, k=4, exact_k=2, polynomial_terms=(0, 1), delta_encoding=False),
    "distillkit-legacy": LegacyCodec(k=4, exact_k=2, polynomial_degree=1, vocab_size=60),
}


@pytest.mark.parametrize("name", CODECS)
def test_compressed_rows_are_written_with_their_settings(tmp_path, name):
    tokenizer, raw = write_tokenizer(tmp_path / "tokenizer", 60), SourceFormat("distillkit-raw", Columns())
    (tmp_path / "raw").mkdir()
    pq.write_table(table_of(made_rows(tokens=14, k=4, vocabulary=60), raw), tmp_path / "raw" / "a.parquet")
    full = back(tmp_path / "raw", tmp_path / "full", tokenizer, first_token=1)
    exported(tmp_path / "full", tmp_path / "rows", name, codec=CODECS[name])
    other = back(tmp_path / "rows", tmp_path / "back", tokenizer, first_token=1, mass_tolerance=0.1)
    assert other.manifest.identity["imported"]["codec"] == CODECS[name].model_dump(mode="json")
    assert np.array_equal(joined(by_document(full)).ids, joined(by_document(other)).ids)


def test_rows_with_empty_slots_do_not_fit_a_curve(tmp_path):
    with pytest.raises(ConfigError, match="fewer than 4 entries"):
        exported(make_cache(tmp_path, vocabulary=60).path, tmp_path / "rows", "distillkit", codec=CODECS["distillkit"])


@pytest.mark.parametrize("name", ["distillkit", "distillkit-raw", "axolotl"])
def test_short_rows_are_filled_with_entries_of_no_probability(tmp_path, name):
    made = make_kind("topp", tmp_path)
    exported(made.path, tmp_path / "rows", name)
    other = back(tmp_path / "rows", tmp_path / "back", write_tokenizer(tmp_path / "t", 1000), exact=True, first_token=1)
    mine, its = joined(by_document(made.open(), BY_FILE)), joined(by_document(other))
    assert np.array_equal(mine.ids, its.ids)
    assert np.array_equal(mine.log_probs, its.log_probs)
    table = pq.read_table(next((tmp_path / "rows").glob("*.parquet")))
    if name == "distillkit-raw":
        values = np.array(table["top_values"].to_pylist()[0])
        assert np.isfinite(values).all()
        assert (np.diff(values, axis=1) <= 0).all()


def test_datasets_loads_what_was_exported(tmp_path):
    made = make_cache(tmp_path)
    report = exported(made.path, tmp_path / "rows")
    loaded = datasets.load_dataset(str(tmp_path / "rows"), cache_dir=str(tmp_path / "hub"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 6, "test": 3}
    assert report.sequences == 9
    parts = by_document(made.open())
    rows = [*loaded["train"], *loaded["test"]]
    for row, (document, tokens, positions, targets, scalars) in zip(rows, parts, strict=True):
        assert row["document_id"] == document
        assert row["input_ids"] == tokens.tolist()
        assert row["positions"] == positions.tolist()
        for number in range(len(positions)):
            order = np.argsort(-targets.log_probs[number], kind="stable")
            order = order[targets.log_probs[number][order] > -np.inf]
            assert row["token_ids"][number] == targets.ids[number][order].tolist()
            assert row["logprobs"][number] == targets.log_probs[number][order].tolist()
        assert row["left_out"] == targets.log_left_out.tolist()
        assert row["entropy"] == scalars["entropy"].tolist()


@pytest.mark.parametrize("streaming", [True, False])
def test_the_dataset_of_a_cache_is_its_export(tmp_path, monkeypatch, streaming):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    made = make_cache(tmp_path)
    exported(made.path, tmp_path / "rows")
    loaded = datasets.load_dataset(str(tmp_path / "rows"), cache_dir=str(tmp_path / "hub"))
    for split, name in (("train", "train"), ("held_out", "test")):
        dataset = to_dataset(made.open(), split, streaming)
        assert dataset.features == loaded[name].features
        assert list(dataset) == list(loaded[name])


def test_a_streaming_dataset_is_shared_by_shard(tmp_path):
    made = make_cache(tmp_path)
    dataset = to_dataset(made.open(), "train")
    halves = [list(dataset.shard(2, index)) for index in range(2)]
    assert [len(half) for half in halves] == [3, 3]
    assert sorted(r["document_id"] for half in halves for r in half) == sorted(r["document_id"] for r in dataset)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_another_export_in_the_same_folder_is_refused(tmp_path):
    made = make_cache(tmp_path)
    exported(made.path, tmp_path / "rows")
    exported(made.path, tmp_path / "rows")
    with pytest.raises(IdentityError, match="another export"):
        exported(made.path, tmp_path / "rows", "axolotl")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(IdentityError, match="other files"):
        exported(made.path, tmp_path / "full")
    with pytest.raises(ConfigError, match="inside"):
        exported(made.path, made.path / "rows")


@pytest.mark.parametrize("codec", [PackedCodec(d=60, k=9, exact_k=9), PackedCodec(d=30, k=4, exact_k=4), LEGACY])
def test_a_codec_that_does_not_fit_is_refused(tmp_path, codec):
    made = make_cache(tmp_path, vocabulary=300 if codec is LEGACY else 60)
    name = "distillkit-legacy" if codec is LEGACY else "distillkit"
    with pytest.raises(ConfigError, match="does not fit"):
        exported(made.path, tmp_path / "rows", name, codec=codec)


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def killed_export(suffix, cache, target):
    kill_at_rename(suffix, lambda: exported(cache, target))


@pytest.mark.parametrize("suffix", ["export.yaml", "train-00000.parquet", "train-00001.parquet", "train-00001.json"])
def test_a_killed_export_goes_on_to_the_same_bytes(tmp_path, suffix):
    made = make_cache(tmp_path)
    exported(made.path, tmp_path / "straight")
    assert finish(start(killed_export, suffix, made.path, tmp_path / "rows")) == -9
    exported(made.path, tmp_path / "rows")
    assert content(tmp_path / "rows") == content(tmp_path / "straight")


def test_an_export_trusts_only_the_files_that_it_finished(tmp_path):
    made = make_cache(tmp_path)
    exported(made.path, tmp_path / "straight")
    exported(made.path, tmp_path / "other", "axolotl")
    for name in ("rows", "others", "cut", "unrecorded"):
        exported(made.path, tmp_path / name)
    (tmp_path / "others" / "train-00001.parquet").write_bytes((tmp_path / "other" / "train-00001.parquet").read_bytes())
    (tmp_path / "cut" / "train-00001.parquet").write_bytes(b"PAR1")
    (tmp_path / "unrecorded" / ".export" / "train-00001.json").unlink()
    (tmp_path / "unrecorded" / "train-00001.parquet").write_bytes(b"of a stranger")
    for name in ("rows", "others", "cut", "unrecorded"):
        exported(made.path, tmp_path / name)
        assert content(tmp_path / name) == content(tmp_path / "straight")


def test_shards_that_were_captured_again_are_exported_again(tmp_path):
    first = make_cache(tmp_path / "first")
    second = make_cache(tmp_path / "second", draw=lambda _, n: random_targets(np.random.default_rng(n), n, 4, 1000))
    exported(first.path, tmp_path / "rows")
    exported(second.path, tmp_path / "straight")
    assert content(tmp_path / "rows")["export.yaml"] == content(tmp_path / "straight")["export.yaml"]
    exported(second.path, tmp_path / "rows")
    assert content(tmp_path / "rows") == content(tmp_path / "straight")


def test_the_command_writes_and_says_what(tmp_path):
    made = make_cache(tmp_path)
    arguments = ["export", str(made.path), str(tmp_path / "rows"), "--format", "axolotl", "--split", "train", "--json"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["files"], report["sequences"]) == (2, 6)
    wrong = CliRunner().invoke(cli, [*arguments, "--codec", __file__])
    assert wrong.exit_code == 2
    assert layout.MANIFEST not in content(tmp_path / "rows")


def test_a_folder_whose_name_is_no_text_is_written_and_named(tmp_path, monkeypatch):
    made, printed = make_cache(tmp_path), io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed, "utf-8"))
    assert command_line(monkeypatch, "export", made.path, os.fsdecode(os.fsencode(tmp_path) + b"/rows-\xe9")) == 0
    sys.stdout.flush()
    assert b"rows-\\udce9: 3 files" in printed.getvalue()


@pytest.mark.parametrize("largest_bytes", [10, 2500])
def test_an_export_that_the_disk_stops_goes_on_to_the_same_bytes(tmp_path, largest_bytes):
    made = make_cache(tmp_path)
    exported(made.path, tmp_path / "straight")
    assert finish(start(export_on_a_full_disk, largest_bytes, made.path, tmp_path / "rows")) == 0
    assert not list(tmp_path.glob("rows/*.parquet"))
    exported(made.path, tmp_path / "rows")
    assert content(tmp_path / "rows") == content(tmp_path / "straight")


def export_on_a_full_disk(largest_bytes, cache, target):
    """Export where no file can grow beyond some bytes, which must end in our own error."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_bytes, largest_bytes))
    with pytest.raises(StorageError, match="cannot write"):
        exported(cache, target)


def test_a_student_learns_from_an_imported_teacher_as_from_the_captured_one(tmp_path):
    model = tiny.save_teacher(tmp_path / "teacher")
    tiny.run(tiny.capture_values(tmp_path, model, target={"k": 16, "exact": True}, held_out_fraction=0))
    captured = Cache(tmp_path / "cache").encoding()
    export_rows(captured.teacher(), tmp_path / "raw", "distillkit-raw", SILENT)
    sizes = {"positions_per_shard": captured.manifest.positions_per_shard, "chunk_positions": 64}
    width = captured.teacher().manifest.vocabulary_size
    options = ImportOptions(str(model), vocabulary_size=width, exact=True, first_token=1, **sizes)
    import_rows(tmp_path / "raw", tmp_path / "imported", options, SILENT)
    losses = []
    for name in ("cache", "imported"):
        train(tmp_path / name, tmp_path / f"student-{name}")
        losses.append([row["loss"] for row in curve(tmp_path / f"student-{name}") if "loss" in row])
    assert len(losses[0]) == 3
    assert np.abs(np.subtract(*losses)).max() <= LOSS_ROUNDING
