"""The students that are compared: MT-BERT, MT-BERT without one of its parts, and students of one teacher or of none.

All of an arm's students start from the same weights and see the same texts in the same order. What differs is which
teachers they have, how these are weighted, and whether hidden states count.

The paper's loss is a plain sum, over the teachers too. A student file divides it: with ``kd_weight`` w the task loss
has the factor 1 - w, so hidden pairs get 1 - w, and w / (1 - w) is the factor on what the mixture gives. For
``discounted`` weights, which do not sum to 1, that is 1. ``fixed`` weights make a mean, so a sum of three has w = 3/4.
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


NO_TEACHER, MEAN, MT_BERT, SEPARATE = "no teacher", "mean of three", "MT-BERT", "MT-BERT, tuned separately"
NOISY_MEAN, NOISY_MT_BERT = "mean, one noisy", "MT-BERT, tuned separately, one noisy"
SINGLE = {f"one teacher: {name}": Arm((f"alone-{name}",)) for name in NAMES}
ARMS = {
    NO_TEACHER: Arm(ALONE[:1], kd_weight=0, hidden=0),
    **SINGLE,
    MEAN: Arm(ALONE),
    MT_BERT: Arm(JOINT, "discounted"),
    SEPARATE: Arm(ALONE, "discounted"),
    "MT-BERT, no hidden loss": Arm(JOINT, "discounted", hidden=0),
    "MT-BERT, hidden loss of wordnet alone": Arm(JOINT, "discounted", hidden=1),
    "MT-BERT, equal weights": Arm(JOINT, kd_weight=0.75),
    NOISY_MEAN: Arm(NOISY),
    NOISY_MT_BERT: Arm(NOISY, "discounted"),
}


def student_changes(arm: Arm) -> Overrides:
    """Return the overrides of the student file."""
    pairs = [
        {"teacher": teacher, "student_layer": mine, "teacher_layer": its, "project": "teacher"}
        | {"weight": 1 - arm.kd_weight}
        for teacher in arm.teachers[: arm.hidden]
        for mine, its in LAYERS.items()
    ]
    return {
        "teachers": [{"name": name} for name in arm.teachers],
        "mixture.weights": arm.weights,
        "loss.kd_weight": arm.kd_weight,
        "loss.hidden": pairs,
    }
