"""What the two pictures of this stage share: style, formats, and a figure that is written whole.

``run/curves.py`` draws how a run went, ``evaluation/diagram.py`` how well a student's probabilities are calibrated.
Figures are made without pyplot, so no display is needed and no global state changes. matplotlib is optional; a
run without it ends the same, without the picture.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_tools.errors import ConfigError
from cache_tools.storage import write_object

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
BLUE, ORANGE, GREEN, PURPLE, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#BBBBBB", "#333333"
"""Distinguishable for colour-blind readers (Okabe and Ito, and Tol)."""
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
        raise ConfigError("pictures cannot be written in this format", where=path, expected=", ".join(FORMATS))


@contextmanager
def figure(path: Path, size_inches: tuple[float, float]) -> "Iterator[Figure]":
    """Give an empty figure, and write it whole once it is drawn."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        drawn, content = Figure(size_inches, layout="constrained"), io.BytesIO()
        yield drawn
        drawn.savefig(content, format=path.suffix[1:])
    write_object(path, content.getvalue())
