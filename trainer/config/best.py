"""``save_strategy: best``: checkpoints only where the student got better on the held-out split.

transformers checks the measure's name at the first evaluation, hours into a run, and assumes that everything that
does not end in ``loss`` should be high. Both are checked here before the first step. The finished
student is still the one that the run ends with; the best one lies in its checkpoint.
"""

from transformers import TrainingArguments

from cache_tools.errors import ConfigError
from cache_tools.mappings import Arguments

GREATER_IS_BETTER = {
    "cross_entropy_nats": False,
    "kl_to_teacher_nats": False,
    "accuracy": True,
    "top1_agreement": True,
    "calibration_error": False,
}
"""The measures by which students can be ranked; every cache allows them, unlike the acceptance."""

ALIGNED_GREATER_IS_BETTER = {"bits_per_byte": False}
"""The same of students with their own tokenizer; the others need a kind of targets, or are counted by tokens."""

PREFIX = "eval_"
"""Start of the names of measures in the log."""


def direction(training: Arguments) -> dict[str, bool]:
    """Return the ``greater_is_better`` that follows from a ``training:`` block's measure; nothing if it has none."""
    measure = str(training.get("metric_for_best_model", "")).removeprefix(PREFIX)
    known = GREATER_IS_BETTER | ALIGNED_GREATER_IS_BETTER
    return {"greater_is_better": known[measure]} if measure in known else {}


def check_best(arguments: TrainingArguments, aligned: bool = False) -> None:
    """Refuse arguments by which no best checkpoint would ever be found.

    Args:
        arguments: The arguments.
        aligned: Whether the student has its own tokenizer.

    Raises:
        ConfigError: the measure is missing or unknown, or nothing is ever evaluated.
    """
    measure, saves_best = arguments.metric_for_best_model, arguments.save_strategy == "best"
    if measure is None and not saves_best:
        return
    known = ALIGNED_GREATER_IS_BETTER if aligned else GREATER_IS_BETTER
    if measure is None or measure.removeprefix(PREFIX) not in known:
        raise ConfigError(
            "the measure that ranks students is missing or unknown",
            where="training.metric_for_best_model",
            expected=f"one of {', '.join(known)}",
            found=measure or "nothing",
        )
    if arguments.eval_strategy == "no":
        raise ConfigError(
            "the best student can only be found if students are evaluated during training",
            where="training.eval_strategy",
            expected="steps or epoch",
            found="no",
            why="students are ranked by measures of the held-out split",
        )
