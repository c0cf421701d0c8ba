"""Which students are compared. A student is a chain of stages, each of which starts where the one before ended."""

from types import MappingProxyType
from typing import Any, NamedTuple

from configs.papers.recipes import Overrides

NO_CHANGES: Overrides = MappingProxyType({})

PUBLISHED = "0.5"
"""The ratio of the published runs; every comparison but that of the vocabularies is made with it."""

LABELS_AT_1 = {"loss": {"kd_weight": 1, "label_weight": 1, "token_weight": 0}}
"""Soft labels: the teacher's distribution at the class' position, temperature 1, no gold label."""


class Stage(NamedTuple):
    """One training run.

    Attributes:
        name: Name in the paths of run folders.
        cache: ``pretraining``, ``words`` or ``labels`` (of the task), or ``text`` without a teacher; ``labels@250``
            has 250 of the task's training texts, and all of its held-out ones.
        steps: Stages whose numbers of steps are added up: ``P``, ``F1``, ``F2``.
        changes: Overrides of student.yaml.
        hidden: Whether the student's last hidden states learn from the teacher's last ones too.
    """

    name: str
    cache: str
    steps: tuple[str, ...]
    changes: Overrides = NO_CHANGES
    hidden: bool = False


class Arm(NamedTuple):
    """One student.

    Attributes:
        stages: Stages in the order of training.
        vocabulary: Name of a vocabulary, see ``VOCABULARIES``.
        config: Configuration of a student of its own structure, from random weights; None begins as the teacher's
            first layers.
    """

    stages: tuple[Stage, ...]
    vocabulary: str = PUBLISHED
    config: Overrides | None = None

    @property
    def place(self) -> str:
        """Name of the folder of all students with this vocabulary and structure."""
        return self.vocabulary if self.config is None else f"{self.vocabulary}-{self.config['model_type']}"


EVERY_STEP = ("P", "F1", "F2")
P, F1 = Stage("P", "pretraining", ("P",)), Stage("F1", "words", ("F1",))
F2 = Stage("F2", "labels", ("F2",), LABELS_AT_1)
GLMD = (P, F1, F2)

TEMPERATURES = (1, 5, 15)
LOSSES: dict[str, dict[str, Any]] = {
    "whole": {"source": "hidden"},
    "k + spread": {"tail": "uniform"},
    "k + lowest": {"tail": "minimum"},
    "k + rest": {"tail": "ghost"},
    "k alone": {"tail": "renormalise"},
}
"""Forms of the teacher's distribution, each with its keys of a loss block."""


def form(name: str, temperature: int, stage: Stage = P) -> Stage:
    """Return a stage in which the student learns from one form at one temperature."""
    loss = {"kd_weight": 1, "temperature": temperature, **LOSSES[name], "allow_biased": True}
    published = (name, temperature) == ("k + rest", 15)
    return stage if published else stage._replace(name=f"{stage.name}-{name}-{temperature}", changes={"loss": loss})


FORMS = {"no training": Arm(())}
"""Pre-training alone; the most important temperature comes first."""
FORMS |= {f"{name}, T = {t}": Arm((form(name, t),)) for t in (15, 1, 5) for name in LOSSES}

STAGES = {
    "no training": Arm(()),
    "P": Arm((P,)),
    "F1": Arm((F1,)),
    "F2": Arm((F2,)),
    "P, F2": Arm((P, F2)),
    "P, F1": Arm((P, F1)),
    "F1, F2": Arm((F1, F2)),
    "P, F1, F2": Arm(GLMD),
    "P of the whole, F1, F2": Arm((form("whole", 15), F1, F2)),
    "P, F1 with k + spread, F2": Arm((form("k + spread", 15), form("k + spread", 15, F1), F2)),
}

UNKNOWN, CENTRED = "unknown", "centred-cosine"
VOCABULARIES = {"1": 1.0, "0.75": 0.75, "0.5": 0.5, "0.25": 0.25, f"0.5-{UNKNOWN}": 0.5, f"0.25-{UNKNOWN}": 0.25}
"""Kept share of the teacher's tokens. Dropped ones are read by the dot product of the teacher's embeddings, or by the
similarity that the name ends in; ``unknown``: as [UNK]."""

