"""The recipe's texts: WordNet's definitions and Debian's descriptions, and a task with a word for each class.

    python -m configs.papers.wordnet runs/wordnet
    python -m configs.papers.mergedistill.fetch runs/debian en
    python -m configs.papers.glmd.texts runs/wordnet runs/debian/en.jsonl runs/glmd/texts

Written are ``teacher.jsonl``, on which the teacher is pre-trained, ``student.jsonl``, a part of it that is captured,
and ``task.jsonl``: ``[MASK] : <definition>`` of a noun, whose label is the name of its lexicographer file, such as
``animal``. No definition of the task is in the other two files.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from configs.papers.wordnet import Synset, synsets

CLASSES = (
    *("act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling", "food"),
    *("group", "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process", "quantity"),
    *("relation", "shape", "state", "substance", "time"),
)
"""The words of the classes; ``noun.Tops``, the 51 nouns that stand above all others, is left out."""

WORDS = 16
"""Largest number of words of a definition in the task; longer definitions are cut, to keep sequences short."""


@click.command()
@click.argument("wordnet", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("descriptions", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
@click.option("--task", default=12_000, show_default=True, help="Number of definitions in the task.")
@click.option("--documents", default=4000, show_default=True, help="Number of Debian's descriptions.")
@click.option(
    "--student", default=15_000, show_default=True, help="Number of texts that students are distilled on first."
)
def write(wordnet: Path, descriptions: Path, output: Path, task: int, documents: int, student: int) -> None:
    """Write the recipe's texts to OUTPUT."""
    all_synsets = sorted(synsets(wordnet), key=lambda synset: by_hash(synset.id))
    nouns = [synset for synset in all_synsets if word_of(synset) in CLASSES]
    of_task = nouns[:task]
    left_out = {synset.definition for synset in of_task}
    texts = [{"id": s.id, "text": s.definition} for s in all_synsets if s.definition not in left_out]
    texts += [json.loads(line) for line in descriptions.read_text(encoding="utf-8").splitlines()[:documents]]
    texts.sort(key=lambda text: by_hash(text["id"]))
    output.mkdir(parents=True, exist_ok=True)
    write_lines(output / "teacher.jsonl", texts)
    write_lines(output / "student.jsonl", texts[:student])
    write_lines(output / "task.jsonl", map(cloze, of_task))
    click.echo(f"{len(texts)} texts, {min(student, len(texts))} of them for students; {len(of_task)} of the task")


def word_of(synset: Synset) -> str:
    """Return the word for a synset's class; an empty one if it is no noun."""
    return synset.lexname.removeprefix("noun.") if synset.pos == "n" else ""


def cloze(synset: Synset) -> dict[str, Any]:
    """Return a record of the task."""
    definition = " ".join(synset.definition.split()[:WORDS])
    return {"id": synset.id, "text": f"[MASK] : {definition}", "label": word_of(synset)}


def by_hash(name: str) -> str:
    """Return a sort key: a random order that is always the same, and independent of the held-out split."""
    return hashlib.sha256(f"chosen {name}".encode()).hexdigest()


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines."""
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
