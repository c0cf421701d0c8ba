"""``curves.png``: how a run went, drawn from its ``metrics.jsonl`` when it ends.

It shows what was minimised, its parts beside what was measured on the held-out split, shares, and the learning rate,
over steps and tokens.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cache_tools.mappings import Arguments
from trainer.plots import BLUE, GREEN, INK, ORANGE, PURPLE, figure
from trainer.run.run_folder import read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES = "curves.png"

POINTS: Arguments = {"marker": "o", "markersize": 4, "linestyle": ":", "linewidth": 1.2}
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
    "bits per byte": (("eval_bits_per_byte", "code length, held out", BLUE),),
    "share of positions, %": (
        ("total_variation", "total variation", PURPLE),
        ("eval_top1_agreement", "same best token as the teacher, held out", GREEN),
        ("eval_acceptance", "accepted in speculative decoding, held out", BLUE),
        ("eval_calibration_error", "calibration error, held out", ORANGE),
    ),
    "sum of differences": (("rank_distance", "between sorted probabilities", PURPLE),),
    "learning rate": (("learning_rate", "learning rate", INK),),
}
"""Panels from top to bottom, by the label of their y axis; those without data are left out."""


def draw_curves(output: Path) -> None:
    """Write ``curves.png`` into a run folder from its ``metrics.jsonl``; nothing if nothing was logged."""
    log = read_log(output)
    logged = {name for line in log for name in line}
    panels = {
        unit: [(key, label, colour) for key, label, colour in series if key in logged]
        for unit, series in PANELS.items()
    }
    panels = {unit: series for unit, series in panels.items() if series}
    if panels:
        with figure(output / CURVES, (9.5, 0.7 + 1.9 * len(panels))) as drawn:
            _draw_panels(drawn, output.name, log, panels)


def _draw_panels(drawn: "Figure", title: str, log: list[dict[str, float]], panels: dict[str, list[Series]]) -> None:
    """Draw one panel above the other, with steps below them and tokens above."""
    all_axes = drawn.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
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
    drawn.align_ylabels(all_axes)
    drawn.suptitle(title, x=0.01, ha="left", fontweight="bold")
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
