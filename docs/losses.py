"""Write which losses are exact on which targets as Markdown, from the rules that the trainer itself applies.

``python docs/losses.py`` prints the tables; the documentation's build puts them on the page about losses.
"""

from collections.abc import Callable
from typing import get_args

from trainer.config.student_file import Divergence, TailPolicy
from trainer.verdicts.alignment import ALIGNED_VERDICTS
from trainer.verdicts.compatibility import FAMILIES, TEMPERED, Verdict, verdict_at_1

ANY_TAIL = "any"


def tables() -> str:
    """Return a table for each family of targets, those for temperatures and alignments, and the numbered reasons."""
    reasons: dict[str, int] = {}

    def cell(verdict: Verdict) -> str:
        return f"{verdict.level} ({reasons.setdefault(verdict.reason, len(reasons) + 1)})"

    parts = [_family(title, family, cell) for family, title in FAMILIES.items()]
    parts += [_temperatures(cell), _aligned(cell)]
    notes = "\n".join(f"{number}. {reason[0].upper()}{reason[1:]}." for reason, number in reasons.items())
    return "\n\n".join([*parts, "## Reasons", notes]) + "\n"


def _family(title: str, family: str, cell: Callable[[Verdict], str]) -> str:
    """Return one family's table: a row for each tail policy, or one row where the policy makes no difference."""
    divergences = get_args(Divergence)
    rows = {tail: [cell(verdict_at_1(family, d, tail)) for d in divergences] for tail in get_args(TailPolicy)}  # type: ignore[arg-type]
    if len({tuple(row) for row in rows.values()}) == 1:
        rows = {ANY_TAIL: next(iter(rows.values()))}
    header = ["tail", *divergences]
    return f"## Targets: {title}\n\n" + _table(header, [[f"`{tail}`", *row] for tail, row in rows.items()])


def _temperatures(cell: Callable[[Verdict], str]) -> str:
    rows = [
        [FAMILIES[family], {True: "captured", False: "not captured"}[captured], cell(verdict)]
        for (family, captured), verdict in TEMPERED.items()
    ]
    about = "The verdict on a loss is the worse of its verdict at temperature 1, above, and of this one."
    return f"## Other temperatures\n\n{about}\n\n" + _table(["targets", "log-normaliser", "verdict"], rows)


def _aligned(cell: Callable[[Verdict], str]) -> str:
    rows = [[places, "as above" if own is None else cell(own)] for places, own in ALIGNED_VERDICTS.items()]
    about = "The worse of the verdict above and of this one applies to a student with its own tokenizer."
    return f"## With an alignment\n\n{about}\n\n" + _table(["positions", "verdict"], rows)


def _table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])


if __name__ == "__main__":
    print(tables(), end="")
