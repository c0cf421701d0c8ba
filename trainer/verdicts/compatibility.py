"""Which losses are exact, unbiased or biased on which targets: one table, and the function that reads it.

=============== ==================================================================================
level           meaning, of the loss against the divergence from the teacher's whole distribution
=============== ==================================================================================
``exact``       equal to it, value and gradient, but for the rounding that the cache states
``unbiased``    its gradient is equal in expectation over the draws of the capture
``lower bound`` never above it; zero, with zero gradient, at a student that equals the teacher
``biased``      at a student that equals the teacher the gradient is not zero
``refused``     infinite, or without a meaningful minimum, or without the scalars it needs
=============== ==================================================================================

A lower bound is not biased: it is the same divergence over coarser outcomes, or a part of its
non-negative terms, so the teacher is still a minimum; it only fails to say how the tail is shaped.
``biased`` needs ``loss.allow_biased: true``; ``refused`` is always refused. The tests check each verdict by
measuring it.

Nothing here needs torch: a manifest is enough.
"""

from dataclasses import dataclass
from typing import Literal

from cache_tools.errors import ConfigError
from cache_tools.format.layout import LOGSUMEXP, TAIL_MINIMUM, tempered_name
from cache_tools.format.manifest import TeacherManifest
from trainer.config.student_file import Divergence, LossConfig, TailPolicy

Level = Literal["exact", "unbiased", "lower bound", "biased", "refused"]
LEVELS: tuple[Level, ...] = ("exact", "unbiased", "lower bound", "biased", "refused")
"""Best first."""

Family = Literal["hidden", "whole", "likeliest", "drawn"]
FAMILIES: dict[Family, str] = {
    "hidden": "source: hidden (layer last)",
    "whole": "dense, topk with k = vocabulary",
    "likeliest": "topk, topp",
    "drawn": "sampled, hybrid",
}
"""What kinds of targets have in common, and the kinds."""


@dataclass(frozen=True)
class Verdict:
    """How exact a loss is on some targets.

    Attributes:
        level: One of LEVELS.
        reason: One sentence.
    """

    level: Level
    reason: str


@dataclass(frozen=True)
class Rule:
    """One line of the table; an empty tuple means all.

    Attributes:
        families: Families of targets that the line is about.
        divergences: Divergences.
        tails: Tail policies.
        verdict: The verdict if all three fit.
    """

    families: tuple[Family, ...]
    divergences: tuple[Divergence, ...]
    tails: tuple[TailPolicy, ...]
    verdict: Verdict

    def fits(self, family: Family, divergence: Divergence, tail: TailPolicy) -> bool:
        """Say whether this line is about a loss."""
        return all(
            not accepted or value in accepted
            for value, accepted in ((family, self.families), (divergence, self.divergences), (tail, self.tails))
        )


BOUNDED: tuple[Divergence, ...] = ("jensen_shannon", "total_variation")

