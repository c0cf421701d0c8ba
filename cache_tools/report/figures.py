"""A report's figures, drawn by matplotlib as SVG that is part of the page and takes its colours from the page.

Figures are drawn in placeholder colours, which are then replaced by CSS variables, so that the same figure serves the
light page, the dark page and paper. No text of the corpus is drawn: axes show numbers and units, and legends the
teachers' names, which consist of letters, digits, dots, dashes and underscores. Rejected: pyplot, whose global state
belongs to the program that imports this module.
"""

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from cache_tools.inspection.measures import Histogram
from cache_tools.report.data import TeacherMeasures

INK, FAINT, GRID = "#000001", "#000002", "#000003"
SERIES = ("#000011", "#000012", "#000013", "#000014", "#000015", "#000016")
VARIABLES = {INK: "--ink", FAINT: "--faint", GRID: "--grid"} | {c: f"--series-{i}" for i, c in enumerate(SERIES)}
"""Placeholder colour mapped to the page's CSS variable."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "logitcask",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.3g} %")
WIDTH, HEIGHT = 4.8, 2.9
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def histograms(
    teachers: Sequence[TeacherMeasures],
    histogram_of: Callable[[TeacherMeasures], Histogram],
    label: str,
    percent: bool = False,
) -> Markup:
    """Draw a histogram of each teacher."""
    with _drawn(label) as (figure, axes):
        for number, teacher in enumerate(teachers):
            histogram, colour = histogram_of(teacher), _colour(number)
            axes.stairs(histogram.shares, histogram.edges, fill=True, color=colour, alpha=0.22)
            axes.stairs(histogram.shares, histogram.edges, color=colour, linewidth=1.6, label=teacher.name)
            axes.set_xlim(histogram.edges[0], histogram.edges[-1])
        axes.set_ylim(bottom=0)
        axes.set_ylabel("share of positions")
        axes.yaxis.set_major_formatter(PERCENT)
        if percent:
            axes.xaxis.set_major_formatter(PERCENT)
        _legend(axes, teachers)
    return _svg(figure, f"Histogram: {label}")


def reliability(teachers: Sequence[TeacherMeasures]) -> Markup:
    """Draw accuracy over confidence of each teacher with a calibration; larger dots stand for more positions."""
    with _drawn("confidence: probability of the likeliest token") as (figure, axes):
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        for number, teacher in enumerate(teachers):
            calibration = teacher.calibration
            if calibration:
                bins = [b for b in calibration.bins if b.positions]
                x, y = [_number(b.confidence) for b in bins], [_number(b.accuracy) for b in bins]
                sizes = [8 + 200 * b.positions / calibration.positions for b in bins]
                axes.plot(x, y, color=_colour(number), linewidth=1.6, label=teacher.name)
                axes.scatter(x, y, sizes, color=_colour(number), linewidths=0, zorder=3)
        axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="how often it is the gold token")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PERCENT)
        _legend(axes, teachers)
    return _svg(figure, "Reliability diagram: accuracy over confidence")


def places(teachers: Sequence[TeacherMeasures]) -> Markup:
    """Draw the loss (solid) and the entropy (dotted) by the place in the sequence."""
    with _drawn("place of the token in its sequence") as (figure, axes):
        for number, teacher in enumerate(teachers):
            colour = _colour(number)
            x = [(place.first + place.last) / 2 for place in teacher.places]
            loss_nats = [_number(place.loss_nats) for place in teacher.places]
            entropy_nats = [_number(place.entropy_nats) for place in teacher.places]
            axes.plot(x, loss_nats, color=colour, linewidth=1.8, linestyle="-", label=teacher.name)
            axes.plot(x, entropy_nats, color=colour, linewidth=1.8, linestyle=(0, (1, 2)))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_ylim(bottom=0)
        axes.set_ylabel("nats")
        _legend(axes, teachers)
    return _svg(figure, "Loss and entropy by place in the sequence")


@contextmanager
def _drawn(label: str) -> Iterator[tuple[Figure, Axes]]:
    with mpl.rc_context(STYLE):
        figure = Figure((WIDTH, HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xlabel(label)
        yield figure, axes


def _number(value: float | None) -> float:
    """Return a value to draw; NaN, which leaves a gap, for None."""
    return math.nan if value is None else value


def _colour(number: int) -> str:
    return SERIES[number % len(SERIES)]


def _legend(axes: Axes, teachers: Sequence[TeacherMeasures]) -> None:
    if len(teachers) > 1:
        axes.legend()


def _svg(figure: Figure, title: str) -> Markup:
    """Return a figure as an ``svg`` element that scales with the page; ``title`` must not come from a corpus."""
    file = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(file, format="svg", transparent=True, metadata=NO_METADATA)
    body = re.sub(r"^.*?<svg[^>]*>|<style.*?</style>", "", file.getvalue(), flags=re.DOTALL)
    body = re.sub(r' id="(?![pm][0-9a-f]{10}")[^"]*"', "", body)
    body = re.sub(r"font-family: [^;\"]*;?", "", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    view = f"0 0 {WIDTH * 72:g} {HEIGHT * 72:g}"
    return Markup(f'<svg class="plot" role="img" aria-label="{title}" viewBox="{view}">{body}')
