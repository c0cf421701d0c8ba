"""A part of a tokenizer's vocabulary: which tokens are kept, what stands in for the others, what lies on disk."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

import tiny
from cache_tools.errors import FormatError, IdentityError, ModelError
from cache_tools.store.reader import Cache
from cache_tools.vocabularies.compressed_folder import write_compressed
from cache_tools.vocabularies.compression import comparable, crowding, kept_ids, kept_size, stand_ins
from cache_tools.vocabularies.folder import read_vocabulary, write_vocabulary
from cache_tools.vocabularies.manifest import read_manifest
from cache_tools.vocabularies.token_map import TOKEN_MAP
from cache_tools.vocabularies.tokens import Token
from cache_tools.vocabularies.union import NO_ID, UnionVocabulary
from cache_tools.vocabularies.word_embeddings import word_embeddings
from logitcask import cli
from student_fixtures import BERT
from vocabulary_fixtures import capture_language

STUDENT = {"config": BERT}
FORCED = ["shard", "##h"]
KEEP = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cache, and ``half``, a part of its vocabulary by the teacher's embeddings."""
    folder = tmp_path_factory.mktemp("compressed")
    capture_language(folder / "all", tiny.TEXTS)
    write_compressed(folder / "half", encodings_of(folder), KEEP, FORCED, folder / "all" / "teacher")
    return folder


def encodings_of(folder):
    return [Cache(folder / "all" / "cache").encoding()]


TOKENS = {i: Token("special" if i < 2 else "start", b"unk" if i == 1 else bytes([65 + i])) for i in range(12)}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 50), min_size=12, max_size=12),
    st.sets(st.integers(0, 11), max_size=4),
    st.integers(7, 12),
    st.booleans(),
)
def test_kept_are_the_forced_and_then_the_most_frequent_and_every_dropped_token_is_read_as_a_kept_one(
    counts, forced, size, by_embedding
):
    counts, embeddings = np.array(counts), np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    kept = kept_ids(counts, TOKENS, forced, size)
    assert len(kept) == size
    assert {0, 1, *forced} <= set(kept.tolist())
    free = [i for i in kept.tolist() if i > 1 and i not in forced]
    dropped = [i for i in TOKENS if i not in kept]
    assert not dropped or not free or counts[free].min() >= counts[dropped].max()
    read_as = stand_ins(kept, TOKENS, embeddings if by_embedding else None)
    assert np.array_equal(read_as[kept], kept)
    assert np.array_equal(read_as[read_as], read_as)
    for i in dropped:
        others = [k for k in kept if k > 1]
        assert read_as[i] == (others[int(np.argmax(embeddings[others] @ embeddings[i]))] if by_embedding else 1)


@pytest.mark.parametrize("similarity", ["dot", "cosine", "centred-cosine"])
def test_stand_ins_are_the_most_similar_kept_tokens_of_a_reference_in_float64(similarity):
    random = np.random.default_rng(1)
    lengths, common = random.uniform(0.1, 5, (12, 1)), random.normal(size=4) * 3
    embeddings = ((random.normal(size=(12, 4)) + common) * lengths).astype(np.float32)
    kept, ordinary = np.array([0, 1, 3, 5, 8, 9]), [3, 5, 8, 9]
    vectors = embeddings.astype(np.float64)
    if similarity == "centred-cosine":
        vectors = vectors - vectors.mean(0)
    if similarity != "dot":
        vectors = vectors / np.sqrt((vectors**2).sum(1))[:, None]
    read_as = stand_ins(kept, TOKENS, embeddings, similarity)
    nearest = [ordinary[int(np.argmax([vectors[i] @ vectors[k] for k in ordinary]))] for i in range(12)]
    assert read_as.tolist() == [i if i in kept else nearest[i] for i in range(12)]


def test_a_long_vector_is_every_token_s_nearest_by_dot_product_and_not_by_cosine():
    embeddings = np.eye(12, 4, dtype=np.float32) + 0.1
    embeddings[[6, 7]] = embeddings[[2, 3]]  # dropped, with the same vectors as kept tokens
    embeddings[4] = 50
    kept = np.array([0, 1, 2, 3, 4])
    assert stand_ins(kept, TOKENS, embeddings)[[6, 7]].tolist() == [4, 4]
    assert stand_ins(kept, TOKENS, embeddings, "cosine")[[6, 7]].tolist() == [2, 3]


