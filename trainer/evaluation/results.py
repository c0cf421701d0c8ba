"""The results of an evaluation: means over positions, in nats and shares."""

from dataclasses import dataclass, field
from typing import Literal

from cache_tools.alignments.coverage import Coverage
from cache_tools.format.manifest import Split


@dataclass(frozen=True)
class MeanMeasures:
    """What was measured of a student, as means over positions; ``measures.py`` defines each of them.

    Attributes:
        positions: Number of positions.
        cross_entropy_nats: Mean of -ln q(gold token) of the student.
        kl_to_teacher_nats: Mean of KL(teacher || student).
        kl_to_teacher_is: How exact that is: ``exact``, ``unbiased``, a ``lower bound`` or, from draws of a
            teacher without stored entropy, an ``upper bound``; ``mixed`` over caches that differ in it.
        accuracy: Share of positions at which the student's most likely token is the gold token, in [0, 1].
        top1_agreement: Share of positions at which student and teacher have the same most likely token, in [0, 1].
        calibration_error: Expected calibration error, in [0, 1].
        acceptance: Share of the student's tokens that speculative decoding with this teacher would accept, in [0, 1];
            None if cached targets are random draws.
        acceptance_is: How exact that is: ``exact`` or an ``upper bound``; None without ``acceptance``.
    """

    positions: int
    cross_entropy_nats: float
    kl_to_teacher_nats: float
    kl_to_teacher_is: str
    accuracy: float
    top1_agreement: float
    calibration_error: float
    acceptance: float | None
    acceptance_is: str | None


@dataclass(frozen=True)
class AlignedMeans:
    """What was measured of a student with its own tokenizer; ``aligned.py`` defines each figure.

    Attributes:
        positions: Number of the student's positions that it is measured on.
        text_bytes: Bytes of text that its tokens behind these positions cover.
        bits_per_byte: Code length of that text under the student.
        cross_entropy_nats: Mean of -ln q(gold token) over the student's own tokens; not comparable between tokenizers.
        kl_to_teacher_nats_per_byte: KL(teacher || student) at positions with a row, per byte of the tokens there; None
            if the cached targets are random draws, or no position has a row.
        kl_to_teacher_is: How exact that is: ``biased`` through the map of equal bytes, with the same tokenizer as
            without an alignment; None if the cached targets are random draws.
        top1_agreement: Share of the positions with a row at which both have the same most likely token, by its bytes,
            in [0, 1]; None if no position has a row.
        aligned_share: Share of the positions that have a row of the teacher, in [0, 1].
    """

    positions: int
    text_bytes: int
    bits_per_byte: float
    cross_entropy_nats: float
    kl_to_teacher_nats_per_byte: float | None
    kl_to_teacher_is: str | None
    top1_agreement: float | None
    aligned_share: float


@dataclass(frozen=True)
class Spread:
    """How a divergence spreads over positions, in nats.

    Attributes:
        mean_nats: Mean over the positions.
        low_nats: Lower end of the 95 % interval of the mean, by drawing groups of documents with replacement; None if
            there is only one group.
        high_nats: Upper end of the interval.
        groups: Number of groups of documents; a group is held out as a whole.
        median_nats: Median over the positions.
        p90_nats: Value that 90 % of the positions do not exceed.
        p95_nats: The same for 95 %.
        p99_nats: The same for 99 %.
        p99_9_nats: The same for 99.9 %.
        max_nats: Largest value.
    """

    mean_nats: float
    low_nats: float | None
    high_nats: float | None
    groups: int
    median_nats: float
    p90_nats: float
    p95_nats: float
    p99_nats: float
    p99_9_nats: float
    max_nats: float


@dataclass(frozen=True)
class Floor:
    """What the figures of an evaluation would be if the model were the cached teacher: the error of storing alone.

    Attributes:
        origin: ``exact`` where storing changed nothing; ``measured`` by the capture; ``estimated`` from the stored
            states with a second error of the same kind; ``unknown``.
        gold_nats: Largest rounding error of a stored gold log-probability.
        mean_nats: Mean KL between the teacher's distributions and the stored ones; None if it is not known.
        median_nats: Median of that KL; None, as the four below, if only mean and maximum are known.
        p90_nats: Value that 90 % of the positions do not exceed.
        p95_nats: The same for 95 %.
        p99_nats: The same for 99 %.
        p99_9_nats: The same for 99.9 %.
        max_nats: Largest value; None if it is not known.
        top1_agreement: Share of positions at which the stored distribution has the teacher's most likely token, in
            [0, 1]; None if it is not known.
        positions: Positions of which the percentiles were estimated; 0 if none were.
    """

    origin: Literal["exact", "measured", "estimated", "unknown"]
    gold_nats: float
    mean_nats: float | None = None
    median_nats: float | None = None
    p90_nats: float | None = None
    p95_nats: float | None = None
    p99_nats: float | None = None
    p99_9_nats: float | None = None
    max_nats: float | None = None
    top1_agreement: float | None = None
    positions: int = 0


