"""A linear probe of a frozen model: the lexicographer file of a definition.

A definition is the mean of its tokens' last hidden states, special tokens left out. The classifier is a logistic
regression with a quadratic penalty, fitted until it converges, so that accuracies differ by the states alone.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer

from configs.papers.linear import fitted
from configs.papers.wordnet import Synset
from pipeline.encoding.held_out import is_held_out

PENALTY = 1e-3
"""Factor of the squared weights, added to the mean cross-entropy of standardised features."""

# N: texts, D: width, C: classes


class Definitions(NamedTuple):
    """Labelled texts to fit to, and of held-out synsets."""

    train: list[Synset]
    test: list[Synset]


def definitions(synsets: Iterable[Synset], held_out_fraction: float, train: int, test: int) -> Definitions:
    """Return the first synsets of both sides of the split."""
    sides: dict[bool, list[Synset]] = {False: [], True: []}
    for synset in synsets:
        sides[is_held_out(f"wordnet:{synset.id}", held_out_fraction)].append(synset)
    return Definitions(list(islice(sides[False], train)), list(islice(sides[True], test)))


def accuracy(model: Path, texts: Definitions) -> list[float]:
    """Return for each held-out definition whether its class was found: 0 or 1."""
    classes = sorted({synset.lexname for synset in texts.train})
    train_ND, test_ND = (states(model, [synset.definition for synset in side]) for side in texts)
    gold = [classes.index(synset.lexname) for synset in texts.train]
    mean_D, deviation_D = train_ND.mean(dim=0), train_ND.std(dim=0)
    classifier = fitted((train_ND - mean_D) / deviation_D, gold, len(classes), 2 * PENALTY)
    predicted_N = classifier.logits((test_ND - mean_D) / deviation_D).argmax(dim=1).tolist()
    return [float(classes[c] == synset.lexname) for c, synset in zip(predicted_N, texts.test, strict=True)]


@torch.no_grad()
def states(model: Path, texts: Sequence[str]) -> Tensor:
    """Return the mean last hidden state of each text: (N, D) float32."""
    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForMaskedLM.from_pretrained(model).eval()
    rows = []
    for start in range(0, len(texts), 128):
        batch = tokenizer(
            list(texts[start : start + 128]), padding=True, return_tensors="pt", truncation=True, max_length=48
        )
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        hidden_BLD = network.base_model(**inputs).last_hidden_state
        special_BL = torch.isin(inputs["input_ids"], torch.tensor(tokenizer.all_special_ids))
        ordinary_BL1 = (~special_BL).float().unsqueeze(-1)
        rows.append((hidden_BLD * ordinary_BL1).sum(dim=1) / ordinary_BL1.sum(dim=1).clamp(min=1))
    return torch.cat(rows)
