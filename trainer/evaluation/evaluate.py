"""Measure a student from the cache alone: no teacher is loaded.

The measures are defined in ``measures.py``. The teacher is compared by its last hidden state where the
cache keeps it, and then exactly; otherwise by its sparse targets, as exactly as these allow.

The teacher's own cross-entropy on the same positions comes from the stored gold
log-probabilities, for comparison.
"""

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from cache_tools.errors import ConfigError, IncompleteError
from cache_tools.format.layout import GOLD_LOGPROB
from cache_tools.format.manifest import Split
from cache_tools.progress.reporter import Advance, Reporter, ignore
from cache_tools.storage import StorePath
from cache_tools.store.reader import Cache
from cache_tools.store.teacher import CachedTeacher
from cache_tools.vocabularies.folder import read_vocabulary
from cache_tools.vocabularies.union import UnionVocabulary
from trainer.data.cached_sequences import CachedSequences
from trainer.data.translation import check_vocabulary, student_ids
from trainer.evaluation.loading import check_is_model, check_is_teacher, describe, device_of, load_evaluated
from trainer.evaluation.measures import UNBIASED, UPPER_BOUND, Measures, measured_reading
from trainer.evaluation.passes import measured, shared_batches
from trainer.evaluation.results import EvaluateResult, Floor, OriginalFigures, Spread
from trainer.evaluation.spread import spread_of
from trainer.evaluation.stored import floor_of, stored_bytes
from trainer.student import fused_loss
from trainer.student.cached_loss import vocabulary_size
from trainer.student.finite import check_measures
from trainer.student.head import StudentHead
from trainer.student.probe import check_rows

Positions = Literal["all", "labels", "tokens"]
Dtype = Literal["float32", "bfloat16", "float16", "auto"]
LARGEST_EXPONENT = 700.0
"""Cross-entropies above it have no perplexity in float64."""

ROWS: dict[Positions, slice] = {"all": slice(None), "labels": slice(0, 1), "tokens": slice(1, None)}
"""Of the kept positions of a sequence with a label, which is the first."""


def evaluate_student(
    student: Path,
    cache: StorePath,
    reporter: Reporter,
    encoding: str | None = None,
    teacher: str | None = None,
    split: Split = "held_out",
    positions: Positions = "all",
    vocabulary: StorePath | None = None,
    batch_size: int = 8,
    device: str = "auto",
    trust_remote_code: bool = False,
    dtype: Dtype = "float32",
    original: Path | None = None,
) -> EvaluateResult:
    """Evaluate a model on a split of a cache, both given by their places.

    Args:
        student: An ordinary transformers model folder with its tokenizer, quantised or not, or a GGUF file.
        cache: Folder or URL of the cache.
        reporter: Shown the tokens.
        encoding: Name of the encoding; None if the cache has one.
        teacher: Name of the teacher; None if the encoding has one.
        split: ``held_out`` or ``train``.
        positions: In an encoding with labels: the ``labels``, the other ``tokens``, or ``all``.
        vocabulary: Folder of the student's vocabulary, if it is not the cache's own.
        batch_size: Sequences per forward pass.
        device: A torch device; ``auto`` takes a GPU if there is one.
        trust_remote_code: Run Python code that comes with the student; without it such a student is refused.
        dtype: Type in which the model computes; ``auto`` is the type of its checkpoint.
        original: Folder or GGUF file of the cached teacher, to be run in the same way; None to leave it out.

    Raises:
        ConfigError: The places are swapped, these documents have no labels, or the teacher is read with other ids.
        IdentityError: ``original`` is not the model that was captured.
        LogitcaskError: As for :func:`evaluate_folder`, and whatever is wrong with the cache.
    """
    check_is_model(student)
    cached = Cache(cache).encoding(encoding).teacher(teacher)
    union = None if vocabulary is None else read_vocabulary(vocabulary)
    place = device_of(device)
    tokens = cached.encoding.manifest.splits[split].tokens or None
    if original is not None:
        check_is_teacher(original, cached, union)
    reporter.stage(f"evaluating on the {split} split", tokens)
    result = evaluate_folder(
        *(student, cached, split, batch_size, place, reporter.advance, union, positions),
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        with_floor=False,
    )
    reporter.stage("measuring what storing costs", None)
    began, translated = monotonic(), student_ids(union, cached.encoding) is not None
    floor = floor_of(cached, split, torch.device(place), translated)
    result = replace(result, floor=floor, seconds=result.seconds + monotonic() - began)
    if original is None:
        return result
    reporter.stage("evaluating the original", tokens)
    exact = evaluate_folder(
        *(original, cached, split, batch_size, place, reporter.advance, None, positions),
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        with_floor=False,
    )
    figures = OriginalFigures(exact.model, exact.kl, exact.top1_agreement, exact.cross_entropy_nats, exact.perplexity)
    return replace(result, original=figures, seconds=result.seconds + exact.seconds)


