"""Draw the page's pictures with matplotlib, as SVG that uses the style sheet of the page.

The page's policy forbids inline styles, and its style sheet knows the colors for light and dark.
So matplotlib's styles are removed, and the `gid` of an artist becomes the class of its element.
"""

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from io import StringIO
from itertools import groupby
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text

from mixout_export.parity.compare import HISTOGRAM_EDGES, OutputDifference, Tolerance
from mixout_export.parity.drift import DriftMap, ModuleDrift
from mixout_export.printable import printable
from mixout_export.report.words import count, power_of_ten, short_count
from mixout_export.rounding import difference

#: Width of a character of the labels, and of those that a narrow window shows instead, in pixels.
_CHARACTER, _TIGHT_CHARACTER = 6.3, 10.5

_NUMBERED = re.compile(r"(?:.*?\.)?\d+(?=\.|$)")
_AUTOMATIC_ID = re.compile(r"_\d+$")
_ANCHOR = re.compile(r"text-anchor: (\w+)")

_HREF = "{http://www.w3.org/1999/xlink}href"

#: Classes of the marks that show a text under the pointer.
_MARKS = frozenset(("within", "beyond", "absent", "equal"))

#: Width of the drift map in pixels, without its margins.
_MAP_WIDTH = 890

_EXPONENTS = tuple(round(math.log10(edge)) for edge in HISTOGRAM_EDGES)


