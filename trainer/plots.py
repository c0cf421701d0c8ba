"""Two pictures: how a run went, and how far a student's probabilities can be believed.

``curves.png`` is drawn from ``metrics.jsonl`` when a run ends: what was minimised, its parts beside what was
measured on the held-out split, shares, and the learning rate, over steps and tokens. The reliability diagram
(Guo et al., arXiv 1706.04599) shows the bins behind the calibration error of ``logitcask evaluate``.

Figures are made without pyplot, so no display is looked for and no global state is touched. matplotlib is
optional; a run without it ends the same, without the picture.
"""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cache_tools.errors import ConfigError
from cache_tools.storage import write_object

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
BLUE, ORANGE, GREEN, PURPLE, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#BBBBBB", "#333333"
"""Told apart by colour-blind readers too (Okabe and Ito, and Tol)."""
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#EEEEEE",
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "savefig.dpi": 150,
}

POINTS: dict[str, Any] = {"marker": "o", "markersize": 4, "linestyle": ":", "linewidth": 1.2}
"""How few values, far apart, are drawn."""

Series = tuple[str, str, str]
"""Key in the log, label, colour. Keys that begin with ``eval_`` are drawn with their points."""

PANELS: dict[str, tuple[Series, ...]] = {
    "loss per position": (("loss", "loss, as minimised", BLUE), ("hidden_loss", "of hidden states", PURPLE)),
    "nats per position": (
        ("cross_entropy_nats", "cross-entropy", BLUE),
        ("eval_cross_entropy_nats", "cross-entropy, held out", BLUE),
        ("kl_nats", "KL to the teacher", ORANGE),
        ("reverse_kl_nats", "reverse KL", ORANGE),
        ("jensen_shannon_nats", "Jensen–Shannon divergence", ORANGE),
        ("eval_kl_to_teacher_nats", "KL to the teacher, held out", ORANGE),
    ),
    "share of positions, %": (
        ("total_variation", "total variation", PURPLE),
        ("eval_top1_agreement", "same best token as the teacher, held out", GREEN),
        ("eval_acceptance", "accepted in speculative decoding, held out", BLUE),
        ("eval_calibration_error", "calibration error, held out", ORANGE),
    ),
    "learning rate": (("learning_rate", "learning rate", INK),),
}
"""Panels from top to bottom, by the label of their y axis; those without data are left out."""


def can_plot() -> bool:
    """Say whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def check_plot(path: Path) -> None:
    """Refuse a picture that could not be drawn, before anything is computed for it.

    Raises:
        ConfigError: matplotlib is not installed, or the file's ending is not one of FORMATS.
    """
    if not can_plot():
        raise ConfigError(
            "matplotlib is not installed", where="--plot", fix="Install it: pip install 'logitcask[plots]'"
        )
    if path.suffix not in FORMATS:
        raise ConfigError("this is no format for a picture", where=path, expected=", ".join(FORMATS))


def draw_curves(output: Path) -> None:
    """Write ``curves.png`` into a run folder from its ``metrics.jsonl``; nothing if nothing was logged."""
    log = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    logged = {name for line in log for name in line}
    panels = {unit: [one for one in series if one[0] in logged] for unit, series in PANELS.items()}
    panels = {unit: series for unit, series in panels.items() if series}
    if panels:
        with _figure(output / "curves.png", (9.5, 0.7 + 1.9 * len(panels))) as figure:
            _draw_panels(figure, output.name, log, panels)


def draw_reliability(result: dict[str, Any], path: Path) -> None:
    """Write the reliability diagram of what ``evaluate.evaluate_folder`` returned."""
    bins = result["reliability"]
    confidence, accuracy, shares = (
        [100 * line[name] / over for line in bins]
        for name, over in (("confidence", 1), ("accuracy", 1), ("positions", result["positions"]))
    )
    with _figure(path, (5, 5.8)) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
        upper.plot([0, 100], [0, 100], color=GREY, linestyle="--", linewidth=1, label="perfect calibration")
        upper.vlines(confidence, confidence, accuracy, color=ORANGE, linewidth=2, label="gap")
        upper.plot(confidence, accuracy, "o-", color=BLUE, markersize=4, clip_on=False, label="student")
        upper.set(xlim=(0, 100), ylim=(0, 100), ylabel="how often it is right, %")
        split = result["split"].replace("_", "-")
        error = f"expected calibration error {result['calibration_error']:.1%}"
        upper.set_title(f"{error} on {result['positions']:,} {split} positions", loc="left")
        upper.legend(loc="upper left")
        lower.bar(confidence, shares, width=4.5, color=BLUE)
        lower.set(xlabel="probability of the student's most likely token, %", ylabel="positions, %")


@contextmanager
def _figure(path: Path, size_inches: tuple[float, float]) -> "Iterator[Figure]":
    """Give an empty figure, and write it whole once it is drawn."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure, content = Figure(size_inches, layout="constrained"), io.BytesIO()
        yield figure
        figure.savefig(content, format=path.suffix[1:])
    write_object(path, content.getvalue())


def _draw_panels(figure: "Figure", title: str, log: list[dict[str, float]], panels: dict[str, list[Series]]) -> None:
    """Draw one panel above the other, with steps below them and tokens above."""
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (unit, series) in zip(all_axes, panels.items(), strict=True):
        factor = 100 if unit.endswith("%") else 1
        for name, label, colour in series:
            steps, values = zip(*((line["step"], factor * line[name]) for line in log if name in line), strict=True)
            measured = name.startswith("eval_") or len(steps) == 1
            axes.plot(steps, values, color=colour, label=label, clip_on=False, **POINTS if measured else {})
        axes.set_ylabel(unit)
        if series[0][1] != unit:
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.03))
    all_axes[-1].set(xlabel="optimizer steps", xlim=(0, max(line["step"] for line in log)))
    figure.align_ylabels(all_axes)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    _add_token_axis(all_axes[0], log)


def _add_token_axis(axes: "Axes", log: list[dict[str, float]]) -> None:
    """Put the tokens that had been read at each step above a panel, if they were counted."""
    seen = [(0.0, 0.0), *((x["step"], x["num_input_tokens_seen"]) for x in log if x.get("num_input_tokens_seen"))]
    if len(seen) == 1:
        return
    steps, tokens = zip(*seen, strict=True)
    there, back = (partial(np.interp, xp=xs, fp=ys) for xs, ys in ((steps, tokens), (tokens, steps)))
    from matplotlib.ticker import EngFormatter

    upper = axes.secondary_xaxis("top", functions=(there, back))
    upper.set_xlabel("tokens read")
    upper.xaxis.set_major_formatter(EngFormatter(sep=""))
