"""Four tasks of understanding that a model is fine-tuned on, as labelled records.

=================== ======================================================= ============== ========================
task                text and label                                          read from      held out with its group
=================== ======================================================= ============== ========================
questions           a question; what kind of thing it asks for, 6 classes   NLTK's qc      the question
polarity            a sentence of a film review; for or against             NLTK's corpus  the sentence
entailment          two texts; whether the second follows from the first    NLTK's rte     the first text
word-in-context     two sentences with a word; whether it means the same    WordNet        the word
=================== ======================================================= ============== ========================

``python -m nltk.downloader qc sentence_polarity rte`` fetches the first three.

The last one is made as the data set WiC was, from usage examples. Two senses of a word with two examples each give four
pairs: both senses with their own examples, and the examples crosswise. Each sentence is in one pair of either label, on
the same side, so a sentence alone says nothing about the label. No held-out pair holds a sense that the students have
read a labelled gloss of, and no other pair holds a sense that a held-out one holds.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

from configs.papers.gloss.instances import Instance
from configs.papers.mtbert import questions as trec
from configs.papers.mtbert.data import Record, digest
from pipeline.encoding.held_out import is_held_out

FRACTION = 0.3
"""Share of a task's groups that is held out."""
EXAMPLES = 2
"""Sentences that are taken of each sense."""
SAME, DIFFERENT = "[same]", "[different]"


def questions(folder: Path) -> list[Record]:
    """Return the questions in a folder with their coarse class, such as ``[enty]``; each question once."""
    records = {record["text"]: record for name in trec.FILES for record in trec.questions(folder / name)}
    return [{**record, "label": record["label"].partition(":")[0] + "]"} for record in records.values()]


def polarity(folder: Path) -> list[Record]:
    """Return the sentences of ``rt-polarity.neg`` and ``rt-polarity.pos`` in a folder, each once."""
    labels = {
        line.strip(): f"[{label}]"
        for label in ("neg", "pos")
        for line in (folder / f"rt-polarity.{label}").read_text(encoding="utf-8").splitlines()
    }
    return [record(text, text, label) for text, label in labels.items()]


def entailment(folder: Path) -> list[Record]:
    """Return the pairs of all files of RTE 1 to 3 in a folder, the two texts with a separator between them."""
    records = {}
    for path in sorted(folder.glob("rte*.xml")):
        for pair in ElementTree.parse(path).getroot():
            first, second = (" ".join((pair.findtext(side) or "").split()) for side in "th")
            follows = pair.get("value", pair.get("entailment")) in ("TRUE", "YES")
            text = f"{first} [SEP] {second}"
            records[text] = record(text, first, "[entailed]" if follows else "[open]")
    return list(records.values())


def word_in_context(instances: Sequence[Instance], trained: Collection[str]) -> list[Record]:
    """Return pairs of sentences with the same word.

    Args:
        instances: Words in sentences.
        trained: Ids of synsets that a held-out pair must not hold.
    """
    by_word = {word: list(couples(of_word, trained)) for word, of_word in grouped(instances).items()}
    held_out = {word for word in by_word if is_held_out(digest(word)[:16], FRACTION)}
    tested = {
        sense
        for word in held_out
        for couple in by_word[word]
        if senses(couple).isdisjoint(trained)
        for sense in senses(couple)
    }
    records = [
        record(f"{mine.sentence} [SEP] {other.sentence}", word, SAME if mine.sense == other.sense else DIFFERENT)
        for word, of_word in by_word.items()
        for couple in of_word
        if (senses(couple) <= tested if word in held_out else not senses(couple) & tested)
        for mine, _ in couple
        for _, other in couple
    ]
    return list({each["id"]: each for each in records}.values())


Couple = tuple[Sequence[Instance], ...]
"""Two senses of a word, with ``EXAMPLES`` instances each."""


def grouped(instances: Sequence[Instance]) -> dict[str, dict[str, list[Instance]]]:
    """Return instances by word in lower case and sense."""
    groups: dict[str, dict[str, list[Instance]]] = defaultdict(lambda: defaultdict(list))
    for instance in instances:
        groups[instance.lemma.lower()][instance.sense].append(instance)
    return groups


def couples(by_sense: dict[str, list[Instance]], trained: Collection[str]) -> Iterator[Couple]:
    """Yield senses of a word two by two, each in one couple; those that were trained on come first."""
    repeated = [of_sense[:EXAMPLES] for of_sense in by_sense.values() if len(of_sense) >= EXAMPLES]
    repeated.sort(key=lambda of_sense: of_sense[0].sense not in trained)
    yield from zip(repeated[::2], repeated[1::2], strict=False)


def senses(couple: Couple) -> set[str]:
    """Return the two senses of a couple."""
    return {instance.sense for of_sense in couple for instance in of_sense}


def record(text: str, group: str, label: str) -> Record:
    """Return a record; texts of one group are on the same side of the split."""
    return {"id": digest(text)[:16], "group": digest(group)[:16], "text": text, "label": label}
