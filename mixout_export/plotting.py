"""The look of pictures that show runs, and saving them as PNG and SVG."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED, LINE, PAPER = "#1b1f24", "#59636e", "#d6dbe1", "#ffffff"

#: Failed runs.
BAD = "#b91c28"

#: Colors that stay different in the three kinds of color blindness, and readable on white.
COLORS = ("#0072b2", "#d55e00", "#332288", "#009e73", "#882255", "#777777")

_MARKERS = "osD^vP"
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))

_STYLE: Any = {
    "axes.edgecolor": INK,
    "axes.facecolor": PAPER,
    "axes.labelcolor": INK,
    "figure.facecolor": PAPER,
    "font.size": 9,
    "grid.color": LINE,
    "legend.frameon": False,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True)
class Look:
    """How a series is drawn. Color, marker and dashes together are different for 18 series."""

    color: str
    marker: str
    dashes: str | tuple[float, tuple[float, ...]]


def look(number: int) -> Look:
    """Return the look of a series by its number, from 0."""
    color = COLORS[number % len(COLORS)]
    shift = number // len(COLORS)
    marker = _MARKERS[(number + shift) % len(_MARKERS)]
    return Look(color, marker, _DASHES[shift % len(_DASHES)])


@contextmanager
def drawing(name: str = "") -> Iterator[None]:
    """Draw and save in the look of this project, whatever style the user has set.

    Args:
        name: Distinguishes the picture's ids from those of other pictures on a page.
    """
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matplotlib's font lacks some characters
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        mpl.rcParams["svg.hashsalt"] = f"mixout-export {name}"
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def simplify(axes: Axes) -> None:
    """Remove the frame above and on the right, and add a light grid."""
    axes.grid(alpha=0.6, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def as_svg(figure: Figure) -> str:
    """Return a figure as SVG. Equal figures give equal texts."""
    file = StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def as_png(figure: Figure) -> bytes:
    """Return a figure as PNG. Equal figures give equal bytes."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
    return file.getvalue()


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    path.write_bytes(as_png(figure))
