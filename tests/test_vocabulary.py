"""The union of several tokenizers' vocabularies: what becomes one token, where ids go, what is kept on disk."""

import json
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import tiny
from cache_tools.errors import DamageError, FormatError, IdentityError
from cache_tools.format.manifest import ObjectRecord
from cache_tools.format.sealed import UNSEALED, sealed_bytes
from cache_tools.format.sequences import table_bytes
from cache_tools.storage import write_object
from cache_tools.vocabularies.folder import TOKENS, read_vocabulary, write_vocabulary
from cache_tools.vocabularies.manifest import DOCUMENT, Part, VocabularyManifest, read_manifest
from cache_tools.vocabularies.tokens import Token, tokens_of
from cache_tools.vocabularies.union import NO_ID, UnionVocabulary, token_names, unite
from logitcask import cli
from vocabulary_fixtures import OTHER_TEXTS, ROLES, capture_language, sentencepiece, wordpiece

KINDS = ("start", "inside", "special", "added", "byte", "other")
TOKENS_OF_ONE = st.dictionaries(
    st.integers(0, 60), st.builds(Token, st.sampled_from(KINDS[:2] + KINDS[3:]), st.binary(max_size=3)), min_size=1
).map(lambda ids: {i: token for token, i in {token: i for i, token in ids.items()}.items()})


@pytest.fixture(scope="module")
def encodings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("languages")
    texts = {"a": tiny.TEXTS, "b": OTHER_TEXTS}
    return [
        capture_language(folder / name, each, size=150 + 50 * (name == "b")).encoding() for name, each in texts.items()
    ]


def read(tokenizer):
    settings_of_it = {name: getattr(tokenizer, name) for name in ROLES}
    return tokens_of(tokenizer.backend_tokenizer, settings_of_it)


def find(tokenizer, name):
    return read(tokenizer)[tokenizer.convert_tokens_to_ids(name)]


@pytest.mark.parametrize(
    "make", [lambda: wordpiece(tiny.TEXTS), lambda: tiny.tokenizer(), lambda: tiny.tokenizer(masked=True)]
)
def test_every_id_is_a_token_and_no_token_is_two_ids(make):
    tokenizer = make()
    tokens = read(tokenizer)
    assert sorted(tokens) == sorted(tokenizer.get_vocab().values())
    assert len(set(tokens.values())) == len(tokens)


def test_one_word_is_one_token_however_it_is_written():
    byte_level, pieces = tiny.tokenizer(), sentencepiece(["▁order", "ing", "▁d\u00fc", "<0xC3>"])
    found = {
        find(wordpiece(["order order"]), "order"),
        find(byte_level, "Ġorder"),
        find(pieces, "▁order"),
    }
    assert found == {Token("start", b"order")}
    assert find(pieces, "ing") == Token("inside", b"ing")
    assert find(pieces, "▁d\u00fc") == Token("start", "d\u00fc".encode())
    assert find(pieces, "<0xC3>") == Token("byte", b"\xc3")
    assert find(byte_level, "Ġ") == Token("start", b"")


def test_special_tokens_are_one_by_role_and_not_by_name():
    words, pieces = wordpiece(tiny.TEXTS), sentencepiece(["▁a"])
    for name, other in (
        ("[MASK]", "<mask>"),
        ("[CLS]", "<s>"),
        ("[SEP]", "</s>"),
        ("[PAD]", "<pad>"),
        ("[UNK]", "<unk>"),
    ):
        assert find(words, name) == find(pieces, other)
        assert find(words, name).kind == "special"


def test_two_names_of_one_text_stay_two_tokens():
    tokens = read(sentencepiece(["▁a", " a"]))
    assert sorted(token.kind for token in tokens.values() if token.content.strip(b" \xe2\x96\x81") == b"a") == [
        "other",
        "start",
    ]


def test_a_tokenizer_that_marks_ends_of_words_is_refused():
    state = json.loads(tiny.tokenizer().backend_tokenizer.to_str())
    state["model"]["end_of_word_suffix"] = "</w>"
    with pytest.raises(FormatError, match="marks ends of words"):
        tokens_of(Tokenizer.from_str(json.dumps(state)), {})


