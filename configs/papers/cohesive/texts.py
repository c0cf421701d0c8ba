"""Corpora of two domains, and a mixed one: WordNet's glosses, and descriptions of Debian's packages.

    python -m configs.papers.wordnet runs/wordnet
    python -m configs.papers.mergedistill.fetch runs/debian en --documents 70000
    python -m configs.papers.cohesive.texts runs/wordnet runs/debian/en.jsonl runs/cohesive/texts

A document's group begins with its domain, and is the same in its domain's corpus and in the mixed one: a synset, or
a source package. So what is held out of one is held out of the other.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import click

from configs.papers.wordnet import Synset, synsets

MIXED = "mixed"


class Document(NamedTuple):
    """A record of a corpus."""

    id: str
    group: str
    text: str

    @property
    def domain(self) -> str:
        """What its group begins with."""
        return domain_of(self.group)


@click.command()
@click.argument("wordnet", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("debian", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
@click.option("--synsets", "num_synsets", default=120_000, show_default=True, help="Number of synsets, at most.")
@click.option("--packages", "num_packages", default=30_000, show_default=True, help="Number of packages, at most.")
@click.option("--mixed", default=0.2, show_default=True, help="Share of both that goes into the mixed corpus.")
def texts(wordnet: Path, debian: Path, output: Path, num_synsets: int, num_packages: int, mixed: float) -> None:
    """Write wordnet.jsonl, debian.jsonl and mixed.jsonl to OUTPUT."""
    output.mkdir(parents=True, exist_ok=True)
    glosses = list(islice(wordnet_documents(wordnet), num_synsets))
    packages = list(islice(debian_documents(debian), num_packages))
    write(output / "wordnet.jsonl", glosses)
    write(output / "debian.jsonl", packages)
    write(output / f"{MIXED}.jsonl", [*beginning(glosses, mixed), *beginning(packages, mixed)])


def domain_of(group: str) -> str:
    """Return the domain of a group."""
    return group.partition(":")[0]


def wordnet_documents(folder: Path) -> Iterator[Document]:
    """Yield each synset's words, definition and examples, shuffled."""
    for synset in shuffled_synsets(folder):
        name = f"wordnet:{synset.id}"
        yield Document(name, name, "; ".join((f"{', '.join(synset.lemmas)}: {synset.definition}", *synset.examples)))


def shuffled_synsets(folder: Path) -> list[Synset]:
    """Return WordNet's synsets in an order that follows from their names alone."""
    return sorted(synsets(folder), key=lambda synset: hashlib.sha256(f"order {synset.id}".encode()).digest())


def debian_documents(path: Path) -> Iterator[Document]:
    """Yield the descriptions that ``configs/papers/mergedistill/fetch.py`` wrote, in its order."""
    with path.open(encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            yield Document(f"debian:{record['id']}", f"debian:{record['group']}", record["text"])


def beginning(documents: list[Document], share: float) -> list[Document]:
    """Return a share of the documents, from the first one on."""
    return documents[: round(share * len(documents))]


class Record(Protocol):
    """A line of a corpus."""

    def _asdict(self) -> dict[str, Any]: ...


def write(path: Path, documents: Iterable[Record]) -> None:
    """Write a corpus."""
    lines = (json.dumps(document._asdict(), ensure_ascii=False) + "\n" for document in documents)
    path.write_text("".join(lines), encoding="utf-8")


def read_texts(*paths: Path) -> Iterator[str]:
    """Yield the texts of corpora."""
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            yield from (json.loads(line)["text"] for line in lines)


if __name__ == "__main__":
    texts()
