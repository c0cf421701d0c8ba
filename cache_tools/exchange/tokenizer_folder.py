"""Whether rows were made with a tokenizer.

Ids say nothing about themselves. A vocabulary that is too small is refused, and so are ids that, turned into text and
back, mostly become other ids: with the right tokenizer nearly all come back, with another one few do.
"""

from collections.abc import Iterable
from typing import Any

from cache_tools.errors import IdentityError
from cache_tools.vocabularies.tokenizer_folder import TokenizerFolder

LEAST_AGREEMENT = 0.5
"""Share of a sample's tokens that must come back from their text."""


def require_fitting(tokenizer: TokenizerFolder, sequences: Iterable[Any], teacher_size: int, where: object) -> float:
    """Refuse a tokenizer that the rows were not made with.

    Args:
        tokenizer: The tokenizer.
        sequences: Token ids of some rows.
        teacher_size: Width of the teacher's logits.
        where: The source, for the message.

    Returns:
        Which share of the tokens came back from their text.

    Raises:
        IdentityError: the vocabulary is larger than the teacher's, or few tokens come back.
    """
    if tokenizer.size > teacher_size:
        raise IdentityError(
            "the tokenizer has more tokens than the teacher has logits",
            where=where,
            expected=f"at most {teacher_size}",
            found=tokenizer.size,
            why="the rows were made with another tokenizer",
            fix="Give the tokenizer of the teacher with --tokenizer, or the width of its logits with --vocabulary-size",
        )
    total = same = 0
    for ids in sequences:
        ids = [int(token) for token in ids]
        text = tokenizer.tokenizer.decode(ids, skip_special_tokens=False)
        back = tokenizer.tokenizer.encode(text, add_special_tokens=False).ids
        total, same = total + len(ids), same + len(ids) - _different(ids, back)
    agreement = same / max(total, 1)
    if agreement < LEAST_AGREEMENT:
        raise IdentityError(
            "the token ids do not come back from their text with this tokenizer",
            where=where,
            expected=f"at least {LEAST_AGREEMENT:.0%} of the tokens",
            found=f"{agreement:.0%}",
            why="the rows were made with another tokenizer, so their ids mean other tokens",
            fix="Give the tokenizer of the teacher with --tokenizer",
        )
    return agreement


def _different(first: list[int], second: list[int]) -> int:
    """Return how many tokens of the first list are not in the second, as a multiset."""
    left: dict[int, int] = {}
    for token in second:
        left[token] = left.get(token, 0) + 1
    missing = 0
    for token in first:
        if left.get(token, 0):
            left[token] -= 1
        else:
            missing += 1
    return missing
