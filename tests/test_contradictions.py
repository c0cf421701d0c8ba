"""A cache under right hashes whose numbers cannot be right: verify tells, train refuses wrong rows, inspect says so.

Every change is made as a faulty writer or a stranger would make it: seals, hashes and receipts fit.
"""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

import kinds
import tiny as models
from cache_tools.codecs.ids import encode_ids
from cache_tools.errors import DamageError
from cache_tools.format import layout
from cache_tools.format.manifest import ObjectRecord
from cache_tools.format.receipts import read_receipt, write_receipt
from cache_tools.format.sealed import UNSEALED, sealed_bytes
from cache_tools.format.zarr_arrays import ArrayLayout
from cache_tools.inspection.row_check import require_consistent
from cache_tools.maintenance.verify import verify
from cache_tools.storage import sha256
from cache_tools.store.predictions import group_layouts
from cache_tools.store.reader import Cache
from logitcask import cli
from store_fixtures import make_cache
from student_fixtures import train


def edit(path, change):
    """Change a sealed document and seal it again."""
    document = json.loads(path.read_text())
    inside = document["attributes"]["logitcask"] if "attributes" in document else document
    change(inside)
    inside["seal"] = UNSEALED
    path.write_bytes(sealed_bytes(document))


def arrow(table):
    stream = io.BytesIO()
    with pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


def edit_tables(cache, column=None, change=None, table=lambda columns: None):
    """Change a column of the sequences of shard 0, and the shard table, and let all hashes hold."""
    path, tables = cache.encoding / "sequences/00000.arrow", cache.encoding / "parts/00000/shards.arrow"
    stored = pa.ipc.open_file(str(path)).read_all()
    if column:
        values = stored.to_pydict()
        values[column] = [change(value) for value in values[column]]
        path.write_bytes(arrow(pa.table(values, schema=stored.schema)))
    shards = pa.ipc.open_file(str(tables)).read_all()
    columns = shards.to_pydict()
    columns["sha256"][0], columns["bytes"][0] = sha256(path.read_bytes()), path.stat().st_size
    table(columns)
    tables.write_bytes(arrow(pa.table(columns, schema=shards.schema)))
    edit(
        cache.encoding / "zarr.json",
        lambda inside: inside["parts"][0].update(shards_sha256=sha256(tables.read_bytes())),
    )
    edit(cache.receipt_file(0), lambda inside: inside.update(sequences_sha256=columns["sha256"][0]))


def messages(path):
    return [problem.message for problem in verify(path, deep=True)]


