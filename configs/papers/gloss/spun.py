"""Paragraphs spun with synonyms, as tools do that hide plagiarism: a fifth task, original or spun.

The paragraphs are descriptions of Debian's packages. Half of them are spun: of the words that have a synonym, a share
between 10 and 40 % is replaced by one. A synonym is another word of a synset of the part of speech that most of the
word's synsets have, so it is of that part of speech too. No inflection is mended, as spinning tools often do not.

A paragraph is held out with its source package, and so is every word that may come in: half of them come into held-out
paragraphs alone, the others into no held-out one. So it is of no use in a held-out paragraph to remember which words
came in during training, or for what. What can be learned is that a word does not fit.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

from configs.papers.gloss.instances import by_lemma
from configs.papers.gloss.tasks import FRACTION, record
from configs.papers.mtbert.data import Record, digest
from configs.papers.wordnet import Synset
from pipeline.encoding.held_out import is_held_out

ORIGINAL, SPUN = "[original]", "[spun]"
SHARES = (0.1, 0.4)
"""Smallest and largest share of a paragraph's words with a synonym that is replaced."""
LEAST_WORDS = 10
"""Paragraphs with fewer words that have a synonym are left out, spun or not."""
LEAST_LETTERS = 4
"""Shorter words are left alone, most of them being function words."""
MOST_CHARACTERS = 300
"""A paragraph ends with the last sentence that ends before."""

Synonyms = Mapping[str, Sequence[str]]
"""By word, in lower case, what may replace it."""


def paragraphs(debian: Path, everything: Sequence[Synset]) -> list[Record]:
    """Return the paragraphs of a file of descriptions; a hash of each decides whether it is spun."""
    sides = {is_test: synonyms(everything, is_test) for is_test in (False, True)}
    records = []
    for description in map(json.loads, debian.read_text(encoding="utf-8").splitlines()):
        text = beginning(description["text"])
        of_side = sides[is_held_out(digest(description["group"])[:16], FRACTION)]
        if len(replaceable(text, of_side)) >= LEAST_WORDS:
            draw = Random(digest(text))
            label = draw.choice((ORIGINAL, SPUN))
            shown = spun(text, of_side, draw.uniform(*SHARES), draw) if label == SPUN else text
            records.append(record(shown, description["group"], label))
    return list({each["id"]: each for each in records}.values())


def synonyms(everything: Sequence[Synset], is_test: bool) -> Synonyms:
    """Return what may replace a word, on one side of the split.

    Args:
        everything: All synsets.
        is_test: Whether to return the held-out side's.
    """
    synsets_of, of_side = by_lemma(everything), defaultdict[str, set[str]](set)
    for synset in everything:
        words = {lemma for lemma in synset.lemmas if lemma.isalpha() and lemma.islower()}
        incoming = {word for word in words if is_held_out(f"incoming:{word}", 0.5) == is_test}
        for word in words:
            if len(word) >= LEAST_LETTERS and main_part_of_speech(synsets_of[word]) == synset.pos:
                of_side[word] |= incoming - {word}
    return {word: sorted(others) for word, others in of_side.items() if others}


def main_part_of_speech(synset_ids: Sequence[str]) -> str:
    """Return the part of speech of most of a word's synsets, the first of several."""
    return Counter(name[0] for name in synset_ids).most_common(1)[0][0]


def beginning(text: str) -> str:
    """Return the first sentences of a text."""
    sentences = re.findall(r".+?(?:[.!?](?=\s|$)|$)", text[:MOST_CHARACTERS], re.DOTALL)
    whole = sentences if len(text) <= MOST_CHARACTERS else sentences[:-1]
    return "".join(whole).strip()


def replaceable(text: str, of_side: Synonyms) -> list[re.Match[str]]:
    """Return the words of a text that have a synonym, in order."""
    return [word for word in re.finditer(r"[A-Za-z]+", text) if word[0].lower() in of_side]


def spun(text: str, of_side: Synonyms, share: float, draw: Random) -> str:
    """Return a text in which a share of the words that have a synonym is replaced, one at least."""
    words = replaceable(text, of_side)
    chosen = draw.sample(words, max(1, round(share * len(words))))
    return "".join(pieces(text, sorted(chosen, key=lambda word: word.start()), of_side, draw))


def pieces(text: str, words: Sequence[re.Match[str]], of_side: Synonyms, draw: Random) -> Iterator[str]:
    """Yield what stands between the words, and what replaces each, with a capital where it had one."""
    end = 0
    for word in words:
        yield text[end : word.start()]
        replacement = draw.choice(of_side[word[0].lower()])
        yield replacement.capitalize() if word[0][0].isupper() else replacement
        end = word.end()
    yield text[end:]
