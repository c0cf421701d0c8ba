"""Reading a corpus: the same documents from every kind of file, and a place in every refusal."""

import gzip
import json
import random
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from cache_tools.errors import CorpusError
from pipeline.corpus.config import CorpusConfig
from pipeline.corpus.documents import corpus_sources, read_documents

RECORDS = [
    {"id": "a", "group": "first", "text": "Größe: 10 µm\r\nzweite Zeile"},
    {"id": "b", "group": "first", "text": "日本語 🎉 \u0000 \u2028 \ufeff"},
    {"id": "c", "group": None, "text": "\n"},
]


def write_jsonl(path):
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))


def write_spaced_jsonl(path):
    path.write_text("\ufeff" + "\n\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS), "utf-8")


def write_gzip(path):
    path.write_bytes(gzip.compress("".join(json.dumps(record) + "\n" for record in RECORDS).encode()))


def write_zstd(path):
    with pa.output_stream(path, compression="zstd") as stream:
        stream.write("".join(json.dumps(record) + "\n" for record in RECORDS).encode())


def write_parquet(path):
    pa.parquet.write_table(pa.Table.from_pylist(RECORDS), path, row_group_size=2)


def write_dataset(path):
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(RECORDS).save_to_disk(path)


WRITERS = {
    "corpus.jsonl": write_jsonl,
    "spaced.jsonl": write_spaced_jsonl,
    "corpus.jsonl.gz": write_gzip,
    "corpus.jsonl.zst": write_zstd,
    "corpus.parquet": write_parquet,
    "saved": write_dataset,
}


def read(*paths, **settings):
    config = CorpusConfig(paths=paths, **settings)
    return list(read_documents(corpus_sources(config).values(), config, set()))


def refusal(*paths, **settings):
    """Return the message with which a corpus is refused."""
    with pytest.raises(CorpusError) as error:
        read(*paths, **settings)
    return str(error.value)


def jsonl(folder, *lines):
    """Write lines, each given as JSON text or as an object, and return the file."""
    path = folder / "corpus.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def identity(*paths):
    """Return what an encoding records of its corpus: the hash of each file by its name."""
    return {name: source.sha256() for name, source in corpus_sources(CorpusConfig(paths=paths)).items()}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_documents(tmp_path, name):
    WRITERS[name](tmp_path / name)
    found = read(tmp_path / name)
    assert [(d.id, d.group, d.text, d.messages) for d in found] == [
        (record["id"], record["group"] or record["id"], record["text"], None) for record in RECORDS
    ]


def test_a_text_file_is_one_document_and_its_line_ends_are_kept(tmp_path):
    (tmp_path / "a.txt").write_bytes("ä\r\nb\rc\n".encode())
    (document,) = read(tmp_path / "a.txt")
    assert document.text == "ä\r\nb\rc\n"
    assert (document.id, document.group, document.place) == ("a.txt", "a.txt", str(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("corpus.jsonl", [":1", ":2", ":3"]),
        ("spaced.jsonl", [":1", ":3", ":5"]),
        ("corpus.parquet", [", row 0", ", row 1", ", row 2"]),
        ("saved", [", row 0", ", row 1", ", row 2"]),
    ],
)
def test_every_document_knows_its_place_and_is_named_after_it_if_need_be(tmp_path, name, places):
    WRITERS[name](tmp_path / name)
    found = read(tmp_path / name, id_field="no such field")
    assert [d.place for d in found] == [f"{tmp_path / name}{place}" for place in places]
    assert [d.id for d in found] == [f"{name}{place}" for place in places]


def test_fields_may_have_other_names(tmp_path):
    path = jsonl(tmp_path, {"key": 7, "topic": 8, "body": "x"})
    (document,) = read(path, text_field="body", id_field="key", group_field="topic")
    assert (document.id, document.group, document.text) == ("7", "8", "x")


def test_messages_replace_text_when_their_field_is_named(tmp_path):
    messages = [{"role": "user", "content": "x"}]
    (document,) = read(jsonl(tmp_path, {"chat": messages, "text": "ignored"}), messages_field="chat")
    assert (document.text, document.messages) == (None, messages)


def test_folders_are_read_in_name_order_and_without_files_of_other_kinds(tmp_path):
    for name in ("b.txt", "a/2.txt", "a/10.txt", "c/deep/er.txt", "README.md", "a/.hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    write_dataset(tmp_path / "b.saved")
    texts = [d.text for d in read(tmp_path)]
    assert texts == ["a/10.txt", "a/2.txt", *(record["text"] for record in RECORDS), "b.txt", "c/deep/er.txt"]


def test_paths_are_read_in_the_given_order(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    assert [d.text for d in read(tmp_path / "b.txt", tmp_path / "a.txt")] == ["b", "a"]


def test_splits_of_a_saved_dataset_are_read_one_after_another(tmp_path):
    datasets.disable_progress_bars()
    parts = {name: datasets.Dataset.from_list([{"text": name}]) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert [d.text for d in read(tmp_path / "saved")] == ["test", "train"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x"', "this line is not JSON (found Expecting ',' delimiter"),
        ("[" * 100_000, "this line is not JSON"),
        ('["x"]', "this line is not a JSON object (found list)"),
        ({"body": "x", "title": "y"}, "the field 'text' is missing (expected a str, found fields body, title)"),
        ({"text": 3}, "the field 'text' is not a str (expected a str, found int)"),
        ({"text": None}, "the field 'text' is not a str (expected a str, found NoneType)"),
        ({"text": "\ud800"}, "this is not valid Unicode (a lone surrogate)"),
        ({"text": "x", "id": "\ud800"}, "this is not valid Unicode (a lone surrogate)"),
        ({"text": "x", "group": "\udfff"}, "this is not valid Unicode (a lone surrogate)"),
        ({"text": "x", "id": "a"}, "the id 'a' occurs a second time"),
    ],
)
def test_refuses_a_bad_line_and_names_file_and_line(tmp_path, line, message):
    path = jsonl(tmp_path, {"text": "good", "id": "a"}, "", line, {"text": "good"})
    assert refusal(path).startswith(f"{path}:3: {message}")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "x"}, "the field 'chat' is missing (expected a list, found fields text)"),
        ({"chat": "x"}, "the field 'chat' is not a list (expected a list, found str)"),
        ({"chat": ["x"]}, "a message is not an object with a role"),
        ({"chat": [{"content": "x"}]}, "a message is not an object with a role"),
        ({"chat": [{"role": "user", "content": "\ud800"}]}, "this is not valid Unicode"),
    ],
)
def test_refuses_bad_messages_and_names_file_and_line(tmp_path, record, message):
    path = jsonl(tmp_path, record)
    assert refusal(path, messages_field="chat").startswith(f"{path}:1: {message}")


