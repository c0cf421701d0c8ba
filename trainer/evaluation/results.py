"""The results of an evaluation: means over positions, in nats and shares."""

from dataclasses import dataclass, field

from cache_tools.format.manifest import Split


@dataclass(frozen=True)
class MeanMeasures:
    """What was measured of a student, as means over positions; ``measures.py`` defines each of them.

    Attributes:
        positions: Number of positions.
        cross_entropy_nats: Mean of -ln q(gold token) of the student.
        kl_to_teacher_nats: Mean of KL(teacher || student).
        kl_to_teacher_is: How exact that is: ``exact``, ``unbiased``, or a ``lower bound``.
        accuracy: Share of positions at which the student's most likely token is the gold token, in [0, 1].
        top1_agreement: Share of positions at which student and teacher have the same most likely token, in [0, 1].
        calibration_error: Expected calibration error, in [0, 1].
        acceptance: Share of the student's tokens that speculative decoding with this teacher would accept, in [0, 1];
            None if the cached targets are random draws.
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
        teacher_cross_entropy_nats: Mean of -ln p(gold token) of the teacher.
        reliability: The bins from which the calibration error is computed; empty bins are left out.
        seconds: Wall-clock time of the evaluation; two results are equal whatever time they took.
    """

    split: Split
    teacher_cross_entropy_nats: float
    reliability: tuple[ReliabilityBin, ...]
    seconds: float = field(compare=False)
