"""A cache is damaged on purpose; verify must find every kind of damage, and readers must refuse it."""

import json
from dataclasses import replace

import pytest

from cache_tools import storage
from cache_tools.errors import DamageError, FormatError, IdentityError
from cache_tools.format import layout
from cache_tools.format.manifest import EncodingManifest, ObjectRecord, TeacherManifest, read_manifest, write_manifest
from cache_tools.format.shards import write_part
from cache_tools.maintenance.verify import verify
from cache_tools.store.root import create_cache
from store_fixtures import (
    POSITIONS_PER_SHARD,
    flip_bit,
    make_cache,
    sealed,
    write_encoding,
)


@pytest.fixture
def tiny(tmp_path):
    return make_cache(tmp_path)


def only_problem(tiny, deep=False):
    (problem,) = verify(tiny.path, deep)
    return problem


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(("vocabulary", "k"), [(1000, 4), (70_000, 1)])
def test_a_whole_cache_has_no_problems(tmp_path, vocabulary, k, deep):
    assert verify(make_cache(tmp_path, vocabulary=vocabulary, k=k).path, deep) == []


def test_progress_names_every_part(tiny):
    parts = []
    verify(tiny.path, progress=parts.append)
    assert parts == [f"tiny: sequences {shard}" for shard in range(3)] + [f"toy: shard {shard}" for shard in range(3)]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(
    ("damage", "message"), [(truncate, "bytes instead of"), (lambda path: path.unlink(), "the object is missing")]
)
def test_finds_objects_of_the_wrong_size(tiny, deep, damage, message):
    for path in tiny.objects(1):
        content = path.read_bytes()
        damage(path)
        problem = only_problem(tiny, deep)
        assert (problem.kind, problem.where) == ("damage", str(path))
        assert message in problem.message
        assert (problem.remedy, problem.teacher, problem.shard) == ("redo", "toy", 1)
        path.write_bytes(content)


def test_deep_finds_a_flipped_bit_in_any_object(tiny):
    for path in tiny.objects(0):
        flip_bit(path, path.stat().st_size // 2)
        problem = only_problem(tiny, deep=True)
        assert (problem.kind, problem.where) == ("damage", str(path))
        assert "the bytes are not those that were written" in problem.message
        assert verify(tiny.path) == []
        flip_bit(path, path.stat().st_size // 2)


@pytest.mark.parametrize("file", ["sequences/00001.arrow", "parts/00000/shards.arrow", "parts/00000/files.arrow"])
@pytest.mark.parametrize("damage", [flip_bit, truncate, lambda path: path.unlink()])
def test_finds_an_edited_arrow_file(tiny, file, damage):
    damage(tiny.encoding / file)
    problem = only_problem(tiny)
    assert (problem.kind, problem.where) == ("damage", str(tiny.encoding / file))


def test_finds_sequences_that_contradict_the_shard_table(tiny):
    entries = [*tiny.entries[:2], replace(tiny.entries[2], positions=11)]
    manifest = read_manifest(tiny.encoding, EncodingManifest)
    part = write_part(tiny.encoding, 0, {"random.txt": "0" * 64}, entries)
    write_manifest(tiny.encoding, manifest.model_copy(update={"parts": (part,)}))
    found = [(problem.where, problem.message) for problem in verify(tiny.path)]
    assert found == [
        (str(layout.sequences_file(tiny.encoding, 2)), "the shard table states 11 positions"),
        (str(tiny.receipt_file(2)), "the receipt states 12 positions and 15 tokens, the shard table 11 and 15"),
    ]


def test_finds_rows_and_texts_that_do_not_add_up(tmp_path):
    tiny = make_cache(tmp_path, shards=1, committed=0)
    first, *others = tiny.sequences[0]
    write_encoding(tiny.encoding, [[replace(first, first_position=1, text="!"), *others]], 1000)
    assert [problem.message for problem in verify(tiny.path) if problem.kind == "damage"] == [
        "sequence 0 does not start at row 0",
        "sequence 0: byte lengths do not add up to its text",
    ]


def test_a_missing_receipt_is_a_missing_shard(tiny):
    tiny.receipt_file(2).unlink()
    problem = only_problem(tiny)
    assert (problem.kind, problem.where) == ("missing", str(tiny.receipt_file(2)))
    assert "shard 2 has not been captured; run 'logitcask capture' again" in problem.message


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b'{"shard": 1', b"\xff", sealed({"shard": 1})])
def test_finds_an_unreadable_receipt(tiny, content):
    tiny.receipt_file(1).write_bytes(content)
    problem = only_problem(tiny)
    assert (problem.kind, problem.where) == ("damage", str(tiny.receipt_file(1)))
    assert "the receipt cannot be read" in problem.message
    assert (problem.remedy, problem.shard) == ("redo", 1)


def test_finds_the_receipt_of_another_shard(tiny):
    tiny.receipt_file(1).write_bytes(tiny.receipt_file(0).read_bytes())
    assert "the receipt belongs to another shard (expected 1, found 0)" in only_problem(tiny).message