@settings(max_examples=100, deadline=None)
@given(st.lists(TOKENS_OF_ONE, min_size=1, max_size=4))
def test_maps_are_injective_and_lead_to_the_same_token(tokenizers):
    union = unite({str(i): tokens for i, tokens in enumerate(tokenizers)})
    name_of = {}
    for key, tokens in enumerate(tokenizers):
        ids = union.maps[str(key)]
        assert {i for i in range(len(ids)) if ids[i] != NO_ID} == set(tokens)
        assert len({int(ids[i]) for i in tokens}) == len(tokens)
        for i, token in tokens.items():
            assert name_of.setdefault(token, union.names[ids[i]]) == union.names[ids[i]]
    assert len(set(union.names)) == len(union.names)
    assert len(set(name_of.values())) == len(name_of)


@settings(max_examples=50, deadline=None)
@given(st.lists(TOKENS_OF_ONE, min_size=2, max_size=4))
def test_the_first_ids_stay_and_a_tokenizer_at_the_end_changes_none(tokenizers):
    known = [{100: Token("special", b"unk")} | tokens for tokens in tokenizers]
    longer, shorter = (unite({str(i): tokens for i, tokens in enumerate(part)}) for part in (known, known[:-1]))
    for key, ids in shorter.maps.items():
        assert np.array_equal(ids, longer.maps[key])
    first = shorter.maps["0"]
    assert first[first != NO_ID].tolist() == list(range(len(known[0])))


def test_names_say_which_token_it_is_even_where_words_look_alike():
    tokens = [
        Token("special", b"cls"),
        Token("start", b"[CLS]"),
        Token("start", b"##a"),
        Token("inside", b"a"),
        Token("start", b"a"),
        Token("inside", b"\xc3"),
        Token("start", b""),
    ]
    expected = ("[CLS]", f"<start:{b'[CLS]'.hex()}>", "<start:232361>", "##a", "a", "<inside:c3>", "<start:>")
    assert token_names(tokens) == expected
    for order in permutations(range(3)):
        assert token_names([tokens[i] for i in order]) == tuple(expected[i] for i in order)


def test_a_word_that_is_spelt_like_a_made_up_name_is_refused():
    with pytest.raises(FormatError, match="same name"):
        token_names([Token("start", b"<byte:c3>"), Token("byte", b"\xc3")])


def test_what_is_written_is_read_back(encodings, tmp_path):
    made = write_vocabulary(tmp_path, encodings)
    union = read_vocabulary(tmp_path)
    assert union.fingerprint == made.fingerprint == read_manifest(tmp_path).fingerprint
    for encoding in encodings:
        tokenizer = AutoTokenizer.from_pretrained(encoding.path / "tokenizer")
        ids = union.ids_of(encoding.manifest.vocabulary.fingerprint, "").predicted
        assert [union.names[i] for i in ids] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert sum(part.ids - part.shared for part in made.tokenizers) + made.tokenizers[0].shared == made.size


def test_the_student_s_tokenizer_has_the_union_s_ids_and_splits_as_its_one_tokenizer_did(encodings, tmp_path):
    made = write_vocabulary(tmp_path / "both", encodings)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "both" / "tokenizer")
    assert tokenizer.get_vocab() == {name: i for i, name in enumerate(read_vocabulary(tmp_path / "both").names)}
    assert tokenizer.mask_token == "[MASK]"
    assert all(part.same_rules for part in made.tokenizers)
    write_vocabulary(tmp_path / "one", encodings[1:])
    alone, own = (
        AutoTokenizer.from_pretrained(place)
        for place in (tmp_path / "one" / "tokenizer", encodings[1].path / "tokenizer")
    )
    for text in OTHER_TEXTS[:6]:
        assert alone(text)["input_ids"] == own(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).split() != []
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]


def test_a_bpe_is_united_and_said_to_be_split_by_other_rules(encodings, tmp_path):
    byte_level = tiny.capture(
        tmp_path, tiny.save_teacher(tmp_path / "teacher", masked=True), objective="masked"
    ).encoding()
    made = write_vocabulary(tmp_path / "vocabulary", [encodings[0], byte_level])
    assert [part.same_rules for part in made.tokenizers] == [True, False]
    assert made.tokenizers[1].shared >= 4  # [PAD], [CLS], [SEP], [MASK], and words


