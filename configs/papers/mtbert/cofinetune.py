"""Stage zero of MT-BERT: teachers tuned together on a task, with one pooling and one prediction layer for all.

Each teacher keeps its own encoder. The masked-LM head, a transform (the pooling layer) and an output matrix (the
prediction layer), is one that all of them use at [CLS]; the class is a token. Teachers have one architecture and one
width, whatever these are. What is minimised is the sum of the teachers' cross-entropies, on the same batch unless each
has texts of its own (``parts.py``). So the states at [CLS] of all teachers must lie in one space, or one matrix could
not read them. Tuning a teacher alone is the same with a list of one.

The output matrix cannot be shared and be each teacher's embeddings too: heads are untied
(``tie_word_embeddings: false``), and new. Each teacher is saved as an ordinary model folder with a copy of the head.

This is a plain loop and not ``logitcask train``, because it trains several models at once and reads no cache: while a
teacher is being tuned, each of its predictions is used only once. Only texts of the training split are read; the split
is by the same hash as in stage one.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_cosine_schedule_with_warmup,
)

from cache_tools.progress.lines import open_reporter
from cache_tools.torch_models.segments import read_segments
from configs.papers.heads import give_head, head_of, outputs_at
from pipeline.encoding.held_out import is_held_out

POOL_BATCHES = 16

Batch = tuple[Any, Tensor]
"""Encoded texts, and the ids of their classes: (B,)."""


class Tuning(NamedTuple):
    """How teachers are tuned."""

    steps: int = 600
    batch: int = 64
    learning_rate: float = 2e-3
    seed: int = 0


class Examples(NamedTuple):
    """Texts of a training split and the ids of their classes."""

    texts: list[str]
    labels: list[int]


def training_examples(corpus: Path, held_out_fraction: float, tokenizer: PreTrainedTokenizerBase) -> Examples:
    """Return the labelled records of a corpus that stage one will not hold out."""
    records = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    training_records = [record for record in records if not is_held_out(record["group"], held_out_fraction)]
    vocabulary = tokenizer.get_vocab()
    return Examples(
        [record["text"] for record in training_records], [vocabulary[record["label"]] for record in training_records]
    )


def corrupted(examples: Examples, share: float, seed: int) -> Examples:
    """Return the examples with a share of their labels drawn anew, each from all classes alike."""
    rng, classes = np.random.default_rng(seed), sorted(set(examples.labels))
    drawn = rng.integers(len(classes), size=len(examples.labels))
    wrong = rng.random(len(examples.labels)) < share
    labels = [classes[new] if bad else old for old, new, bad in zip(examples.labels, drawn, wrong, strict=True)]
    return Examples(examples.texts, labels)


def cofinetune(
    starts: Sequence[Path],
    examples: Sequence[Examples],
    outputs: Sequence[Path],
    tuning: Tuning,
    segments: bool = False,
) -> list[float]:
    """Tune N teachers with one new head, and write each as a model folder.

    Args:
        starts: Folders of N masked language models of one width and one tokenizer.
        examples: What they are tuned on: one item for all teachers, or one for each.
        outputs: N folders, written under a temporary name and renamed, the last one last.
        tuning: Steps, batch, learning rate and seed of the order, the head and dropout.
        segments: Whether texts are pairs that are read by their segments, as stage one does with
            ``encoding.segments``.

    Returns:
        The sum of the teachers' cross-entropies at each step, nats.
    """
    torch.manual_seed(tuning.seed)
    tokenizer = AutoTokenizer.from_pretrained(starts[0])
    teachers = with_one_head(starts)
    for teacher in teachers if segments else ():
        read_segments(teacher, tokenizer.sep_token_id)
    shared_once = list(teachers.parameters())
    optimizer = torch.optim.AdamW(shared_once, lr=tuning.learning_rate, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, tuning.steps // 20, tuning.steps)
    losses = []
    with open_reporter() as reporter:
        reporter.stage(f"tune {', '.join(output.name for output in outputs)}", tuning.steps, "steps")
        for batch_of_each in zip(*(batches(part, tokenizer, tuning) for part in examples), strict=True):
            loss = joint_loss(teachers, batch_of_each)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(shared_once, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            reporter.advance(1)
    for teacher, output in zip(teachers, outputs, strict=True):
        partial = output.with_name(f"{output.name}.partial")
        assert isinstance(teacher, PreTrainedModel)
        teacher.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(output)
    return losses


def with_one_head(starts: Sequence[Path]) -> nn.ModuleList:
    """Load models and give all of them the head of a new model, untied."""
    teachers = [AutoModelForMaskedLM.from_pretrained(start) for start in starts]
    for teacher in teachers:
        teacher.config.tie_word_embeddings = False
    head = head_of(AutoModelForMaskedLM.from_config(teachers[0].config))
    for teacher in teachers:
        give_head(teacher, head)
    return nn.ModuleList(teachers).train()


def joint_loss(teachers: Sequence[PreTrainedModel] | nn.ModuleList, batch_of_each: Sequence[Batch]) -> Tensor:
    """Return the sum over teachers of the mean cross-entropy of the class at [CLS], over the whole vocabulary.

    Args:
        teachers: N models.
        batch_of_each: One batch for all of them, or N.
    """
    given = [*batch_of_each] * len(teachers) if len(batch_of_each) == 1 else batch_of_each
    pairs = zip(teachers, given, strict=True)
    return torch.stack(
        [F.cross_entropy(class_logits(teacher, inputs), labels_B) for teacher, (inputs, labels_B) in pairs]
    ).sum()


def class_logits(teacher: Any, inputs: Any) -> Tensor:
    """Return a teacher's logits at [CLS]: (B, V)."""
    return outputs_at(teacher, inputs, first_of_each).logits_NV


def first_of_each(states_BLD: Tensor) -> Tensor:
    """Return the states of the first token of each sequence: (B, D)."""
    return states_BLD[:, 0]


def batches(examples: Examples, tokenizer: PreTrainedTokenizerBase, tuning: Tuning) -> Iterator[Batch]:
    """Yield a batch for each step: texts of like length, so that little is padded, in an order drawn for each pass."""
    for batch_indices in islice(orders(examples, tuning), tuning.steps):
        inputs = tokenizer([examples.texts[i] for i in batch_indices], padding=True, return_tensors="pt")
        yield inputs, torch.tensor([examples.labels[i] for i in batch_indices])


def orders(examples: Examples, tuning: Tuning) -> Iterator[NDArray[np.int64]]:
    """Yield the indices of batches without end; within POOL_BATCHES drawn together, texts are sorted by length."""
    rng, lengths = np.random.default_rng(tuning.seed), np.array([len(text) for text in examples.texts])
    size = min(tuning.batch, len(lengths))
    while True:
        drawn = rng.permutation(len(lengths))
        for start in range(0, len(drawn), POOL_BATCHES * size):
            pool = drawn[start : start + POOL_BATCHES * size]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            for number in rng.permutation(len(pool) // size):
                yield pool[number * size : (number + 1) * size]