def evaluate_folder(
    folder: Path,
    teacher: CachedTeacher,
    split: Split,
    batch_size: int = 8,
    device: str = "cpu",
    progress: Advance = ignore,
    union: UnionVocabulary | None = None,
    positions: Positions = "all",
    trust_remote_code: bool = False,
    dtype: Dtype = "float32",
    with_floor: bool = True,
) -> EvaluateResult:
    """Evaluate the student in a model folder on a split of a cache.

    Args:
        folder: An ordinary transformers model folder with its tokenizer, or a GGUF file.
        teacher: The cached teacher to compare with.
        split: ``held_out`` or ``train``.
        batch_size: Sequences per forward pass.
        device: Where to run.
        progress: Called with the number of tokens of each batch.
        union: The student's vocabulary, if it is not the cache's own; hidden states are not compared then.
        positions: In an encoding with labels: the ``labels``, the other ``tokens``, or ``all``.
        trust_remote_code: Run Python code that comes with the student; without it such a student is refused.
        dtype: Type in which the model computes; ``auto`` is the type of its checkpoint.
        with_floor: Estimate what storing costs; otherwise the floor is unknown.

    Raises:
        ModelError: The folder holds no model that can be loaded, or one whose weights or predictions are not finite.
        IdentityError: Its tokenizer is not the cache's, or the union's; or see ``translation.check_vocabulary``.
        ConfigError: These documents have no labels.
    """
    check_vocabulary(union, teacher)
    model = load_evaluated(folder, teacher, device, union, dtype, trust_remote_code)
    return evaluate(model, teacher, split, batch_size, progress, union, positions, folder, with_floor)


def evaluate(
    model: PreTrainedModel,
    teacher: CachedTeacher,
    split: Split,
    batch_size: int = 8,
    progress: Advance = ignore,
    union: UnionVocabulary | None = None,
    positions: Positions = "all",
    source: Path | None = None,
    with_floor: bool = True,
) -> EvaluateResult:
    """Evaluate a loaded student; arguments and result as for :func:`evaluate_folder`.

    Raises:
        ModelError: Its predictions depend on later tokens, on padding, or on other sequences of a batch.
    """
    began = monotonic()
    dataset = evaluated_sequences(teacher, split, vocabulary_size(model), union, positions)
    examples, objective = (dataset[i] for i in range(len(dataset))), teacher.encoding.manifest.objective
    check_rows(model.eval(), StudentHead.of(model), examples, objective, packed=False)
    measures = measure(model, dataset, batch_size, progress)
    means = measures.means()
    check_measures(vars(means), type(model).__name__)
    loss = _teacher_cross_entropy(teacher, split, ROWS[positions])
    translated = dataset.to is not None
    floor = floor_of(teacher, split, model.device, translated) if with_floor else Floor("unknown", 0.0)
    return EvaluateResult(
        **vars(means),
        split=split,
        teacher_cross_entropy_nats=loss,
        perplexity=_perplexity(means.cross_entropy_nats),
        teacher_perplexity=None if loss is None else _perplexity(loss),
        kl=_spread(measures, teacher, split, ROWS[positions]),
        floor=floor,
        original=None,
        model=describe(model, source),
        teacher=teacher.name,
        stored=stored_bytes(teacher, split, teacher.encoding.manifest.splits[split].positions, translated),
        reliability=measures.reliability(),
        seconds=monotonic() - began,
    )