RULES = (
    Rule(("hidden",), (), (), Verdict(
        "exact", "the whole distribution is rebuilt, to within the error the last hidden state is stored with")),
    Rule((), ("reverse_kl", *BOUNDED), ("uniform", "minimum"), Verdict(
        "refused", "with a spread tail this divergence needs the student's probability of every token")),
    Rule(("whole",), (), (), Verdict(
        "exact", "every token is kept, so no mass is left out")),
    Rule(("drawn",), ("forward_kl",), (), Verdict(
        "unbiased", "forward KL is linear in the target, and the mean of the draws is the teacher; a KL value "
        "(not its gradient) needs the stored entropy in place of the draws' own")),
    Rule(("drawn",), ("reverse_kl",), (), Verdict(
        "refused", "tokens that were not drawn have weight 0, which makes reverse KL infinite")),
    Rule(("drawn",), BOUNDED, (), Verdict(
        "biased", "this divergence is not linear in the target, so its mean over draws is not that of the teacher")),
    Rule(("likeliest",), (), ("ghost",), Verdict(
        "lower bound", "all left-out tokens are compared as one outcome; exact where student and teacher shape "
        "the tail alike")),
    Rule(("likeliest",), BOUNDED, ("none",), Verdict(
        "lower bound", "a part of the sum, whose terms are never negative; ghost adds the tail's mass and is closer")),
    Rule(("likeliest",), ("reverse_kl",), ("renormalise", "gold"), Verdict(
        "refused", "the target gives left-out tokens no probability, which makes reverse KL infinite")),
    Rule(("likeliest",), ("reverse_kl",), ("none",), Verdict(
        "refused", "the student would lower it by taking its mass away from the kept tokens")),
    Rule(("likeliest",), ("forward_kl",), ("none",), Verdict(
        "biased", "its minimum is the kept probabilities scaled up to sum to 1, as with renormalise")),
    Rule(("likeliest",), (), ("renormalise",), Verdict(
        "biased", "its minimum gives the left-out tokens no probability at all")),
    Rule(("likeliest",), (), ("gold",), Verdict(
        "biased", "the left-out mass is assumed to belong to the gold token")),
    Rule(("likeliest",), (), ("uniform",), Verdict(
        "biased", "the left-out mass is assumed to be spread evenly")),
    Rule(("likeliest",), (), ("minimum",), Verdict(
        "biased", "every left-out token is given the lowest logit")),
)  # fmt: skip
"""At temperature 1; the first line that fits counts."""

TEMPERED: dict[tuple[Family, bool], Verdict] = {
    ("hidden", False): Verdict(
        "exact",
        "the rebuilt logits are divided by the temperature; the error that the states are stored with is within "
        "their budget at 1 and at the temperatures the capture declares, and may be larger at others",
    ),
    ("whole", False): Verdict(
        "exact",
        "every token is kept, so tempering adds no error; the rounding of max_kl_nats is within the budget where "
        "the capture declares the temperature, and about 20 times that at most elsewhere",
    ),
    ("likeliest", True): Verdict(
        "exact",
        "the stored log-normalisers temper the kept tokens without bias; the rounding of max_kl_nats is within "
        "the budget at this temperature too",
    ),
    ("likeliest", False): Verdict(
        "biased", "the cache holds no log-normaliser at this temperature, so the left-out tokens would be forgotten"
    ),
    ("drawn", False): Verdict("refused", "draws made at temperature 1 cannot be tempered; capture others for it"),
}
"""At any other temperature, by family and whether its log-normaliser was captured; the worse verdict counts."""


NO_MINIMUM = Verdict("refused", "the cache does not hold the lowest logit")
"""Of the tail policy ``minimum``, where the scalar ``tail_minimum`` was not captured."""


@dataclass(frozen=True)
class TargetSummary:
    """The targets that a student learns from, as far as the table depends on them.

    Attributes:
        family: Family of the targets.
        scalars: Names of the scalars that the cache holds.
    """

    family: Family
    scalars: tuple[str, ...] = ()

    @classmethod
    def of(cls, manifest: TeacherManifest, loss: LossConfig) -> "TargetSummary":
        """Return what a loss uses of a cached teacher."""
        if loss.source == "hidden":
            return cls("hidden")
        target = manifest.target
        if target.kind.is_drawn:
            return cls("drawn", manifest.scalars)
        all_tokens = target.settings.get("tokens", manifest.vocabulary_size)  # of a smaller vocabulary, if of one
        whole = target.kind.is_whole or (target.kind.is_ranked and not target.kind.has_mass and target.k >= all_tokens)
        return cls("whole" if whole else "likeliest", manifest.scalars)

    def scalars_for(self, loss: LossConfig) -> tuple[str, ...] | None:
        """Return the scalars to pass to ``tempering.at_temperature``, or None if it has to, or may, do without."""
        names = needed_scalars(loss)
        usable = names and self.family == "likeliest" and set(names) <= set(self.scalars)
        return names if usable else None


def needed_scalars(loss: LossConfig) -> tuple[str, ...]:
    """Return the scalars by which the likeliest tokens become what a loss compares with."""
    if loss.tail == "minimum":
        return (LOGSUMEXP, TAIL_MINIMUM)
    return () if loss.temperature == 1 else normaliser_names(loss.temperature)