def test_a_row_of_zeros_stays_one_and_all_others_get_length_1():
    embeddings = np.random.default_rng(2).normal(size=(12, 4)).astype(np.float32)
    embeddings[7] = 0
    lengths = np.linalg.norm(comparable(embeddings, TOKENS, "cosine"), axis=1)
    assert lengths.round(6).tolist() == [i != 7 for i in range(12)]


@pytest.mark.parametrize(("keep", "size"), [(0.5, 15_360), (1, 30_592), (1.0, 30_592), (200, 200), (40_000, 30_592)])
def test_a_share_is_rounded_up_to_a_multiple_and_a_number_is_taken_as_it_is(keep, size):
    assert kept_size(keep, 30_592) == size


def test_what_cannot_be_kept_or_read_is_refused():
    with pytest.raises(FormatError, match="at least 5"):
        kept_ids(np.ones(12, np.int64), TOKENS, {3, 4, 5}, 4)
    without = {i: token for i, token in TOKENS.items() if i != 1}
    with pytest.raises(FormatError, match="no kept token can stand in for the dropped tokens"):
        stand_ins(np.array([0, 2]), without, None)


def test_the_share_of_the_text_that_is_kept_is_that_of_a_recount(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "half" / "tokenizer")
    union, (encoding,) = read_vocabulary(folder / "half"), encodings_of(folder)
    kept, right, total = set(union.names), 0, 0
    for shard in encoding.split_shards("train"):
        for sequence in encoding.sequences(shard):
            names = [name for name in tokenizer.convert_ids_to_tokens(sequence.original_ids.tolist()) if name[0] != "["]
            right, total = right + sum(name in kept for name in names), total + len(names)
    assert read_manifest(folder / "half").coverage["train"] == pytest.approx(right / total)
    assert set(FORCED) | {"[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]"} <= kept
    assert 0.5 < right / total < 1


def test_ids_stay_in_the_tokenizer_s_order_and_the_map_goes_with_the_tokenizer(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "half" / "tokenizer")
    union = read_vocabulary(folder / "half")
    found = load_file(folder / "half" / "tokenizer" / TOKEN_MAP)
    assert len(union.names) == len(found["tokenizer_ids"]) == KEEP
    assert tokenizer.convert_ids_to_tokens(found["tokenizer_ids"].tolist()) == list(union.names)
    assert (np.diff(found["tokenizer_ids"].astype(int)) > 0).all()
    assert np.array_equal(found["student_ids"][found["tokenizer_ids"]], np.arange(KEEP))
    assert len(found["student_ids"]) == len(tokenizer)
    assert (
        tokenizer("the shard")["input_ids"]
        == AutoTokenizer.from_pretrained(folder / "all" / "teacher")("the shard")["input_ids"]
    )


def test_a_dropped_token_is_read_as_the_nearest_ordinary_one_by_the_teacher_s_embeddings(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "half" / "tokenizer")
    model = AutoModelForMaskedLM.from_pretrained(folder / "all" / "teacher")
    vectors = model.get_input_embeddings().weight.detach().double().numpy()
    union = read_vocabulary(folder / "half")
    maps = union.ids_of(encodings_of(folder)[0].manifest.vocabulary.fingerprint, "")
    ordinary = [i for i, name in enumerate(union.names) if not name.startswith("[")]
    kept = np.flatnonzero(maps.predicted[:, None] == np.array(ordinary))  # rows of the tokenizer
    rows = np.array([tokenizer.convert_tokens_to_ids(union.names[i]) for i in ordinary])
    dropped = [i for i in range(len(maps.read)) if i >= len(maps.predicted) or maps.predicted[i] == NO_ID]
    assert len(dropped) > 50
    assert len(kept) == len(rows)
    for i in dropped:
        assert maps.read[i] == ordinary[int(np.argmax(vectors[rows] @ vectors[i]))]


def test_a_token_that_stands_for_nearly_all_is_named():
    read, predicted = np.array([0, 1, 1, 1, 0, NO_ID], np.uint32), np.array([0, 1], np.uint32)
    union = UnionVocabulary(("a", "b"), {"one": predicted}, {"one": read})
    assert crowding(union) == (2, "b", 2)


