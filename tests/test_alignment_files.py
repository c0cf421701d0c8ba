"""An alignment on disk: made, continued, checked, copied, removed, and read by a program that knows FORMAT.md alone."""

import hashlib
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest
from click.testing import CliRunner

import tiny
from alignment_fixtures import save
from cache_tools.alignments import making
from cache_tools.alignments.coverage import AlignmentReport
from cache_tools.alignments.stored import Alignment
from cache_tools.errors import DamageError, FormatError, IdentityError, IncompleteError
from cache_tools.maintenance.copying import copy_cache
from cache_tools.maintenance.verify import verify
from cache_tools.publishing.files import cache_files
from cache_tools.store.reader import Cache
from cache_tools.vocabularies.tokenizer_folder import open_tokenizer
from json_schema import mismatches
from logitcask import cli


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captured")
    cache = tiny.capture(folder, positions_per_shard=256)
    save("byte_level", folder / "bpe")
    save("unigram", folder / "unigram")
    return folder, cache.path


@pytest.fixture
def place(captured, tmp_path):
    """A cache of its own, and the folder of the tokenizers."""
    shutil.copytree(captured[1], tmp_path / "cache")
    return tmp_path / "cache", captured[0]


def align(cache, tokenizer, *options):
    return CliRunner().invoke(cli, ["align", str(cache), "--tokenizer", str(tokenizer), *options])


def aligned(place, tokenizer="unigram"):
    cache, folder = place
    return making.align_encoding(Cache(cache).encoding(), tokenizer, open_tokenizer(str(folder / tokenizer)))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_several_alignments_stand_beside_each_other_and_change_nothing_else(place):
    cache, folder = place
    before = contents(cache)
    for name in ("unigram", "bpe"):
        assert align(cache, folder / name).exit_code == 0
    after = contents(cache)
    assert {path: after[path] for path in before} == before
    assert Cache(cache).encoding().alignments == ["bpe", "unigram"]
    assert all("alignments" in path.parts for path in after.keys() - before.keys())
    assert verify(cache, deep=True) == []


def test_the_report_has_its_schema_and_its_numbers_add_up(place):
    result = align(place[0], place[1] / "unigram", "--json", "--examples", "2")
    stated = json.loads(result.stdout)
    assert mismatches(stated, AlignmentReport) == []
    coverage = stated["coverage"]
    assert coverage["positions"] == sum(coverage[name] for name in ("exact", "composed", "prefix", "none"))
    groups = [group["coverage"]["positions"] for group in stated["groups"]]
    assert len(groups) == min(stated["num_groups"], 10)
    assert len(stated["examples"]) == 2
    shown = stated["examples"][0]
    assert "".join(shown["teacher_tokens"]).startswith("".join(shown["student_tokens"])[:40])


def test_a_terminal_shows_both_segmentations(place):
    result = align(place[0], place[1] / "unigram", "--examples", "1")
    lines = result.stdout.splitlines()
    assert sum(line.startswith("  teacher │") for line in lines) == 1
    assert sum(line.startswith("  student │") for line in lines) == 1


def test_a_stopped_alignment_continues_to_the_same_bytes(place, tmp_path, monkeypatch):
    cache, folder = place
    whole = tmp_path / "whole"
    shutil.copytree(cache, whole)
    aligned((whole, folder))
    written = []

    def stopping(alignment, shard, sequences):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(shard)
        original(alignment, shard, sequences)

    original = making.write_shard
    monkeypatch.setattr(making, "write_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        aligned(place)
    encoding = Cache(cache).encoding()
    with pytest.raises(IncompleteError, match="have not been aligned"):
        Alignment(encoding, "unigram").require_complete(list(range(len(encoding.shards))))
    monkeypatch.setattr(making, "write_shard", original)
    aligned(place)
    assert contents(cache) == contents(whole)


def test_documents_that_were_appended_are_aligned_by_the_same_command(captured, tmp_path):
    values = tiny.capture_values(tmp_path, captured[0] / "teacher")
    tiny.run(values)
    first = aligned((tmp_path / "cache", captured[0]))
    finished = contents(first.path)
    lines = [json.dumps({"id": f"more{i}", "text": f"another text, number {i}, of some length"}) for i in range(9)]
    (tmp_path / "more.jsonl").write_text("\n".join(lines))
    values["corpus"]["paths"].append(str(tmp_path / "more.jsonl"))
    tiny.run(values, append=True)
    again = aligned((tmp_path / "cache", captured[0]))
    again.require_complete(list(range(len(again.encoding.shards))))
    after = contents(again.path)
    assert {path: after[path] for path in finished} == finished
    assert len(after) > len(finished)


@pytest.mark.parametrize("victim", ["tables", "receipts", "tokenizer"])
def test_damage_is_reported_and_the_same_command_mends_it(place, victim):
    alignment = aligned(place)
    whole = contents(place[0])
    damaged = sorted((alignment.path / victim).iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:-3] + b"xyz")
    problems = verify(place[0], deep=True)
    assert problems
    assert all("alignments" in problem.where for problem in problems)
    aligned(place)
    assert contents(place[0]) == whole