def test_the_same_command_again_changes_nothing_and_other_caches_are_refused(encodings, tmp_path):
    write_vocabulary(tmp_path, encodings)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    write_vocabulary(tmp_path, encodings)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == before
    with pytest.raises(IdentityError, match="this folder holds another vocabulary"):
        write_vocabulary(tmp_path, encodings[::-1])


def test_a_stopped_command_leaves_nothing_that_is_read(encodings, tmp_path, monkeypatch):
    monkeypatch.setattr("cache_tools.vocabularies.folder.write_object", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_vocabulary(tmp_path, encodings)
    with pytest.raises(FormatError, match="no readable vocabulary"):
        read_vocabulary(tmp_path)
    monkeypatch.undo()
    write_vocabulary(tmp_path, encodings)
    assert read_vocabulary(tmp_path).names


def test_a_changed_table_or_document_is_noticed(encodings, tmp_path):
    write_vocabulary(tmp_path, encodings)
    good = (tmp_path / TOKENS).read_bytes()
    table = pa.ipc.open_file(good).read_all()
    (tmp_path / TOKENS).write_bytes(table_bytes(table.take(np.arange(len(table))[::-1])))
    with pytest.raises(DamageError, match="not the one that was written"):
        read_vocabulary(tmp_path)
    (tmp_path / TOKENS).write_bytes(good)
    document = (tmp_path / "vocabulary.json").read_text()
    (tmp_path / "vocabulary.json").write_text(document.replace('"size": 2', '"size": 3'))
    with pytest.raises(FormatError, match="seal is broken"):
        read_vocabulary(tmp_path)


def test_a_stranger_reads_the_table_by_the_words_of_format_md(encodings, tmp_path):
    write_vocabulary(tmp_path, encodings)
    table = pa.ipc.open_file((tmp_path / "tokens.arrow").read_bytes()).read_all()
    rows = list(enumerate(zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True)))
    assert table.column_names == ["name"] + [e.manifest.identity["tokenizer"]["vocabulary"] for e in encodings]
    for number in range(1, len(table.column_names)):
        found = {row[number]: i for i, row in rows if row[number] is not None}
        ids = read_vocabulary(tmp_path).ids_of(table.column_names[number], "").read
        assert found == dict(enumerate(ids.tolist()))


@pytest.mark.parametrize("own_ids", [[1, 1], [0, 2**24], [None, None]])
def test_a_made_up_table_that_tells_no_ids_apart_is_refused(tmp_path, own_ids):
    content = table_bytes(pa.table({"name": ["a", "b"], "one": pa.array(own_ids, pa.uint32())}))
    part = Part(vocabulary="one", ids=2, shared=0, same_rules=True)
    made = VocabularyManifest(size=2, fingerprint="", tokenizers=(part,), files={TOKENS: ObjectRecord.of(content)})
    write_object(tmp_path / TOKENS, content)
    write_object(tmp_path / DOCUMENT, sealed_bytes({"seal": UNSEALED} | made.model_dump(mode="json")))
    with pytest.raises(FormatError, match="not the table of a vocabulary"):
        read_vocabulary(tmp_path)


def test_a_tokenizer_that_is_not_in_it_is_refused():
    union = UnionVocabulary(("a",), {"one": np.zeros(1, np.uint32)})
    with pytest.raises(IdentityError, match="not part of the vocabulary"):
        union.ids_of("two", "cache")


def test_the_command_writes_it_and_says_what_is_shared(encodings, tmp_path):
    places = [str(encoding.path.parents[1]) for encoding in encodings]
    result = CliRunner().invoke(cli, ["vocabulary", *places, "-o", str(tmp_path), "--json"], catch_exceptions=False)
    printed = SimpleNamespace(**json.loads(result.stdout))
    assert printed.fingerprint == read_vocabulary(tmp_path).fingerprint
    assert [part["ids"] for part in printed.tokenizers] == [e.manifest.vocabulary_size for e in encodings]
    shown = CliRunner().invoke(cli, ["vocabulary", *places, "-o", str(tmp_path)], catch_exceptions=False)
    assert f"{printed.size:,} tokens" in shown.stdout
