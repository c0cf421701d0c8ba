"""Do several teachers' pooled spaces agree? Linear CKA, and whether one teacher's head can read another's encoder.

A pooled state is what the head's output matrix multiplies at [CLS]. Linear CKA (Kornblith et al., ICML 2019, arXiv
1905.00414) is invariant to rotations: spaces that differ by a rotation have a CKA of 1. A head that reads another
encoder is not invariant: its accuracy shows whether the spaces are equal, as co-finetuning intends.
"""

from collections.abc import Sequence
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForMaskedLM

from cache_tools.store.reader import Cache
from cache_tools.torch_models.segments import read_segments
from configs.papers.heads import Outputs, borrowed, head_of, outputs_at
from configs.papers.mtbert.cofinetune import first_of_each
from configs.papers.recipes import labelled_sequences, token_ids

# N: texts, D: width, C: classes


class Agreement(NamedTuple):
    """How much several teachers agree, as means over pairs."""

    cka: float
    """Linear CKA of their pooled states."""
    own_head: float
    """Accuracy of each with its own head."""
    other_head: float
    """Accuracy of each with the head of another."""


def agreement(teachers: Sequence[Path], cache: Path, labels: Sequence[str]) -> Agreement:
    """Measure how much teachers agree on the held-out texts of a labelled encoding."""
    columns = token_ids(teachers[0], labels)
    models = [AutoModelForMaskedLM.from_pretrained(teacher).eval() for teacher in teachers]
    for model in models:
        read_segments(model, Cache(cache).encoding().manifest.separator)
    texts = labelled_sequences(cache)
    gold_N = np.array([columns.index(int(sequence.gold_ids("masked")[0])) for sequence in texts])
    own = [first_outputs(model, texts, columns) for model in models]
    pooled = [outputs.pooled_ND.numpy() for outputs in own]
    right = [[accuracy(outputs.logits_NV, gold_N)] * len(models) for outputs in own]
    for i, j in permutations(range(len(models)), 2):
        with borrowed(models[i], head_of(models[j])):
            right[i][j] = accuracy(first_outputs(models[i], texts, columns).logits_NV, gold_N)
    pairs = range(len(models))
    return Agreement(
        float(np.mean([linear_cka(pooled[i], pooled[j]) for i, j in combinations(pairs, 2)])),
        float(np.mean([right[i][i] for i in pairs])),
        float(np.mean([right[i][j] for i, j in permutations(pairs, 2)])),
    )


def linear_cka(x_ND: NDArray[Any], y_NE: NDArray[Any]) -> float:
    """Return |Y'X|^2 / (|X'X| |Y'Y|), columns centred, of two sets of states of the same N texts: from 0 to 1."""
    x, y = (states.astype(np.float64) - states.mean(axis=0) for states in (x_ND, y_NE))
    cross = np.linalg.norm(y.T @ x) ** 2
    return float(cross / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


@torch.no_grad()
def first_outputs(model: Any, texts: Sequence[Any], columns: Sequence[int], batch: int = 128) -> Outputs:
    """Return what a model computes at [CLS], with the logits of the labels alone: (N, D) and (N, C)."""
    parts = []
    for start in range(0, len(texts), batch):
        ids = [torch.from_numpy(text.input_ids.astype(np.int64)) for text in texts[start : start + batch]]
        ids_BL = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        lengths_B1 = torch.tensor([[len(text_ids)] for text_ids in ids])
        attention_BL = (torch.arange(ids_BL.shape[1]) < lengths_B1).long()
        outputs = outputs_at(model, {"input_ids": ids_BL, "attention_mask": attention_BL}, first_of_each)
        parts.append((outputs.pooled_ND, outputs.logits_NV[:, list(columns)]))
    return Outputs(*(torch.cat(column) for column in zip(*parts, strict=True)))


def accuracy(logits_NC: torch.Tensor, gold_N: NDArray[Any]) -> float:
    """Return the share of texts whose most likely class is right."""
    return float((logits_NC.argmax(dim=1).numpy() == gold_N).mean())
