"""Who wrote the text that a student learns from, and what follows for distillation: ``train --explain`` prints it.

Predictions are exact at every position whoever wrote the text. What the writer decides is *at which prefixes* a student
learns:

================== =====================================================================================
level              who wrote the completions
================== =====================================================================================
``teacher``        the model that scored them
``at the start``   the very weights that the student starts from: on-policy until its first update
``stale``          another step of a student, or another student: on-policy for a model that is not this one
``unknown``        a server whose weights nobody could read: perhaps the teacher, perhaps not
``other model``    some other model
================== =====================================================================================

Two results of others decide the reasons. Offline scores lead a student to the same optimum as a live teacher only if
the teacher that scores its rollouts is the one whose text it learned from before (teacher consistency, arXiv
2604.13010); so a student carries the weights of the models that wrote and scored its text (``StudentOrigin``). Stale
rollouts harm reverse KL, which the student's own probabilities weight, more than forward KL (arXiv 2606.24143).

Nothing here needs torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cache_tools.errors import IdentityError
from cache_tools.format.manifest import Policy
from cache_tools.store.encoding_files import TextOrigin, text_origin
from cache_tools.store.teacher import CachedTeacher
from trainer.config.student_file import LossConfig

WriterLevel = Literal["teacher", "at the start", "stale", "unknown", "other model"]

UNRECORDED = "no model is recorded as its writer"
PARTLY = "the other part has no recorded writer"


@dataclass(frozen=True)
class WriterVerdict:
    """What follows from who wrote a text.

    Attributes:
        level: One of the table's levels.
        reason: One or several sentences without a full stop at the end.
    """

    level: WriterLevel
    reason: str


def origin_of(teacher: CachedTeacher) -> TextOrigin:
    """Return who wrote the text that a teacher scored."""
    return text_origin(teacher.encoding.path, teacher.encoding.manifest)


def is_same_model(policy: Policy, teacher: CachedTeacher) -> bool:
    """Say whether the weights that wrote a text are those that scored it; dtypes and engines may round differently.

    Weights that are unknown are the same as none.
    """
    identity = teacher.manifest.identity
    if policy.weights is None:
        return False
    return (policy.weights, policy.quantisation) == (identity.get("weights"), identity.get("quantisation"))


def judge_writer(
    policy: Policy, teacher: CachedTeacher, loss: LossConfig, start_weights: str | None = None
) -> WriterVerdict:
    """Return what follows from a model having written the text that a teacher scored.

    Args:
        policy: The model that wrote it.
        teacher: The teacher that scored it.
        loss: The loss block of the student file.
        start_weights: Hash of the weights that the student starts from; None if unknown.
    """
    if is_same_model(policy, teacher):
        return WriterVerdict(
            "teacher",
            f"the same model wrote and scored the text{_served(policy)}{_rounding(policy, teacher)}, {_draws(policy)}",
        )
    written = f"{_who(policy)} wrote it, {_draws(policy)}"
    if policy.weights is None:
        return WriterVerdict("unknown", f"{written}; {_unknown(policy, teacher)}")
    if policy.weights == start_weights:
        now = "these are the weights that the student starts from, so the scores are on-policy until its first update"
        return WriterVerdict("at the start", "; ".join([written, now, _staleness(loss), _consistency(policy, teacher)]))
    if policy.student is not None:
        now = "the student does not start from that step, so its prefixes are stale"
        return WriterVerdict("stale", "; ".join([written, now, _staleness(loss), _consistency(policy, teacher)]))
    return WriterVerdict("other model", f"{written}; its prefixes are neither the teacher's nor the student's own")


def check_writer(teacher: CachedTeacher, where: str) -> None:
    """Refuse a text that the scoring teacher did not write, all of it.

    Args:
        teacher: The teacher that scored it.
        where: Which key of the student file demands this.

    Raises:
        IdentityError: another model wrote a part of it, or nothing is recorded.
    """
    origin = origin_of(teacher)
    others = [policy for policy in origin.policies if not is_same_model(policy, teacher)]
    if others or not origin.complete:
        weights = str(teacher.manifest.identity.get("weights"))
        raise IdentityError(
            f"the model that scored this text as {teacher.name!r} did not write it",
            where=f"{where}, {teacher.encoding.path}",
            expected=f"completions by weights {weights[:12]}…",
            found=f"completions by {_who(others[0])}, {_weights(others[0])}"
            if others
            else f"text of which {PARTLY if origin.policies else UNRECORDED}",
            why="the file requires that one model wrote and scored the text",
            fix="Write the text with 'logitcask generate' by this teacher and capture it by ids and mask, or remove "
            "require_policy; if a server wrote it that has loaded this teacher, say so in policy.engine.same_weights",
        )


def learned_from(teachers: Sequence[CachedTeacher]) -> tuple[list[str], list[str]]:
    """Return the weights of the models that wrote the text of some cached teachers, and those of the teachers.

    None are returned of either unless the weights of all writers, or of all teachers, are recorded.
    """
    origins = [origin_of(teacher) for teacher in teachers]
    policies = [policy for origin in origins for policy in origin.policies]
    text_by = {policy.weights for policy in policies if policy.weights is not None}
    complete = all(origin.complete for origin in origins) and all(policy.weights is not None for policy in policies)
    scored_by = [teacher.manifest.identity.get("weights") for teacher in teachers]
    return sorted(text_by) if complete else [], [] if None in scored_by else sorted(set(map(str, scored_by)))


def _who(policy: Policy) -> str:
    if policy.engine is not None and policy.weights is None:
        return f"{_server(policy)} (its model {policy.engine.get('model')})"
    if policy.student is None:
        return str(policy.model.get("name", "a model"))
    step = "an unknown step" if policy.student.step is None else f"step {policy.student.step:,}"
    return f"a student at {step} of run {policy.student.run[:12]}…"


def _server(policy: Policy) -> str:
    engine = policy.engine or {}
    return f"{engine.get('name')} {engine.get('version')}"


def _weights(policy: Policy) -> str:
    return "weights unknown" if policy.weights is None else f"weights {policy.weights[:12]}…"


def _served(policy: Policy) -> str:
    """Return on whose word the writer's weights are known, if a server ran them."""
    if policy.engine is None:
        return ""
    return f", by the hash of the folder that the generation file names as served by {_server(policy)}"