def _axes(
    width: float, height: float, *, left: float, right: float, top: float, bottom: float
) -> Axes:
    """Return empty axes without a frame in a figure of a size and with margins, all in pixels."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, frameon=False)
    FigureCanvasSVG(figure)
    axes = figure.add_axes(
        (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    )
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=6, labelsize=11)
    return axes


def _label(axes: Axes, text: str, x: float, y: float, *, offset: tuple[float, float]) -> None:
    """Write an emphasized label beside a place, at an offset in pixels."""
    axes.annotate(
        text,
        (x, y),
        annotation_clip=False,
        xytext=offset,
        textcoords="offset points",
        horizontalalignment="left" if offset[0] > 0 else "right",
        gid="strong",
    )


def _render(axes: Axes, identity: str, title: str, tooltips: Iterator[str]) -> Markup:
    """Return the picture as part of a page.

    Args:
        axes: The axes, alone in their figure.
        identity: An id that is unique on the page.
        title: A description for screen readers.
        tooltips: The texts of the marks of the classes `_MARKS`, in the order of drawing.
    """
    for artist in axes.findobj():
        artist.set_clip_on(False)
        if isinstance(artist, Text):
            artist.set(text=printable(artist.get_text()), parse_math=False)
    file = StringIO()
    with (
        mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": identity}),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # the browser has characters that matplotlib's font lacks
        axes.figure.canvas.print_figure(file, format="svg", dpi=72, metadata={"Date": None})
    drawn = fromstring(file.getvalue())
    width, height = drawn.get("viewBox", "").split()[2:]
    drawn[:] = [child for child in drawn if child.tag.endswith("}g")]  # no metadata and no styles
    for element in drawn.iter():
        element.tag = element.tag.rpartition("}")[2]
        anchor = _ANCHOR.search(element.attrib.pop("style", ""))
        if anchor:
            element.set("text-anchor", anchor[1])
        if _HREF in element.attrib:
            element.set("href", element.attrib.pop(_HREF))
    for group in drawn.iter("g"):
        kind = group.attrib.pop("id", "")
        if kind and not _AUTOMATIC_ID.search(kind):
            group.set("class", kind)
        if kind in _MARKS:
            for mark in [*group.iter("use")] or group.findall("path"):
                SubElement(mark, "title").text = printable(next(tooltips))
    drawn.attrib = {
        "viewBox": f"0 0 {width} {height}",
        "width": width,
        "height": height,
        "role": "img",
        "aria-labelledby": identity,
    }
    description = Element("title", id=identity)
    description.text = printable(title)
    drawn.insert(0, description)
    return Markup(tostring(drawn, encoding="unicode"))


def _shown_decades(histogram: tuple[int, ...], limit: float) -> tuple[int, int]:
    """Return the first and the last decade to show, so that all values and the tolerance fit."""
    used = [index for index, values in enumerate(histogram[1:]) if values]
    if limit:
        used.append(sum(edge <= limit for edge in HISTOGRAM_EDGES))
    low, high = min(used, default=0), max(used, default=0)
    return max(0, low - 1), min(len(histogram) - 2, max(high + 1, low + 4))


def _decade_name(decade: int) -> str:
    if decade == 0:
        return f"below {power_of_ten(_EXPONENTS[0])}"
    if decade == len(_EXPONENTS):
        return f"{power_of_ten(_EXPONENTS[-1])} and more, or not finite"
    return f"{power_of_ten(_EXPONENTS[decade - 1])} to {power_of_ten(_EXPONENTS[decade])}"


def draw_histogram(
    output: OutputDifference, tolerance: Tolerance | None, *, identity: str
) -> Markup:
    """Draw the number of values by how much they differ, with a column for each power of ten.

    Args:
        output: The output.
        tolerance: The tolerance of its values; None where they are not judged.
        identity: An id that is unique on the page.
    """
    zeros, *decades = output.histogram
    limit = 0.0 if tolerance is None else tolerance.atol
    low, high = _shown_decades(output.histogram, limit)
    equal = low - 1.3  # left edge of the column of equal values
    columns = [(equal, zeros, "equal", "equal")]
    for decade in range(low, high + 1):
        floor = HISTOGRAM_EDGES[decade - 1] if decade else 0.0
        kind = "beyond" if limit > 0 and floor >= limit * (1 - 1e-9) else "within"
        columns.append((decade, decades[decade], kind, _decade_name(decade)))
    columns = [column for column in columns if column[1]]
    axes = _axes(470, 230, left=8, right=8, top=46, bottom=44)
    axes.set(xlim=(equal, high + 1), ylim=(0, 1))
    tallest = math.log1p(max(output.histogram))
    for left, values, kind, _ in columns:
        height = 0.04 + 0.96 * math.log1p(values) / tallest  # a single value is visible too
        bars = axes.bar(left + 0.5, height, 0.96, gid=kind)
        axes.bar_label(bars, [short_count(values)], padding=4)
    axes.hlines([0, 0], [equal, low], [equal + 1, high + 1], gid="axis")
    edges = range(low, high)[:: math.ceil((high - low + 2) / 14)]
    ticks = {equal + 0.5: "equal"} | {e + 1: power_of_ten(_EXPONENTS[e]) for e in edges}
    axes.set_xticks([*ticks], [*ticks.values()])
    axes.set_yticks([])
    axes.set_xlabel("|candidate − reference|", loc="right", labelpad=8, fontsize=11)
    if limit > 0:
        x = min(max(math.log10(limit) - _EXPONENTS[0], 0.0), len(_EXPONENTS) - 1.0) + 1
        axes.vlines(x, 0, 1.25, gid="limit")
        offset = 5 if x < (low + high) / 2 else -5
        _label(axes, f"atol {limit:g}", x, 1.18, offset=(offset, 0))
    title = f"Differences of {output.name} by size: {count(zeros)} values are equal"
    tooltips = (f"{name}: {count(values)}" for _, values, _, name in columns)
    return _render(axes, identity, title, tooltips)


def _blocks(modules: Sequence[ModuleDrift]) -> list[tuple[str, int]]:
    """Return the block of the model to which each module belongs, and the call."""
    around = {drift.module.rpartition(".")[0] for drift in modules}

    def block(name: str) -> str:
        numbered = _NUMBERED.match(name)
        if numbered:
            return numbered[0]
        return name if name in around else name.rpartition(".")[0] or name

    return [(block(drift.module), drift.call) for drift in modules]


def _block_label(name: str, width: float, character: float) -> str:
    """Return as much of a block's name as fits: "layer 3", "3" or nothing."""
    *_, last = name.split(".")
    whole = " ".join(name.split(".")[-2:]) if last.isdigit() else last
    return next((text for text in (whole, last) if len(text) * character < width), "")


def _draw_blocks(axes: Axes, modules: Sequence[ModuleDrift], low: int, high: int) -> None:
    """Shade every second block of the model, and label those that are wide enough."""
    start, step = 0, _MAP_WIDTH / max(1, len(modules))
    for number, ((name, _), members) in enumerate(groupby(_blocks(modules))):
        length = len(list(members))
        left = start - 0.5
        if number % 2:
            axes.bar(left, high - low, length, bottom=low, align="edge", gid="band")
        for kind, character in (("roomy", _CHARACTER), ("tight", _TIGHT_CHARACTER)):
            label = _block_label(name, length * step, character)
            under = axes.get_xaxis_transform()
            axes.text(left + length / 2, -0.06, label, transform=under, ha="center", gid=kind)
        start += length


