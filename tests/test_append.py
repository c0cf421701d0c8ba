"""Appending files to an encoded corpus: new shards behind the old ones, which stay what they are."""

import json

import pytest

import tiny
from cache_tools.errors import CorpusError, IdentityError
from cache_tools.format.shards import read_file_tables
from cache_tools.maintenance.verify import verify
from cache_tools.store.reader import Cache, Encoding
from pipeline.config.capture_file import CaptureConfig
from pipeline.encoding import parts
from pipeline.encoding.encode import is_encoded
from pipeline.run import Worker, run_capture
from store_fixtures import snapshot

TOKENIZER = tiny.tokenizer()


def write_file(folder, name, numbers):
    """Write some of the tiny texts as a file of the corpus."""
    (folder / "corpus").mkdir(exist_ok=True)
    lines = [json.dumps({"id": f"doc{number}", "text": tiny.TEXTS[number]}) for number in numbers]
    (folder / "corpus" / name).write_text("\n".join(lines) + "\n")


def settings(folder, **changes):
    paths = [str(folder / "corpus")]
    values = tiny.capture_values(folder, folder, paths=paths, positions_per_shard=128, **changes)
    return CaptureConfig.model_validate(values)


def run(folder, append=False):
    return Encoding(tiny.encode(settings(folder), TOKENIZER, append), "main")


@pytest.fixture
def before(tmp_path):
    """An encoding of one file, beside which a second one lies now."""
    write_file(tmp_path, "b.jsonl", range(20))
    encoding = run(tmp_path)
    write_file(tmp_path, "a.jsonl", range(20, 36))  # read before the other, if both are new
    return encoding


def test_new_files_become_a_part_and_old_bytes_stay(tmp_path, before):
    old = snapshot(tmp_path / "cache")
    after = run(tmp_path, append=True)
    found = snapshot(tmp_path / "cache")
    manifest = "encodings/main/zarr.json"
    assert {key: found[key] for key in old if key != manifest} == {key: old[key] for key in old if key != manifest}
    assert len(after.manifest.parts) == 2
    assert after.manifest.parts[0] == before.manifest.parts[0]
    assert after.shards[: len(before.shards)] == before.shards
    assert list(read_file_tables(after.path, after.manifest.parts)) == ["b.jsonl", "a.jsonl"]


def test_ids_and_rows_go_on_behind_the_old_shards(tmp_path, before):
    after, number = run(tmp_path, append=True), 0
    documents = set()
    for shard in range(len(after.shards)):
        row = 128 * shard
        for sequence in after.sequences(shard):
            assert (sequence.sequence_id, sequence.first_position) == (number, row)
            number, row = number + 1, row + sequence.num_positions
            documents.add(sequence.document_id)
    assert documents == {f"doc{number}" for number in range(36)}
    assert sum(totals.documents for totals in after.manifest.splits.values()) == 36
    assert after.sequence(number - 1).sequence_id == number - 1


def test_the_identity_stays_and_the_contents_change(tmp_path, before):
    after = run(tmp_path, append=True)
    assert after.manifest.fingerprint == before.manifest.fingerprint
    assert after.manifest.contents_fingerprint != before.manifest.contents_fingerprint


def test_appending_nothing_changes_nothing(tmp_path, before):
    run(tmp_path, append=True)
    old = snapshot(tmp_path / "cache")
    for append in (False, True):
        run(tmp_path, append)
    assert snapshot(tmp_path / "cache") == old


def test_a_new_file_is_refused_unless_it_is_to_be_appended(tmp_path, before):
    old = snapshot(tmp_path / "cache")
    assert not is_encoded(tmp_path / "cache/encodings/main", ["a.jsonl", "b.jsonl"])
    with pytest.raises(IdentityError, match=r"a\.jsonl is new.*--append"):
        run(tmp_path)
    assert snapshot(tmp_path / "cache") == old
    run(tmp_path, append=True)
    assert is_encoded(tmp_path / "cache/encodings/main", ["a.jsonl", "b.jsonl"])


@pytest.mark.parametrize("lines", [[], range(5, 6)])
def test_a_file_that_cannot_be_appended_leaves_the_encoding_as_it_was(tmp_path, before, lines):
    """It is empty, or holds an id that is taken."""
    (tmp_path / "corpus" / "a.jsonl").unlink()
    write_file(tmp_path, "c.jsonl", lines)
    with pytest.raises(CorpusError):
        run(tmp_path, append=True)
    assert Encoding(before.path, "main").manifest == before.manifest
    (tmp_path / "corpus" / "c.jsonl").unlink()
    assert run(tmp_path).shards == before.shards


def kill(*_):
    raise KeyboardInterrupt


def test_a_killed_part_is_done_again_to_the_same_bytes(tmp_path, before, monkeypatch):
    """Even if the killed run added more, as more shards."""
    write_file(tmp_path, "c.jsonl", [])
    (tmp_path / "corpus" / "c.jsonl").write_text(json.dumps({"id": "long", "text": tiny.TEXTS[3] * 99}))
    with monkeypatch.context() as patch:
        patch.setattr(parts, "write_manifest", kill)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, append=True)
    assert Encoding(before.path, "main").manifest == before.manifest
    (before.path / "sequences" / "00009.arrow.123.partial").write_bytes(b"half")
    (tmp_path / "corpus" / "c.jsonl").unlink()
    run(tmp_path, append=True)
    found = snapshot(tmp_path / "cache")
    (tmp_path / "other").mkdir()
    write_file(tmp_path / "other", "b.jsonl", range(20))
    run(tmp_path / "other")
    write_file(tmp_path / "other", "a.jsonl", range(20, 36))
    run(tmp_path / "other", append=True)
    assert found == snapshot(tmp_path / "other" / "cache")


def test_a_capture_goes_on_with_the_shards_of_a_new_part(tmp_path):
    write_file(tmp_path, "b.jsonl", range(8))
    teacher = tiny.save_teacher(tmp_path / "teacher")
    values = tiny.capture_values(tmp_path, teacher, paths=[str(tmp_path / "corpus")])
    config = CaptureConfig.model_validate(values)
    first = run_capture(config, Worker(), tiny.SilentReporter())
    objects = snapshot(tmp_path / "cache" / "encodings/main/teachers/toy/receipts")
    write_file(tmp_path, "c.jsonl", range(8, 16))
    second = run_capture(config, Worker(), tiny.SilentReporter(), append=True)
    encoding = Cache(tmp_path / "cache").encoding()
    assert first["toy"] + second["toy"] == len(encoding.shards)
    assert second["toy"] == len(encoding.shards) - len(objects) > 0
    assert objects.items() <= snapshot(encoding.path / "teachers/toy/receipts").items()
    assert verify(tmp_path / "cache", deep=True) == []
    whole = encoding.teacher().targets(*encoding.teacher().shard_rows(len(encoding.shards) - 1))
    assert len(whole.ids)