@pytest.mark.parametrize(
    ("name", "place"),
    [("corpus.parquet", ", row 1"), ("saved", ", row 1"), ("corpus.jsonl.gz", ":2"), ("corpus.jsonl.zst", ":2")],
)
def test_refuses_a_bad_record_of_any_format_and_names_its_place(tmp_path, name, place):
    WRITERS[name](tmp_path / name)
    assert refusal(tmp_path / name, id_field="group").startswith(f"{tmp_path / name}{place}: the id 'first'")


def test_an_id_is_unique_over_all_files(tmp_path):
    write_jsonl(tmp_path / "a.jsonl")
    write_gzip(tmp_path / "b.jsonl.gz")
    assert refusal(tmp_path).startswith(f"{tmp_path / 'b.jsonl.gz'}:1: the id 'a' occurs a second time")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_refuses_bytes_that_are_not_utf8(tmp_path, name):
    (tmp_path / name).write_bytes(b'{"text": "\xff"}\n')
    message = refusal(tmp_path / name)
    assert message.startswith(str(tmp_path / name))
    assert "'utf-8' codec can't decode byte 0xff" in message


def cut(content):
    return content[: len(content) // 2]


def empty(_):
    return b""


def scramble(content):
    return content[:20] + bytes(byte ^ 0x5A for byte in content[20:60]) + content[60:]


@pytest.mark.parametrize("damage", [cut, empty, scramble])
@pytest.mark.parametrize("name", ["corpus.jsonl.gz", "corpus.jsonl.zst", "corpus.parquet", "saved"])
def test_refuses_damaged_files_and_names_them(tmp_path, name, damage):
    path = tmp_path / name
    WRITERS[name](path)
    file = next(path.glob("*.arrow")) if path.is_dir() else path
    file.write_bytes(damage(file.read_bytes()))
    assert refusal(path).startswith(str(path))


def test_refuses_a_parquet_file_whose_text_is_not_utf8(tmp_path):
    offsets, text = (pa.py_buffer(content) for content in (b"\0\0\0\0\1\0\0\0", b"\xff"))
    table = pa.table({"text": pa.StringArray.from_buffers(1, offsets, text)})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    assert "UnicodeDecodeError" in refusal(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["corpus.csv", "corpus.json", "corpus.gz", "corpus.txt.bak"])
def test_refuses_a_file_of_unknown_kind(tmp_path, name):
    (tmp_path / name).write_text("x")
    assert refusal(tmp_path / name) == (
        f"{tmp_path / name}: unknown kind of file (expected .txt, .jsonl (also .gz or .zst) or .parquet, "
        f"found {Path(name).suffix}). "
        "Files of other kinds (.json, .csv) are read by corpus.datasets: {path: json, data_files: […]}."
    )


def test_refuses_a_path_that_does_not_exist(tmp_path):
    assert refusal(tmp_path / "no.jsonl").startswith(f"{tmp_path / 'no.jsonl'}: no such file or folder.")


def test_refuses_a_folder_without_readable_files(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    assert refusal(tmp_path).startswith(f"{tmp_path}: no readable file found")


@pytest.mark.parametrize("content", ["", "\n", "\n \n"])
def test_refuses_files_without_documents(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    (tmp_path / "b.jsonl").write_text("")
    message = refusal(tmp_path)
    assert message == f"{tmp_path / 'a.jsonl'}, {tmp_path / 'b.jsonl'}: the corpus is empty: no file holds a document."


@pytest.mark.parametrize("name", WRITERS)
def test_the_identity_changes_with_any_byte(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path)
    file = next(path.glob("*.arrow")) if path.is_dir() else path
    content, seen = file.read_bytes(), {json.dumps(identity(path))}
    for place in (0, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        seen.add(json.dumps(identity(path)))
    assert len(seen) == 4


def test_the_identity_changes_with_where_files_end_but_not_with_their_place_or_order(tmp_path):
    for name, text in {"a.txt": "12", "b.txt": "3", "c.txt": "1", "d.txt": "23", "moved/a.txt": "12"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    a, b, c, d = (tmp_path / f"{name}.txt" for name in "abcd")
    assert len({json.dumps(identity(*paths)) for paths in ([a, b], [c, d], [a], [a, b, a])}) == 4
    assert len({*identity(a, b).values(), *identity(c, d).values()}) == 4
    assert identity(a, b) == identity(tmp_path / "moved", b) == identity(b, a)


def test_files_of_the_same_name_are_told_apart(tmp_path):
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.txt").write_text(place)
    found = identity(tmp_path / "one", tmp_path / "two")
    assert list(found) == ["a.txt", "a.txt (2)"]
    assert found != identity(tmp_path / "two", tmp_path / "one")


def test_documents_without_ids_are_named_alike_wherever_the_corpus_lies(tmp_path):
    for place in ("here", "there"):
        (tmp_path / place / "part").mkdir(parents=True)
        (tmp_path / place / "part" / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
        (tmp_path / place / "b.txt").write_text("three")
    here, there = (CorpusConfig(paths=(tmp_path / place,)) for place in ("here", "there"))
    ids = [document.id for document in read_documents(corpus_sources(here).values(), here, set())]
    assert ids == [document.id for document in read_documents(corpus_sources(there).values(), there, set())]
    assert ids == ["b.txt", "part/a.jsonl:1", "part/a.jsonl:2"]
    assert identity(tmp_path / "here") == identity(tmp_path / "there")


def test_a_renamed_file_is_another_corpus_because_its_documents_are_named_after_it(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    before = identity(tmp_path)
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    assert identity(tmp_path) != before


def test_an_id_of_documents_that_were_read_before_is_refused(tmp_path):
    path = jsonl(tmp_path, {"id": "new", "text": "x"}, {"id": "old", "text": "y"})
    config = CorpusConfig(paths=(path,))
    with pytest.raises(CorpusError, match=f"{path}:2: the id 'old' occurs a second time"):
        list(read_documents(corpus_sources(config).values(), config, {"old"}))


def test_files_read_later_need_documents_of_their_own(tmp_path):
    config = CorpusConfig(paths=(jsonl(tmp_path),))
    with pytest.raises(CorpusError, match="the corpus is empty"):
        list(read_documents(corpus_sources(config).values(), config, {"old"}))


def test_token_ids_replace_text_when_their_field_is_named(tmp_path):
    records = [{"text": "ignored", "tokens": [3, 1, 2], "loss": [0, 1, 1]}, {"tokens": [7], "loss": [True]}]
    write_lines, write_table = jsonl(tmp_path, *records), tmp_path / "a.parquet"
    pa.parquet.write_table(
        pa.Table.from_pylist([{**r, "loss": list(map(int, r["loss"]))} for r in records]), write_table
    )
    for path in (write_lines, write_table):
        found = read(path, ids_field="tokens", mask_field="loss")
        assert [(d.text, d.ids, d.mask) for d in found] == [(None, [3, 1, 2], [0, 1, 1]), (None, [7], [1])]
        assert [d.mask for d in read(path, ids_field="tokens")] == [None, None]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "x"}, "the field 'ids' is missing"),
        ({"ids": "1 2"}, "the field 'ids' is not a list"),
        ({"ids": [1, 2.0]}, "the field 'ids' is not a list of whole numbers"),
        ({"ids": [True, 2]}, "the field 'ids' is not a list of whole numbers"),
        ({"ids": [1, None]}, "the field 'ids' is not a list of whole numbers"),
        ({"ids": [1, 2]}, "the field 'mask' is missing"),
        ({"ids": [1, 2], "mask": [1]}, "ids and mask differ in length (expected 2 in the mask, found 1)"),
        ({"ids": [1, 2], "mask": [1, 2]}, "the field 'mask' is not a list of 0 and 1"),
        ({"ids": [1, 2], "mask": [1, None]}, "the field 'mask' is not a list of 0 and 1"),
        ({"ids": [1], "mask": [1], "id": "\ud800"}, "this is not valid Unicode (a lone surrogate)"),
    ],
)
def test_refuses_bad_token_ids_and_names_file_and_line(tmp_path, record, message):
    path = jsonl(tmp_path, record)
    assert refusal(path, ids_field="ids", mask_field="mask").startswith(f"{path}:1: {message}")


def test_tools_are_a_list_of_objects_json_text_of_one_or_null(tmp_path):
    tool = {"name": "x"}
    given = [[tool], json.dumps([tool]), None, []]
    path = jsonl(tmp_path, *({"chat": [{"role": "user"}], "tools": tools} for tools in given))
    found = read(path, messages_field="chat", tools_field="tools")
    assert [document.tools for document in found] == [[tool], [tool], None, None]


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ({}, "the field 'tools' is missing"),
        ({"tools": "get_weather"}, "the field 'tools' is not a list (expected a list, found str)"),
        ({"tools": '{"name": "x"}'}, "the field 'tools' is not a list (expected a list, found dict)"),
        ({"tools": ["get_weather"]}, "a tool is not an object"),
    ],
)
def test_refuses_bad_tools_and_names_file_and_line(tmp_path, tools, message):
    path = jsonl(tmp_path, {"chat": [{"role": "user"}], **tools})
    assert refusal(path, messages_field="chat", tools_field="tools").startswith(f"{path}:1: {message}")


def test_nulls_that_arrow_put_into_messages_are_gone_and_a_written_null_stays(tmp_path):
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "call": {"a": 1}}]
    pa.parquet.write_table(pa.Table.from_pylist([{"chat": messages}]), tmp_path / "a.parquet")
    (document,) = read(tmp_path / "a.parquet", messages_field="chat")
    assert document.messages == messages
    written = [{"role": "assistant", "content": "x", "call": {"a": None}}]
    (document,) = read(jsonl(tmp_path, {"chat": written}), messages_field="chat")
    assert document.messages == written


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"paths": []}, "needs paths or datasets"),
        ({"paths": ["a.txt"], "messages_field": "a", "ids_field": "b"}, "exclude each other"),
        ({"paths": ["a.txt"], "tools_field": "a"}, "tools_field needs messages_field"),
        ({"paths": ["a.txt"], "mask_field": "a"}, "mask_field needs ids_field"),
    ],
)
def test_refuses_settings_that_do_not_go_together(settings, message):
    with pytest.raises(ValueError, match=message):
        CorpusConfig(**settings)


