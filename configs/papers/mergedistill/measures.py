"""Measures of a model, kept in a file beside it, so that a recipe that is run again measures nothing twice."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cache_tools.storage import write_object
from logitcask import evaluate


def once(path: Path, measure: Callable[[], Any]) -> Any:
    """Return the content of a JSON file; if there is none, call ``measure`` and write its result first."""
    if not path.exists():
        write_object(path, (json.dumps(measure()) + "\n").encode())
    return json.loads(path.read_text())


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