def draw_drift_map(drift: DriftMap, *, identity: str = "drift-picture") -> Markup:
    """Draw the relative difference of each module on a logarithmic scale.

    A module is a dot within the tolerance, a diamond beyond it, and a bar if it was not compared.
    The identity must be unique on the page.
    """
    values = [d.relative_l2 for d in drift.compared if d.relative_l2]
    known = [v for v in (*values, drift.tolerance) if v and math.isfinite(v)] or [1e-9]
    low = math.floor(math.log10(min(known)))
    high = max(math.ceil(math.log10(max(known))), low + 2)
    line = (high - low) / 12  # height of a line of text
    equal, absent, infinite = low - line, low - 2 * line, high + line
    right = max(1, len(drift.modules)) - 0.5

    def place(module: ModuleDrift) -> float:
        if module.relative_l2 is None:
            return absent
        if not module.relative_l2:
            return equal
        return math.log10(module.relative_l2) if math.isfinite(module.relative_l2) else infinite

    axes = _axes(960, 330, left=60, right=960 - 60 - _MAP_WIDTH, top=36, bottom=24)
    axes.set(xlim=(-0.5, right), ylim=(absent - line / 2, infinite))
    _draw_blocks(axes, drift.modules, low, high)
    exponents = range(low, high + 1)[:: math.ceil((high - low + 1) / 10)]
    axes.hlines(exponents, -0.5, right, gid="grid")
    rows = {exponent: power_of_ten(exponent) for exponent in exponents} | {equal: "equal"}
    if drift.not_compared:
        rows[absent] = "n/a"
    if math.inf in values:
        rows[infinite] = "∞"
    axes.set_yticks([*rows], [*rows.values()])
    axes.set_xticks([])
    if drift.tolerance > 0:
        limit = math.log10(drift.tolerance)
        axes.hlines(limit, -0.5, right, gid="limit")
        _label(axes, f"tolerance {drift.tolerance:g}", right, limit, offset=(-4, 5))
    said = "none exceeds the tolerance"
    if drift.first is not None:
        said = f"the first beyond is {drift.first.label}"
        _point_at(axes, drift.modules.index(drift.first), drift.first, low)
    size = max(3.6, min(9.0, 0.84 * _MAP_WIDTH / (right + 0.5)))
    marks: dict[str, list[tuple[int, ModuleDrift]]] = {"within": [], "beyond": [], "absent": []}
    for index, module in enumerate(drift.modules):
        compared = "beyond" if drift.leaves(module) else "within"
        marks["absent" if module.relative_l2 is None else compared].append((index, module))
    for (kind, found), marker in zip(marks.items(), "oD|", strict=True):
        x, y = [index for index, _ in found], [place(module) for _, module in found]
        axes.plot(x, y, marker, markersize=8 if kind == "absent" else size, gid=kind)
    title = f"Relative difference of {len(drift.compared)} modules in order of execution; {said}"
    tooltips = (
        f"{m.label}: {m.reason if m.relative_l2 is None else difference(m.relative_l2)}"
        for found in marks.values()
        for _, m in found
    )
    return _render(axes, identity, title, tooltips)


def _point_at(axes: Axes, index: int, first: ModuleDrift, low: int) -> None:
    """Point at the first module that exceeds the tolerance, and name it above the picture."""
    axes.vlines(index, low, axes.get_ylim()[1], gid="first")
    name = first.label if len(first.label) < 90 else f"…{first.label[-89:]}"
    label = f"first beyond: {name}, {difference(first.relative_l2)}"
    # centered above the line, as far as that leaves no part outside the picture
    half = len(label) * _CHARACTER / 2
    x, _ = axes.transData.transform((index, 0))
    left = x < 480
    axes.annotate(
        label,
        (max(x - half, 4) if left else min(x + half, 956), 315),
        xycoords="figure pixels",
        horizontalalignment="left" if left else "right",
        gid="strong bad",
    )