def test_fields_of_later_versions_leave_the_identity_of_older_corpora_alone():
    older = {"text_field": "text", "messages_field": None, "id_field": "id", "group_field": "group"}
    assert CorpusConfig(paths=["a.txt"]).identity() == older | {"held_out_fraction": 0.01}
    new = CorpusConfig(paths=["a.txt"], ids_field="ids")
    assert new.identity() == CorpusConfig(paths=["a.txt"]).identity() | {"ids_field": "ids"}


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.parquet", "saved"])
def test_a_document_knows_what_share_of_its_file_lies_before_it(tmp_path, name):
    WRITERS[name](tmp_path / name)
    shares = [document.share_before for document in read(tmp_path / name)]
    lengths = [len(json.dumps(record)) + 1 if name == "corpus.jsonl" else 1 for record in RECORDS]
    assert shares == pytest.approx([sum(lengths[:i]) / sum(lengths) for i in range(len(lengths))])


def test_a_file_counts_by_its_bytes(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 300)
    (tmp_path / "b.txt").write_text("x" * 100)
    assert [document.share_before for document in read(tmp_path)] == [0, 0.75]


def test_the_share_of_a_compressed_file_is_that_of_its_compressed_bytes(tmp_path):
    noise = random.Random(0)
    records = [{"id": str(i), "text": noise.randbytes(2000).hex()} for i in range(1000)]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress(lines, 1))
    shares = [document.share_before for document in read(tmp_path)]
    assert (shares[0], shares[-1]) == (0, 1)
    buffer = 1.5 * 2**20 / len(lines)
    assert all(i / 1000 - 0.01 <= share <= i / 1000 + buffer for i, share in enumerate(shares))
    assert len(set(shares)) > 3
