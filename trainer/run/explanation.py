"""The table of ``verdicts/compatibility.py`` for people: ``logitcask train --explain``.

Reasons are numbered and printed below the table, since one reason applies to many cells.
"""

from collections.abc import Callable
from typing import get_args

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table

from cache_tools.alignments.stored import Alignment
from cache_tools.mappings import Arguments
from cache_tools.store.teacher import CachedTeacher
from cache_tools.terminal.summary import context_words
from trainer.config.student_file import Divergence, StudentConfig, TailPolicy
from trainer.data.opening import open_teachers
from trainer.student.initial_weights import initial_weights
from trainer.verdicts.alignment import ALIGNED_VERDICTS, explain_aligned
from trainer.verdicts.compatibility import (
    FAMILIES,
    TEMPERED,
    Family,
    TargetSummary,
    Verdict,
    described,
    explain,
    verdict_at_1,
)
from trainer.verdicts.mixture import explain_mixture, worst
from trainer.verdicts.policy import PARTLY, judge_writer, origin_of

COLOURS = {"exact": "green", "unbiased": "green", "lower bound": "cyan", "biased": "yellow", "refused": "red"}
STYLE: Arguments = {
    "box": box.SIMPLE_HEAD,
    "title_justify": "left",
    "title_style": "bold",
    "show_edge": False,
    "pad_edge": False,
}


def print_explanation(config: StudentConfig) -> None:
    """Print the table and the verdict on a student file; nothing is trained.

    Raises:
        LogitcaskError: the cache cannot be read.
    """
    teachers = open_teachers(config)
    sources = [TargetSummary.of(teacher.manifest, config.loss) for teacher in teachers]
    console = Console()
    console.print(table())
    console.print()
    for number, (teacher, source) in enumerate(zip(teachers, sources, strict=True)):
        where = f"caches.{number}, {teacher.name}" if config.caches else teacher.name
        where += f", {teacher.manifest.target.kind}" if config.loss.source == "targets" else ""
        console.print(f"This file: {described(source, config.loss)} ({where})", highlight=False)
        for sentence in (*context_words(teacher.encoding.manifest.context), *writers(teacher, config)):
            console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    if config.loss.kd_weight == 0:
        console.print("kd_weight is 0: it trains on the text alone and uses no predictions.")
        return
    if config.teachers:
        weights = f"weights {config.mixture.weights} per {config.mixture.per}"
        console.print(f"Mixture of {config.mixture.of}, {weights}", highlight=False)
        verdict = explain_mixture(sources, config.loss, config.mixture)
    else:
        verdict = worst([explain(source, config.loss) for source in sources])
    if config.alignment is not None:
        alignment = Alignment(teachers[0].encoding, config.alignment)
        console.print(coverage_words(alignment), highlight=False, markup=False, soft_wrap=True)
        is_drawn = teachers[0].manifest.target.kind.is_drawn
        verdict = explain_aligned(verdict, alignment, config.loss.ranks, is_drawn)
        if config.loss.ranks is not None:
            console.print(
                f"Ranks of {config.loss.ranks.of} tokens, weight {config.loss.ranks.weight:g}", highlight=False
            )
    console.print(_verdict(verdict), soft_wrap=True)


def writers(teacher: CachedTeacher, config: StudentConfig) -> list[str]:
    """Return a sentence on each model that wrote the text of a cached teacher; none if no model is recorded.

    Raises:
        ModelError: the weights that the student starts from cannot be found.
    """
    origin = origin_of(teacher)
    if not origin.policies:
        return []
    start = initial_weights(config.student).get("sha256") if config.student.pretrained is not None else None
    verdicts = [judge_writer(policy, teacher, config.loss, start) for policy in origin.policies]
    sentences = [f"Text: {verdict.level}: {verdict.reason}." for verdict in verdicts]
    return sentences if origin.complete else [*sentences, f"Text: {PARTLY}."]


def coverage_words(alignment: Alignment) -> str:
    """Return which share of the student's positions has a row of the teacher."""
    receipts = alignment.receipts.values()
    positions = sum(count for receipt in receipts for name, count in receipt.kinds.items() if name != "outside")
    with_row = sum(receipt.with_row for receipt in receipts)
    return (
        f"Alignment {alignment.name}: {with_row:,} of {positions:,} positions of the student have a row of the teacher "
        f"({with_row / max(positions, 1):.1%}); the others learn from the text alone."
    )


def table() -> RenderableType:
    """Return a table for each family of targets, two for special cases, and the reasons as numbered notes."""
    reasons: dict[str, int] = {}

    def cell(verdict: Verdict) -> str:
        number = reasons.setdefault(verdict.reason, len(reasons) + 1)
        return f"[{COLOURS[verdict.level]}]{verdict.level}[/] {number}"

    tables = [_family_table(family, cell) for family in FAMILIES]
    tempered = Table(
        "targets",
        "log-normaliser captured",
        "",
        title="at other temperatures; the worse verdict applies",
        **STYLE,
    )
    for (family, captured), verdict in TEMPERED.items():
        state = "captured" if captured else "not captured" if family == "likeliest" else "not needed"
        tempered.add_row(FAMILIES[family], state, cell(verdict))
    aligned = Table("positions", "", title="with an alignment; the worse verdict applies", **STYLE)
    for positions, own in ALIGNED_VERDICTS.items():
        aligned.add_row(positions, "as without" if own is None else cell(own))
    notes = Table.grid(padding=(0, 2, 0, 0))
    for reason, number in reasons.items():
        notes.add_row(str(number), reason)
    return Group(*(part for shown in (*tables, tempered, aligned) for part in (shown, "")), notes)


def _family_table(family: Family, cell: Callable[[Verdict], str]) -> Table:
    """Return a row for each tail policy; one row where they do not matter."""
    shown = Table("tail", *get_args(Divergence), title=FAMILIES[family], **STYLE)
    rows = {
        tail: [cell(verdict_at_1(family, divergence, tail)) for divergence in get_args(Divergence)]
        for tail in get_args(TailPolicy)
    }
    if family == "hidden":
        rows = {"(none)": rows["ghost"]}
    for tail, cells in rows.items():
        shown.add_row(tail, *cells)
    return shown


def _verdict(verdict: Verdict) -> str:
    return f"[{COLOURS[verdict.level]}]{verdict.level}[/]: {verdict.reason}."
