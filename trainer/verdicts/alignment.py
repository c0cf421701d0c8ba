"""How exact a loss is for a student with its own tokenizer, and which losses have a meaning there.

======================= ===========  ==============================================================================
positions of a student  level        why
======================= ===========  ==============================================================================
the same tokenizer      as without   the same tokens, rows and positions
exact and same prefix   biased       a map of equal byte strings: the teacher's probability of a token is that of its
                                     own division of the text. ``the`` begins ``therefore`` in one vocabulary and not
                                     in another, so equal tokens stand for different continuations
composed                biased       the product rule is exact for the teacher's own division of the token's bytes,
                                     and a lower bound of the probability of the bytes
no row                  none         cross-entropy alone; the log states the share as ``aligned_share``
======================= ===========  ==============================================================================

``loss.ranks`` compares sorted probabilities. Among equal vocabularies their distance is never above twice the total
variation, and 0 for any student that gives the teacher's probabilities to other tokens. Between two vocabularies it is
biased, because one of them divides what the other keeps whole. From likely tokens the distance itself is a lower bound,
see ``trainer/losses/ranks.py``; draws have no ranks.

Biased here says what it says everywhere: a student that gives all texts the teacher's probability has a gradient that
is not zero. So another tokenizer needs ``loss.allow_biased: true``. Nothing here needs torch.
"""

from cache_tools.alignments.stored import Alignment
from cache_tools.errors import ConfigError
from trainer.config.student_file import LossConfig, RankConfig
from trainer.verdicts.compatibility import LEVELS, Verdict

MAPPED = Verdict(
    "biased",
    "the student has another tokenizer: the probability of a token is that of the teacher's own division of the text, "
    "and a token of equal bytes stands for other continuations in the student's vocabulary",
)
COMPOSED = Verdict(
    "biased",
    "the product of the teacher's probabilities is that of its own division of the token's bytes, a lower bound of the "
    "probability of the bytes; other divisions are not stored",
)
RANKS = Verdict(
    "biased",
    "equal ranks are not equal tokens, and one vocabulary divides what the other keeps whole; from likely tokens the "
    "distance is a lower bound of that over all tokens, exact where no mass is left out",
)
SAME_RANKS = Verdict(
    "lower bound",
    "the distance of sorted probabilities is never above twice the total variation; it is 0 for every student that "
    "gives the teacher's probabilities to other tokens",
)
DRAWN_RANKS = Verdict("refused", "the ranks of drawn tokens are not those of the teacher's probabilities")
ALIGNED_VERDICTS = {
    "the same tokenizer": None,
    "same bytes before (exact, same prefix)": MAPPED,
    "composed, at temperature 1": COMPOSED,
    "no row: cross-entropy alone": None,
    "ranks of all tokens, or of unmapped ones": RANKS,
    "ranks of all tokens, the same tokenizer": SAME_RANKS,
    "ranks, from sampled or hybrid targets": DRAWN_RANKS,
}
"""What ``train --explain`` prints for each class of positions; None where the loss's own verdict holds."""


def explain_aligned(
    verdict: Verdict, alignment: Alignment, ranks: RankConfig | None = None, is_drawn: bool = False
) -> Verdict:
    """Return how exact a loss is through an alignment.

    Args:
        verdict: How exact it is on the targets.
        alignment: The alignment.
        ranks: ``loss.ranks``.
        is_drawn: Whether the targets are random draws.
    """
    if ranks is not None and is_drawn:
        return DRAWN_RANKS
    if ranks is not None and ranks.of == "all":
        return SAME_RANKS if alignment.is_same else RANKS
    worse = LEVELS.index(verdict.level) > LEVELS.index(MAPPED.level)
    return verdict if alignment.is_same or worse else MAPPED if ranks is None else RANKS


def check_aligned(loss: LossConfig, alignment: Alignment, is_drawn: bool = False) -> None:
    """Refuse a loss that has no meaning for a student with its own tokenizer.

    Args:
        loss: The loss block.
        alignment: The alignment.
        is_drawn: Whether the targets are random draws.

    Raises:
        ConfigError: it needs hidden states at the same tokens, labels, a spread tail, or ranks of draws; or it is
            biased without ``allow_biased``.
    """
    if loss.ranks is not None and is_drawn and loss.kd_weight > 0:
        raise _refusal("loss.ranks", DRAWN_RANKS.reason, "Leave loss.ranks out, or capture target.kind: topk")
    if loss.source == "hidden" or loss.hidden:
        raise _refusal(
            "loss.source" if loss.source == "hidden" else "loss.hidden",
            "hidden states belong to the teacher's tokens and to its vocabulary",
            "Set loss.source: targets and leave loss.hidden out",
        )
    if loss.tail in ("uniform", "minimum"):
        raise _refusal(
            "loss.tail", "positions without a row would be trained towards all tokens alike", "Set loss.tail: ghost"
        )
    if loss.label_weight is not None or loss.token_weight is not None:
        raise _refusal(
            "loss.label_weight" if loss.label_weight is not None else "loss.token_weight",
            "a label is a token of the teacher's",
            "Leave the weights out",
        )
    if loss.kd_weight > 0 and not loss.allow_biased and not alignment.is_same:
        raise ConfigError(
            "this loss is biased for a student with its own tokenizer",
            where="alignment",
            expected="the cache's tokenizer",
            found=f"alignment {alignment.name}",
            why=(MAPPED if loss.ranks is None else RANKS).reason,
            fix="Accept it with loss.allow_biased: true",
        )


def _refusal(where: str, why: str, fix: str) -> ConfigError:
    return ConfigError("this loss cannot be used with an alignment", where=where, why=why, fix=fix)