def _unknown(policy: Policy, teacher: CachedTeacher) -> str:
    """Return what can be said of a writer whose weights nobody could read."""
    scorer, writer = teacher.manifest.identity.get("engine"), policy.engine
    if isinstance(scorer, dict) and writer and all(scorer.get(key) == writer.get(key) for key in ("name", "model")):
        return (
            "a server of the same kind scored it under the same name, but neither side's weights are known, so nothing "
            "shows that one model did both"
        )
    return "its weights are unknown, so nothing shows whether its prefixes are the teacher's, the student's or others"


def _draws(policy: Policy) -> str:
    sampling = policy.sampling
    if sampling.is_whole:
        return "at temperature 1 without truncation: its tokens are draws from that model's own distribution"
    if sampling.temperature == 0:
        return "always its likeliest token: the text is no sample of that model's distribution"
    cuts = [f"temperature {sampling.temperature:g}"]
    cuts += [f"top_p {sampling.top_p:g}"] if sampling.top_p < 1 else []
    cuts += [f"top_k {sampling.top_k}"] if sampling.top_k else []
    return f"at {', '.join(cuts)}: likelier text than that model's own distribution gives"


def _rounding(policy: Policy, teacher: CachedTeacher) -> str:
    identity = teacher.manifest.identity
    wrote = f"{policy.dtype or 'an unknown type'}{' in an engine' if policy.engine else ''}"
    scored = f"{identity.get('dtype')}{' in an engine' if identity.get('engine') else ''}"
    return "" if wrote == scored else f" (written in {wrote}, scored in {scored}, which round differently)"


def _staleness(loss: LossConfig) -> str:
    if loss.divergence == "reverse_kl":
        return (
            "reverse KL on stale prefixes is a biased estimate of on-policy reverse KL, the more so the further the "
            "student moves; write new rollouts often"
        )
    return "stale prefixes harm this divergence less than reverse KL"


def _consistency(policy: Policy, teacher: CachedTeacher) -> str:
    text_by = policy.student.text_by if policy.student else ()
    if not text_by:
        return "who wrote the text that it learned from before is not recorded"
    if set(text_by) == {teacher.manifest.identity.get("weights")}:
        return "the teacher that scores it also wrote the text that it learned from before"
    return (
        "another model than this teacher wrote text that it learned from before, which biases training on scores of "
        "its rollouts for good"
    )
