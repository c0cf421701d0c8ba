"""How exact a mixture of teachers is, in the terms of ``compatibility.py``.

A mixture of losses is compared with the weighted sum of the full divergences, and has the worst teacher's verdict: sums
of exact terms are exact, sums of unbiased terms unbiased (the weights come from stored scalars, not from draws), and
sums of lower bounds a lower bound. The minimum of a sum of lower bounds need not be the teachers' mean.

A mixture of distributions is compared with the divergence from the mean of the teachers. It needs each teacher's
probability of every token that any of them kept: whole targets have it, and draws have it in expectation, but topk and
topp do not, so those are biased with every tail policy. ``losses/mixture.py`` bounds the bias.
"""

from collections.abc import Sequence

from cache_tools.errors import ConfigError
from cache_tools.store.teacher import CachedTeacher
from trainer.config.mixture import SCALAR, MixtureConfig
from trainer.config.student_file import LossConfig
from trainer.verdicts.compatibility import LEVELS, TargetSummary, Verdict, check_loss, explain

SUM_OF_BOUNDS = Verdict(
    "lower bound",
    "each teacher's term is a lower bound of its own divergence; the sum has its minimum at the teachers' mean "
    "only where they leave out the same mass on the same tokens",
)
UNKNOWN_ENTRIES = Verdict(
    "biased",
    "what a teacher gives to a token that only another one kept is unknown and counted as 0, which is too low by "
    "at most its left-out mass and its least kept probability",
)


def explain_mixture(sources: Sequence[TargetSummary], loss: LossConfig, mixture: MixtureConfig) -> Verdict:
    """Return how exact a loss is on several teachers' targets."""
    verdict = worst([explain(source, loss) for source in sources])
    if len(sources) == 1:
        return verdict
    if mixture.of == "losses":
        return SUM_OF_BOUNDS if verdict.level == "lower bound" else verdict
    return worst([verdict, UNKNOWN_ENTRIES]) if any(source.family == "likeliest" for source in sources) else verdict


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict of the last level, the first of several."""
    return max(verdicts, key=lambda verdict: LEVELS.index(verdict.level))


def check_mixture(teachers: Sequence[CachedTeacher], loss: LossConfig, mixture: MixtureConfig) -> Verdict | None:
    """Refuse a mixture that these teachers' predictions cannot serve.

    Returns:
        How exact the loss is; None if it uses no predictions (``kd_weight: 0``).

    Raises:
        ConfigError: one teacher alone would be refused (``check_loss``), or the mixture is biased without
            ``allow_biased``, or rebuilds distributions from hidden states, or needs a scalar that a teacher lacks.
    """
    _check_source(loss)
    for teacher in teachers:
        check_loss(teacher.manifest, loss.of_teacher(teacher.name), f"loss, on teacher {teacher.name}")
    if loss.kd_weight == 0:
        return None
    _check_scalars(teachers, mixture)
    verdict = explain_mixture([TargetSummary.of(teacher.manifest, loss) for teacher in teachers], loss, mixture)
    if verdict.level == "biased" and not loss.allow_biased:
        raise ConfigError(
            "this mixture is biased on this cache",
            where="mixture.of",
            expected="a mixture that is exact, unbiased or a lower bound",
            found=f"{loss.divergence} from the mean of {len(teachers)} teachers",
            why=verdict.reason,
            fix="Set mixture.of: losses; or accept it with loss.allow_biased: true",
        )
    return verdict


def _check_source(loss: LossConfig) -> None:
    if loss.source == "hidden":
        raise ConfigError(
            "source: hidden cannot be used with several teachers",
            where="loss.source",
            expected="source: targets",
            found="source: hidden",
            why="it would need every teacher's output matrix at every position",
            fix="Set loss.source: targets (loss.hidden may be used beside it), or name one teacher instead of teachers",
        )


def _check_scalars(teachers: Sequence[CachedTeacher], mixture: MixtureConfig) -> None:
    name = SCALAR[mixture.weights]
    for teacher in teachers:
        if name is not None and name not in teacher.manifest.scalars:
            raise ConfigError(
                "these weights need a scalar that the cache does not hold for every teacher",
                where="mixture.weights",
                expected=f"{name} of {teacher.name}",
                found=", ".join(teacher.manifest.scalars) or "no scalars",
                fix="Set mixture.weights: fixed, or capture this teacher again",
            )
