"""Encoding a corpus: repeatable to the byte, never half there, and never mixed with another one."""

import json
import os
import shutil
from itertools import pairwise

import pytest

import pipeline.run
import tiny
from cache_tools.errors import CorpusError, FormatError, IdentityError, ModelError
from cache_tools.maintenance.verify import verify
from cache_tools.store.reader import Encoding
from cache_tools.store.root import create_cache
from pipeline.config.capture_file import CaptureConfig
from pipeline.encoding import sequences as encode_documents
from pipeline.encoding.held_out import is_held_out
from pipeline.encoding.tokenizer import load_tokenizer, tokenizer_identity
from pipeline.run import Worker, run_capture
from store_fixtures import snapshot

CAUSAL, MASKED = tiny.tokenizer(), tiny.tokenizer(masked=True)
TEXTS = {f"doc{number}": text for number, text in enumerate(tiny.TEXTS)}


def write_corpus(folder, texts, groups=None):
    folder.mkdir(exist_ok=True)
    records = [{"id": name, "text": text} | ({"group": groups[name]} if groups else {}) for name, text in texts.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def run(folder, tokenizer=CAUSAL, append=False, **changes):
    """Encode ``folder/corpus.jsonl`` (by default TEXTS) into ``folder/cache`` and return the encoding's folder."""
    if not (folder / "corpus.jsonl").exists():
        write_corpus(folder, TEXTS)
    return tiny.encode(CaptureConfig.model_validate(tiny.capture_values(folder, folder, **changes)), tokenizer, append)


def opened(path):
    """Return an encoding and its sequences, shard by shard."""
    encoding = Encoding(path, "main")
    return encoding, [encoding.sequences(shard) for shard in range(len(encoding.shards))]


def times(folder):
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def splits_of(path):
    """Return the split of each document; a document in both would show as a set of two."""
    encoding, shards = opened(path)
    found = {}
    for entry, sequences in zip(encoding.shards, shards, strict=True):
        for sequence in sequences:
            found.setdefault(sequence.document_id, set()).add(entry.split)
    return found


@pytest.mark.parametrize(("tokenizer", "objective"), [(CAUSAL, "causal"), (MASKED, "masked")])
def test_encoding_again_changes_nothing(tmp_path, tokenizer, objective):
    run(tmp_path, tokenizer, objective=objective)
    before = snapshot(tmp_path / "cache"), times(tmp_path / "cache")
    run(tmp_path, tokenizer, objective=objective)
    assert (snapshot(tmp_path / "cache"), times(tmp_path / "cache")) == before


@pytest.mark.parametrize(("tokenizer", "objective"), [(CAUSAL, "causal"), (MASKED, "masked")])
def test_the_same_inputs_give_the_same_bytes_in_another_folder(tmp_path, tokenizer, objective):
    caches = []
    for name in ("one", "two"):
        write_corpus(tmp_path / name, TEXTS)
        caches.append(snapshot(run(tmp_path / name, tokenizer, objective=objective)))
    assert caches[0] == caches[1]
    assert len(caches[0]) > 4


@pytest.mark.parametrize("shard_rows", [128, 384])
def test_every_shard_starts_at_its_own_rows_and_never_exceeds_them(tmp_path, shard_rows):
    encoding, shards = opened(run(tmp_path, positions_per_shard=shard_rows))
    number = 0
    for shard, (entry, sequences) in enumerate(zip(encoding.shards, shards, strict=True)):
        row = shard * shard_rows
        for sequence in sequences:
            assert (sequence.sequence_id, sequence.first_position) == (number, row)
            number, row = number + 1, row + sequence.num_positions
        assert row - shard * shard_rows == entry.positions <= shard_rows


def test_shards_are_full_but_for_the_last_of_each_split(tmp_path):
    encoding, shards = opened(run(tmp_path, positions_per_shard=128))
    for split in ("train", "held_out"):
        mine = [shard for shard, entry in enumerate(encoding.shards) if entry.split == split]
        assert len(mine) > 2
        for shard, following in pairwise(mine):
            assert encoding.shards[shard].positions + shards[following][0].num_positions > 128


def test_the_table_and_the_manifest_count_what_is_there(tmp_path):
    encoding, shards = opened(run(tmp_path, positions_per_shard=128))
    for split, totals in encoding.manifest.splits.items():
        sequences = [s for shard in encoding.split_shards(split) for s in shards[shard]]
        assert totals.model_dump() == {
            "documents": len({s.document_id for s in sequences}),
            "sequences": len(sequences),
            "tokens": sum(len(s.input_ids) for s in sequences),
            "positions": sum(s.num_positions for s in sequences),
            "shards": len(encoding.split_shards(split)),
        }
    assert sum(totals.documents for totals in encoding.manifest.splits.values()) == len(TEXTS)


def test_documents_stay_in_order_and_whole(tmp_path):
    _, shards = opened(run(tmp_path, overlap_tokens=0, append_eos=False, held_out_fraction=0))
    texts = {}
    for sequence in (s for sequences in shards for s in sequences):
        texts[sequence.document_id] = texts.get(sequence.document_id, "") + sequence.text
    assert list(texts.items()) == list(TEXTS.items())


def test_splits_never_share_a_shard_or_a_document(tmp_path):
    splits = splits_of(run(tmp_path))
    assert {name: splits[name] for name in TEXTS} == {
        name: {"held_out" if is_held_out(name, 0.2) else "train"} for name in TEXTS
    }
    assert {"train"} in splits.values()
    assert {"held_out"} in splits.values()


def test_no_fraction_holds_nothing_out(tmp_path):
    encoding, _ = opened(run(tmp_path, held_out_fraction=0))
    assert encoding.split_shards("held_out") == []
    assert encoding.manifest.splits["held_out"].documents == 0


def test_groups_are_held_out_whole(tmp_path):
    groups = {name: f"group{number % 12}" for number, name in enumerate(TEXTS)}
    write_corpus(tmp_path, TEXTS, groups)
    found = splits_of(run(tmp_path, held_out_fraction=0.4))
    by_group = {group: {split for name in TEXTS if groups[name] == group for split in found[name]} for group in groups}
    assert all(found[name] == {"held_out" if is_held_out(group, 0.4) else "train"} for name, group in groups.items()), (
        by_group
    )
    assert len({next(iter(splits)) for splits in found.values()}) == 2


def test_adding_documents_never_moves_old_ones(tmp_path):
    write_corpus(tmp_path / "before", dict(list(TEXTS.items())[10:20]))
    write_corpus(tmp_path / "after", TEXTS)
    before, after = splits_of(run(tmp_path / "before")), splits_of(run(tmp_path / "after"))
    assert before == {name: after[name] for name in before}


def test_a_larger_fraction_only_adds_to_the_held_out_groups():
    groups = [f"group{number}" for number in range(2000)]
    held_out = [{group for group in groups if is_held_out(group, fraction)} for fraction in (0, 0.01, 0.1, 0.5)]
    assert held_out == sorted(held_out, key=len)
    assert all(small <= large for small, large in pairwise(held_out))
    assert not held_out[0]
    assert 150 < len(held_out[2]) < 250


def more_text(folder):
    with (folder / "corpus.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')


def other_bytes(folder):
    path = folder / "corpus.jsonl"
    path.write_text(path.read_text().replace("shard", "shred", 1))


def renamed(folder):
    (folder / "corpus.jsonl").rename(folder / "renamed.jsonl")


CHANGES = {
    "more text": (more_text, CAUSAL, {}, "corpus.jsonl is changed"),
    "other bytes": (other_bytes, CAUSAL, {}, "corpus.jsonl is changed"),
    "renamed": (renamed, CAUSAL, {}, "corpus.jsonl is gone"),
    "tokenizer": (None, tiny.tokenizer(280), {}, "tokenizer.behaviour"),
    "vocabulary": (None, tiny.tokenizer(280), {}, "tokenizer.vocabulary"),
    "length": (None, CAUSAL, {"max_length_tokens": 47}, "encoding.max_length_tokens: 48 -> 47"),
    "overlap": (None, CAUSAL, {"overlap_tokens": 2}, "encoding.overlap_tokens: 1 -> 2"),
    "end": (None, CAUSAL, {"append_eos": False}, "encoding.append_eos: true -> false"),
    "shard": (None, CAUSAL, {"positions_per_shard": 256}, "encoding.positions_per_shard: 512 -> 256"),
    "fraction": (None, CAUSAL, {"held_out_fraction": 0.1}, "corpus.held_out_fraction: 0.2 -> 0.1"),
    "objective": (None, MASKED, {"objective": "masked"}, 'encoding.objective: "causal" -> "masked"'),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("append", [False, True])
def test_refuses_another_corpus_tokenizer_or_setting_and_names_the_difference(tmp_path, change, append):
    """A changed file or setting is refused even where files may be added."""
    edit, tokenizer, changes, key = CHANGES[change]
    write_corpus(tmp_path / "corpus", TEXTS)
    folder = run(tmp_path, paths=[str(tmp_path / "corpus")])
    if edit:
        edit(tmp_path / "corpus")
    before = snapshot(tmp_path / "cache"), times(tmp_path / "cache")
    with pytest.raises(IdentityError) as error:
        run(tmp_path, tokenizer, append, paths=[str(tmp_path / "corpus")], **changes)
    what = "from another corpus" if edit else "with another tokenizer or other settings"
    assert str(error.value).startswith(f"{folder}: the cache holds this encoding {what}")
    assert key in str(error.value)
    assert (snapshot(tmp_path / "cache"), times(tmp_path / "cache")) == before


@pytest.mark.parametrize("masking", [{"seed": 1}, {"copies": 2}, {"probability": 0.2}])
def test_refuses_other_masking_for_a_masked_encoding_and_ignores_it_for_a_causal_one(tmp_path, masking):
    for name, tokenizer, objective in (("causal", CAUSAL, "causal"), ("masked", MASKED, "masked")):
        write_corpus(tmp_path / name, TEXTS)
        run(tmp_path / name, tokenizer, objective=objective)
    run(tmp_path / "causal", masking=masking)
    with pytest.raises(IdentityError, match=rf"encoding\.masking\.{next(iter(masking))}"):
        run(tmp_path / "masked", MASKED, objective="masked", masking=masking)


def test_a_moved_corpus_and_the_size_of_chunks_do_not_matter(tmp_path):
    run(tmp_path)
    before = snapshot(tmp_path / "cache")
    moved = tmp_path / "elsewhere" / "corpus.jsonl"
    moved.parent.mkdir()
    shutil.move(tmp_path / "corpus.jsonl", moved)
    run(tmp_path, paths=[str(moved)], chunk_positions=64)
    assert snapshot(tmp_path / "cache") == before


@pytest.mark.parametrize("killed_settings", [{}, {"max_length_tokens": 8, "positions_per_shard": 128}])
def test_an_encoding_killed_before_its_manifest_is_done_again_to_the_same_bytes(tmp_path, killed_settings):
    """Whatever a killed run left, even one with other settings and more shards, disappears or is replaced."""
    write_corpus(tmp_path / "straight", TEXTS)
    straight = snapshot(run(tmp_path / "straight"))
    write_corpus(tmp_path / "killed", TEXTS)
    folder = run(tmp_path / "killed", tiny.tokenizer(280) if killed_settings else CAUSAL, **killed_settings)
    os.remove(folder / "zarr.json")
    (folder / "sequences" / "00001.arrow.123.partial").write_bytes(b"half")
    (folder / "parts" / "00000" / "shards.arrow.456.partial").write_bytes(b"half")
    (folder / "teachers" / "zarr.json.789.partial").write_bytes(b"half")
    (folder / "sequences" / "00000.arrow").write_bytes(b"garbage")
    (folder / "tokenizer" / "chat_template.jinja").write_text("of another tokenizer")
    assert snapshot(run(tmp_path / "killed")) == straight


def test_refuses_to_encode_again_where_a_teacher_has_predictions(tmp_path):
    folder = run(tmp_path)
    os.remove(folder / "zarr.json")
    (folder / "teachers" / "toy").mkdir()
    (folder / "teachers" / "toy" / "zarr.json").write_text("precious")
    before = snapshot(tmp_path / "cache")
    with pytest.raises(FormatError, match="Encoding again would discard them"):
        run(tmp_path)
    assert snapshot(tmp_path / "cache") == before


def test_refuses_sequences_that_a_teacher_cannot_read_before_anything_is_loaded_or_written(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.run, "open_teacher", None)
    values = tiny.capture_values(tmp_path, max_length_tokens=129)
    with pytest.raises(ModelError) as error:
        run_capture(CaptureConfig.model_validate(values), Worker(), tiny.SilentReporter())
    assert str(error.value) == (
        "encoding.max_length_tokens: sequences are longer than teacher 'toy' can read "
        "(expected at most 128, found 129). Set encoding.max_length_tokens to 128 or less; longer documents are split."
    )
    assert not (tmp_path / "cache").exists()


def test_progress_counts_every_token_once(tmp_path):
    seen = []
    write_corpus(tmp_path, TEXTS)
    config = CaptureConfig.model_validate(tiny.capture_values(tmp_path, tmp_path))
    folder = tiny.encode(config, CAUSAL, progress=lambda *step: seen.append(step))
    _, shards = opened(folder)
    assert sum(tokens for tokens, _ in seen) == sum(len(s.input_ids) for sequences in shards for s in sequences)
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)


def test_the_tokenizer_in_the_cache_is_the_one_that_encoded(tmp_path):
    folder = run(tmp_path)
    assert tokenizer_identity(load_tokenizer(folder / "tokenizer")) == tokenizer_identity(CAUSAL)


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_a_corpus_of_token_ids_makes_a_sound_encoding_without_texts(tmp_path, objective):
    tokenizer = MASKED if objective == "masked" else CAUSAL
    ids = {name: tokenizer(text, add_special_tokens=False)["input_ids"] for name, text in TEXTS.items()}
    lines = [json.dumps({"id": name, "tokens": given}) for name, given in ids.items()]
    (tmp_path / "ids.jsonl").write_text("\n".join(lines))
    values = tiny.capture_values(tmp_path, tmp_path, objective=objective, paths=[str(tmp_path / "ids.jsonl")])
    values["corpus"]["ids_field"] = "tokens"
    create_cache(tmp_path / "cache")
    _, shards = opened(tiny.encode(CaptureConfig.model_validate(values), tokenizer))
    sequences = [s for sequences in shards for s in sequences]
    assert {s.document_id for s in sequences} == set(TEXTS)
    assert all(s.text == "" and s.byte_lengths.sum() == 0 for s in sequences)
    problems = verify(tmp_path / "cache", deep=True)
    assert [problem.message for problem in problems] == [
        "no finished shard: no teacher has been captured; run 'logitcask capture' again"
    ]


@pytest.mark.parametrize("characters", [1, 1000, 2**18])
def test_how_many_documents_are_tokenised_together_changes_no_byte(tmp_path, monkeypatch, characters):
    write_corpus(tmp_path / "usual", TEXTS)
    usual = snapshot(run(tmp_path / "usual"))
    monkeypatch.setattr(encode_documents, "BATCH_CHARACTERS", characters)
    write_corpus(tmp_path / "other", TEXTS)
    assert snapshot(run(tmp_path / "other")) == usual


@pytest.mark.parametrize("size", [0, 1, 50, 10_000])
def test_a_batch_is_bounded_by_characters_and_by_documents(monkeypatch, size):
    monkeypatch.setattr(encode_documents, "BATCH_CHARACTERS", 2000)
    read = []
    texts = (read.append(1) or "x" * size for _ in range(40))
    batches = encode_documents.batches_of(texts, len)
    first = next(batches)
    assert len(read) == len(first) == -(-2000 // (size + encode_documents.DOCUMENT_CHARACTERS))
    assert len(first) + sum(map(len, batches)) == 40


@pytest.mark.parametrize(("tokenizer", "objective"), [(CAUSAL, "causal"), (MASKED, "masked")])
def test_empty_documents_are_skipped_counted_and_change_nothing_else(tmp_path, caplog, tokenizer, objective):
    texts = {"before": "", **TEXTS, "after": ""}
    write_corpus(tmp_path / "with", texts)
    write_corpus(tmp_path / "without", TEXTS)
    shards = opened(run(tmp_path / "with", tokenizer, objective=objective))[1]
    (warning,) = [record.message for record in caplog.records if "skipped" in record.message]
    assert warning.startswith("2 documents were skipped, because they have no token that a teacher could predict")
    assert "corpus.jsonl:1 (id 'before')" in warning
    others = opened(run(tmp_path / "without", tokenizer, objective=objective))[1]
    assert [[s.input_ids.tolist() for s in shard] for shard in shards] == [
        [s.input_ids.tolist() for s in shard] for shard in others
    ]


def test_a_corpus_of_empty_documents_is_refused_and_leaves_nothing(tmp_path):
    write_corpus(tmp_path, {"a": "", "b": ""})
    with pytest.raises(CorpusError, match=r"no document has a token that a teacher could predict .*2 documents"):
        run(tmp_path)
    assert not list((tmp_path / "cache").rglob("*.arrow"))
