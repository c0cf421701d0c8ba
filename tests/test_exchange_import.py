"""Rows of other tools become a teacher that predicts the same, or are refused with file and row."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

import tiny
from cache_tools.codecs.registry import codec_for, kl_nats
from cache_tools.errors import ConfigError, FormatError, IdentityError, LogitcaskError
from cache_tools.exchange.importing import import_rows
from cache_tools.exchange.plan import ImportOptions
from cache_tools.inspection.decoding import token_texts
from cache_tools.inspection.views import sequence_view
from cache_tools.maintenance.verify import verify
from cache_tools.row_files.arrow_lists import Place
from cache_tools.row_files.formats import NOTE, Columns, SourceFormat
from cache_tools.row_files.source_rows import checked_targets, read_rows
from cache_tools.row_files.writing import CacheRows, table_of
from cache_tools.store.reader import Cache
from logitcask import cli
from pipeline.audit.run import run_audit
from pipeline.config.capture_file import CaptureConfig
from processes import finish, kill_at_rename, start
from row_fixtures import FORMATS, PACKED, SILENT, VOCABULARY, K, changed, made_rows, write_rows, write_tokenizer
from tolerances import rounding

NAMES = Columns()
SMALL = {"positions_per_shard": 64, "chunk_positions": 16}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def imported(source, cache, tokenizer, **options):
    report = import_rows(source, cache, ImportOptions(tokenizer, **SMALL, **options), SILENT)
    return Cache(cache).encoding(options.get("encoding", "imported")).teacher(
        options.get("teacher", "imported")
    ), report


def all_targets(teacher, split="train"):
    parts = [teacher.targets(*teacher.shard_rows(shard)) for shard in teacher.encoding.split_shards(split)]
    return type(parts[0])(*(np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])))


def decoded(rows, source):
    """Return what the format itself says of these rows, as an import takes it."""
    batch = table_of(rows, source).combine_chunks().to_batches()[0]
    read = read_rows(batch, Place("here", 0), source)
    return checked_targets(read.select(~read.masked), source, K, VOCABULARY, source.mass_tolerance)[0]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_comes_in_within_the_budget(tmp_path, tokenizer, name):
    rows, source = made_rows(), FORMATS[name]
    first = 1 if name == "rows" else None
    teacher, report = imported(
        write_rows(tmp_path / "rows", rows, source), tmp_path / "cache", tokenizer, first_token=first
    )
    stored, expected = all_targets(teacher), decoded(rows, source)
    assert np.array_equal(np.sort(stored.ids, axis=1), np.sort(expected.ids, axis=1))
    assert kl_nats(expected, stored).mean() <= 5e-5
    sequences = [s for shard in range(len(teacher.encoding.shards)) for s in teacher.encoding.sequences(shard)]
    assert all(np.array_equal(s.input_ids, ids) for s, ids in zip(sequences, rows.tokens, strict=True))
    assert all(np.array_equal(s.positions(), p) for s, p in zip(sequences, rows.positions, strict=True))
    assert verify(tmp_path / "cache", deep=True) == []
    assert report.positions == len(rows.ids)
    assert (report.first_token, report.decided_by) == ((1, "option") if first else (1, "text"))


@pytest.mark.parametrize("name", ["exact", "raw", "axolotl"])
def test_an_exact_import_keeps_every_bit(tmp_path, tokenizer, name):
    rows = made_rows()
    teacher, _ = imported(write_rows(tmp_path / "rows", rows, FORMATS[name]), tmp_path / "cache", tokenizer, exact=True)
    stored, order = all_targets(teacher), np.argsort(rows.ids, axis=1)
    assert np.array_equal(stored.ids, np.take_along_axis(rows.ids, order, axis=1))
    assert np.array_equal(stored.log_probs, np.take_along_axis(rows.log_probs, order, axis=1))


def plain(folder, rows, first_token, columns=NAMES):
    """Write plain rows as lists: as many predictions as tokens, the first one null where they begin with token 0."""
    lists = {"ids": [], "logs": []}
    start = 0
    for tokens in rows.tokens:
        part = slice(start, start + len(tokens) - 1)
        ids, logs = rows.ids[part].tolist(), rows.log_probs[part].tolist()
        blank = [None] if first_token == 0 else []
        end = [] if first_token == 0 else [rows.ids[part.start].tolist()]
        end_logs = [] if first_token == 0 else [rows.log_probs[part.start].tolist()]
        lists["ids"].append(blank + ids + end)
        lists["logs"].append(blank + logs + end_logs)
        start = part.stop
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [t.tolist() for t in rows.tokens]
    table = pa.table({columns.tokens: tokens, columns.ids: lists["ids"], columns.log_probs: lists["logs"]})
    pq.write_table(table, folder / "rows.parquet")
    return folder


@pytest.mark.parametrize("first_token", [0, 1])
def test_the_text_tells_which_token_each_prediction_is_about(tmp_path, tokenizer, first_token):
    rows = made_rows()
    teacher, report = imported(plain(tmp_path / "rows", rows, first_token), tmp_path / "cache", tokenizer, exact=True)
    assert (report.first_token, report.decided_by) == (first_token, "text")
    assert report.gain_nats > 0.5
    assert np.array_equal(np.sort(all_targets(teacher).ids, axis=1), np.sort(rows.ids, axis=1))


def test_predictions_that_fit_the_tokens_one_place_later_are_refused(tmp_path, tokenizer):
    rows = made_rows()
    shifted = changed(rows, tokens=[np.append(ids[1:], 0).astype(np.uint32) for ids in rows.tokens])
    source = write_rows(tmp_path / "rows", shifted, FORMATS["raw"])
    with pytest.raises(FormatError, match="one place later"):
        imported(source, tmp_path / "cache", tokenizer)
    _, report = imported(source, tmp_path / "asked", tokenizer, first_token=1)
    assert "probably shifted by one" in " ".join(report.notes)


def test_text_that_fits_both_readings_needs_an_answer(tmp_path, tokenizer):
    rows = made_rows(sequences=1, tokens=6)
    with pytest.raises(ConfigError, match="--first-token"):
        imported(plain(tmp_path / "rows", rows, 1), tmp_path / "cache", tokenizer)
    _, report = imported(write_rows(tmp_path / "raw", rows, FORMATS["raw"]), tmp_path / "cache", tokenizer)
    assert report.decided_by in ("numbers", "text")


def test_columns_have_any_name(tmp_path, tokenizer):
    columns = Columns("tokens", "top_ids", "top_logs")
    source = plain(tmp_path / "rows", made_rows(), 1, columns)
    teacher, _ = imported(source, tmp_path / "cache", tokenizer, columns=columns)
    assert teacher.codec.k == K
    with pytest.raises(FormatError, match="--ids-column"):
        imported(source, tmp_path / "other", tokenizer)


@pytest.mark.parametrize("writer", [pyarrow.ipc.new_file, pyarrow.ipc.new_stream])
def test_arrow_files_of_datasets_come_in_like_parquet(tmp_path, tokenizer, writer):
    folder = tmp_path / "rows"
    folder.mkdir()
    table = table_of(made_rows(), FORMATS["raw"])
    with writer(folder / "data-00000-of-00001.arrow", table.schema) as out:
        out.write_table(table, max_chunksize=5)
    teacher, _ = imported(folder, tmp_path / "cache", tokenizer, exact=True)
    other, _ = imported(
        write_rows(tmp_path / "parquet", made_rows(), FORMATS["raw"]), tmp_path / "b", tokenizer, exact=True
    )
    assert np.array_equal(all_targets(teacher).log_probs, all_targets(other).log_probs)


def test_rows_that_the_file_rules_out_are_not_kept(tmp_path, tokenizer):
    rows = made_rows()
    kept = [p[len(p) // 2 :] for p in rows.positions]
    flat = np.concatenate([np.arange(len(p)) >= len(p) // 2 for p in rows.positions])
    part = changed(
        rows, positions=kept, ids=rows.ids[flat], log_probs=rows.log_probs[flat], left_out=rows.left_out[flat]
    )
    for name in ("exact", "axolotl", "raw"):
        source = write_rows(tmp_path / name, part, FORMATS[name])
        teacher, report = imported(source, tmp_path / f"cache-{name}", tokenizer, exact=True)
        assert report.positions == flat.sum()
        assert np.array_equal(np.sort(all_targets(teacher).ids, axis=1), np.sort(part.ids, axis=1))


# --- what the rows look like -----------------------------------------------------------------------------------------


def noted(tmp_path, tokenizer, rows, name="raw"):
    _, report = imported(write_rows(tmp_path / "rows", rows, FORMATS[name]), tmp_path / "cache", tokenizer)
    return " ".join(report.notes), report


def test_ordinary_rows_are_not_remarked_on(tmp_path, tokenizer):
    rows = made_rows(sequences=40, tokens=48)
    notes, report = noted(tmp_path, tokenizer, rows)
    assert notes == ""
    assert 0.8 < report.temperature < 1.25
    mass = np.exp(rows.log_probs, dtype=np.float64).sum(axis=1).mean()
    assert abs(report.kept_mass - mass) <= rounding(torch.float64, len(rows.ids))


def test_renormalised_rows_are_named(tmp_path, tokenizer):
    rows = made_rows()
    total = np.logaddexp.reduce(rows.log_probs.astype(np.float64), axis=1, keepdims=True)
    notes, report = noted(tmp_path, tokenizer, changed(rows, log_probs=(rows.log_probs - total).astype(np.float32)))
    assert "renormalised" in notes
    assert report.renormalised == 1


def test_tempered_rows_are_named_with_their_temperature(tmp_path, tokenizer):
    rows = made_rows(sequences=60, tokens=48)
    logs = rows.log_probs.astype(np.float64) / 0.5
    rest = rows.left_out.astype(np.float64) / 0.5
    total = np.logaddexp(np.logaddexp.reduce(logs, axis=1), rest)
    notes, report = noted(tmp_path, tokenizer, changed(rows, log_probs=(logs - total[:, None]).astype(np.float32)))
    assert "tempered" in notes
    assert report.temperature == pytest.approx(0.5, rel=0.2)


def test_rows_cut_by_a_sampling_policy_are_named(tmp_path, tokenizer):
    rows = made_rows()
    logs = rows.log_probs.astype(np.float64)
    before = np.cumsum(np.exp(logs), axis=1) - np.exp(logs)
    logs[before > 0.5] = -np.inf
    logs -= np.logaddexp.reduce(logs, axis=1, keepdims=True)
    notes, report = noted(tmp_path, tokenizer, changed(rows, log_probs=logs.astype(np.float32)))
    assert "sampling policy" in notes
    assert report.short > 0.5


def test_a_curve_that_rises_is_named(tmp_path, tokenizer):
    notes, report = noted(tmp_path, tokenizer, made_rows(), "recommended")
    assert "not monotone" in notes
    assert "fitted curve" in notes
    assert report.rising > 0
    assert report.rise_nats > 0


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path, tokenizer):
    source = write_rows(tmp_path / "rows", made_rows(), FORMATS["exact"])
    small, large = write_tokenizer(tmp_path / "small", 50), write_tokenizer(tmp_path / "large", 300)
    with pytest.raises(FormatError, match="not one of the tokenizer's") as error:
        imported(source, tmp_path / "cache", small)
    assert "data_0.parquet, row" in str(error.value)
    with pytest.raises(IdentityError, match="more tokens than the teacher has logits"):
        imported(source, tmp_path / "cache", large)
    assert not (tmp_path / "cache").exists()


def test_ids_that_do_not_come_back_from_their_text_are_refused(tmp_path, tokenizer):
    wrong = tmp_path / "wrong"
    write_tokenizer(wrong)
    state = json.loads((wrong / "tokenizer.json").read_text())
    state["model"]["vocab"] = {f"w{n} x": n for n in range(VOCABULARY)} | {"w0": 0}
    (wrong / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(IdentityError, match="do not come back"):
        imported(write_rows(tmp_path / "rows", made_rows(), FORMATS["raw"]), tmp_path / "cache", str(wrong))


BAD_ROWS = ["nan", "infinite", "mass", "twice", "beyond"]
"""Distributions that are none, in any format."""

BAD_LISTS = ["negative", "ragged", "empty", "null", "nothing", "tokens", "no tokens", "missing", "further"]
"""Lists of the files that do not fit; compressed ids cannot be negative."""


def hostile_rows(rng, kind, name):
    """Return rows of which one is no distribution, and the row of the file where it is."""
    rows = made_rows(int(rng.integers(1 << 30)), sequences=5, tokens=8)
    starts = np.cumsum([len(places) for places in rows.positions])
    at, slot = int(rng.integers(starts[-1])), int(rng.integers(K))
    ids, logs = rows.ids[at], rows.log_probs[at]
    match kind:
        case "nan" if name == "exact":
            logs[slot] = np.nan
        case "infinite":
            logs[slot] = np.inf
        case "mass":
            logs[slot] = rng.uniform(0.02, 50)
        case "twice":
            ids[slot] = ids[slot - 1]
        case "beyond":
            ids[slot] = rng.integers(VOCABULARY, 256 if name in ("exact", "legacy") else 2**31)
    return rows, int(np.searchsorted(starts, at, side="right"))


def spoil(rng, kind, values, name):
    """Change one list of a row of a file: ``values`` are its columns of predictions, each a list of lists."""
    counted = [at for at, mask in enumerate(values[2]) if any(mask)] if name == "axolotl" else range(len(values[0]))
    at, column = int(rng.choice(counted)), int(rng.integers(len(values)))  # where a mask hides them, numbers may be any
    entries = values[column][at]
    match kind:
        case "nan":
            values[name == "legacy"][at][0] = np.nan
        case "negative":
            values[1][at][int(rng.integers(K))] = -int(rng.integers(1, 2**40))
        case "ragged":
            entries.pop()
        case "empty":
            for one in values:
                one[at].clear()
        case "null":
            entries[int(rng.integers(len(entries)))] = None
        case "nothing":
            values[column] = None
        case "missing":
            for one in values:
                one.pop(at)
        case "further":
            values[column].append(list(entries))


def hostile_table(rng, kind, name):
    """Return a table of a format with one bad row, and the number of that row."""
    rows, row = hostile_rows(rng, kind, name)
    table = table_of(rows, FORMATS[name])
    if kind in BAD_ROWS and (kind != "nan" or name == "exact"):
        return table, row
    content, columns = table.to_pylist(), FORMATS[name].value_columns
    row = int(rng.integers(len(content)))
    if kind == "tokens":
        tokens = content[row]["input_ids"]
        tokens[int(rng.integers(len(tokens)))] = int(rng.choice([-1, 2**33]))
    elif kind == "no tokens":
        content[row]["input_ids"] = None
    else:
        values = [content[row][column] for column in columns]
        spoil(rng, kind, values, name)
        content[row] |= dict(zip(columns, values, strict=True))
    schema = pa.schema([(f.name, wider(f.type)) for f in table.schema])
    return pa.Table.from_pylist(content, schema), row


def wider(kind):
    """Return a type of lists with room for any integer."""
    if pa.types.is_list(kind):
        return pa.list_(wider(kind.value_type))
    return pa.int64() if pa.types.is_integer(kind) and not pa.types.is_uint64(kind) else kind


PLAIN = ["raw", "axolotl", "rows"]
ATTACKS = [(name, kind) for name in [*PLAIN, "exact", "legacy"] for kind in [*BAD_ROWS, *BAD_LISTS]]
ATTACKS = [pair for pair in ATTACKS if pair[0] in PLAIN or pair[1] != "negative"]


@pytest.mark.parametrize("count", [len(ATTACKS), pytest.param(2 * len(ATTACKS), marks=pytest.mark.slow)])
def test_hostile_rows_of_every_format_are_refused_with_file_and_row(tmp_path, tokenizer, count):
    rng = np.random.default_rng(count)
    for number in range(count):
        name, kind = ATTACKS[number % len(ATTACKS)]
        table, row = hostile_table(rng, kind, name)
        source = write_rows(tmp_path / "rows" / name, made_rows(), FORMATS[name], "bad.parquet")
        pq.write_table(table, source / "bad.parquet")
        with pytest.raises(LogitcaskError) as error:
            imported(source, tmp_path / f"cache{number}", tokenizer, first_token=1)
        assert f"bad.parquet, row {row}" in str(error.value), (name, kind, str(error.value))


@pytest.mark.parametrize("name", [*PLAIN, "exact", "legacy"])
def test_columns_of_another_type_are_refused_with_their_file(tmp_path, tokenizer, name):
    table = table_of(made_rows(sequences=3, tokens=8), FORMATS[name])
    source = write_rows(tmp_path / "rows", made_rows(), FORMATS[name], "bad.parquet")
    words, flat = pa.array([[["a"]]] * 3), pa.array([[1.5]] * 3)
    for number, column in enumerate(["input_ids", *FORMATS[name].value_columns]):
        for wrong in (words, flat, pa.array(["text"] * 3), pa.array([1, 2, 3])):
            if column == "input_ids" and wrong is flat:
                continue
            spoiled = table.set_column(table.schema.get_field_index(column), column, wrong)
            pq.write_table(spoiled, source / "bad.parquet")
            with pytest.raises(LogitcaskError, match=r"bad\.parquet"):
                imported(source, tmp_path / f"cache{number}", tokenizer, first_token=1)


def test_a_folder_that_is_named_like_a_file_is_a_folder(tmp_path, tokenizer):
    source = write_rows(tmp_path / "set.parquet", made_rows(), FORMATS["raw"])
    assert imported(source, tmp_path / "cache", tokenizer)[1].files == 1
    source = write_rows(tmp_path / "rows" / "part.parquet", made_rows(), FORMATS["raw"])
    assert imported(source.parent, tmp_path / "other", tokenizer)[1].files == 1
    (tmp_path / "empty" / "x.parquet").mkdir(parents=True)
    for folder in (tmp_path / "empty", tmp_path / "empty" / "x.parquet"):
        with pytest.raises(ConfigError, match="folder"):
            imported(folder, tmp_path / "third", tokenizer)


def test_files_that_are_none_are_refused(tmp_path, tokenizer):
    folder = tmp_path / "rows"
    folder.mkdir()
    with pytest.raises(ConfigError, match="no rows to import"):
        imported(folder, tmp_path / "cache", tokenizer)
    (folder / "a.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(FormatError, match="cannot be read"):
        imported(folder, tmp_path / "cache", tokenizer)


def test_packed_rows_without_their_settings_are_refused(tmp_path, tokenizer):
    source = write_rows(tmp_path / "rows", made_rows(), FORMATS["recommended"])
    (source / "compression_config.yaml").unlink()
    with pytest.raises(ConfigError, match="--codec"):
        imported(source, tmp_path / "cache", tokenizer)
    other = write_rows(tmp_path / "other", made_rows(), FORMATS["bins"]) / "compression_config.yaml"
    with pytest.raises(FormatError, match="another length"):
        imported(source, tmp_path / "cache", tokenizer, codec_file=other)
    for name in PLAIN:
        source = write_rows(tmp_path / name, made_rows(sequences=2), FORMATS[name])
        with pytest.raises(ConfigError, match="no codec describes them"):
            imported(source, tmp_path / "cache", tokenizer, codec_file=other)


@pytest.mark.parametrize("option", ["teacher", "encoding"])
def test_a_name_that_is_not_legal_is_refused_before_the_files_are_read(tmp_path, option):
    with pytest.raises(FormatError, match="not a legal name"):
        imported(tmp_path / "nothing", tmp_path / "cache", "nowhere", **{option: "../outside"})


# --- a cache that goes on --------------------------------------------------------------------------------------------


def test_two_imports_of_the_same_sequences_share_an_encoding(tmp_path, tokenizer):
    rows, cache = made_rows(), tmp_path / "cache"
    imported(write_rows(tmp_path / "raw", rows, FORMATS["raw"]), cache, tokenizer, teacher="raw")
    imported(write_rows(tmp_path / "packed", rows, FORMATS["recommended"]), cache, tokenizer, teacher="packed")
    assert Cache(cache).encoding().teachers == ["packed", "raw"]
    other = write_rows(tmp_path / "other", made_rows(seed=5), FORMATS["raw"])
    with pytest.raises(IdentityError, match="other sequences"):
        imported(other, cache, tokenizer, teacher="other")
    with pytest.raises(IdentityError, match="already holds another teacher"):
        imported(tmp_path / "raw", cache, tokenizer, teacher="packed")


def test_a_share_of_the_rows_is_held_out(tmp_path, tokenizer):
    source = write_rows(tmp_path / "rows", made_rows(sequences=60), FORMATS["raw"])
    teacher, report = imported(source, tmp_path / "cache", tokenizer, held_out_fraction=0.3, exact=True)
    totals = teacher.encoding.manifest.splits
    assert 5 < totals["held_out"].sequences < 35
    assert totals["held_out"].sequences + totals["train"].sequences == 60 == report.sequences
    whole = made_rows(sequences=60)
    for shard in range(len(teacher.encoding.shards)):
        for sequence in teacher.encoding.sequences(shard):
            number = int(sequence.document_id.split("#")[1])
            start = sum(len(ids) - 1 for ids in whole.tokens[:number])
            expected = np.sort(whole.ids[start : start + sequence.num_positions], axis=1)
            assert np.array_equal(teacher.targets(*sequence.rows).ids, expected)


def content(folder):
    """Return the bytes of every file; unfinished ones of a teacher's arrays stay, and nothing reads them."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    read = [p for p in files if not (p.suffix == ".partial" and "teachers" in p.parts)]
    return {p.relative_to(folder): p.read_bytes() for p in read}


