"""Tokenizers of several families over the same few words, and caches made with them."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tiny
from cache_tools.store.reader import Cache
from configs.papers.wordpiece import wordpiece as trained_wordpiece

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROLES = {f"{name.strip('[]').lower()}_token": name for name in SPECIALS}
OTHER_TEXTS = [
    text.replace("the", "das").replace("until", "bis zur").replace("is kept", "bleibt") for text in tiny.TEXTS
]
"""The same documents with some other words."""


def wordpiece(texts: list[str], size: int = 200, lowercase: bool = False) -> PreTrainedTokenizerFast:
    """Train a WordPiece tokenizer that frames a text as [CLS] … [SEP]."""
    made = trained_wordpiece(texts, size, lowercase)
    return PreTrainedTokenizerFast(tokenizer_object=made, **ROLES)


def sentencepiece(pieces: list[str]) -> PreTrainedTokenizerFast:
    """Make a unigram tokenizer with byte fallback and BERT-like roles under other names."""
    specials = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
    scores = [(piece, -float(i)) for i, piece in enumerate(specials + pieces)]
    made = Tokenizer(models.Unigram(scores, unk_id=1, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    roles = dict(zip(("pad", "unk", "cls", "sep", "mask"), specials, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, **{f"{role}_token": name for role, name in roles.items()})


def capture_language(folder: Path, texts: list[str], seed: int = 0, size: int = 200, **changes: Any) -> Cache:
    """Capture a random masked teacher with a WordPiece tokenizer of its own over some texts."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = wordpiece(texts, size)
    made = tiny.model("bert", seed, vocab_size=len(tokenizer))
    made.save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    tiny.write_corpus(folder / "corpus.jsonl", texts)
    return tiny.capture(folder, folder / "teacher", objective="masked", **changes)