def test_without_embeddings_a_dropped_token_is_unknown(folder, tmp_path):
    write_compressed(tmp_path / "unknown", encodings_of(folder), KEEP)
    union = read_vocabulary(tmp_path / "unknown")
    assert crowding(union)[:2] == (1, "[UNK]")
    (read,), (predicted,) = union.read.values(), union.maps.values()
    dropped = np.ones(len(read), bool)
    dropped[np.flatnonzero(predicted != NO_ID)] = False
    assert set(read[dropped].tolist()) == {union.names.index("[UNK]")}


def test_a_vocabulary_that_keeps_all_tokens_changes_no_id(folder, tmp_path):
    write_compressed(tmp_path / "one", encodings_of(folder), 1.0)
    (read,), (predicted,) = (each.values() for each in (lambda u: (u.read, u.maps))(read_vocabulary(tmp_path / "one")))
    assert np.array_equal(read, np.arange(len(read)))
    assert np.array_equal(read, predicted)


def test_a_union_is_written_as_before_and_tokenizers_are_not_mixed(folder, tmp_path):
    write_vocabulary(tmp_path / "union", encodings_of(folder))
    document = json.loads((tmp_path / "union" / "vocabulary.json").read_text())
    assert document["format"] == 1
    assert json.loads((folder / "half" / "vocabulary.json").read_text())["format"] == 2
    assert not read_vocabulary(tmp_path / "union").read
    other = capture_language(tmp_path / "other", ["quite another text"] * 8, held_out_fraction=0.0).encoding()
    with pytest.raises(IdentityError, match="several tokenizers"):
        write_compressed(tmp_path / "none", [*encodings_of(folder), other], 0.5)


def test_a_map_that_does_not_fit_is_refused(folder, tmp_path):
    made = read_manifest(folder / "half")
    for name in ("tokens.arrow", "vocabulary.json"):
        (tmp_path / name).write_bytes((folder / "half" / name).read_bytes())
    assert made.files["tokenizer/token_map.safetensors"].bytes > 0
    with pytest.raises(Exception, match="missing"):
        read_vocabulary(tmp_path)


def test_the_command_prints_the_coverage_and_needs_keep_for_the_rest(folder, tmp_path):
    place, forced = str(folder / "all" / "cache"), tmp_path / "forced.txt"
    forced.write_text("\n".join(FORCED) + "\n")
    words = ["vocabulary", place, "-o", str(tmp_path / "made"), "--forced", str(forced)]
    assert CliRunner().invoke(cli, words).exit_code == 2
    words += ["--keep", str(KEEP), "--embeddings", str(folder / "all" / "teacher")]
    shown = CliRunner().invoke(cli, words, catch_exceptions=False).stdout
    assert f"{KEEP} of " in shown
    assert f"{read_manifest(folder / 'half').coverage['held_out']:.2%}" in shown
    assert read_vocabulary(tmp_path / "made").fingerprint == read_vocabulary(folder / "half").fingerprint
    missing = CliRunner().invoke(cli, [*words[:4], "--keep", "9", "--forced", str(tmp_path / "missing")])
    assert "cannot be read" in str(missing.exception)
    forced.write_text("no-such-token\n")
    refused = CliRunner().invoke(cli, words)
    assert refused.exit_code == 1
    assert "no such token" in str(refused.exception)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_word_embeddings_are_read_in_every_dtype_without_torch(tmp_path, dtype):
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_torch(
        {"bert.embeddings.word_embeddings.weight": weight, "cls.weight": weight.clone()}, tmp_path / "model.safetensors"
    )
    assert np.array_equal(word_embeddings(tmp_path, 7), weight.float().numpy())
    with pytest.raises(ModelError, match="7 rows for 8 tokens"):
        word_embeddings(tmp_path, 8)


def test_a_model_without_word_embeddings_is_refused(tmp_path):
    save_file({"weight": np.ones((2, 2), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="no word embeddings"):
        word_embeddings(tmp_path, 2)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ModelError, match="too long"):
        word_embeddings(tmp_path, 2)
