"""A start at rest: a model that has learned to predict masked words of glosses and of pairs before any student begins.

What a student loses as a language model is measured on both forms of text. A start that has never seen one of them
would still gain much there, and that gain would hide what the labels cost. So the start first learns the masked words
of both, from synsets that are not held out, with the public trainer and no label. ``--heal-steps`` says how long.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from configs.papers.cohesive.texts import Document, wordnet_documents, write
from configs.papers.gloss.corpora import TokensOf
from configs.papers.recipes import Overrides, capture_file, make_once, train_file
from configs.papers.wordpiece import with_tokenizer_of

HERE = Path(__file__).parent
GLOSSES = 40_000
"""Synsets whose words, definition and examples are read, at most."""
MOST_TOKENS = 64
"""As in the capture file."""
TRAINING: Overrides = {
    "loss.label_weight": None,
    "loss.token_weight": None,
    "training.per_device_train_batch_size": 32,
    "training.learning_rate": 1e-3,
    "training.warmup_steps": 100,
    "training.adam_beta2": 0.98,
}


def healed(
    wordnet: Path, start: Path, tokens_of: TokensOf, pairs: Path, work: Path, steps: int, segments: bool
) -> Path:
    """Train a model on the masked words of glosses and pairs; return the folder of the healed model.

    Args:
        wordnet: Folder of WordNet's data files.
        start: Folder of the masked language model, with the labels among its tokens.
        tokens_of: Returns the numbers of tokens of texts.
        pairs: Corpus of pairs, of which those of training synsets are read and the labels are not.
        work: Folder for the corpus, the cache and the model.
        steps: Number of steps of 32 texts, with a learning rate that falls to 0.
        segments: Whether the two sides of a pair are read as two segments.
    """
    make_once(work / "corpus", lambda folder: write_both(wordnet, tokens_of, pairs, folder))
    cache = capture_file(
        HERE / "capture.yaml",
        {
            "corpus.paths": [work / "corpus" / "both.jsonl"],
            "corpus.label_field": None,
            "encoding.masking.probability": 0.15,
            "encoding.segments": segments,
            "teachers.0.model": with_tokenizer_of(start, work / "nobody"),
            "cache": work / "cache",
        },
    )
    output = work / f"{steps}-steps"
    places = {"student.pretrained": start, "cache": cache, "training.output_dir": output}
    return train_file(HERE / "student.yaml", {**TRAINING, **places, "training.max_steps": steps})


def write_both(wordnet: Path, tokens_of: TokensOf, pairs: Path, folder: Path) -> None:
    """Write the corpus of both forms; stage one holds out the same groups of it as of the pairs.

    A text that fills more than a sequence is left out: of a pair, its second half would be read as a first side.
    """
    folder.mkdir(parents=True)
    documents = [*islice(wordnet_documents(wordnet), GLOSSES), *without_labels(pairs)]
    lengths = tokens_of([document.text for document in documents])
    fitting = (document for document, length in zip(documents, lengths, strict=True) if length <= MOST_TOKENS)
    write(folder / "both.jsonl", fitting)


def without_labels(pairs: Path) -> Iterator[Document]:
    """Yield the pairs of a corpus as plain texts."""
    for record in map(json.loads, pairs.read_text(encoding="utf-8").splitlines()):
        yield Document(record["id"], record["group"], record["text"])
