"""A report's data as one HTML page that needs nothing else: no script, no network, no file beside it.

The page comes from a template that escapes every value. What comes from a corpus is also made harmless as text
(see ``escaping.printable``) and cut, so neither markup nor control characters nor a line of a hundred thousand
characters gets through; the page's own policy forbids scripts, should anything ever. Matplotlib and Jinja2 are
imported here only.
"""

import math
from bisect import bisect_right
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cache_tools.escaping import printable
from cache_tools.report import figures
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
"""What is shown at most of a token, and of a document's or group's name."""

GROUPS = 25


def render(data: dict[str, Any]) -> str:
    """Return the page of ``report.report_data``."""
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
    return template.render(**data, groups=GROUPS, plots=_plots(data["sample"]), bands=_bands(), pieces=_pieces)


def shown(text: str, characters: int = NAME_CHARACTERS) -> str:
    """Return text from a corpus, harmless and cut."""
    cut = printable(text[:characters], keep="\n").replace("\n", "↵\n")
    return cut + "…" if len(text) > characters else cut


def _plots(sample: dict[str, Any] | None) -> dict[str, Any]:
    if sample is None:
        return {}
    teachers = sample["teachers"]
    return {
        "entropy": figures.histograms(teachers, "entropy", "entropy, nats"),
        "kept_mass": figures.histograms(teachers, "kept_mass", "probability that is kept", percent=True),
        "reliability": figures.reliability(teachers),
        "places": figures.places(teachers),
    }


def _bands() -> list[str]:
    """Return the legend of the surprise bands: ``0-0.5``, …, ``8+``."""
    limits = [0.0, *(limit for limit, _ in BANDS)]
    return [f"{low:g}+" if math.isinf(high) else f"{low:g}–{high:g}" for low, high in pairwise(limits)]


def _pieces(passage: dict[str, Any], teacher: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each token's text, classes (its band, and whether it only leads to the passage) and surprise in words."""
    limits = [limit for limit, _ in BANDS[:-1]]
    pieces = []
    for token, nats in zip(passage["tokens"], teacher["surprise_nats"], strict=True):
        judged = token["position"] is not None
        classes = [f"b{bisect_right(limits, math.inf if nats is None else nats)}"] if judged else []
        classes += ["before"] if token["index"] < passage["first"] else []
        text = shown(token["text"], TOKEN_CHARACTERS) or FRAGMENT
        seen = f"[{shown(token['seen'], TOKEN_CHARACTERS)}→{text}]" if token["masked"] else text
        pieces.append(
            {"text": seen, "classes": " ".join(classes), "words": f"{number_words(nats)} nats" if judged else ""}
        )
    return pieces
