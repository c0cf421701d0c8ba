"""Token ids as text: the bytes a token stands for, and text that does nothing to a terminal."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

import store_fixtures
import tiny
from cache_tools.errors import DamageError
from cache_tools.format import layout
from cache_tools.inspection.decoding import TokenTexts, piece_bytes, printable, token_texts
from cache_tools.store.reader import Cache

HOSTILE = [
    "<script>alert(1)</script>",
    "\x1b[2J\x1b]0;title\x07 bell",
    "שלום עולם \u202eevil\u202c",
    "👨‍👩‍👧 🎉 é e\u0301",
    "[bold]markup[/bold] \\n :smile:",
    "\x00\x7f\x9b31m\u2028\u2029\u200b\ufeff\ue000",
]
BYTE_LEVEL = tiny.tokenizer().backend_tokenizer


@given(st.text())
def test_printable_text_has_no_character_that_acts(text):
    shown = printable(text)
    assert shown.isprintable()
    assert "\n" not in shown
    assert printable(text, keep="\n").replace("\n", "").isprintable()


@given(st.binary())
def test_bytes_of_any_kind_can_be_printed(content):
    assert printable(content).isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("שלום, é, 日本, 🎉 <b> [x] \\", "שלום, é, 日本, 🎉 <b> [x] \\"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\u202eb", "a\\u202eb"),
        (b"\xf0\x9f", "\\xf0\\x9f"),
        ("\t\r\n", "\\t\\r\\n"),
        ("\x9b", "\\x9b"),
    ],
)
def test_what_acts_is_escaped_and_the_rest_is_left_alone(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize("text", [*HOSTILE, *tiny.TEXTS[:3]])
def test_the_bytes_of_byte_level_tokens_make_up_the_text(text):
    texts = TokenTexts(BYTE_LEVEL)
    assert b"".join(map(texts.token, BYTE_LEVEL.encode(text).ids)) == text.encode()


def test_fragments_of_an_emoji_are_shown_as_bytes():
    texts = TokenTexts(BYTE_LEVEL)
    assert "".join(map(texts.shown, BYTE_LEVEL.encode("🎉").ids)) == "\\xf0\\x9f\\x8e\\x89"


def test_sentencepiece_tokens_keep_their_space_and_bytes_fall_back():
    made = Tokenizer(models.BPE({"▁the": 0, "<0xF0>": 1, "<0x0A>": 2, "<0xZZ>": 3}, [], byte_fallback=True))
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    texts = TokenTexts(made)
    assert [texts.token(i) for i in range(4)] == [b" the", b"\xf0", b"\n", b"<0xZZ>"]


def test_wordpieces_are_shown_as_the_vocabulary_has_them():
    assert piece_bytes("##ing", frozenset({"WordPiece"})) == b"##ing"
    assert piece_bytes("Ġ", frozenset({"WordPiece"})) == "Ġ".encode()


def test_special_tokens_and_ids_without_a_token_have_names():
    texts = TokenTexts(BYTE_LEVEL)
    assert texts.shown(0) == "<|end|>"
    assert texts.shown(2**31) == "<id 2147483648>"
    assert TokenTexts(None).shown(5) == "<id 5>"


def test_a_tokenizer_that_cannot_be_read_leaves_numbers(tmp_path):
    """The fixture's tokenizer file has its right hash and is none, as one of a later version may look."""
    assert token_texts(store_fixtures.make_cache(tmp_path).open().encoding).shown(5) == "<id 5>"


def test_a_changed_tokenizer_is_refused(tmp_path):
    encoding = store_fixtures.make_cache(tmp_path).open().encoding
    store_fixtures.flip_bit(encoding.path / layout.TOKENIZER / "tokenizer.json")
    with pytest.raises(DamageError, match=r"tokenizer\.json: the file is not the one"):
        token_texts(encoding)


def test_the_surfaces_of_a_sequence_make_up_its_text(tmp_path):
    values = tiny.capture_values(tmp_path)
    tiny.write_corpus(tmp_path / "corpus.jsonl", HOSTILE + tiny.TEXTS[:4])
    tiny.run(values)
    encoding = Cache(values["cache"]).encoding()
    texts = token_texts(encoding)
    sequences = [s for shard in range(len(encoding.shards)) for s in encoding.sequences(shard)]
    assert len(sequences) > len(HOSTILE)
    for sequence in sequences:
        surfaces = texts.surfaces(sequence)
        assert len(surfaces) == len(sequence.input_ids)
        assert b"".join(surfaces).removesuffix(b"<|end|>") == sequence.text.encode()


def test_decoding_needs_no_model_library():
    code = "import sys, cache_tools.inspection.decoding; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
