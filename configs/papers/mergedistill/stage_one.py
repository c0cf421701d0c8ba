"""Stages zero and one of the recipe: tokenizers, teachers, and caches of their predictions at masked positions.

::

    <work>/<language>/untrained        a WordPiece tokenizer, and the smallest model that it fits
    <work>/<language>/text             the language's text, masked: what its teacher is trained on
    <work>/<language>/teacher/final    the teacher
    <work>/<language>/cache            the text with other masks, and the teacher's predictions
    <work>/vocabulary                  the union
    <work>/multilingual/teacher/final  one teacher of all languages over the union
    <work>/multilingual/<language>     the sequences of <language>/cache in the union's ids, and its predictions

The multilingual teacher reads the same sequences with the same masks as the other teachers, so that students of either
differ in the predictions alone. Its corpora therefore hold token ids instead of text, and a mask that marks the slots.
All slots are shown as the mask token (``mask_share: 1``), because random replacements would be drawn again.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from cache_tools.store.reader import Cache
from cache_tools.vocabularies.folder import read_vocabulary
from configs.papers.recipes import Overrides, capture_file, command, make_once, train_file
from configs.papers.wordpiece import untrained
from trainer.data.translation import student_ids, translated_ids

HERE = Path(__file__).parent
TEXT_ALONE = {
    "encoding.masking.seed": 0,
    "encoding.masking.copies": 4,
    "teachers.0.name": "none",
    "teachers.0.target.k": 1,
}
"""Masks that teachers are trained with; other masks than those of the capture."""
AS_GIVEN = {
    "corpus.ids_field": "ids",
    "corpus.mask_field": "mask",
    "encoding.masking.probability": 1,
    "encoding.masking.copies": 1,
}
"""A corpus of ids, of which every marked one is a slot."""


def capture_text(corpus: Path, folder: Path, tokens: int, changes: Overrides) -> None:
    """Encode a language's masked text with a tokenizer of its own, for a teacher to learn from."""
    untrained((record["text"] for record in records(corpus)), tokens, folder / "untrained", lowercase=False)
    capture(folder / "text", corpus, folder / "untrained", {**changes, **TEXT_ALONE})


def train_teacher(folder: Path, changes: Overrides) -> None:
    """Train the teacher of one language."""
    places = {"cache": folder / "text", "training.output_dir": folder / "teacher"}
    train_file(HERE / "teacher.yaml", {**changes, **places})


def capture_texts(texts: Path, work: Path, languages: Sequence[str], tokens: int, changes: Overrides) -> None:
    """Encode each language's masked text with a tokenizer of its own, and unite their vocabularies."""
    for language in languages:
        capture_text(texts / f"{language}.jsonl", work / language, tokens, changes)
    command("vocabulary", *(work / language / "text" for language in languages), "-o", work / "vocabulary")


def train_together(work: Path, languages: Sequence[str], output: Path, changes: Overrides) -> Path:
    """Train one teacher of some languages over the union and return its folder."""
    places = {"vocabulary": work / "vocabulary", "training.output_dir": output}
    caches = [{"cache": work / language / "text"} for language in languages]
    return train_file(HERE / "teacher_multilingual.yaml", {**changes, "caches": caches, **places})


def capture(cache: Path, corpus: Path, model: Path, changes: Overrides) -> None:
    """Store a model's predictions over a corpus in ``cache``."""
    places = {"corpus.paths": [corpus], "teachers.0.model": model, "cache": cache}
    capture_file(HERE / "capture.yaml", {**changes, **places})


def capture_same_text(work: Path, language: str, model: Path, changes: Overrides) -> None:
    """Store the multilingual teacher's predictions over the same sequences that a language's own teacher read."""
    folder = work / "multilingual" / language
    make_once(folder, lambda made: write_sequences(work / language / "cache", work / "vocabulary", made))
    capture(folder / "cache", folder / "sequences.jsonl", model, {**changes, **AS_GIVEN})


def write_sequences(cache: Path, vocabulary: Path, folder: Path) -> None:
    """Write a cache's sequences, unmasked, in a union's ids, each with its slots."""
    encoding = Cache(cache).encoding()
    to = student_ids(read_vocabulary(vocabulary), encoding)
    assert to is not None
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "sequences.jsonl").open("w", encoding="utf-8") as lines:
        for shard in range(len(encoding.shards)):
            for sequence in encoding.sequences(shard):
                assert sequence.original_ids is not None
                ids, mask = (
                    translated_ids(sequence.original_ids, to).tolist(),
                    sequence.position_mask.astype(int).tolist(),
                )
                record = {"id": f"{sequence.document_id}/{sequence.sequence_id}", "group": sequence.group_id}
                lines.write(json.dumps(record | {"ids": ids, "mask": mask}) + "\n")


def narrowed(cache: Path, k: int) -> Path:
    """Return a cache that keeps the k likeliest tokens of another, which keeps as many or more."""
    if Cache(cache).encoding().teacher().codec.k == k:
        return cache
    target = cache.with_name(f"k{k}")

    def make(partial: Path) -> None:
        command("subset", cache, partial, "--k", k)

    return make_once(target, make)


def records(corpus: Path) -> Iterator[dict[str, str]]:
    """Yield the records of a corpus."""
    with corpus.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
