"""Measure a student with its own tokenizer, in units that students of different tokenizers share.

Nats per token depend on how many tokens a text has. So everything here is counted per byte of text, or as a share of
the student's positions:

=============================== =====================================================================================
``bits_per_byte``               minus the log2 of what the student gives to its own tokens of the text, added up and
                                divided by the bytes that these tokens cover: the code length of the text
``teacher_bits_per_byte``       the same of the teacher, by its gold log-probabilities and its own tokens
``kl_to_teacher_nats_per_byte`` KL(teacher || student) at positions with a row, through the map of equal bytes, divided
                                by the bytes of the student's next tokens there
``top1_agreement``              at these positions, how often the student's most likely token has the bytes of the
                                teacher's; one that the student does not have is counted as disagreement
=============================== =====================================================================================

Both code lengths are of the text behind the first token of each sequence, which nothing predicts; the length of that
token is the only difference between the two texts. A tokenizer that changes the text (lower case) has the code length
of the changed text.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from cache_tools.alignments.coverage import coverage_of
from cache_tools.alignments.making import cached_spans
from cache_tools.alignments.spans import TokenBytes
from cache_tools.alignments.stored import Alignment
from cache_tools.errors import IncompleteError
from cache_tools.format.layout import GOLD_LOGPROB
from cache_tools.format.manifest import Split
from cache_tools.progress.reporter import Advance, Reporter, ignore
from cache_tools.storage import StorePath
from cache_tools.store.reader import Cache
from cache_tools.store.teacher import CachedTeacher
from cache_tools.vocabularies.folder import open_tokenizer
from trainer.config.student_file import LossConfig
from trainer.data.aligned_sequences import TEXT_BYTES, AlignedSequences
from trainer.data.cached_sequences import Example
from trainer.evaluation.loading import check_is_model, describe, device_of, load_evaluated
from trainer.evaluation.measures import Sums
from trainer.evaluation.passes import measured, shared_batches
from trainer.evaluation.results import AlignedEvaluateResult, AlignedMeans
from trainer.evaluation.spread import group_sums, interval
from trainer.losses.distillation_loss import DistillationLoss, TeacherRows
from trainer.student import fused_loss
from trainer.student.cached_loss import vocabulary_size
from trainer.student.finite import check_measures
from trainer.student.head import StudentHead
from trainer.student.probe import check_rows
from trainer.verdicts.alignment import explain_aligned
from trainer.verdicts.compatibility import TargetSummary, explain

NATS_PER_BIT = math.log(2)


class AlignedSplit(Dataset[Example]):
    """The sequences of a split that have a position for the student, with all that the measures need.

    Args:
        teacher: The cached teacher.
        alignment: The alignment with the student's tokenizer.
        split: ``held_out`` or ``train``.
        student_vocabulary_size: Width of the student's logits.

    Raises:
        IncompleteError: the split is empty, not captured or not aligned.
    """

    def __init__(
        self, teacher: CachedTeacher, alignment: Alignment, split: Split, student_vocabulary_size: int
    ) -> None:
        composed = not teacher.manifest.target.kind.is_drawn
        self.sequences = AlignedSequences(
            *(teacher, alignment, split, student_vocabulary_size),
            composed=composed,
            keep_unmapped=True,
            count_bytes=True,
        )
        positions = self.sequences.positions_per_sequence()
        self.indices = [index for index, (_, count) in enumerate(positions) if count]
        self.groups = [positions[index] for index in self.indices]
        if not self.indices:
            raise IncompleteError(
                f"the {split} split is empty",
                where=teacher.encoding.path,
                fix="Capture with a larger corpus.held_out_fraction, or evaluate another split",
            )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.sequences[self.indices[index]]


@dataclass
class AlignedMeasures:
    """Sums over the positions seen so far.

    Attributes:
        kl: Forward KL to the teacher.
        kl_is: How exact it is; None if the cached targets are draws, whose KL has no value here.
        totals: float64, on the CPU.
        values: (N,) nats and bytes of each position in the order of reading, by chunk; None where only means are used.
    """

    kl: DistillationLoss
    kl_is: str | None
    totals: Sums = field(default_factory=dict)
    values: list[tuple[Tensor, Tensor]] | None = None

    @classmethod
    def of(cls, split: AlignedSplit, per_position: bool = False) -> "AlignedMeasures":
        """Begin to measure students; ``per_position`` keeps the cross-entropy of each position."""
        loss, sequences = LossConfig(), split.sequences
        manifest = sequences.teacher.manifest
        verdict = explain_aligned(explain(TargetSummary.of(manifest, loss), loss), sequences.alignment)
        kl_is = None if manifest.target.kind.is_drawn else str(verdict.level)
        return cls(DistillationLoss(loss), kl_is, values=[] if per_position else None)

    def sums(self, logits_NV: Tensor, gold_N: Tensor, teacher_rows: TeacherRows) -> Sums:
        """Return the sums of some rows."""
        assert teacher_rows.unmapped is not None
        targets, bytes_N = teacher_rows.targets, teacher_rows.scalars[TEXT_BYTES]
        kl_N, cross_entropy_N = self.kl.terms(logits_NV, gold_N, teacher_rows)
        if self.values is not None:
            self.values.append((cross_entropy_N.double().cpu(), bytes_N.double().cpu()))
        best_N, at_N = targets.log_probs.max(dim=1)
        unmapped_N = teacher_rows.unmapped.amax(dim=1)
        has_row_N = (best_N > -torch.inf) | (unmapped_N > -torch.inf)
        teacher_top1_N = targets.ids.gather(1, at_N[:, None])[:, 0]
        agrees_N = (logits_NV.argmax(dim=1) == teacher_top1_N) & (best_N >= unmapped_N) & has_row_N
        return {
            "loss": torch.where(has_row_N, kl_N, 0.0).sum(),  # the name that every chunked sum must have
            "cross_entropy": cross_entropy_N.sum(),
            "text_bytes": bytes_N.sum(),
            "positions": torch.ones_like(bytes_N).sum(),
            "with_row": has_row_N.float().sum(),
            "row_bytes": torch.where(has_row_N, bytes_N, 0.0).sum(),
            "agreement": agrees_N.float().sum(),
        }

    def add(self, sums: Sums) -> None:
        """Count the sums of a batch."""
        for name, value in sums.items():
            self.totals[name] = self.totals.get(name, 0) + value.double().cpu()

    def means(self) -> AlignedMeans:
        """Return the measures over all positions counted."""
        totals = {name: float(value) for name, value in self.totals.items()}
        positions, with_row = totals["positions"], totals["with_row"]
        kl = totals["loss"] / totals["row_bytes"] if self.kl_is is not None and totals["row_bytes"] else None
        return AlignedMeans(
            positions=int(positions),
            text_bytes=int(totals["text_bytes"]),
            bits_per_byte=totals["cross_entropy"] / NATS_PER_BIT / max(totals["text_bytes"], 1.0),
            cross_entropy_nats=totals["cross_entropy"] / positions,
            kl_to_teacher_nats_per_byte=kl,
            kl_to_teacher_is=self.kl_is,
            top1_agreement=totals["agreement"] / with_row if with_row else None,
            aligned_share=with_row / positions,
        )


def evaluate_aligned_student(
    student: Path,
    cache: StorePath,
    alignment: str,
    reporter: Reporter,
    encoding: str | None = None,
    teacher: str | None = None,
    split: Split = "held_out",
    batch_size: int = 8,
    device: str = "auto",
    trust_remote_code: bool = False,
    dtype: str = "float32",
) -> AlignedEvaluateResult:
    """Evaluate a student with its own tokenizer on a split of a cache, both given by their places.

    Args:
        student: An ordinary transformers model folder with its tokenizer, or a GGUF file.
        cache: Folder or URL of the cache.
        alignment: Name of the alignment with the student's tokenizer.
        reporter: Shown the tokens.
        encoding: Name of the encoding; None if the cache has one.
        teacher: Name of the teacher; None if the encoding has one.
        split: ``held_out`` or ``train``.
        batch_size: Sequences per forward pass.
        device: A torch device; ``auto`` takes a GPU if there is one.
        trust_remote_code: Run Python code that comes with the student; without it such a student is refused.
        dtype: Type in which the model computes; ``auto`` is the type of its checkpoint.

    Raises:
        FormatError: There is no such alignment.
        ModelError: The folder holds no model that can be used, or one that reads only shorter texts.
        IdentityError: Its tokenizer is not that of the alignment.
        LogitcaskError: As for :func:`evaluate_aligned`, and whatever is wrong with the cache.
    """
    check_is_model(student)
    cached = Cache(cache).encoding(encoding).teacher(teacher)
    opened = Alignment(cached.encoding, alignment)
    shards = cached.encoding.split_shards(split)
    opened.require_complete(shards)
    reporter.stage(f"evaluating on the {split} split", sum(opened.receipts[shard].tokens for shard in shards) or None)
    model = load_evaluated(student, cached, device_of(device), None, dtype, trust_remote_code, opened)
    return evaluate_aligned(model, cached, opened, split, batch_size, reporter.advance, student)


def evaluate_aligned(
    model: PreTrainedModel,
    teacher: CachedTeacher,
    alignment: Alignment,
    split: Split,
    batch_size: int = 8,
    progress: Advance = ignore,
    source: Path | None = None,
) -> AlignedEvaluateResult:
    """Evaluate a loaded student with its own tokenizer; leaves it in evaluation mode.

    Args:
        model: The student, on its device.
        teacher: The cached teacher to compare with.
        alignment: The alignment with the student's tokenizer.
        split: ``held_out`` or ``train``.
        batch_size: Sequences per forward pass.
        progress: Called with the number of tokens of each batch.
        source: The student's folder; None of a model that the caller made.

    Raises:
        ModelError: Its predictions are not finite, or depend on later tokens, on padding, or on other sequences.
        IncompleteError: The split is empty, not captured or not aligned.
    """
    began = monotonic()
    dataset = AlignedSplit(teacher, alignment, split, vocabulary_size(model))
    head = StudentHead.of(model.eval())
    check_rows(model, head, (dataset[i] for i in range(len(dataset))), "causal", packed=False)
    measures = AlignedMeasures.of(dataset, per_position=True)
    over_positions = partial(fused_loss.over_positions, model, head)
    measured(over_positions, measures, dataset, shared_batches(len(dataset), batch_size), model.device, progress)
    means = measures.means()
    check_measures(vars(means), type(model).__name__)
    low, high, groups = _interval(measures, dataset)
    return AlignedEvaluateResult(
        **vars(means),
        split=split,
        alignment=alignment.name,
        low_bits_per_byte=low,
        high_bits_per_byte=high,
        groups=groups,
        teacher_bits_per_byte=teacher_bits_per_byte(teacher, split),
        coverage=coverage_of(alignment, teacher.encoding.split_shards(split)),
        model=describe(model, source),
        teacher=teacher.name,
        seconds=monotonic() - began,
    )


def teacher_bits_per_byte(teacher: CachedTeacher, split: Split) -> float | None:
    """Return the teacher's own code length of a split, in bits per byte; None if the cache does not hold it."""
    if GOLD_LOGPROB not in teacher.manifest.scalars:
        return None
    tokens, nats, num_bytes = TokenBytes.of(open_tokenizer(teacher.encoding).tokenizer), 0.0, 0
    for shard in teacher.encoding.split_shards(split):
        nats -= float(teacher.scalar(GOLD_LOGPROB, *teacher.shard_rows(shard)).sum(dtype="float64"))
        for sequence in teacher.encoding.sequences(shard):
            spans = cached_spans(sequence, tokens)
            num_bytes += int((spans.ends - spans.starts)[sequence.positions() + 1].sum())
    return nats / NATS_PER_BIT / max(num_bytes, 1)


def _interval(measures: AlignedMeasures, dataset: AlignedSplit) -> tuple[float | None, float | None, int]:
    """Return the 95 % interval of the bits per byte over groups of documents, and their number."""
    assert measures.values is not None
    nats, num_bytes = (torch.cat(column).numpy() for column in zip(*measures.values, strict=True))
    nats_D, _ = group_sums(nats, dataset.groups)
    bytes_D, _ = group_sums(num_bytes, dataset.groups)
    if len(nats_D) < 2 or not (bytes_D > 0).all():
        return None, None, len(nats_D)
    low, high = interval(nats_D / NATS_PER_BIT, bytes_D)
    return low, high, len(nats_D)
