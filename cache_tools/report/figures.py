"""A report's figures: matplotlib draws them, as SVG that stands inside the page and takes its colours from it.

Figures are drawn in placeholder colours, which then become CSS variables, so that one figure serves light, dark and
paper. Nothing of the corpus is ever drawn: axes say numbers and units, legends the teachers' names, which a cache
restricts to letters, digits, dot, dash and underscore. No pyplot: its global state belongs to whoever imports us.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

INK, FAINT, GRID = "#000001", "#000002", "#000003"
SERIES = ("#000011", "#000012", "#000013", "#000014", "#000015", "#000016")
VARIABLES = {INK: "--ink", FAINT: "--faint", GRID: "--grid"} | {c: f"--series-{i}" for i, c in enumerate(SERIES)}
"""Placeholder to the page's variable."""

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


def histograms(teachers: list[dict[str, Any]], key: str, label: str, percent: bool = False) -> Markup:
    """Draw one histogram a teacher, see ``measures.histogram``."""
    with _drawn(label) as (figure, axes):
        for number, teacher in enumerate(teachers):
            edges, shares, colour = teacher[key]["edges"], teacher[key]["shares"], _colour(number)
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.22)
            axes.stairs(shares, edges, color=colour, linewidth=1.6, label=teacher["name"])
            axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        axes.set_ylabel("share of positions")
        axes.yaxis.set_major_formatter(PERCENT)
        if percent:
            axes.xaxis.set_major_formatter(PERCENT)
        _legend(axes, teachers)
    return _svg(figure, f"Histogram: {label}")


def reliability(teachers: list[dict[str, Any]]) -> Markup:
    """Draw accuracy over confidence of each teacher whose calibration is known; larger dots are more positions."""
    with _drawn("confidence: probability of the likeliest token") as (figure, axes):
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        for number, teacher in enumerate(teachers):
            found = teacher["calibration"]
            if found:
                bins = [b for b in found["bins"] if b["positions"]]
                x, y = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
                sizes = [8 + 200 * b["positions"] / found["positions"] for b in bins]
                axes.plot(x, y, color=_colour(number), linewidth=1.6, label=teacher["name"])
                axes.scatter(x, y, sizes, color=_colour(number), linewidths=0, zorder=3)
        axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="how often it is the gold token")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PERCENT)
        _legend(axes, teachers)
    return _svg(figure, "Reliability diagram: accuracy over confidence")


def places(teachers: list[dict[str, Any]]) -> Markup:
    """Draw the loss, and fainter the entropy, by the place in the sequence."""
    with _drawn("place of the token in its sequence") as (figure, axes):
        for number, teacher in enumerate(teachers):
            rows = teacher["places"]
            x = [(row["first"] + row["last"]) / 2 for row in rows]
            for key, style in (("loss_nats", "-"), ("entropy_nats", (0, (1, 2)))):
                y = [float("nan") if row[key] is None else row[key] for row in rows]
                label = teacher["name"] if key == "loss_nats" else None
                axes.plot(x, y, color=_colour(number), linewidth=1.8, linestyle=style, label=label)
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


def _colour(number: int) -> str:
    return SERIES[number % len(SERIES)]


def _legend(axes: Axes, teachers: list[dict[str, Any]]) -> None:
    if len(teachers) > 1:
        axes.legend()


def _svg(figure: Figure, title: str) -> Markup:
    """Return a figure as an ``svg`` element that scales with the page; ``title`` is ours."""
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
