"""Tokenizers of six families, trained on eight scripts, and sequences that a capture would make with them."""

import json
from functools import cache, lru_cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from cache_tools.alignments.making import Pairing
from cache_tools.alignments.spans import TokenBytes
from cache_tools.alignments.student_tokenizer import StudentTokenizer
from cache_tools.format.sequences import Sequence
from cache_tools.format.tokenizer_files import SETTINGS
from cache_tools.vocabularies.folder import OpenTokenizer
from cache_tools.vocabularies.tokenizer_folder import STATE, TokenizerFolder, open_tokenizer
from configs.papers.wordpiece import wordpiece
from pipeline.config.encoding import EncodingConfig
from pipeline.corpus.documents import Document
from pipeline.encoding.sequences import encode_documents

TEXTS = (
    "The quick brown fox can't jump over the lazy dog; it's 12345 and 3.14 and HELLO World.",
    "Привет, мир! Ёлка и йод стоят рядом.",
    "Ελληνικά με τόνους και ς στο τέλος.",
    "中文分词没有空格。繁體字也一樣！日本語のかなとカナ。",
    "العربية من اليمين إلى اليسار مَعَ الحَرَكات ١٢٣",
    "हिन्दी में क्षेत्र और மொழி தமிழ் ไทยไม่เว้นวรรค",
    "한국어 띄어쓰기와 조합형 글자",
    "שלום עולם עִם נִקּוּד",
    "😀 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 ☺️ → ∀x∈ℝ: x²≥0",
    "cafe\u0301 n\u0303 e\u0301\u0323 Å ﬁne ½ ｆｕｌｌ　ｗｉｄｔｈ",
    "line one\r\nline two\r\n\r\n\tindented\n  two  spaces   three ",
    "   leading spaces and a trailing one ",
    "text with <|end|> and </s> and [SEP] inside <unk> it",
    "\u200bzero\u200dwidth\ufeff no\u00a0break \x00 control",
)
"""Eight scripts, emoji, combining marks, line ends, white space, and the names of special tokens inside text."""

SPECIALS = ["<unk>", "<s>", "</s>"]
FAMILIES = (
    "byte_level",
    "byte_level_trimmed",
    "wordpiece",
    "uncased_wordpiece",
    "unigram",
    "normalised_unigram",
    "byte_fallback_bpe",
)


@cache
def tokenizer(family: str, size: int = 400) -> PreTrainedTokenizerFast:
    """Train a tokenizer of a family on TEXTS."""
    if family.endswith("wordpiece"):
        made = wordpiece(TEXTS, size, family.startswith("uncased"))
        return PreTrainedTokenizerFast(tokenizer_object=made, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")
    if family.startswith("byte_level"):
        return _byte_level(size, trimmed=family.endswith("trimmed"))
    return _unigram(size, family.startswith("normalised")) if "unigram" in family else _byte_fallback(size)


def folder_of(made: PreTrainedTokenizerFast) -> TokenizerFolder:
    """Return a tokenizer as its folder is opened."""
    return _opened(made.backend_tokenizer.to_str(), made.eos_token)


def sequences(family: str, texts: tuple[str, ...] = TEXTS, length: int = 64, append_eos: bool = True) -> list[Sequence]:
    """Return the sequences that a capture makes of texts."""
    config = EncodingConfig(max_length_tokens=length, append_eos=append_eos)
    documents = [Document(f"doc{i}", f"doc{i}", text, None, "here") for i, text in enumerate(texts)]
    return [encoded.sequence for encoded in encode_documents(documents, tokenizer(family), config)]


def pairing(teacher: str, student: str) -> Pairing:
    """Return two families as an alignment sees them."""
    return Pairing.between(_as_teacher(folder_of(tokenizer(teacher))), folder_of(tokenizer(student)))


def _as_teacher(folder: TokenizerFolder) -> OpenTokenizer:
    return OpenTokenizer(folder.tokenizer, json.loads(folder.files[SETTINGS]))


def save(family: str, folder: Path) -> Path:
    """Save a tokenizer as a folder."""
    tokenizer(family).save_pretrained(folder)
    return folder


@lru_cache
def _opened(state: str, eos: str | None) -> TokenizerFolder:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        (Path(folder) / STATE).write_text(state)
        (Path(folder) / SETTINGS).write_text(json.dumps({} if eos is None else {"eos_token": eos}))
        return open_tokenizer(folder)


def _byte_level(size: int, trimmed: bool) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.ByteLevel(trim_offsets=trimmed)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


def _unigram(size: int, normalised: bool) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC() if normalised else None
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=size, special_tokens=SPECIALS, unk_token="<unk>")
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _byte_fallback(size: int) -> PreTrainedTokenizerFast:
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=size + 256, special_tokens=[*SPECIALS, *fallback], limit_alphabet=60)
    made.train_from_iterator(TEXTS, trainer)
    state = json.loads(made.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in fallback]
    made = Tokenizer.from_str(json.dumps(state))
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def token_bytes(family: str) -> TokenBytes:
    """Return the bytes of a family's tokens."""
    return TokenBytes.of(tokenizer(family).backend_tokenizer)


def student(family: str) -> StudentTokenizer:
    """Return a family as a student's tokenizer."""
    return StudentTokenizer.of(folder_of(tokenizer(family)))