def _spread(measures: Measures, teacher: CachedTeacher, split: Split, rows: slice) -> Spread | None:
    """Return how the KL spreads over positions; None where a single position's value is no KL."""
    if measures.is_kl in (UNBIASED, UPPER_BOUND):
        return None
    groups = [
        (sequence.group_id, len(range(sequence.num_positions)[rows]))
        for shard in teacher.encoding.split_shards(split)
        for sequence in teacher.encoding.sequences(shard)
    ]
    return spread_of(measures.values(), groups)


def _perplexity(cross_entropy_nats: float) -> float:
    return math.exp(min(cross_entropy_nats, LARGEST_EXPONENT))


def evaluated_sequences(
    teacher: CachedTeacher,
    split: Split,
    student_vocabulary_size: int,
    union: UnionVocabulary | None = None,
    positions: Positions = "all",
) -> CachedSequences:
    """Return the sequences of a split with all that the measures need.

    Raises:
        IncompleteError: the split is empty, or not captured yet.
        ConfigError: these documents have no labels.
    """
    if positions != "all" and not teacher.encoding.manifest.labelled:
        raise ConfigError(
            f"{positions} cannot be measured alone: these documents have no labels",
            where=teacher.encoding.path,
            fix="Leave --positions out",
        )
    to = student_ids(union, teacher.encoding)
    reading = measured_reading(teacher.manifest, translated=to is not None)
    dataset = CachedSequences(teacher, split, student_vocabulary_size, reading=reading, to=to, rows=ROWS[positions])
    if not len(dataset):
        raise IncompleteError(
            f"the {split} split is empty",
            where=teacher.encoding.path,
            fix="Capture with a larger corpus.held_out_fraction, or evaluate another split",
        )
    return dataset


def measure(
    model: PreTrainedModel,
    dataset: CachedSequences,
    batch_size: int = 8,
    progress: Advance = ignore,
) -> Measures:
    """Measure a student on cached sequences; leaves it in evaluation mode, and draws no random number.

    Args:
        model: The student, on its device.
        dataset: From :func:`evaluated_sequences`.
        batch_size: Sequences per forward pass.
        progress: Called with the number of tokens of each batch.
    """
    model.eval()  # before its head is looked at: dropout must not move a run's own draws
    over_positions = partial(fused_loss.over_positions, model, StudentHead.of(model))
    batches = shared_batches(len(dataset), batch_size)
    measures = measures_of(dataset, model.device, per_position=True)
    measured(over_positions, measures, dataset, batches, model.device, progress)
    return measures


def measures_of(dataset: CachedSequences, device: torch.device, per_position: bool = False) -> Measures:
    """Begin to measure students on the sequences of :func:`evaluated_sequences`."""
    translated = dataset.to is not None
    return Measures.of(dataset.teacher, dataset.student_vocabulary_size, device, translated, per_position)


def _teacher_cross_entropy(teacher: CachedTeacher, split: Split, rows: slice) -> float | None:
    if GOLD_LOGPROB not in teacher.manifest.scalars:
        return None
    values = []
    for shard in teacher.encoding.split_shards(split):
        gold_logprob, ends = teacher.scalar(GOLD_LOGPROB, *teacher.shard_rows(shard)), [0]
        for sequence in teacher.encoding.sequences(shard):
            ends.append(ends[-1] + sequence.num_positions)
        values += [gold_logprob[start:stop][rows] for start, stop in pairwise(ends)]
    return -float(np.concatenate(values).mean(dtype="float64"))
