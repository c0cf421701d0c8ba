"""The least that a classifier of texts has to beat: TF-IDF of the words, and logistic regression, without any model.

    python -m configs.papers.bag_of_words runs/mtbert/texts/wordnet.jsonl --held-out-fraction 0.3

prints its accuracy on the held-out texts of a labelled corpus. The split is the one that stage one makes of the same
file with the same fraction, so the line stands beside teachers and students in a table of theirs. A teacher below this
line was not trained to the end, and what its students show is how fast they learn, not how good the method is.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_tools.format.manifest import Split
from configs.papers.intervals import over_seeds_and_items
from configs.papers.linear import fitted
from configs.papers.recipes import labelled_sequences
from pipeline.encoding.held_out import is_held_out

# N: texts, C: classes, D: words

Features = Callable[[Sequence[str]], Tensor]


class Texts(NamedTuple):
    """Labelled texts of a split."""

    ids: list[str]
    texts: list[str]
    labels: list[str]


class Answers(NamedTuple):
    """What a classifier answered to N texts.

    Attributes:
        right_N: Whether the likeliest class is the label.
        nats_N: Cross-entropy.
    """

    right_N: NDArray[np.bool_]
    nats_N: NDArray[np.float32]


@click.command()
@click.argument("corpus", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--held-out-fraction", type=float, required=True, help="The fraction in the capture file.")
def line(corpus: Path, held_out_fraction: float) -> None:
    """Print the accuracy of a bag of words on the held-out texts of CORPUS, JSON lines with text and label."""
    train, test = split_of(corpus, held_out_fraction)
    answers = classified(train, test)
    commonest = Counter(train.labels).most_common(1)[0][0]
    interval = over_seeds_and_items(answers.right_N[None].astype(np.float64))
    click.echo(
        f"{corpus.name}: {len(train.texts):,} texts to learn from, {len(test.texts):,} held out, "
        f"{len(set(train.labels))} classes, {np.mean(np.array(test.labels) == commonest):.3f} in the commonest\n"
        f"TF-IDF and logistic regression: accuracy {interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}], "
        f"{answers.nats_N.mean():.3f} nats"
    )


def answers_on(corpus: Path, cache: Path) -> Answers:
    """Return the answers of a bag of words to a cache's held-out texts, in its order.

    Args:
        corpus: What the cache was captured from.
        cache: Its only encoding has labels.
    """
    splits: tuple[Split, Split] = ("train", "held_out")
    train, test = (texts_of(corpus, [s.document_id for s in labelled_sequences(cache, split)]) for split in splits)
    return classified(train, test)


def split_of(corpus: Path, held_out_fraction: float) -> tuple[Texts, Texts]:
    """Return the labelled texts that are learned from, and those that stage one holds out with this fraction."""
    sides: dict[bool, list[str]] = {False: [], True: []}
    for record in records(corpus):
        sides[is_held_out(record.get("group") or record["id"], held_out_fraction)].append(record["id"])
    return texts_of(corpus, sides[False]), texts_of(corpus, sides[True])


def texts_of(corpus: Path, ids: Sequence[str]) -> Texts:
    """Return some texts of a labelled corpus, in the order of their ids."""
    by_id = {record["id"]: record for record in records(corpus)}
    return Texts(list(ids), *([by_id[name][key] for name in ids] for key in ("text", "label")))


def records(corpus: Path) -> Iterator[dict[str, str]]:
    """Yield the labelled records of a corpus."""
    with corpus.open(encoding="utf-8") as lines:
        yield from (record for record in map(json.loads, lines) if record.get("label") is not None)


def classified(train: Texts, test: Texts) -> Answers:
    """Return the answers to some texts of a bag of words that has learned from others."""
    features = tfidf(train.texts)
    return judged(log_probs(train, features(train.texts), features(test.texts)), train, test)


def log_probs(train: Texts, train_ND: Tensor, test_ND: Tensor) -> NDArray[np.float32]:
    """Return the log-probability of each class, in alphabetical order, for some texts: (N, C).

    Args:
        train: Texts to learn from.
        train_ND: Their features.
        test_ND: Features of the other texts.
    """
    classes = sorted(set(train.labels))
    classifier = fitted(train_ND, [classes.index(label) for label in train.labels], len(classes))
    log_p_NC: NDArray[np.float32] = classifier.logits(test_ND).log_softmax(dim=1).numpy()
    return log_p_NC


def judged(log_p_NC: NDArray[np.float32], train: Texts, test: Texts) -> Answers:
    """Return which predictions are right; ``train`` names the classes, and a label that it lacks counts as wrong."""
    classes = sorted(set(train.labels))
    gold_N = np.array([classes.index(label) if label in classes else -1 for label in test.labels])
    nats_N = np.where(gold_N < 0, np.inf, -log_p_NC[np.arange(len(gold_N)), gold_N])
    return Answers(log_p_NC.argmax(axis=1) == gold_N, nats_N)


def tfidf(train: Sequence[str], least_texts: int = 2) -> Features:
    """Return TF-IDF over the words of some texts: (1 + ln count) * ln(N / texts with the word), rows of length 1.

    Args:
        train: Texts that words are counted in.
        least_texts: Words of fewer texts are passed over.

    Returns:
        A function from N texts to (N, D) float32, sparse.
    """
    counted = Counter(word for text in train for word in set(words(text)))
    columns = {word: i for i, word in enumerate(sorted(word for word, n in counted.items() if n >= least_texts))}
    idf = {word: float(np.log(len(train) / counted[word])) for word in columns}

    def features(texts: Sequence[str]) -> Tensor:
        places: list[tuple[int, int]] = []
        values: list[float] = []
        for row, text in enumerate(texts):
            counts = Counter(word for word in words(text) if word in columns)
            weighted = {columns[word]: (1 + np.log(count)) * idf[word] for word, count in counts.items()}
            norm = sum(value**2 for value in weighted.values()) ** 0.5 + 1e-9
            places += [(row, column) for column in weighted]
            values += [value / norm for value in weighted.values()]
        indices = torch.tensor(places, dtype=torch.long).reshape(-1, 2).T
        return torch.sparse_coo_tensor(
            indices, torch.tensor(values, dtype=torch.float32), (len(texts), len(columns)), check_invariants=False
        ).coalesce()

    return features


def words(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return re.findall(r"\w+", text.lower())


if __name__ == "__main__":
    line()
