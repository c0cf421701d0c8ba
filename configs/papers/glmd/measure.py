"""What the recipe measures of a student: its classes, and how far it is from the teacher's whole distribution.

A class is the likeliest of the classes' words at [MASK]. The distance is KL(teacher || student) over the kept tokens at
every held-out position of the pre-training text, at two temperatures, from the teacher's stored last hidden states: the
loss that the published system minimises, whatever form of it a student was trained with.
"""

from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from transformers import AutoModelForMaskedLM

from cache_tools.format import layout
from cache_tools.store.reader import Cache
from cache_tools.vocabularies.folder import read_vocabulary
from configs.papers.bag_of_words import answers_on
from configs.papers.glmd.texts import CLASSES
from configs.papers.heads import outputs_at
from configs.papers.measures import once, predictions_of, sequences
from configs.papers.recipes import label_log_probs, labelled_sequences, token_ids
from trainer.config.student_file import LossConfig
from trainer.data.binding import IGNORED
from trainer.data.cached_sequences import CachedSequences, Reading, collate
from trainer.data.translation import student_ids, teacher_ids
from trainer.losses.full import TeacherHead, full_divergence

TEMPERATURES = (1.0, 15.0)


class Measured(NamedTuple):
    """Measures of a student.

    Attributes:
        right: (N,) 0 or 1 for each held-out text of the task.
        kl: KL to the teacher at each of TEMPERATURES, nats; None if it was not measured.
    """

    right: NDArray[np.float64]
    kl: dict[float, float] | None

    @property
    def accuracy(self) -> float:
        """Share of the texts whose class is right."""
        return float(self.right.mean())


def measured(student: Path, caches: Path, vocabulary: Path | None, distance: bool) -> Measured:
    """Measure a student, or read its earlier measures.

    Args:
        student: Folder of a finished student, or of a teacher.
        caches: Folder with the caches ``pretraining`` and ``labels``.
        vocabulary: The student's; None for a teacher.
        distance: Whether to measure the KL.
    """
    labels, kl = caches / "labels", None
    answers = once(student, "classes", sequences(labels), lambda: right(student, labels, vocabulary).tolist())
    if distance:
        assert vocabulary is not None
        text, on = caches / "pretraining", predictions_of(caches / "pretraining")
        kl = {float(t): x for t, x in once(student, "kl", on, lambda: kl_nats(student, text, vocabulary)).items()}
    return Measured(np.array(answers, np.float64), kl)


def bag_of_words(corpus: Path, cache: Path, folder: Path) -> Measured:
    """Return the answers of TF-IDF and logistic regression to a cache's held-out texts; kept below a folder."""
    answers = once(
        folder, "bag-of-words", sequences(cache), lambda: answers_on(corpus, cache).right_N.astype(int).tolist()
    )
    return Measured(np.array(answers, np.float64), None)


def right(student: Path, cache: Path, vocabulary: Path | None) -> NDArray[np.bool_]:
    """Return which held-out texts a student gives their own class, (N,)."""
    union = None if vocabulary is None else read_vocabulary(vocabulary)
    predicted = label_log_probs(student, cache, CLASSES, union=union).argmax(axis=1)
    names = _names(cache)
    gold = [names[int(sequence.gold_ids("masked")[0])] for sequence in labelled_sequences(cache)]
    is_right: NDArray[np.bool_] = np.array([CLASSES[i] for i in predicted]) == np.array(gold)
    return is_right


def _names(cache: Path) -> dict[int, str]:
    ids = token_ids(cache / "encodings" / "main" / "tokenizer", CLASSES)
    return dict(zip(ids, CLASSES, strict=True))


def kept_mass(cache: Path, temperature: float) -> float:
    """Return which part of the teacher's probability at a temperature the kept tokens hold, on held-out text."""
    cached, total, positions = Cache(cache).encoding().teacher(), 0.0, 0
    for shard in cached.encoding.split_shards("held_out"):
        rows = cached.shard_rows(shard)
        logits = cached.targets(*rows).log_probs + cached.scalar("logsumexp", *rows)[:, None]
        normaliser = cached.scalar("logsumexp" if temperature == 1 else f"logsumexp_t{temperature:g}", *rows)
        total += float(np.exp(logits / temperature - normaliser[:, None]).sum())
        positions += len(logits)
    return total / positions


@torch.no_grad()
def kl_nats(student: Path, cache: Path, vocabulary: Path) -> dict[float, float]:
    """Return the mean KL between teacher and student over the kept tokens, at held-out positions, by temperature."""
    cached, union = Cache(cache).encoding().teacher(), read_vocabulary(vocabulary)
    to, size = student_ids(union, cached.encoding), len(union.names)
    model = AutoModelForMaskedLM.from_pretrained(student).eval()
    head = TeacherHead(cached.file(layout.HEAD), size, ids=teacher_ids(to, size))
    data = CachedSequences(cached, "held_out", size, reading=Reading(layers=("last",)), to=to)
    losses = {t: LossConfig(source="hidden", temperature=t) for t in TEMPERATURES}
    totals, positions = dict.fromkeys(TEMPERATURES, 0.0), 0
    for batch in DataLoader(data, batch_size=32, collate_fn=collate):
        kept = batch["gold_ids"] != IGNORED
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = outputs_at(model, inputs, itemgetter(kept)).logits_NV
        teacher_logits = head(batch["hidden"]["last"])
        for t, loss in losses.items():
            totals[t] += float(full_divergence(logits, teacher_logits, loss).sum()) / t**2
        positions += int(kept.sum())
    return {t: total / positions for t, total in totals.items()}
