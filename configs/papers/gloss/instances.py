"""Word senses in context, from WordNet alone: usage examples that hold a word of several senses.

An instance is an example of a synset in which one of the synset's words stands, literally or inflected, and that
word has other senses. Its candidates are all synsets of the word, of every part of speech. Glosses are definitions
without their examples, for these are the sentences.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from configs.papers.wordnet import FILES, Synset


class Instance(NamedTuple):
    """A word in a sentence, and what it might mean."""

    id: str
    """Its synset and the number of the example, such as ``n00001740/0``."""
    lemma: str
    sentence: str
    """With the word in quotation marks."""
    sense: str
    """Id of the synset that it means."""
    candidates: tuple[str, ...]
    """Ids of all synsets of the word, by part of speech and in WordNet's order of offsets."""


def instances(synsets: Sequence[Synset], most_senses: int) -> Iterator[Instance]:
    """Yield an instance for each example that has one, in the order of the synsets.

    Args:
        synsets: All of them.
        most_senses: Words of more senses are passed over.
    """
    senses = by_lemma(synsets)
    for synset in synsets:
        words = [lemma for lemma in synset.lemmas if 2 <= len(senses[lemma.lower()]) <= most_senses]
        for number, example in enumerate(synset.examples):
            for lemma in words:
                sentence = marked(example, lemma)
                if sentence is not None:
                    yield Instance(f"{synset.id}/{number}", lemma, sentence, synset.id, senses[lemma.lower()])
                    break


def by_lemma(synsets: Iterable[Synset]) -> dict[str, tuple[str, ...]]:
    """Return the synsets of each word in lower case."""
    ids_of: dict[str, list[str]] = defaultdict(list)
    for synset in synsets:
        for lemma in dict.fromkeys(lemma.lower() for lemma in synset.lemmas):
            ids_of[lemma].append(synset.id)
    return {lemma: tuple(ids) for lemma, ids in ids_of.items()}


def marked(sentence: str, lemma: str) -> str | None:
    """Return a sentence with the first form of a word in quotation marks; None if there is none."""
    match = re.search(rf"\b({forms(lemma)})\b", sentence, re.IGNORECASE)
    if match is None:
        return None
    return f'{sentence[: match.start()]}" {match[0]} "{sentence[match.end() :]}'


def forms(lemma: str) -> str:
    """Return a pattern of a word and its regular inflections."""
    last = re.escape(lemma[-1])
    parts = [rf"{re.escape(lemma)}(?:s|es|d|ed|ing|er|est|{last}ed|{last}ing)?"]
    if lemma.endswith(("e", "y")):
        parts.append(rf"{re.escape(lemma[:-1])}(?:ing|ies|ied|ier|iest)")
    return "|".join(parts)


def sense_numbers(wordnet: Path) -> dict[tuple[str, str], int]:
    """Return by word in lower case and synset the number of the sense, 1 for the most frequent of its part of speech.

    From ``index.noun`` and the like: word, part of speech, number of synsets, and at the end of the line their offsets.
    """
    numbers: dict[tuple[str, str], int] = {}
    for pos, name in FILES.items():
        for line in (wordnet / f"index.{name}").read_text(encoding="utf-8").splitlines():
            if not line.startswith("  "):
                lemma, _, count, *fields = line.split()
                offsets = enumerate(fields[-int(count) :], 1)
                numbers |= {(lemma.replace("_", " "), f"{pos}{offset}"): number for number, offset in offsets}
    return numbers