def test_a_table_of_another_shard_is_refused(place):
    alignment = aligned(place)
    receipts = [alignment.path / "receipts" / f"{shard:05d}.json" for shard in range(2)]
    receipts[0].write_bytes(receipts[1].read_bytes())
    with pytest.raises(DamageError, match="receipt"):
        Alignment(alignment.encoding, "unigram").sequences(0)


def test_a_name_is_that_of_one_tokenizer(place):
    aligned(place)
    with pytest.raises(IdentityError, match="another tokenizer"):
        making.align_encoding(Cache(place[0]).encoding(), "unigram", open_tokenizer(str(place[1] / "bpe")))


def test_an_alignment_that_is_not_there_is_named(place):
    aligned(place)
    with pytest.raises(FormatError, match="no alignment 'other'"):
        Alignment(Cache(place[0]).encoding(), "other")


def test_a_copy_has_the_alignments_and_continues(place, tmp_path):
    aligned(place)
    target = tmp_path / "copy"
    copy_cache(Cache(place[0]), target)
    assert contents(target / "encodings") == contents(place[0] / "encodings")
    lost = next((target / "encodings" / "main" / "alignments" / "unigram" / "tables").iterdir())
    lost.unlink()
    copy_cache(Cache(place[0]), target)
    assert contents(target / "encodings") == contents(place[0] / "encodings")


def test_a_published_cache_has_the_alignments(place):
    alignment = aligned(place)
    published = {file.key: file for file in cache_files(Cache(place[0]))}
    own = {str(path) for path in contents(place[0]) if "alignments" in path.parts}
    assert len(own) > 4
    assert own <= published.keys()
    assert all(file.content() for key, file in published.items() if key in own)
    assert max(map(list(published).index, own)) < list(published).index("zarr.json")
    assert {key.split("/")[3] for key in own} == {alignment.name, "zarr.json"}


def test_an_alignment_is_dropped_and_listed(place):
    aligned(place)
    listed = CliRunner().invoke(cli, ["inspect", str(place[0])])
    assert "aligned with other tokenizers: unigram" in listed.stdout
    result = CliRunner().invoke(cli, ["drop", str(place[0]), "unigram", "--alignment", "--yes"])
    assert result.exit_code == 0
    assert Cache(place[0]).encoding().alignments == []
    result = CliRunner().invoke(cli, ["drop", str(place[0]), "unigram", "--alignment", "--yes"])
    assert isinstance(result.exception, FormatError)


def test_a_stranger_reads_an_alignment_with_format_md_alone(place):
    """Uses json, hashlib and pyarrow only; the comments quote FORMAT.md."""
    aligned(place)
    encoding = place[0] / "encodings" / "main"
    folder = encoding / "alignments" / "unigram"
    content = (folder / "zarr.json").read_bytes()
    manifest = json.loads(content)["attributes"]["logitcask"]
    seal = manifest["seal"].encode()
    assert hashlib.sha256(content.replace(seal, b"0" * 64)).hexdigest().encode() == seal
    canonical = json.dumps(manifest["identity"], sort_keys=True, separators=(",", ":"))
    fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
    for path in sorted((folder / "tables").iterdir()):
        receipt = json.loads((folder / "receipts" / path.name.replace(".arrow", ".json")).read_bytes())
        # "No receipt, no aligned shard"
        assert receipt["alignment_fingerprint"] == fingerprint
        assert receipt["table"] == {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        sequences_file = encoding / "sequences" / path.name
        assert receipt["sequences_sha256"] == hashlib.sha256(sequences_file.read_bytes()).hexdigest()
        own = pa.ipc.open_file(path).read_all().to_pylist()
        sequences = pa.ipc.open_file(sequences_file).read_all().to_pylist()
        counts = [0] * 6
        for row, sequence in zip(own, sequences, strict=True):
            assert row["sequence_id"] == sequence["sequence_id"]
            # "they sum to the length of the text"
            assert sum(row["byte_lengths"]) == len(sequence["text"].encode())
            ends = np.cumsum(row["byte_lengths"])
            teacher_ends = np.cumsum(sequence["byte_lengths"])
            kept = [t for t, keep in enumerate(sequence["position_mask"]) if keep]
            for p, (kind, first_row) in enumerate(zip(row["kinds"], row["first_rows"], strict=True)):
                counts[kind] += 1
                if first_row >= 0:
                    # "both predict from the same text": the teacher's token kept[first_row] + 1 begins where the
                    # student's token p + 1 does
                    assert teacher_ends[kept[first_row]] == ends[p]
                if kind == 1:
                    # "covers the same bytes as one teacher token"
                    assert teacher_ends[kept[first_row] + 1] == ends[p + 1]
        assert list(receipt["kinds"].values()) == counts
