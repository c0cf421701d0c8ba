"""Measures of a model: on pairs, on masked tokens, and by a probe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache_tools.format.manifest import Split
from configs.papers.gloss import probe
from configs.papers.gloss.baselines import sides
from configs.papers.gloss.corpora import LABELS, YES, Pair
from configs.papers.gloss.scores import Scored, scored, summary
from configs.papers.recipes import label_log_probs, labelled_sequences
from logitcask import evaluate
from trainer.evaluation.evaluate import Positions

SPLITS: dict[str, Split] = {"labels": "held_out", "seen": "train", "swapped": "held_out"}
"""Caches whose pairs are scored, and which part of them."""


def everything(model: Path, caches: Path, texts: probe.Definitions) -> dict[str, Any]:
    """Measure a model on pairs, on masked tokens, and by a probe."""
    return {
        "pairs": {name: summary(scores(model, caches / name, split)) for name, split in SPLITS.items()},
        "text_nats": cross_entropy(model, caches / "text"),
        "pairs_nats": cross_entropy(model, caches / "masked", "tokens"),
        "probe": probe.accuracy(model, texts),
    }


def shuffled_alone(model: Path, caches: Path) -> dict[str, Any]:
    """Measure the control on its own kind of pairs only."""
    return {"pairs": {"labels": summary(scores(model, caches / "shuffled", "held_out"))}}


def scores(model: Path, cache: Path, split: Split) -> Scored:
    """Return how much more likely yes is than no, for each pair of a labelled cache, in its order."""
    log_probs_N2 = label_log_probs(model, cache, LABELS, split).astype(np.float64)
    sequences = labelled_sequences(cache, split)
    right = [sequence.document_id.partition("|")[2] == sequence.group_id.partition(":")[2] for sequence in sequences]
    return scored([sequence.document_id for sequence in sequences], right, log_probs_N2[:, 0] - log_probs_N2[:, 1])


def cross_entropy(model: Path, cache: Path, positions: Positions = "all") -> float:
    """Return the cross-entropy of masked tokens in held-out text, in nats."""
    return evaluate(model, cache, positions=positions, batch_size=64).cross_entropy_nats


def cosines(model: Path, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return a summary of how similar a model's mean states of sentence and gloss are, without any training on pairs.

    Each side is read by itself, and without the word in question, which is in every candidate.
    """
    texts_P = [sides(pair.text) for pair in pairs]
    texts = sorted({text for both in texts_P for text in both})
    row_of = {text: row for row, text in enumerate(texts)}
    states_ND = torch.nn.functional.normalize(probe.states(model, texts), dim=1)
    left_PD, right_PD = (states_ND[[row_of[both[side]] for both in texts_P]] for side in (0, 1))
    cosines_P = (left_PD * right_PD).sum(dim=1).tolist()
    return summary(scored([pair.id for pair in pairs], [pair.label == YES for pair in pairs], cosines_P))