def normaliser_names(temperature: float) -> tuple[str, str]:
    """Return the scalars that exact tempering needs: log-normalisers of the logits, and of the logits divided by T."""
    return LOGSUMEXP, tempered_name(temperature)


def explain(source: TargetSummary, loss: LossConfig) -> Verdict:
    """Return how exact a loss is on some targets."""
    at_1 = verdict_at_1(source.family, loss.divergence, loss.tail)
    if loss.tail == "minimum" and source.family == "likeliest" and source.scalars_for(loss) is None:
        return NO_MINIMUM
    if loss.temperature == 1:
        return at_1
    tempered = TEMPERED[source.family, source.scalars_for(loss) is not None]
    if tempered.level == "biased" and loss.divergence == "reverse_kl":
        tempered = Verdict("refused", f"{tempered.reason}, which makes reverse KL infinite")
    return max(at_1, tempered, key=lambda verdict: LEVELS.index(verdict.level))


def verdict_at_1(family: Family, divergence: Divergence, tail: TailPolicy) -> Verdict:
    """Return the table's verdict at temperature 1."""
    return next(rule.verdict for rule in RULES if rule.fits(family, divergence, tail))


def check_loss(manifest: TeacherManifest, loss: LossConfig, where: str = "loss") -> Verdict | None:
    """Refuse a loss that this teacher's predictions cannot serve.

    Args:
        manifest: The cached teacher's.
        loss: The loss block of a student file.
        where: What a refusal names, where there are several teachers or caches.

    Returns:
        How exact the loss is; None if it uses no predictions (``kd_weight: 0``).

    Raises:
        ConfigError: the table refuses it, or calls it biased without ``allow_biased``, or a layer is not in the cache.
    """
    _check_layers(manifest, loss, where)
    if loss.kd_weight == 0:
        return None
    source = TargetSummary.of(manifest, loss)
    verdict = explain(source, loss)
    if verdict.level == "refused" or (verdict.level == "biased" and not loss.allow_biased):
        raise ConfigError(
            f"this loss is {verdict.level} on this cache",
            where=where,
            expected="a loss that is exact, unbiased or a lower bound",
            found=described(source, loss),
            why=verdict.reason,
            fix=_fix(manifest, source, loss, verdict),
        )
    return verdict


def described(source: TargetSummary, loss: LossConfig) -> str:
    """Return a loss and what it is applied to, in a few words."""
    tail = "" if loss.source == "hidden" else f", tail {loss.tail}"
    return f"{loss.divergence}{tail}, temperature {loss.temperature:g}, on {FAMILIES[source.family]}"


def _fix(manifest: TeacherManifest, source: TargetSummary, loss: LossConfig, verdict: Verdict) -> str:
    changes = (("tail", "ghost"), ("divergence", "forward_kl"), ("temperature", 1))
    advice = [
        f"set loss.{key}: {value}"
        for key, value in changes
        if LEVELS.index(explain(source, loss.model_copy(update={key: value})).level) < LEVELS.index("biased")
    ]
    if "last" in manifest.hidden:
        advice.append("set loss.source: hidden")
    if source.family == "likeliest" and needed_scalars(loss) and source.scalars_for(loss) is None:
        needed = f"scalars: [{TAIL_MINIMUM}]" if verdict is NO_MINIMUM else f"temperatures: [{loss.temperature:g}]"
        advice.append(f"capture with target.{needed}")
    if verdict.level == "biased":
        advice.append("accept it with loss.allow_biased: true")
    return "; or ".join(advice)


def _check_layers(manifest: TeacherManifest, loss: LossConfig, where: str) -> None:
    layers = {pair.layer for pair in loss.hidden}
    if loss.source == "hidden" and loss.kd_weight > 0:
        layers.add("last")
    missing = sorted(layers - set(manifest.hidden))
    if missing:
        raise ConfigError(
            "the loss needs hidden states that this cache does not hold",
            where=where,
            expected=f"layer {', '.join(missing)}",
            found=f"layer {', '.join(manifest.hidden)}" if manifest.hidden else "no hidden states",
            fix="Name the layers in the teacher's hidden.layers and run 'logitcask capture' again; it adds them",
        )
