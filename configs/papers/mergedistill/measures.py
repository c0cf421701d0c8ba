"""Measures of a model at masked tokens, and of a tokenizer."""

from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer

from logitcask import evaluate


def evaluated(model: Path, cache: Path, vocabulary: Path | None = None) -> dict[str, float]:
    """Return the measures of a model on the held-out split."""
    result = evaluate(model, cache, vocabulary=vocabulary, batch_size=64)
    return {
        "top1": result.accuracy,
        "positions": result.positions,
        "cross_entropy_nats": result.cross_entropy_nats,
        "kl_to_teacher_nats": result.kl_to_teacher_nats,
        "top1_agreement": result.top1_agreement,
    }


def split_otherwise(own: Path, union: Path, texts: list[str]) -> float:
    """Return the share of a language's words that the union's tokenizer splits unlike the teacher's own.

    Args:
        own: Folder of the teacher's tokenizer.
        union: Folder of the union's.
        texts: Texts of the language.
    """
    tokenizers = [Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (own, union)]
    words = Counter(word for text in texts for word in text.split())
    different = [word for word in words if len({tuple(tokenizer.encode(word).tokens) for tokenizer in tokenizers}) > 1]
    return sum(words[word] for word in different) / words.total()