def run_import(source, cache, tokenizer):
    import_rows(source, cache, ImportOptions(tokenizer, **SMALL), SILENT)


KILLED = ["00001.arrow", "shards.arrow", "imported/zarr.json", "ids/c/1/0", "00000.json", "levels/zarr.json"]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", KILLED)
def test_a_killed_import_goes_on_to_the_same_bytes(tmp_path, tokenizer, suffix):
    source = write_rows(tmp_path / "rows", made_rows(), FORMATS["recommended"])
    run_import(source, tmp_path / "straight", tokenizer)
    process = start(killed_import, suffix, source, tmp_path / "cache", tokenizer)
    assert finish(process) == -9
    run_import(source, tmp_path / "cache", tokenizer)
    assert content(tmp_path / "cache") == content(tmp_path / "straight")


def killed_import(suffix, *arguments):
    kill_at_rename(suffix, lambda: run_import(*arguments))


# --- a teacher like any other ----------------------------------------------------------------------------------------


def test_imported_teachers_are_shown_and_summarised(tmp_path, tokenizer):
    source = write_rows(tmp_path / "rows", made_rows(), FORMATS["recommended"])
    command = ["import", str(source), str(tmp_path / "cache"), "--tokenizer", tokenizer, "--positions-per-shard", "64"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert "not monotone" in result.output
    again = CliRunner().invoke(cli, [*command, "--json"])
    assert json.loads(again.stdout)["positions"] == len(made_rows().ids)
    for arguments in (["inspect"], ["show", "0"], ["show", "0", "--position", "2"], ["verify", "--deep"]):
        name, *rest = arguments
        shown = CliRunner().invoke(cli, [name, str(tmp_path / "cache"), *rest])
        assert shown.exit_code == 0, shown.output
    encoding = Cache(tmp_path / "cache").encoding()
    view = sequence_view(encoding, encoding.sequence(0), [encoding.teacher()], token_texts(encoding))
    surprise = [s for s in view.teachers[0].surprise_nats if s is not None]
    assert len(surprise) == encoding.sequence(0).num_positions  # every next token is drawn from the kept ones


def exported_rows(cached):
    """Return a captured teacher's rows, for a file of another tool."""
    encoding = cached.encoding
    sequences = [s for shard in range(len(encoding.shards)) for s in encoding.sequences(shard)]
    parts = [cached.targets(*s.rows) for s in sequences]
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "log_probs")}
    rest = np.concatenate([part.log_left_out for part in parts])
    names = [s.document_id for s in sequences]
    return CacheRows(
        [s.input_ids for s in sequences], [s.positions() for s in sequences], names, None, *joined.values(), rest, {}
    )


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A live teacher, the capture file of its cache, and the opened cache."""
    folder = tmp_path_factory.mktemp("live")
    model = tiny.save_teacher(folder / "teacher")
    values = tiny.capture_values(folder, model, target={"k": 64}, held_out_fraction=0)
    tiny.run(values)
    return model, values, Cache(values["cache"]).encoding().teacher()


@pytest.mark.parametrize("shift", [0, 1])
def test_a_live_teacher_audits_what_was_imported(tmp_path, live, shift):
    model, values, teacher = live
    rows = exported_rows(teacher)
    if shift:
        rows = replace(rows, ids=np.roll(rows.ids, 1, axis=0), log_probs=np.roll(rows.log_probs, 1, axis=0))
    source = write_rows(tmp_path / "rows", rows, SourceFormat("distillkit-raw", Columns()))
    width = teacher.manifest.vocabulary_size
    name = values["teachers"][0]["name"]
    imported(source, tmp_path / "other", str(model), teacher=name, vocabulary_size=width, first_token=1)
    asked = values | {"cache": str(tmp_path / "other"), "encoding": values["encoding"] | {"name": "imported"}}
    (report,) = run_audit(CaptureConfig.model_validate(asked), None, tiny.SilentReporter()).teachers
    assert list(report.identity) == []
    assert report.passed == (not shift)
    assert bool(report.diagnosis) == bool(shift)


def test_the_packed_settings_are_part_of_the_identity(tmp_path, tokenizer):
    teacher, _ = imported(write_rows(tmp_path / "rows", made_rows(), FORMATS["bins"]), tmp_path / "cache", tokenizer)
    stated = teacher.manifest.identity["imported"]
    assert stated["format"] == "distillkit"
    assert stated["codec"] == PACKED["bins"].model_dump(mode="json")
    assert len(stated["files"]) == 64


def with_note(table, **changes):
    """Return a table with the note of an export of ours, of which some values were changed."""
    target = {"kind": "topk", "k": K, "settings": {}, "codec": codec_for(K, VOCABULARY, exact=True).to_dict()}
    note = {"split": "train", "objective": "causal", "vocabulary_size": VOCABULARY, "target": target}
    note |= {"scalar_step_nats": 0.0, "scalars": [], "teacher": "t"} | changes
    return table.replace_schema_metadata({NOTE: json.dumps(note)})


@pytest.mark.parametrize(
    "changes",
    [
        {"target": {}},
        {"target": None},
        {"target": {"kind": "topk", "k": 4, "settings": {}, "codec": "delta-power"}},
        {"vocabulary_size": "200"},
        {"vocabulary_size": K - 1},
        {"vocabulary_size": 2**40},
        {"scalars": ["entropy"]},
        {"scalars": ["../evil"]},
        {"scalars": None},
        {"scalar_step_nats": "x"},
    ],
    ids=repr,
)
def test_a_note_that_no_teacher_could_have_is_refused_before_anything_is_written(tmp_path, tokenizer, changes):
    pq.write_table(with_note(table_of(made_rows(), FORMATS["rows"]), **changes), tmp_path / "rows.parquet")
    with pytest.raises(FormatError, match="note of the export"):
        imported(tmp_path / "rows.parquet", tmp_path / "cache", tokenizer)
    assert not (tmp_path / "cache").exists()


def test_a_split_without_predictions_is_refused(tmp_path, tokenizer):
    table = table_of(made_rows(), FORMATS["rows"])
    silent = [{name: [1] if name == "input_ids" else [] for name in table.column_names} | {"document_id": "silent"}]
    held_out = with_note(pa.Table.from_pylist(silent, table.schema), split="held_out")
    (tmp_path / "rows").mkdir()
    pq.write_table(with_note(table), tmp_path / "rows" / "train.parquet")
    pq.write_table(held_out, tmp_path / "rows" / "test.parquet")
    with pytest.raises(ConfigError, match="split held_out hold no predictions"):
        imported(tmp_path / "rows", tmp_path / "cache", tokenizer)


def test_files_without_rows_and_columns_of_one_name_are_refused(tmp_path, tokenizer):
    table = table_of(made_rows(), FORMATS["rows"])
    pq.write_table(table.slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(ConfigError, match="no rows"):
        imported(tmp_path / "none.parquet", tmp_path / "cache", tokenizer)
    pq.write_table(table.append_column("input_ids", table.column("input_ids")), tmp_path / "twice.parquet")
    with pytest.raises(FormatError, match="same name"):
        imported(tmp_path / "twice.parquet", tmp_path / "cache", tokenizer)


def test_any_file_name_can_be_ordered(tmp_path, tokenizer):
    folder = write_rows(tmp_path / "rows", made_rows(), FORMATS["rows"], "1\N{SUPERSCRIPT TWO}2.parquet")
    assert imported(folder, tmp_path / "cache", tokenizer, first_token=1)[1].files == 1