@pytest.mark.parametrize("field", ["teacher_fingerprint", "sequences_sha256"])
def test_finds_the_receipt_of_another_teacher(tiny, field):
    tiny.edit_receipt(1, **{field: "f" * 64})
    problem = only_problem(tiny)
    assert (problem.kind, problem.where) == ("damage", str(tiny.receipt_file(1)))
    assert "captured from another teacher or other sequences" in problem.message
    with pytest.raises(IdentityError):
        tiny.open().targets(16, 17)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_receipt_that_names_a_path_outside_the_cache_is_not_followed(tiny, tmp_path, monkeypatch, absolute):
    secret = tmp_path / "secret"
    secret.write_bytes(b"not yours")
    key = str(secret) if absolute else "../../../../../secret"
    assert (tiny.teacher / key).resolve() == secret
    tiny.record_object(1, key, secret)
    opened = []
    monkeypatch.setattr(storage, "read_object", spy(storage.read_object, opened))
    monkeypatch.setattr("cache_tools.maintenance.verify.read_object", spy(storage.read_object, opened))
    problem = only_problem(tiny, deep=True)
    assert (problem.kind, problem.where) == ("damage", str(tiny.receipt_file(1)))
    assert "the receipt cannot be read" in problem.message
    with pytest.raises(DamageError, match="the receipt cannot be read"):
        tiny.open().targets(POSITIONS_PER_SHARD, POSITIONS_PER_SHARD + 1)
    assert opened
    assert secret not in opened


def spy(read, opened):
    """Return a function that reads an object and notes its path."""
    return lambda path: opened.append(path.resolve()) or read(path)


@pytest.mark.parametrize("folder", ["encoding", "teacher"])
@pytest.mark.parametrize("key", ["../../secret", "/etc/passwd", "a/../b", ".hidden", "a//b", "a\n"])
def test_a_manifest_that_names_a_path_outside_the_cache_is_refused(tiny, folder, key):
    path = getattr(tiny, folder)
    manifest = read_manifest(path, EncodingManifest if folder == "encoding" else TeacherManifest)
    record = ObjectRecord(bytes=1, sha256="0" * 64)
    write_manifest(path, manifest.model_copy(update={"files": {key: record}}))
    with pytest.raises(FormatError, match=f"no readable {folder} manifest here"):
        tiny.open()


def test_one_run_lists_every_problem(tiny):
    tiny.receipt_file(0).unlink()
    damaged = tiny.objects(1)[:2]
    truncate(damaged[0])
    damaged[1].unlink()
    tiny.edit_receipt(2, teacher_fingerprint="f" * 64)
    (tiny.encoding / "sequences" / "00002.arrow").unlink()
    found = {(problem.kind, problem.where) for problem in verify(tiny.path)}
    assert found == {
        ("damage", str(tiny.encoding / "sequences" / "00002.arrow")),
        ("missing", str(tiny.receipt_file(0))),
        ("damage", str(damaged[0])),
        ("damage", str(damaged[1])),
        ("damage", str(tiny.receipt_file(2))),
    }


def test_a_broken_teacher_manifest_does_not_hide_other_problems(tiny):
    (tiny.teacher / layout.MANIFEST).write_text("{")
    (tiny.encoding / "sequences" / "00000.arrow").unlink()
    assert len(verify(tiny.path)) == 2


def test_finds_an_encoding_without_teacher(tmp_path):
    tiny = make_cache(tmp_path, committed=0)
    (tiny.teacher / layout.MANIFEST).unlink()
    assert (
        only_problem(tiny).message == "no finished shard: no teacher has been captured; run 'logitcask capture' again"
    )


def test_finds_a_cache_without_encoding(tmp_path):
    tiny = make_cache(tmp_path, committed=0)
    (tiny.encoding / layout.MANIFEST).unlink()
    assert (
        only_problem(tiny).message == "no finished shard: no encoding has been committed; run 'logitcask capture' again"
    )


def test_a_cache_in_which_nothing_is_captured_is_not_said_to_be_done(tmp_path):
    from click.testing import CliRunner

    from cache_tools.maintenance.verify_command import verify_command

    create_cache(tmp_path / "cache")
    result = CliRunner().invoke(verify_command, [str(tmp_path / "cache")])
    assert result.exit_code == 1
    assert "nothing left to do" not in result.stderr
    assert "no finished shard: no encoding has been committed; run 'logitcask capture'" in result.stdout
    assert result.stdout.endswith("\n1 problem\n")


def test_finds_predictions_of_another_encoding(tiny):
    manifest = read_manifest(tiny.encoding, EncodingManifest)
    write_manifest(tiny.encoding, manifest.model_copy(update={"identity": {"corpus": "another"}}))
    assert "belong to another encoding" in only_problem(tiny).message


def test_refuses_what_is_not_a_cache(tmp_path):
    with pytest.raises(FormatError, match="no readable cache manifest"):
        verify(tmp_path)


def test_the_command_exits_1_and_prints_every_problem(tiny):
    from click.testing import CliRunner

    from cache_tools.maintenance.verify_command import verify_command

    whole = CliRunner().invoke(verify_command, [str(tiny.path)])
    assert (whole.exit_code, whole.stdout) == (0, "no problems (structure, sizes and sequence files checked)\n")
    tiny.receipt_file(0).unlink()
    broken = CliRunner().invoke(verify_command, ["--json", str(tiny.path)])
    assert broken.exit_code == 1
    assert [problem["kind"] for problem in json.loads(broken.stdout)["problems"]] == ["missing"]
