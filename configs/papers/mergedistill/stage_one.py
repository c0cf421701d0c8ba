"""Stage zero and one of the recipe: tokenizers, teachers, and caches of what the teachers say at masked positions.

::

    <work>/<language>/untrained        a WordPiece tokenizer, and the smallest model that it fits
    <work>/<language>/text             the language's text, masked: what its teacher is trained on
    <work>/<language>/teacher/final    the teacher
    <work>/<language>/cache            the text masked otherwise, and what the teacher says of it
    <work>/vocabulary                  the union
    <work>/multilingual/teacher/final  one teacher of all languages over the union
    <work>/multilingual/<language>     the sequences of <language>/cache in the union's ids, and what it says of them

The multilingual teacher reads the sequences that the others read, piece for piece and mask for mask, so that students
of either differ in nothing but what they were told. For that its corpora hold ids in the place of text, and a
mask that names the slots; that nothing is drawn anew needs slots that are always shown as the mask token
(``mask_share: 1``).
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from cache_tools.store.reader import Cache
from cache_tools.vocabularies.folder import read_vocabulary
from configs.papers.recipes import command, make_once, run_file
from configs.papers.wordpiece import untrained
from trainer.data.translation import student_ids, translated_ids

HERE = Path(__file__).parent
TEXT_ALONE = [
    "encoding.masking.seed=0",
    "encoding.masking.copies=4",
    "teachers.0.name=none",
    "teachers.0.target.k=1",
]
"""Masks that teachers are trained with: others than those they are asked about."""
AS_GIVEN = [
    "corpus.ids_field=ids",
    "corpus.mask_field=mask",
    "encoding.masking.probability=1",
    "encoding.masking.copies=1",
]
"""A corpus of ids, of which every marked one is a slot."""


def capture_text(corpus: Path, folder: Path, tokens: int, changes: Sequence[str]) -> None:
    """Encode a language's masked text with a tokenizer of its own, for a teacher to learn from."""
    untrained((record["text"] for record in records(corpus)), tokens, folder / "untrained", lowercase=False)
    capture(folder / "text", corpus, folder / "untrained", *changes, *TEXT_ALONE)


def train_teacher(folder: Path, changes: Sequence[str]) -> None:
    """Train the teacher of one language."""
    places = f"cache={folder / 'text'}", f"training.output_dir={folder / 'teacher'}"
    run_file("train", HERE / "teacher.yaml", *changes, *places)


def train_multilingual(work: Path, languages: Sequence[str], changes: Sequence[str]) -> Path:
    """Train one teacher of all languages and return its folder."""
    folder = work / "multilingual" / "teacher"
    places = f"vocabulary={work / 'vocabulary'}", f"training.output_dir={folder}"
    caches = listed(work / language / "text" for language in languages)
    run_file("train", HERE / "teacher_multilingual.yaml", *changes, caches, *places)
    return folder / "final"


def capture(cache: Path, corpus: Path, model: Path, *changes: str) -> None:
    """Keep what a model says of a corpus in ``cache``."""
    places = f"corpus.paths=[{corpus}]", f"teachers.0.model={model}", f"cache={cache}"
    run_file("capture", HERE / "capture.yaml", *changes, *places)


def capture_same_text(work: Path, language: str, model: Path, changes: Sequence[str]) -> None:
    """Keep what the multilingual teacher says of the very sequences that a language's own teacher read."""
    folder = work / "multilingual" / language
    make_once(folder, lambda made: write_sequences(work / language / "cache", work / "vocabulary", made))
    capture(folder / "cache", folder / "sequences.jsonl", model, *changes, *AS_GIVEN)


def write_sequences(cache: Path, vocabulary: Path, folder: Path) -> None:
    """Write a cache's sequences, unmasked, in a union's ids, each with its slots."""
    encoding = Cache(cache).encoding()
    to = student_ids(read_vocabulary(vocabulary), encoding)
    assert to is not None
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "sequences.jsonl").open("w", encoding="utf-8") as lines:
        for shard in range(len(encoding.shards)):
            for each in encoding.sequences(shard):
                assert each.original_ids is not None
                ids, mask = translated_ids(each.original_ids, to).tolist(), each.position_mask.astype(int).tolist()
                record = {"id": f"{each.document_id}/{each.sequence_id}", "group": each.group_id}
                lines.write(json.dumps(record | {"ids": ids, "mask": mask}) + "\n")


def narrowed(cache: Path, k: int) -> Path:
    """Return a cache that keeps the k likeliest tokens of another, which keeps as many or more."""
    if Cache(cache).encoding().teacher().codec.k == k:
        return cache
    target = cache.with_name(f"k{k}")

    def make(partial: Path) -> None:
        command("subset", cache, partial, "--k", k)

    return make_once(target, make)


def listed(caches: Iterator[Path]) -> str:
    """Return the key of a student file that names several caches."""
    return f"caches=[{', '.join(f'{{cache: {cache}}}' for cache in caches)}]"


def records(corpus: Path) -> Iterator[dict[str, str]]:
    """Yield the records of a corpus."""
    with corpus.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
