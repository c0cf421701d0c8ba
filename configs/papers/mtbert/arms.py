"""The students that are compared: MT-BERT, MT-BERT without one of its parts, and students of one teacher or of none.

All of an arm's students start from the same weights and see the same texts in the same order. What differs is which
teachers they have, how these are weighted, and whether hidden states count.

The paper's loss is a plain sum, over the teachers too. A student file divides it: with ``kd_weight`` w the task loss
has the factor 1 - w, so hidden pairs get 1 - w, and w / (1 - w) is the factor on what the mixture gives. For
``discounted`` weights, which do not sum to 1, that is 1. ``fixed`` weights make a mean, so a sum of three has w = 3/4.

Weights by sample are compared with equal ones of the same total. Three ``discounted`` weights sum to S, about 2, and
the mean's sum to 1; so ``mean of all`` gives teachers half as much beside the task, and a noisy one less in absolute
terms. Arms with ``same_total`` have equal weights and w = S / (1 + S), with S the mean sum of the discounted weights
over the training texts. A noisy teacher also reaches students by its hidden states, which no rule weights, so each
pair is there with and without the hidden loss.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

from configs.papers.recipes import Overrides

NAMES = ("wordnet", "debian", "both")
"""The teachers that the recipe trains, by the text that they were pre-trained on; others may take their place."""
DEPTH, STUDENT_LAYERS = 4, 2
"""Layers of these teachers, and of the student unless the command says otherwise."""


class Team(NamedTuple):
    """The same teachers, tuned in three ways.

    Attributes:
        joint: Together.
        alone: Each by itself.
        noisy: The same, but the last one on labels of which a share is wrong.
    """

    joint: tuple[str, ...]
    alone: tuple[str, ...]
    noisy: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str]) -> "Team":
        """Return the names of tuned teachers, from those of the pre-trained ones."""
        joint, alone = (tuple(f"{how}-{name}" for name in names) for how in ("joint", "alone"))
        return cls(joint, alone, (*alone[:-1], f"noisy-{names[-1]}"))

    @property
    def everyone(self) -> tuple[str, ...]:
        """All of them, each once."""
        return (*self.joint, *self.alone, self.noisy[-1])


class Arm(NamedTuple):
    """What a student learns from."""

    teachers: tuple[str, ...]
    weights: str = "fixed"
    kd_weight: float = 0.5
    hidden: int | None = None
    """How many of its teachers also have their hidden states matched, counted from the first; None for all."""
    same_total: bool = False
    """Whether ``kd_weight`` is chosen so that the teachers' weights sum to what ``discounted`` ones would."""


NO_TEACHER, MEAN, MT_BERT, SEPARATE = "no teacher", "mean of all", "MT-BERT", "MT-BERT, tuned separately"
SAME_TOTAL, ONE_NOISY, NO_HIDDEN = "equal weights, MT-BERT's total", ", one noisy", ", no hidden loss"
WEIGHTED = (MEAN, SAME_TOTAL, SEPARATE)
"""Ways to weight the same teachers."""


def single(names: Sequence[str]) -> dict[str, Arm]:
    """Return the students of one teacher."""
    return {f"one teacher: {name}": Arm((f"alone-{name}",)) for name in names}


def arms_of(names: Sequence[str]) -> dict[str, Arm]:
    """Return all students by name, from the names of the teachers; the first is the one that students are cut from."""
    team = Team.of(names)
    weighted = {
        MEAN: Arm(team.alone),
        SAME_TOTAL: Arm(team.alone, same_total=True),
        SEPARATE: Arm(team.alone, "discounted"),
    }
    noisy = {f"{name}{ONE_NOISY}": arm._replace(teachers=team.noisy) for name, arm in weighted.items()}
    without = {f"{name}{NO_HIDDEN}": arm._replace(hidden=0) for name, arm in weighted.items()}
    both = {
        f"{name}{NO_HIDDEN}{ONE_NOISY}": arm._replace(teachers=team.noisy, hidden=0) for name, arm in weighted.items()
    }
    equal = len(names) / (1 + len(names))
    return {
        NO_TEACHER: Arm(team.alone[:1], kd_weight=0, hidden=0),
        **single(names),
        **weighted,
        MT_BERT: Arm(team.joint, "discounted"),
        f"{MT_BERT}{NO_HIDDEN}": Arm(team.joint, "discounted", hidden=0),
        f"MT-BERT, hidden loss of {names[0]} alone": Arm(team.joint, "discounted", hidden=1),
        "MT-BERT, equal weights": Arm(team.joint, kd_weight=equal),
        **noisy,
        **without,
        **both,
    }


def layer_map(depth: int, student_layers: int) -> dict[int, int]:
    """Return, by layer of the student, the teacher's layer at the same relative depth, rounded up."""
    return {layer: math.ceil(layer * depth / student_layers) for layer in range(1, student_layers + 1)}


class Hidden(NamedTuple):
    """How hidden states are compared.

    Attributes:
        depths: Number of layers of each teacher; those that are not named have ``DEPTH``.
        student_layers: Number of layers of the student.
        start: Start of the projections.
    """

    depths: Mapping[str, int] = MappingProxyType({})
    student_layers: int = STUDENT_LAYERS
    start: Literal["identity", "ridge"] = "identity"

    def layers(self, teacher: str) -> dict[int, int]:
        """Return the layers of a tuned teacher that are compared, by layer of the student."""
        return layer_map(self.depths.get(teacher.partition("-")[2], DEPTH), self.student_layers)


OWN_TEACHERS = Hidden()
"""For the teachers that the recipe trains."""


def student_changes(arm: Arm, total: float | None = None, hidden: Hidden = OWN_TEACHERS) -> Overrides:
    """Return the overrides of the student file.

    Args:
        arm: What the student learns from.
        total: Mean sum of the discounted weights of its teachers; needed for ``same_total``.
        hidden: How hidden states are compared.
    """
    kd_weight = arm.kd_weight
    if arm.same_total:
        assert total is not None
        kd_weight = round(total / (1 + total), 4)
    pairs = [
        {"teacher": teacher, "student_layer": mine, "teacher_layer": its, "project": "teacher"}
        | {"weight": 1 - kd_weight}
        | ({} if hidden.start == "identity" else {"start": hidden.start})
        for teacher in arm.teachers[: arm.hidden]
        for mine, its in hidden.layers(teacher).items()
    ]
    return {
        "teachers": [{"name": name} for name in arm.teachers],
        "mixture.weights": arm.weights,
        "loss.kd_weight": kd_weight,
        "loss.hidden": pairs,
    }
