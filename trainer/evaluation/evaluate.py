"""Measure a student from the cache alone: no teacher is loaded.

The measures are defined in ``measures.py``. The teacher is compared by its last hidden state where the
cache keeps it, and then exactly; otherwise by its sparse targets, as exactly as these allow.

The teacher's own cross-entropy on the same positions comes from the stored gold
log-probabilities, for comparison.
"""

from functools import partial
from itertools import pairwise
from pathlib import Path
from textwrap import shorten
from time import monotonic
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from cache_tools.errors import ConfigError, IncompleteError, ModelError
from cache_tools.format import layout
from cache_tools.format.layout import GOLD_LOGPROB
from cache_tools.format.manifest import Split
from cache_tools.progress.reporter import Advance, Reporter, ignore
from cache_tools.storage import StorePath
from cache_tools.store.reader import Cache
from cache_tools.store.teacher import CachedTeacher
from cache_tools.torch_models.loading import LOADING_ERRORS, auto_class
from cache_tools.vocabularies.folder import read_vocabulary
from cache_tools.vocabularies.union import UnionVocabulary
from trainer.data.cached_sequences import CachedSequences
from trainer.data.translation import check_vocabulary, student_ids, student_vocabulary
from trainer.evaluation.measures import Measures, measured_reading
from trainer.evaluation.passes import measured, shared_batches
from trainer.evaluation.results import EvaluateResult
from trainer.student import fused_loss
from trainer.student.cached_loss import vocabulary_size
from trainer.student.checkpoint import FINAL, load_student
from trainer.student.finite import check_measures, check_student
from trainer.student.head import StudentHead
from trainer.student.probe import check_rows
from trainer.student.student import check_vocabulary_size
from trainer.tokenizers.cached import check_tokenizer, student_tokenizer
from trainer.tokenizers.check import check_behaviour

Positions = Literal["all", "labels", "tokens"]
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
) -> EvaluateResult:
    """Evaluate the student in a model folder on a split of a cache, both given by their places.

    Args:
        student: An ordinary transformers model folder with its tokenizer.
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

    Raises:
        ConfigError: The places are swapped, or these documents have no labels.
        LogitcaskError: As for :func:`evaluate_folder`, and whatever is wrong with the cache.
    """
    if (student / layout.MANIFEST).exists():
        raise ConfigError(
            "the student's folder is a cache",
            where=student,
            expected="a model folder",
            fix="Give the student's folder first and the cache second",
        )
    cached = Cache(cache).encoding(encoding).teacher(teacher)
    union = None if vocabulary is None else read_vocabulary(vocabulary)
    place = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    reporter.stage(f"evaluating on the {split} split", cached.encoding.manifest.splits[split].tokens or None)
    return evaluate_folder(
        *(student, cached, split, batch_size, place, reporter.advance, union, positions),
        trust_remote_code=trust_remote_code,
    )


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
) -> EvaluateResult:
    """Evaluate the student in a model folder on a split of a cache.

    Args:
        folder: An ordinary transformers model folder with its tokenizer.
        teacher: The cached teacher to compare with.
        split: ``held_out`` or ``train``.
        batch_size: Sequences per forward pass.
        device: Where to run.
        progress: Called with the number of tokens of each batch.
        union: The student's vocabulary, if it is not the cache's own; hidden states are not compared then.
        positions: In an encoding with labels: the ``labels``, the other ``tokens``, or ``all``.
        trust_remote_code: Run Python code that comes with the student; without it such a student is refused.

    Raises:
        ModelError: The folder holds no model that can be loaded, or one whose weights or predictions are not finite.
        IdentityError: Its tokenizer is not the cache's, or the union's; or see ``translation.check_vocabulary``.
        ConfigError: These documents have no labels.
    """
    check_vocabulary(union, teacher)
    model = _loaded(folder, teacher, union, trust_remote_code)
    vocabulary = student_vocabulary(union, teacher.encoding)
    check_vocabulary_size(vocabulary_size(model), vocabulary, type(model).__name__)
    check_student(model, folder, "Evaluate an earlier checkpoint, or train again with a lower learning rate")
    torch.nn.Module.to(model, device)
    return evaluate(model, teacher, split, batch_size, progress, union, positions)


def _loaded(
    folder: Path, teacher: CachedTeacher, union: UnionVocabulary | None, trust_remote_code: bool
) -> PreTrainedModel:
    """Load a student, if it splits text as the cache does."""
    encoding = teacher.encoding
    try:
        if not folder.is_dir():  # transformers would take it for a model on the hub
            raise NotADirectoryError("no such folder")
        check_tokenizer(str(folder), student_vocabulary(union, encoding), remote=trust_remote_code)
        if union is None or union.read:  # of a union of vocabularies, only longest matches are compared
            tokenizer = student_tokenizer(None, encoding)
            check_behaviour(str(folder), tokenizer, encoding, trust_remote_code=trust_remote_code)
        auto = auto_class(encoding.manifest.objective)
        return load_student(auto, folder, dtype=torch.float32, trust_remote_code=trust_remote_code)
    except LOADING_ERRORS as error:
        raise ModelError(
            "the student cannot be loaded from this folder",
            where=folder,
            found=shorten(str(error), 300),
            fix=_advice(folder),
        ) from error


def _advice(folder: Path) -> str:
    """Return what to do about a folder that is no student; the folder of its run is easily taken for it."""
    if (folder / FINAL).is_dir():
        return f"This is the folder of a run: give its finished student, {folder / FINAL}"
    return "Give the folder of a finished student, such as <output_dir>/final"


def evaluate(
    model: PreTrainedModel,
    teacher: CachedTeacher,
    split: Split,
    batch_size: int = 8,
    progress: Advance = ignore,
    union: UnionVocabulary | None = None,
    positions: Positions = "all",
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
    means = vars(measures.means())
    check_measures(means, type(model).__name__)
    return EvaluateResult(
        **means,
        split=split,
        teacher_cross_entropy_nats=_teacher_cross_entropy(teacher, split, ROWS[positions]),
        reliability=measures.reliability(),
        seconds=monotonic() - began,
    )


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
    return measured(over_positions, dataset, batches, model.device, progress)


def _teacher_cross_entropy(teacher: CachedTeacher, split: Split, rows: slice) -> float:
    values = []
    for shard in teacher.encoding.split_shards(split):
        gold_logprob, ends = teacher.scalar(GOLD_LOGPROB, *teacher.shard_rows(shard)), [0]
        for sequence in teacher.encoding.sequences(shard):
            ends.append(ends[-1] + sequence.num_positions)
        values += [gold_logprob[start:stop][rows] for start, stop in pairwise(ends)]
    return -float(np.concatenate(values).mean(dtype="float64"))