RATIOS = {name: Arm((F1, F2), name) for name in VOCABULARIES}
"""Without P, whose cache would have to be made for each of them."""

SMALL_VOCABULARIES = {
    f"{share}{reading}": share for share in (0.125, 0.0625) for reading in ("", f"-{CENTRED}", f"-{UNKNOWN}")
}
"""An eighth and a sixteenth, for a teacher whose embeddings were learned from much text."""
VOCABULARIES |= SMALL_VOCABULARIES
SMALL_RATIOS = {name: Arm((F2,), name) for name in ("1", *SMALL_VOCABULARIES)}
"""Soft labels alone: what is compared is how texts are read."""

FEW_TEXTS = (250, 1000, 4000)
"""Numbers of the task's texts that students see, without their labels; the teacher has learned from all of them."""
SMALL = "0.25"
WHOLE_CHAIN, STATES, OF_OTHER_STRUCTURE = (
    "GLMD: P, F1, soft labels",
    "soft labels and hidden states",
    "another structure, ",
)
P_WHOLE = form("whole", 15)
OTHER_STRUCTURE: Overrides = {
    "model_type": "modernbert",
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "global_attn_every_n_layers": 1,
    "max_position_embeddings": 96,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
}
"""A student that shares no structure with a BERT teacher: rotary positions, gated layers, a width of its own."""


def few(texts: int) -> dict[str, Arm]:
    """Return the students of so many texts of the task, by name.

    They have word prediction before equally many steps on soft labels, or neither; beside them a rival that learns the
    teacher's hidden states too, and students of another structure.
    """
    words = form("whole", 15, F1)._replace(name=f"F1@{texts}", cache=f"words@{texts}")
    soft = F2._replace(name=f"F2@{texts}", cache=f"labels@{texts}")
    longer = soft._replace(name=f"soft@{texts}", steps=EVERY_STEP)
    masked = Stage("MLM", "text", ("P",), {"loss": {"kd_weight": 0}})
    chains = {
        "soft labels": (soft,),
        "soft labels, steps of all stages": (longer,),
        "masked words, soft labels": (masked, soft),
        "P, soft labels": (P_WHOLE, soft),
        "F1, soft labels": (words, soft),
        WHOLE_CHAIN: (P_WHOLE, words, soft),
    }
    states = soft._replace(name=f"F2+states@{texts}", hidden=True)
    others = {name: chains[name] for name in ("soft labels", "P, soft labels", WHOLE_CHAIN)}
    students = {name: Arm(stages, SMALL) for name, stages in chains.items()}
    students[STATES] = Arm((states,), SMALL)
    students |= {f"{OF_OTHER_STRUCTURE}{name}": Arm(stages, SMALL, OTHER_STRUCTURE) for name, stages in others.items()}
    return {f"{name}; {texts:,} texts": arm for name, arm in students.items()}


FEW = {name: arm for texts in FEW_TEXTS for name, arm in few(texts).items()}

SOFT = Stage("soft", "labels", EVERY_STEP, LABELS_AT_1)
HALF_LABELS = {"loss": {"kd_weight": 0.5, "label_weight": 1, "token_weight": 0}}
LABELLED = Stage("KD+labels", "labels", EVERY_STEP, HALF_LABELS)
GOLD = {"loss": {"kd_weight": 0}}
LABELS = {
    "GLMD: P, F1, F2": Arm(GLMD),
    "soft labels alone": Arm((SOFT,)),
    "P, F1, then soft labels for as long": Arm((P, F1, SOFT)),
    "soft and gold labels": Arm((LABELLED,)),
    "masked LM, gold labels": Arm((Stage("MLM", "text", ("P", "F1"), GOLD), Stage("gold", "labels", ("F2",), GOLD))),
}
"""The first three see no gold label; all but the third have equal numbers of steps."""
