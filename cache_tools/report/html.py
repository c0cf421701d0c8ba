"""A report's data as one self-contained HTML page: no script, no network, no further files.

The template escapes every value. Text of the corpus is also escaped as text (see ``escaping.printable``) and cut, so
that it brings neither markup nor control characters nor a line of a hundred thousand characters into the page. As a
second barrier, the page's content policy forbids scripts. Matplotlib and Jinja2 are imported in this room only.
"""

import math
from bisect import bisect_right
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cache_tools.escaping import printable
from cache_tools.inspection.views import TeacherSurprise
from cache_tools.report import figures
from cache_tools.report.data import Passage, ReportData, SampleData
from cache_tools.terminal.sequence import BANDS, FRAGMENT
from cache_tools.terminal.summary import (
    codec_words,
    maker_words,
    means_words,
    model_words,
    number_words,
    progress_words,
    sample_words,
)

TEMPLATES = Path(__file__).parent / "templates"
TOKEN_CHARACTERS, NAME_CHARACTERS = 200, 120
"""Longest text that is shown of a token, and of the name of a document or group."""

GROUPS = 25


class Piece(NamedTuple):
    """A token of a passage: its text, its CSS classes, and its surprise in words; no words if it is not predicted."""

    text: str
    classes: str
    words: str


def render(data: ReportData) -> str:
    """Return a report as an HTML page."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "shown": shown,
        "codec": codec_words,
        "maker": maker_words,
        "means": means_words,
        "model": model_words,
        "nats": number_words,
        "progress": progress_words,
        "sample": sample_words,
    }
    template = environment.get_template("report.html.j2")
    plots = {} if data.sample is None else _plots(data.sample)
    return template.render(**vars(data), groups=GROUPS, plots=plots, bands=_bands(), pieces=_pieces)


def shown(text: str, characters: int = NAME_CHARACTERS) -> str:
    """Return text of a corpus, escaped and cut."""
    cut = printable(text[:characters], keep="\n").replace("\n", "↵\n")
    return cut + "…" if len(text) > characters else cut


def _plots(sample: SampleData) -> dict[str, Markup]:
    teachers = sample.teachers
    return {
        "entropy": figures.histograms(teachers, lambda teacher: teacher.entropy, "entropy, nats"),
        "kept_mass": figures.histograms(teachers, lambda teacher: teacher.kept_mass, "kept mass", percent=True),
        "reliability": figures.reliability(teachers),
        "places": figures.places(teachers),
    }


def _bands() -> list[str]:
    """Return the legend of the surprise bands: ``0-0.5``, …, ``8+``."""
    limits = [0.0, *(limit for limit, _ in BANDS)]
    return [f"{low:g}+" if math.isinf(high) else f"{low:g}–{high:g}" for low, high in pairwise(limits)]


def _pieces(passage: Passage, teacher: TeacherSurprise) -> list[Piece]:
    """Return the tokens of a passage; those before it have the class ``before``."""
    limits = [limit for limit, _ in BANDS[:-1]]
    pieces = []
    for token, nats in zip(passage.view.tokens, teacher.surprise_nats, strict=True):
        judged = token.position is not None
        classes = [f"b{bisect_right(limits, math.inf if nats is None else nats)}"] if judged else []
        classes += ["before"] if token.index < passage.first else []
        text = shown(token.text, TOKEN_CHARACTERS) or FRAGMENT
        seen = f"[{shown(token.seen, TOKEN_CHARACTERS)}→{text}]" if token.masked else text
        pieces.append(Piece(seen, " ".join(classes), f"{number_words(nats)} nats" if judged else ""))
    return pieces
