"""The students that are compared: MT-BERT, MT-BERT without one of its parts, and students of one teacher or of none.

All of an arm's students start from the same weights and see the same texts in the same order. What differs is which
teachers they have, how these are weighted, and whether hidden states count.

The paper's loss is a plain sum, over the teachers too. A student file divides it: with ``kd_weight`` w the task loss
has the factor 1 - w, so hidden pairs get 1 - w, and w / (1 - w) is the factor on what the mixture gives. For
``discounted`` weights, which do not sum to 1, that is 1. ``fixed`` weights make a mean, so a sum of three has w = 3/4.

Weights by sample are compared with equal ones of the same total. Three ``discounted`` weights sum to S, about 2, and
the mean's sum to 1; so ``mean of three`` gives teachers half as much beside the task, and a noisy one less in absolute
terms. Arms with ``same_total`` have equal weights and w = S / (1 + S), with S the mean sum of the discounted weights
over the training texts. A noisy teacher also reaches students by its hidden states, which no rule weights, so each
pair is there with and without the hidden loss.
"""

from typing import NamedTuple

from configs.papers.recipes import Overrides

NAMES = ("wordnet", "debian", "both")
"""The teachers, by the text that they were pre-trained on."""
JOINT, ALONE = (tuple(f"{how}-{name}" for name in NAMES) for how in ("joint", "alone"))
NOISY = (*ALONE[:2], "noisy-both")
"""The last one was tuned alone on labels of which a share is wrong."""
ALL_TEACHERS = (*JOINT, *ALONE, NOISY[-1])
LAYERS = {1: 2, 2: 4}
"""By layer of the student: the teachers' layer that it is to resemble."""


class Arm(NamedTuple):
    """What a student learns from."""

    teachers: tuple[str, ...]
    weights: str = "fixed"
    kd_weight: float = 0.5
    hidden: int = len(NAMES)
    """Of how many of its teachers the hidden states count, from the first on."""
    same_total: bool = False
    """Whether ``kd_weight`` is chosen so that the teachers' weights sum to what ``discounted`` ones would."""


NO_TEACHER, MEAN, MT_BERT, SEPARATE = "no teacher", "mean of three", "MT-BERT", "MT-BERT, tuned separately"
SAME_TOTAL, ONE_NOISY, NO_HIDDEN = "equal weights, MT-BERT's total", ", one noisy", ", no hidden loss"
SINGLE = {f"one teacher: {name}": Arm((f"alone-{name}",)) for name in NAMES}
WEIGHTED = {
    MEAN: Arm(ALONE),
    SAME_TOTAL: Arm(ALONE, same_total=True),
    SEPARATE: Arm(ALONE, "discounted"),
}
"""Ways to weight the same three teachers."""
CORRUPTED = {
    **{f"{name}{ONE_NOISY}": arm._replace(teachers=NOISY) for name, arm in WEIGHTED.items()},
    **{f"{name}{NO_HIDDEN}": arm._replace(hidden=0) for name, arm in WEIGHTED.items()},
    **{f"{name}{NO_HIDDEN}{ONE_NOISY}": Arm(NOISY, *arm[1:3], 0, arm.same_total) for name, arm in WEIGHTED.items()},
}
"""The same with one of the teachers noisy, without the hidden loss, and both."""
ARMS = {
    NO_TEACHER: Arm(ALONE[:1], kd_weight=0, hidden=0),
    **SINGLE,
    **WEIGHTED,
    MT_BERT: Arm(JOINT, "discounted"),
    f"{MT_BERT}{NO_HIDDEN}": Arm(JOINT, "discounted", hidden=0),
    "MT-BERT, hidden loss of wordnet alone": Arm(JOINT, "discounted", hidden=1),
    "MT-BERT, equal weights": Arm(JOINT, kd_weight=0.75),
    **CORRUPTED,
}


def student_changes(arm: Arm, total: float | None = None) -> Overrides:
    """Return the overrides of the student file.

    Args:
        arm: What the student learns from.
        total: Mean sum of the discounted weights of its teachers; needed for ``same_total``.
    """
    kd_weight = arm.kd_weight
    if arm.same_total:
        assert total is not None
        kd_weight = round(total / (1 + total), 4)
    pairs = [
        {"teacher": teacher, "student_layer": mine, "teacher_layer": its, "project": "teacher"}
        | {"weight": 1 - kd_weight}
        for teacher in arm.teachers[: arm.hidden]
        for mine, its in LAYERS.items()
    ]
    return {
        "teachers": [{"name": name} for name in arm.teachers],
        "mixture.weights": arm.weights,
        "loss.kd_weight": kd_weight,
        "loss.hidden": pairs,
    }
