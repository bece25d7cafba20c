"""Draw the differences of an output by their size."""

import math
from collections.abc import Iterator
from xml.etree.ElementTree import Element

from markupsafe import Markup

from mixout_export.parity.compare import HISTOGRAM_EDGES, OutputDifference, Tolerance
from mixout_export.report.svg import DecadeScale, element, picture
from mixout_export.report.words import count, power_of_ten, short_count

_WIDTH, _HEIGHT = 470.0, 230.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 8.0, 462.0, 46.0, 186.0

#: Width of the column of equal values, and of the gap to its right.
_ZERO, _GAP = 34.0, 10.0

_EXPONENTS = tuple(round(math.log10(edge)) for edge in HISTOGRAM_EDGES)


def _shown(histogram: tuple[int, ...], limit: float | None) -> tuple[int, int]:
    """Return the first and the last decade to show, so that all values and the tolerance fit."""
    used = [index for index, values in enumerate(histogram[1:]) if values]
    if limit:
        used.append(sum(edge <= limit for edge in HISTOGRAM_EDGES))
    low, high = min(used, default=0), max(used, default=0)
    return max(0, low - 1), min(len(histogram) - 2, max(high + 1, low + 4))


class _Picture:
    """Draws the parts of the picture."""

    def __init__(self, output: OutputDifference, tolerance: Tolerance | None) -> None:
        self.zeros, *self.decades = output.histogram
        self.limit = None if tolerance is None or tolerance.atol <= 0 else tolerance.atol
        self.low, self.high = _shown(output.histogram, self.limit)
        self.start = _LEFT + _ZERO + _GAP
        self.step = (_RIGHT - self.start) / (self.high - self.low + 1)
        self.top = math.log1p(max(1, *output.histogram))

    def height(self, values: int) -> float:
        """Return the height of a column. It is logarithmic, so that a single value is visible."""
        return (_BOTTOM - _TOP) * (0.04 + 0.96 * math.log1p(values) / self.top) if values else 0.0

    def left(self, decade: float) -> float:
        """Return the left edge of a decade."""
        return self.start + (decade - self.low) * self.step

    def column(self, left: float, width: float, values: int, kind: str, name: str) -> Element:
        """Draw a column with its number above it."""
        height = self.height(values)
        size = {"x": left + 1, "y": _BOTTOM - height, "width": width - 2, "height": height}
        parts = [element("title", f"{name}: {count(values)}")]
        if values:
            parts.append(element("rect", class_=kind, **size))
            label = {"x": left + width / 2, "y": _BOTTOM - height - 5}
            parts.append(element("text", short_count(values), class_="middle", **label))
        return element("g", parts)

    def columns(self) -> Iterator[Element]:
        """Draw a column for equal values, and one for each decade."""
        yield self.column(_LEFT, _ZERO, self.zeros, "equal", "equal")
        for decade in range(self.low, self.high + 1):
            beyond = self.limit is not None and self._floor(decade) >= self.limit * (1 - 1e-9)
            yield self.column(
                self.left(decade),
                self.step,
                self.decades[decade],
                "beyond" if beyond else "within",
                self._name(decade),
            )

    def _floor(self, decade: int) -> float:
        return HISTOGRAM_EDGES[decade - 1] if decade else 0.0

    def _name(self, decade: int) -> str:
        if decade == 0:
            return f"below {power_of_ten(_EXPONENTS[0])}"
        if decade == len(HISTOGRAM_EDGES):
            return f"{power_of_ten(_EXPONENTS[-1])} and more, or not finite"
        return f"{power_of_ten(_EXPONENTS[decade - 1])} to {power_of_ten(_EXPONENTS[decade])}"

    def axis(self) -> Iterator[Element]:
        """Draw the axis, and label the edges of the decades."""
        yield element("line", x1=_LEFT, x2=_LEFT + _ZERO, y1=_BOTTOM, y2=_BOTTOM, class_="axis")
        yield element("line", x1=self.start, x2=_RIGHT, y1=_BOTTOM, y2=_BOTTOM, class_="axis")
        middle = _LEFT + _ZERO / 2
        yield element("text", "equal", x=middle, y=_BOTTOM + 16, class_="middle")
        every = math.ceil(34 / self.step)
        for decade in range(self.low, self.high)[::every]:
            place = {"x": self.left(decade + 1), "y": _BOTTOM + 16}
            yield element("text", power_of_ten(_EXPONENTS[decade]), class_="middle", **place)
        words = "|candidate − reference|"
        yield element("text", words, x=_RIGHT, y=_HEIGHT - 8, class_="end")

    def tolerance(self) -> Iterator[Element]:
        """Draw the absolute tolerance."""
        if self.limit is None:
            return
        scale = DecadeScale(
            _EXPONENTS[0], _EXPONENTS[-1], self.left(1), self.left(len(HISTOGRAM_EDGES))
        )
        x = scale(self.limit)
        yield element("line", x1=x, x2=x, y1=_TOP - 36, y2=_BOTTOM, class_="limit")
        side = "end" if x > _WIDTH / 2 else "start"
        place = {"x": x - 5 if side == "end" else x + 5, "y": _TOP - 26}
        yield element("text", f"atol {self.limit:g}", class_=f"{side} strong", **place)


def draw_histogram(
    output: OutputDifference, tolerance: Tolerance | None, *, identity: str
) -> Markup:
    """Draw the number of values by how much they differ, a column for each power of ten.

    Args:
        output: The output.
        tolerance: What its values were judged by; None where they were not.
        identity: An id that is the picture's own on the page.

    Returns:
        An SVG element; its colours are those of the page's style sheet.
    """
    drawing = _Picture(output, tolerance)
    content = [*drawing.axis(), *drawing.columns(), *drawing.tolerance()]
    title = f"Differences of {output.name} by size: {count(output.histogram[0])} values are equal"
    return picture(identity, title, (_WIDTH, _HEIGHT), content)
