"""Documents become pieces: nothing is lost, nothing is read as something else, each token is predicted once."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import tiny
from cache_tools.errors import CorpusError
from pipeline.config.encoding import EncodingConfig
from pipeline.corpus.documents import Document
from pipeline.encoding.pieces import frame_of, readable, split_documents
from pipeline.encoding.sequences import encode_documents

END = 0  # id of <|end|> in the tiny causal tokenizer; as of [PAD] in the masked one
TEXT = tiny.TEXTS[3]
SCRIPTS = (
    "a\x80\u07ff\u0800\uffff\U00010000"
    "é\u0301ñ ß\n\t\0\x7f\u200d\u200f\ufeff漢字ひ한שלום مرحبا🎉👩\u200d👩\u200d👧🇩🇪\U0010ffff"
)


def framed(single, masked=False):
    """Return a tiny tokenizer that puts special tokens around a text, such as "<|end|> $A"."""
    made = tiny.tokenizer(masked=masked)
    names = {"[CLS]": 1, "[SEP]": 2} if masked else {"<|end|>": END}
    specials = [item for item in names.items() if item[0] in single]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=specials)
    return made


def by_words():
    """Return a tokenizer that drops white space, accents and control characters, and knows few words."""
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##a": 2, "the": 3, "シ": 4, "漢": 5}, unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="[UNK]")


def rewriting(normalizer):
    """Return a tokenizer that reads another spelling than the one that is written."""
    made = tiny.tokenizer()
    made.backend_tokenizer.normalizer = normalizer
    return made


TOKENIZERS = {
    "bare": tiny.tokenizer(),
    "begin": framed("<|end|> $A"),
    "end": framed("$A <|end|>"),
    "both": framed("<|end|> $A <|end|>"),
    "bert": tiny.tokenizer(masked=True),
}
PREFIX = {"bare": 0, "begin": 1, "end": 0, "both": 1, "bert": 1}
UNFAITHFUL = {
    "words": by_words(),
    "composing": rewriting(normalizers.NFKC()),
    "decomposing": rewriting(normalizers.NFKD()),
    "stripping": rewriting(normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase()])),
}
"""Tokenizers that do not give back the text they read."""


def config(length=16, overlap=1, **changes):
    return EncodingConfig(max_length_tokens=length, overlap_tokens=overlap, **changes)


def document(text):
    return Document("an id", "a group", text, None, "corpus.jsonl:7")


def split(document, tokenizer, settings):
    """Return the pieces of one document."""
    ((_, made),) = split_documents(readable(document, tokenizer), tokenizer, frame_of(tokenizer, settings), settings)
    return list(made)


def pieces(text, name, settings):
    tokenizer = (TOKENIZERS | UNFAITHFUL)[name]
    return split(document(text), tokenizer, settings)


def predicted(text, name, settings):
    """Return the tokens of all pieces whose predictions are kept, in order, from finished sequences."""
    made = encode_documents([document(text)], TOKENIZERS[name], settings)
    return [token for _, sequence, _ in made for token in sequence.gold_ids(settings.objective).tolist()]


def rebuilt(made, length, repeated):
    """Check each piece and return the bytes of all, those of the repeated tokens once."""
    content = b""
    for number, piece in enumerate(made):
        assert len(piece.input_ids) == len(piece.trainable) == len(piece.byte_lengths) <= length
        assert piece.byte_lengths.sum() == len(piece.text.encode())
        content += piece.text.encode()[piece.byte_lengths[: repeated if number else 0].sum() :]
    return content


def tokens(text, name):
    return TOKENIZERS[name](text, add_special_tokens=False)["input_ids"]


any_text = st.one_of(st.text(), st.text(alphabet=SCRIPTS), st.text(alphabet=SCRIPTS, min_size=40)).filter(bool)


@given(any_text, st.sampled_from(["bare", "both", "bert"]), st.integers(5, 9), st.integers(0, 2), st.booleans())
@example(SCRIPTS * 3, "bare", 5, 1, False)
@example("👩\u200d👩\u200d👧", "bert", 5, 2, True)
@settings(max_examples=100, deadline=None)
def test_pieces_cover_a_text_of_any_script_byte_by_byte(text, name, length, overlap, masked):
    """Emoji fall apart into several tokens, so borders of pieces fall inside characters too."""
    objective = "masked" if masked and name == "bert" else "causal"
    made = pieces(text, name, config(length, overlap, objective=objective))
    assert rebuilt(made, length, PREFIX[name] + overlap) == text.encode()


@given(any_text, st.sampled_from(sorted(UNFAITHFUL)), st.integers(5, 9), st.integers(0, 2))
@example(" \n a  the a\u0301a \0 ", "words", 5, 1)
@example("e\u0323\u0301\u1100\u1161\u11a8 ﬁ㍿ " * 3, "composing", 5, 1)
@example("ṩ\u0323\u0301 ﬁ㍿ " * 3, "decomposing", 5, 0)
@example("  A  ", "stripping", 5, 0)
@settings(max_examples=200, deadline=None)
def test_pieces_cover_a_text_that_its_tokenizer_rewrites(text, name, length, overlap):
    made = pieces(text, name, config(length, overlap))
    if made:
        assert rebuilt(made, length, overlap) == text.encode()
    else:
        assert len(UNFAITHFUL[name](text)["input_ids"]) == 0


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("length", [4, 5, 16, 17, 1000])
def test_byte_lengths_cut_the_text_into_the_tokens_surface_forms(name, length):
    for piece in pieces(TEXT, name, config(length)):
        ends = np.cumsum(piece.byte_lengths)
        surfaces = [piece.text.encode()[start:end].decode() for start, end in pairwise([0, *ends])]
        special = set(TOKENIZERS[name].all_special_ids)
        expected = ["" if token in special else TOKENIZERS[name].decode([token]) for token in piece.input_ids.tolist()]
        assert surfaces == expected


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("overlap", [1, 2, 3])
@pytest.mark.parametrize("length", [5, 8, 33, 1000])
def test_every_token_but_the_first_is_predicted_exactly_once(name, length, overlap):
    first = 0 if PREFIX[name] else 1
    end = {"bert": [2]}.get(name, [END])
    assert predicted(TEXT, name, config(length, overlap)) == tokens(TEXT, name)[first:] + end


@pytest.mark.parametrize("length", [5, 8, 33, 1000])
def test_without_overlap_the_first_token_of_each_piece_is_not_predicted(length):
    ids = tokens(TEXT, "bare")
    kept = [token for place, token in enumerate(ids) if place % length]
    assert predicted(TEXT, "bare", config(length, 0, append_eos=False)) == kept


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(("length", "overlap"), [(4, 1), (8, 0), (8, 5), (33, 1), (1000, 1)])
def test_pieces_are_windows_of_the_tokens_and_full_but_for_the_last(name, length, overlap):
    made = pieces(TEXT, name, config(length, overlap, append_eos=False))
    prefix, room = PREFIX[name], length - PREFIX[name]
    ids, step = tokens(TEXT, name), length - PREFIX[name] - overlap
    begin = TOKENIZERS[name]("x")["input_ids"][:prefix]
    assert [piece.input_ids.tolist() for piece in made] == [
        begin + ids[start : start + room] for start in range(0, max(len(ids) - overlap, 1), step)
    ]


@pytest.mark.parametrize(("length", "overlap"), [(5, 1), (8, 0), (1000, 1)])
def test_every_piece_of_a_masked_encoding_has_the_tokenizers_frame(length, overlap):
    made = pieces(TEXT, "bert", config(length, overlap, objective="masked"))
    assert all(piece.input_ids[0] == 1 and piece.input_ids[-1] == 2 for piece in made)
    assert not any(piece.trainable[0] or piece.trainable[-1] for piece in made)
    kept = [token for piece in made for token in piece.input_ids[piece.trainable].tolist()]
    assert kept == tokens(TEXT, "bert")


@pytest.mark.parametrize("name", ["bare", "begin", "end", "both", "bert"])
@pytest.mark.parametrize("length", [5, 8, 1000])
def test_the_end_of_text_token_ends_the_document_once(name, length):
    end = 2 if name == "bert" else END
    text_tokens = [piece.input_ids[PREFIX[name] :].tolist() for piece in pieces(TEXT, name, config(length))]
    assert text_tokens[-1][-1] == end
    assert not any(end in window for window in [*text_tokens[:-1], text_tokens[-1][:-1]])
    without = [piece.input_ids.tolist() for piece in pieces(TEXT, name, config(length, append_eos=False))]
    assert not any(end in window[PREFIX[name] :] for window in without)


def test_a_masked_encoding_has_no_end_of_text_token():
    with_end = tiny.tokenizer(masked=True)
    with_end.eos_token = "[PAD]"
    assert frame_of(with_end, config(objective="masked")).end == []


def test_special_tokens_inside_a_text_are_never_masked():
    (piece,) = pieces("a [MASK] b [SEP] c", "bert", config(100, objective="masked"))
    special = np.isin(piece.input_ids, TOKENIZERS["bert"].all_special_ids)
    assert special.sum() == 4
    assert np.array_equal(piece.trainable, ~special)


@pytest.mark.parametrize(
    ("text", "name", "changes"),
    [
        ("", "bare", {}),
        ("a", "bare", {"append_eos": False}),
        ("", "begin", {"append_eos": False}),
        ("", "bert", {"objective": "masked"}),
        ("[SEP][MASK]", "bert", {"objective": "masked"}),
    ],
)
def test_a_document_without_a_predictable_token_has_no_pieces(text, name, changes):
    assert pieces(text, name, config(**changes)) == []


@pytest.mark.parametrize(
    ("text", "name", "changes"),
    [
        ("a", "bare", {}),
        ("a", "begin", {"append_eos": False}),
        ("a", "bert", {"objective": "masked"}),
    ],
)
def test_one_predictable_token_is_enough(text, name, changes):
    (piece,) = pieces(text, name, config(**changes))
    assert piece.text == text


@pytest.mark.parametrize(
    ("name", "objective", "overlap", "needed"),
    [("begin", "causal", 0, 2), ("begin", "causal", 3, 5), ("bert", "masked", 0, 3), ("bert", "masked", 1, 4)],
)
def test_refuses_a_length_without_room_between_the_special_tokens(name, objective, overlap, needed):
    assert pieces(TEXT, name, config(needed, overlap, objective=objective))
    with pytest.raises(CorpusError) as error:
        pieces(TEXT, name, config(needed - 1, overlap, objective=objective))
    assert str(error.value) == (
        "encoding.max_length_tokens: sequences are too short to hold text between the special tokens "
        f"(expected more than {needed - 1}, found {needed - 1})."
    )


def test_refuses_a_masked_objective_without_a_mask_token():
    with pytest.raises(CorpusError, match="the tokenizer has no mask token"):
        pieces(TEXT, "bare", config(objective="masked"))


def given_ids(ids, mask=None):
    return Document("an id", "a group", None, None, "corpus.jsonl:7", ids=ids, mask=mask)


@pytest.mark.parametrize(("name", "objective"), [("both", "causal"), ("bare", "causal"), ("bert", "masked")])
@pytest.mark.parametrize(("length", "overlap"), [(5, 0), (8, 1), (8, 3), (1000, 1)])
def test_given_ids_are_cut_into_windows_and_nothing_is_added(name, objective, length, overlap):
    ids = tokens(TEXT, name)
    made = split(given_ids(ids), TOKENIZERS[name], config(length, overlap, objective=objective))
    starts = range(0, max(len(ids) - overlap, 1), length - overlap)
    assert [piece.input_ids.tolist() for piece in made] == [ids[start : start + length] for start in starts]
    fresh = [piece.input_ids[overlap if number else 0 :] for number, piece in enumerate(made)]
    assert np.concatenate(fresh).tolist() == ids
    assert all(piece.text == "" and not piece.byte_lengths.any() for piece in made)


@pytest.mark.parametrize("objective", ["causal", "masked"])
@pytest.mark.parametrize(("length", "overlap"), [(5, 1), (8, 3), (1000, 1)])
def test_only_ids_under_the_mask_are_trained_on_and_each_once(objective, length, overlap):
    ids = tokens(TEXT, "bert")
    mask = [int(place % 3 != 0) for place in range(len(ids))]
    settings = config(length, overlap, objective=objective)
    kept = [token for token, flag in zip(ids, mask, strict=True) if flag]
    made = split(given_ids(ids, mask), TOKENIZERS["bert"], settings)
    assert [token for piece in made for token in piece.input_ids[piece.trainable].tolist()] == kept
    if objective == "causal":
        sequences = encode_documents([given_ids(ids, mask)], TOKENIZERS["bert"], settings)
        assert [token for _, s, _ in sequences for token in s.gold_ids("causal").tolist()] == kept


def test_given_special_tokens_are_never_masked():
    (piece,) = split(given_ids([1, 5, 2], [1, 1, 1]), TOKENIZERS["bert"], config(objective="masked"))
    assert piece.trainable.tolist() == [False, True, False]


@pytest.mark.parametrize("wrong", [-1, 300, 2**70])
def test_refuses_given_ids_outside_the_vocabulary(wrong):
    with pytest.raises(CorpusError) as error:
        split(given_ids([5, wrong, 6]), TOKENIZERS["bare"], config())
    assert str(error.value).startswith(
        "corpus.jsonl:7 (id 'an id'): a token id is not in the tokenizer's vocabulary "
        f"(expected 0 to 299, found {wrong})"
    )
    assert split(given_ids([0, 299]), TOKENIZERS["bare"], config())


@pytest.mark.parametrize(("ids", "mask"), [([5, 6, 7], [1, 0, 0]), ([], None), ([], [])])
def test_given_ids_of_which_nothing_is_trained_on_have_no_pieces(ids, mask):
    assert split(given_ids(ids, mask), TOKENIZERS["bare"], config()) == []


def test_documents_of_all_kinds_in_one_batch_are_those_one_by_one():
    settings, tokenizer = config(8), TOKENIZERS["both"]
    batch = [document(TEXT), given_ids([5, 6, 7]), document("é"), given_ids([9] * 20, [0, 1] * 10), document(SCRIPTS)]
    frame = frame_of(tokenizer, settings)
    together = split_documents([text for one in batch for text in readable(one, tokenizer)], tokenizer, frame, settings)
    for (one, made), alone in zip(together, batch, strict=True):
        assert one.document is alone
        for left, right in zip(made, split(alone, tokenizer, settings), strict=True):
            assert all(np.array_equal(getattr(left, key), getattr(right, key)) for key in vars(left))