CHANGES = {
    "ids beyond the vocabulary": (
        lambda c: edit_tables(c, "input_ids", lambda ids: [1000, *ids[1:]]), "input_ids holds 1000"
    ),
    "one id for all sequences": (lambda c: edit_tables(c, "sequence_id", lambda _: 0), "has the id 0 instead of 1"),
    "first sequences": (
        lambda c: edit_tables(c, table=lambda t: t.update(first_sequence=[100, 0, -5])),
        "first_sequence 100 instead of 0",
    ),
    "unknown split": (lambda c: edit_tables(c, table=lambda t: t["split"].__setitem__(0, "evil")), "'evil'"),
    "tokens of a shard": (
        lambda c: edit_tables(c, table=lambda t: t["tokens"].__setitem__(0, 99)), "states 99 tokens"
    ),
    "documents of a shard": (
        lambda c: edit_tables(c, table=lambda t: t["documents"].__setitem__(0, 7)), "states 7 documents"
    ),
    "negative vocabulary": (
        lambda c: edit(c.encoding / "zarr.json", lambda m: m.update(vocabulary_size=-5)), "vocabulary"
    ),
    "absurd vocabulary": (
        lambda c: edit(c.encoding / "zarr.json", lambda m: m.update(vocabulary_size=2**40)), "vocabulary"
    ),
    "totals": (
        lambda c: edit(c.encoding / "zarr.json", lambda m: m["parts"][0]["splits"]["train"].update(tokens=10**18)),
        "totals of the split 'train' that differ",
    ),
    "root of another group": (
        lambda c: (c.path / "zarr.json").write_bytes((c.encoding / "zarr.json").read_bytes()), "manifest"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_verify_tells_what_contradicts_the_tables(tmp_path, name):
    cache, (change, told) = make_cache(tmp_path), CHANGES[name]
    assert messages(cache.path) == []
    change(cache)
    result = CliRunner().invoke(cli, ["verify", "--deep", str(cache.path)])
    assert result.exit_code != 0
    assert told in result.output + str(result.exception)


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    return models.capture(tmp_path_factory.mktemp("captured"), target={"k": 16, "temperatures": [2, 4]})


def copy_of(cache, folder):
    """Return a teacher of a copy that may be changed."""
    from cache_tools.maintenance.copying import copy_cache

    copy_cache(Cache(cache.path), folder / "copy")
    return Cache(folder / "copy").encoding().teacher()


def rewrite(teacher, change):
    """Change the stored rows of every shard as one function of arrays by name, and let the receipts vouch for it."""
    size = teacher.encoding.manifest.positions_per_shard
    layouts = {n: cut for group in group_layouts(teacher.manifest, size).values() for n, cut in group.items()}
    for shard, entry in enumerate(teacher.encoding.shards):
        arrays = teacher.stored_targets(shard, 0, entry.positions).arrays
        receipt, objects = read_receipt(teacher.path, shard), {}
        for name, values in (arrays | change(teacher, shard, arrays)).items():
            cut: ArrayLayout = layouts[name]
            key, content = layout.shard_key(name, shard, values.ndim), cut.encode(np.ascontiguousarray(values))
            (teacher.path / key).unlink(missing_ok=True)
            if content:
                (teacher.path / key).parent.mkdir(parents=True, exist_ok=True)
                (teacher.path / key).write_bytes(content)
                objects[key] = ObjectRecord.of(content)
        rest = {k: v for k, v in receipt.objects.items() if k.split("/c/")[0] not in arrays}
        write_receipt(teacher.path, receipt.model_copy(update={"objects": rest | objects}))


def moved(teacher, shard, arrays):
    ids = teacher.stored_targets(shard, 0, len(arrays["ids"])).decode(0, len(arrays["ids"])).ids
    vocabulary = teacher.manifest.vocabulary_size
    used = ids != 0xFFFFFFFF
    other = np.sort(np.where(used, (ids + 137) % vocabulary, 0xFFFFFFFF).astype(np.uint32), axis=1)
    return encode_ids(other, other != 0xFFFFFFFF, vocabulary)


def shifted(teacher, shard, arrays):
    return {name: np.roll(values, 1, axis=0) for name, values in arrays.items()}


def next_to_nothing(teacher, shard, arrays):
    """Give the rest so large a level that 2e-4 are left for the kept tokens."""
    parameters = read_receipt(teacher.path, shard).groups["targets"]
    most, exponent = parameters["levels"], parameters["exponent"]
    floor = np.ones_like(arrays["floor"])
    levels = np.where(arrays["levels"] > 0, 1, 0).astype(np.uint8)
    kept = levels.sum(axis=1) * (1 / most) ** (1 / exponent)
    rest = np.minimum(most * (kept / 2e-4) ** exponent, most).astype(np.uint16)
    return {"levels": levels, "levels_high": np.zeros_like(arrays["levels_high"]), "floor": floor, "left_out": rest}


@pytest.mark.parametrize("change", [moved, shifted, next_to_nothing])
def test_rows_that_are_not_the_teachers_are_told_by_verify_train_and_inspect(tmp_path, captured, change):
    teacher = copy_of(captured, tmp_path)
    cache = str(tmp_path / "copy")
    assert messages(cache) == []
    require_consistent([teacher])
    rewrite(teacher, change)
    told = messages(cache)
    assert told
    assert all("rows)" in message for message in told)
    with pytest.raises(DamageError, match=r"contradict the scalars stored beside them.*verify --deep"):
        train(tmp_path / "copy", tmp_path / "run")
    assert not (tmp_path / "run" / "final").exists()
    shown = CliRunner().invoke(cli, ["inspect", cache]).output
    assert "CONTRADICTION" in shown
    (encoding,) = json.loads(CliRunner().invoke(cli, ["inspect", "--json", cache]).output)["encodings"]
    assert (
        encoding["teachers"][0]["sample"]["contradicting"] > 0.05
    )  # its untrained teacher seldom keeps the gold token


def test_inspect_says_nothing_of_a_sound_cache_and_shows_the_error_at_each_declared_temperature(captured):
    shown = CliRunner().invoke(cli, ["inspect", str(captured.path)], env={"COLUMNS": "250"}).output
    assert "CONTRADICTION" not in shown
    assert "at T = 2 " in shown
    assert "at T = 4 " in shown
    teacher = captured.encoding().teacher()
    for shard in range(len(teacher.encoding.shards)):
        statistics = teacher.receipt(shard).statistics
        assert all(0 <= statistics[f"codec_kl_nats_t{t}"] <= 5e-5 for t in (2, 4))


@pytest.mark.parametrize("name", ["topk", "topp", "exact", "dense", "sampled", "hidden"])
def test_caches_of_every_kind_whose_rows_fit_are_whole(tmp_path, name):
    assert messages(kinds.make(name, tmp_path).path) == []


def test_another_tokenizer_in_place_of_the_recorded_one_is_told(tmp_path, captured):
    copy_of(captured, tmp_path)
    folder = tmp_path / "copy/encodings"
    (encoding,) = (path for path in folder.iterdir() if path.is_dir())
    file = encoding / "tokenizer/tokenizer.json"
    for change, told in (
        (lambda content: content.replace(b'"e"', b'"\\u00e8"', 1), "the vocabulary in tokenizer.json"),
        (
            lambda content: content.replace(b'"normalizer": null', b'"normalizer": {"type": "Lowercase"}'),
            "the rules of tokenizer.json",
        ),
    ):
        before = file.read_bytes()
        content = change(before)
        assert content != before
        file.write_bytes(content)
        record = {"bytes": len(content), "sha256": sha256(content)}
        edit(encoding / "zarr.json", lambda m, record=record: m["files"].update({"tokenizer/tokenizer.json": record}))
        assert any(told in message for message in messages(tmp_path / "copy"))
        file.write_bytes(before)


def test_a_vocabulary_may_hold_the_word_none(tmp_path):
    """A tokenizer without a token for a role must not be taken for one whose token is called "None"."""
    tokenizer = models.tokenizer()
    tokenizer.add_tokens(["None"])
    teacher = tmp_path / "teacher"
    models.model(vocab_size=len(tokenizer)).save_pretrained(teacher)
    tokenizer.save_pretrained(teacher)
    assert tokenizer.cls_token is None
    assert messages(models.capture(tmp_path, teacher).path) == []