@dataclass(frozen=True)
class EvaluatedModel:
    """Which model was evaluated, and how it was run.

    Attributes:
        name: Its folder or GGUF file, as it was named; the class of a model that was already loaded.
        architecture: Its class.
        parameters: Number of its parameters.
        dtype: Type in which it computed.
        quantisation: How its weights are stored, if they are quantised; None for ordinary weights.
        output_head: How its output matrix is stored, if that is quantised; None for an ordinary one.
        weight_bytes: Size of its weight files; None of a model that was already loaded.
        sha256: Hash over its weight files and configuration, as a cache records it; None likewise.
    """

    name: str
    architecture: str
    parameters: int
    dtype: str
    quantisation: str | None
    output_head: str | None
    weight_bytes: int | None
    sha256: str | None


@dataclass(frozen=True)
class OriginalFigures:
    """The cached teacher itself, run as the evaluated model was: what a perfect copy would have scored.

    Attributes:
        model: The model that was run.
        kl: KL from the stored predictions; None if the cached targets are random draws.
        top1_agreement: Share of positions at which both have the same most likely token, in [0, 1].
        cross_entropy_nats: Mean of -ln q(gold token).
        perplexity: Exponential of that.
    """

    model: EvaluatedModel
    kl: Spread | None
    top1_agreement: float
    cross_entropy_nats: float
    perplexity: float


@dataclass(frozen=True)
class StoredBytes:
    """What the evaluation read of the cache, beside what whole rows of logits would take.

    Attributes:
        read_bytes: Size of the stored predictions of these positions.
        bytes_per_position: The same per position of the split.
        once_bytes: Size of what is read once whatever the number of positions: output matrix and transform.
        float32_logits_bytes_per_position: Size of a row of float32 logits.
        two_byte_logits_bytes_per_position: Size of a row of 16-bit log-probabilities.
    """

    read_bytes: int
    bytes_per_position: float
    once_bytes: int
    float32_logits_bytes_per_position: int
    two_byte_logits_bytes_per_position: int


@dataclass(frozen=True)
class ReliabilityBin:
    """The positions at which the student's highest probability lies in one of 15 bins of equal width.

    Attributes:
        confidence: Mean of that probability, in [0, 1].
        accuracy: Share of the positions at which the student's most likely token is the gold token, in [0, 1].
        positions: Number of positions.
    """

    confidence: float
    accuracy: float
    positions: int


@dataclass(frozen=True)
class EvaluateResult(MeanMeasures):
    """A student compared with the text and with the cached teacher: the fields of ``MeanMeasures`` and these.

    Attributes:
        split: ``held_out`` or ``train``.
        teacher_cross_entropy_nats: Mean of -ln p(gold token) of the teacher; None if the cache does not hold it.
        perplexity: Exponential of the model's cross-entropy.
        teacher_perplexity: Exponential of the teacher's; None without it.
        kl: How the KL to the teacher spreads over positions; None if the cached targets are random draws, whose KL is
            right on average only.
        floor: What the same figures would be if the model were the teacher, because of how the cache stores it.
        original: The teacher itself, run as the model was; None unless its folder was given.
        model: The evaluated model.
        teacher: Name of the cached teacher.
        stored: What was read of the cache.
        reliability: The bins from which the calibration error is computed; empty bins are left out.
        seconds: Wall-clock time of the evaluation; two results are equal whatever time they took.
    """

    split: Split
    teacher_cross_entropy_nats: float | None
    perplexity: float
    teacher_perplexity: float | None
    kl: Spread | None
    floor: Floor
    original: OriginalFigures | None
    model: EvaluatedModel
    teacher: str
    stored: StoredBytes
    reliability: tuple[ReliabilityBin, ...]
    seconds: float = field(compare=False)


@dataclass(frozen=True)
class AlignedEvaluateResult(AlignedMeans):
    """A student with its own tokenizer, the text and the teacher: the fields of ``AlignedMeans`` and these.

    Attributes:
        split: ``held_out`` or ``train``.
        alignment: Name of the alignment with the student's tokenizer.
        low_bits_per_byte: Lower end of the 95 % interval of the code length, by drawing groups of documents with
            replacement; None if there is only one group.
        high_bits_per_byte: Upper end of the interval.
        groups: Number of groups of documents.
        teacher_bits_per_byte: Code length of the text under the teacher, with its own tokens; None if the cache does
            not hold its log-probabilities of the text.
        coverage: How the measured positions correspond to the teacher's.
        model: The evaluated model.
        teacher: Name of the cached teacher.
        seconds: Wall-clock time of the evaluation; two results are equal whatever time they took.
    """

    split: Split
    alignment: str
    low_bits_per_byte: float | None
    high_bits_per_byte: float | None
    groups: int
    teacher_bits_per_byte: float | None
    coverage: Coverage
    model: EvaluatedModel
    teacher: str
    seconds: float = field(compare=False)
