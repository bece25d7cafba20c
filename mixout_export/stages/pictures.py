"""Pictures of checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mixout_export.errors import ArgumentError

_FORMATS = (".png", ".svg", ".pdf")


class _Layer(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def relative(self) -> float: ...


def _common_prefix(names: Sequence[str]) -> str:
    """Return the leading dotted parts that all names share."""
    split = [name.split(".")[:-1] for name in names]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared) + "." if shared else ""


def draw_distances(layers: Sequence[_Layer], path: Path) -> None:
    """Draw ‖w - u‖ / ‖u‖ of each layer as a horizontal bar, first layer on top.

    Args:
        layers: The mixed layers.
        path: The picture to write.

    Raises:
        ArgumentError: The suffix is no picture format.
    """
    if path.suffix not in _FORMATS:
        raise ArgumentError(f"plot: got {path.name!r}, expected a name ending in png, svg or pdf")
    prefix = _common_prefix([layer.name for layer in layers])
    names = [layer.name.removeprefix(prefix) for layer in layers]
    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=(7.5, 0.8 + 0.2 * len(layers)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.barh(names, [layer.relative for layer in layers], color="#4477aa")
        axes.invert_yaxis()
        axes.margins(y=0.01)
        axes.set_xlabel("‖w − u‖ / ‖u‖")
        axes.set_title(f"distance from the pretrained weights\n{prefix}*", loc="left", fontsize=9)
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=150)
