"""Plot how far the layers of a checkpoint have moved."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from mixout_export.errors import ArgumentError
from mixout_export.plotting import drawing, new_figure, simplify

if TYPE_CHECKING:
    from mixout_export.stages.inspection import LayerDistance

_FORMATS = (".png", ".svg", ".pdf")

#: Beyond this ratio of the largest to the smallest distance, the axis is logarithmic.
_LINEAR = 10.0

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_MARKERS = "osD^vPX<>*hd"


def _split(name: str) -> tuple[str, str]:
    """Split a module's name into block and kind: ("bert.encoder.layer.3", "output.dense")."""
    *_, end = [0, *(found.end() for found in _NUMBER.finditer(name))]
    if end:
        return name[:end], name[end + 1 :]
    block, _, kind = name.rpartition(".")
    return block or name, kind


def _places(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the block and the kind of each module, without a first part that all names share."""
    places = [_split(name) for name in names]
    shared = {re.sub(r"\.?[^.]+(\.\d+)?$", "", block).partition(".")[0] for block, _ in places}
    prefix = f"{shared.pop()}." if len(shared) == 1 else ""
    return [(block.removeprefix(prefix), kind) for block, kind in places]


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Start the axis at zero, or make it logarithmic if the values differ too much for that."""
    moved = [value for value in values if value > 0]
    if not moved or max(moved) / min(moved) < _LINEAR:
        axes.set_xlim(0, max(moved, default=1.0) * 1.05)
        return
    axes.set_xscale("log")
    axes.set_xlim(min(moved) / 1.3, max(moved) * 1.3)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")


def draw_distances(layers: Sequence["LayerDistance"], path: Path, *, title: str = "") -> None:
    """Draw ‖w - u‖ / ‖u‖ of each layer: a row for each block of the model, a mark for each layer.

    Args:
        layers: The mixed layers.
        path: The image to write.
        title: A line that names the model.

    Raises:
        ArgumentError: The suffix is not that of a supported image format.
    """
    if path.suffix not in _FORMATS:
        raise ArgumentError(f"plot: got {path.name!r}, expected a name ending in png, svg or pdf")
    places = _places([layer.name for layer in layers])
    rows = {block: row for row, block in enumerate(dict.fromkeys(block for block, _ in places))}
    finite = [layer.relative for layer in layers if math.isfinite(layer.relative)]
    kinds = list(dict.fromkeys(kind for _, kind in places))
    with drawing():
        figure = new_figure(8.0, max(2.6, 1.3 + 0.26 * len(rows)))
        axes = figure.subplots()
        _scale(axes, finite)
        low, high = axes.get_xlim()
        for number, kind in enumerate(kinds):
            points = [
                (min(max(layer.relative, low), high), rows[block])
                for layer, (block, its) in zip(layers, places, strict=True)
                if its == kind
            ]
            axes.plot(
                *zip(*points, strict=True),
                _MARKERS[number % len(_MARKERS)],
                color=f"C{number % 10}",
                label=kind,
                markersize=5.5,
                alpha=0.8,
                clip_on=False,
            )
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        scale = ", logarithmic scale" if axes.get_xscale() == "log" else ""
        axes.set_xlabel(f"distance ‖w − u‖ / ‖u‖ (w: weight now, u: pretrained weight){scale}")
        head = f"{title}\n" if title else ""
        figure.suptitle(
            f"{head}How far each layer is from its pretrained weights",
            x=0.01,
            horizontalalignment="left",
            fontsize=10,
        )
        simplify(axes)
        figure.legend(loc="outside right upper", fontsize=8)
        figure.savefig(path, dpi=150)
