"""Baselines without a language model: chance, the first sense, and the similarity of the words of sentence and gloss.

TF-IDF and latent semantic analysis (LSA, its leading singular directions) are fitted to texts that training may read.
The word itself is in every candidate, so it is left out on both sides.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.papers.gloss.corpora import YES, Pair
from configs.papers.gloss.scores import scored, summary

LEAST_DOCUMENTS = 3
"""Words of fewer texts are not counted."""

# N: texts, W: words, D: directions


class WordVectors:
    """TF-IDF vectors of texts, and the directions in which they differ most.

    Args:
        texts: What to fit.
        directions: Number of directions of the decomposition, D.
    """

    def __init__(self, texts: Sequence[str], directions: int) -> None:
        documents = [set(words(text)) for text in texts]
        counts = Counter(word for document in documents for word in document)
        kept = sorted(word for word, count in counts.items() if count >= LEAST_DOCUMENTS)
        self.columns = {word: i for i, word in enumerate(kept)}
        self.idf_W = torch.tensor([np.log(len(texts) / counts[word]) for word in kept], dtype=torch.float32)
        torch.manual_seed(0)
        _, _, self.directions_WD = torch.svd_lowrank(self.tfidf(texts), directions, niter=2)

    def tfidf(self, texts: Iterable[str]) -> Tensor:
        """Return unit vectors of word counts, weighted by the rarity of the words: (N, W) sparse."""
        rows, columns, values = [], [], []
        for row, text in enumerate(texts):
            counts_by_column = Counter(self.columns[word] for word in words(text) if word in self.columns)
            weighted = {column: (1 + np.log(n)) * float(self.idf_W[column]) for column, n in counts_by_column.items()}
            norm = sum(value**2 for value in weighted.values()) ** 0.5
            rows += [row] * len(weighted)
            columns += list(weighted)
            values += [value / norm for value in weighted.values()]
        places, size = torch.tensor([rows, columns]), (row + 1, len(self.columns))
        return torch.sparse_coo_tensor(
            places, torch.tensor(values, dtype=torch.float32), size, check_invariants=False
        ).coalesce()

    def lsa(self, texts: Iterable[str]) -> Tensor:
        """Return unit vectors along the leading directions: (N, D)."""
        vectors_ND = torch.sparse.mm(self.tfidf(texts), self.directions_WD)
        return torch.nn.functional.normalize(vectors_ND, dim=1)


def baseline_scores(
    readable: Sequence[str],
    parts: Mapping[str, Sequence[Pair]],
    numbers: Mapping[tuple[str, str], int],
    directions: int = 300,
) -> dict[str, Any]:
    """Return a summary of the scores of each baseline on some pairs.

    Args:
        readable: Texts to fit word vectors to.
        parts: By name, pairs, those of an instance side by side.
        numbers: The number of each word's senses.
        directions: Number of directions of LSA.
    """
    vectors = WordVectors(readable, directions)
    summaries: dict[str, Any] = {}
    for part, pairs in parts.items():
        ids, right = [pair.id for pair in pairs], [pair.label == YES for pair in pairs]
        for name, values in part_scores(vectors, pairs, numbers).items():
            summaries.setdefault(name, {"pairs": {}})["pairs"][part] = summary(scored(ids, right, values))
    return summaries


def part_scores(
    vectors: WordVectors, pairs: Sequence[Pair], numbers: Mapping[tuple[str, str], int]
) -> dict[str, list[float]]:
    """Return the score of each baseline for each pair."""
    left, right = (list(side) for side in zip(*(sides(pair.text) for pair in pairs), strict=True))
    return {
        "chance": [0.0] * len(pairs),
        "first sense": [-float(numbers[lemma_of(pair.text).lower(), candidate_of(pair.id)]) for pair in pairs],
        "TF-IDF": torch.sparse.sum(vectors.tfidf(left) * vectors.tfidf(right), dim=1).to_dense().tolist(),
        "LSA": (vectors.lsa(left) * vectors.lsa(right)).sum(dim=1).tolist(),
    }


def lemma_of(text: str) -> str:
    """Return the word that a pair is about."""
    return text.partition(" [SEP] ")[2].partition(" : ")[0]


def candidate_of(pair_id: str) -> str:
    """Return the synset whose gloss a pair holds."""
    return pair_id.partition("|")[2]


def sides(text: str) -> tuple[str, str]:
    """Return sentence and gloss of a pair's text, both without the word in question."""
    sentence, _, gloss = text.partition(" [SEP] ")
    return re.sub(r'" .*? "', " ", sentence, count=1), gloss.partition(" : ")[2]


def words(text: str) -> list[str]:
    """Return the words of a text, in lower case and without a plural's s."""
    return [re.sub(r"(?<=\w\w)s$", "", word) for word in re.findall(r"[a-z]{2,}", text.lower())]
