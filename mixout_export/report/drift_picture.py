"""Draw the drift map: the difference of each module, in the order of execution."""

import math
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from xml.etree.ElementTree import Element

from markupsafe import Markup

from mixout_export.parity.drift_map import DriftMap, ModuleDrift
from mixout_export.report.svg import DecadeScale, element, picture
from mixout_export.report.words import difference, power_of_ten

_WIDTH, _HEIGHT = 960.0, 330.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 60.0, 950.0, 54.0, 262.0

#: Positions of modules that differ infinitely, that are equal, and that were not compared.
_INFINITE, _EQUAL, _ABSENT = 40.0, 280.0, 298.0

#: Width of a character of the labels, and of those that a narrow window shows instead.
_CHARACTER, _TIGHT_CHARACTER = 6.3, 10.5

_NUMBERED = re.compile(r"(?:.*?\.)?\d+(?=\.|$)")


def _groups(modules: Sequence[ModuleDrift]) -> list[tuple[str, int]]:
    """Return the block of the model to which each module belongs, and the call."""
    around = {drift.module.rpartition(".")[0] for drift in modules}

    def group(name: str) -> str:
        numbered = _NUMBERED.match(name)
        if numbered:
            return numbered[0]
        return name if name in around else name.rpartition(".")[0] or name

    return [(group(drift.module), drift.call) for drift in modules]


def _band_label(name: str, width: float, character: float) -> str:
    """Return as much of a block's name as fits: "layer 3", "3" or nothing."""
    *_, last = name.split(".")
    whole = " ".join(name.split(".")[-2:]) if last.isdigit() else last
    return next((text for text in (whole, last) if len(text) * character < width), "")


def _scale(drift: DriftMap) -> DecadeScale:
    values = [d.relative_l2 for d in drift.compared if d.relative_l2]
    known = [value for value in (*values, drift.tolerance) if value and math.isfinite(value)]
    first = math.floor(math.log10(min(known, default=1e-9)))
    last = math.ceil(math.log10(max(known, default=1e-9)))
    return DecadeScale(first, max(last, first + 2), _BOTTOM, _TOP)


class _Picture:
    """Draws the parts of the picture."""

    def __init__(self, drift: DriftMap) -> None:
        self.drift = drift
        self.y = _scale(drift)
        self.step = (_RIGHT - _LEFT) / max(1, len(drift.modules))
        self.radius = max(1.8, min(4.5, self.step * 0.42))

    def x(self, index: float) -> float:
        """Return the center of a module's column."""
        return _LEFT + (index + 0.5) * self.step

    def bands(self) -> Iterator[Element]:
        """Shade every second block of the model, and label those that are wide enough."""
        start = 0
        for number, (key, members) in enumerate(groupby(_groups(self.drift.modules))):
            length = len(list(members))
            left, width = _LEFT + start * self.step, length * self.step
            if number % 2:
                size = {"x": left, "y": _TOP, "width": width, "height": _BOTTOM - _TOP}
                yield element("rect", class_="band", **size)
            for kind, character in (("roomy", _CHARACTER), ("tight", _TIGHT_CHARACTER)):
                label = _band_label(key[0], width, character)
                if label:
                    at = {"x": left + width / 2, "y": _HEIGHT - 8}
                    yield element("text", label, class_=f"middle {kind}", **at)
            start += length

    def grid(self) -> Iterator[Element]:
        """Draw a labeled line for each power of ten."""
        every = math.ceil(len(self.y.exponents) / 10)
        for exponent in self.y.exponents[::every]:
            y = self.y(10.0**exponent)
            yield element("line", x1=_LEFT, x2=_RIGHT, y1=y, y2=y, class_="grid")
            yield element("text", power_of_ten(exponent), x=_LEFT - 6, y=y + 4, class_="end")
        rows = {"equal": _EQUAL}
        if self.drift.not_compared:
            rows["n/a"] = _ABSENT
        if self.drift.worst is not None and self.drift.worst.relative_l2 == math.inf:
            rows["∞"] = _INFINITE
        for label, y in rows.items():
            yield element("text", label, x=_LEFT - 6, y=y + 4, class_="end")

    def tolerance(self) -> Iterator[Element]:
        """Draw the line below which modules must stay."""
        if self.drift.tolerance > 0:
            y = self.y(self.drift.tolerance)
            yield element("line", x1=_LEFT, x2=_RIGHT, y1=y, y2=y, class_="limit")
            label = f"tolerance {self.drift.tolerance:g}"
            yield element("text", label, x=_RIGHT - 4, y=y - 5, class_="end strong")

    def mark(self, index: int, drift: ModuleDrift) -> Element:
        """Draw a module: a dot within the tolerance, a diamond beyond it, a bar if not compared."""
        x, r = self.x(index), self.radius
        if drift.relative_l2 is None:
            made = element("line", x1=x, x2=x, y1=_ABSENT - 4, y2=_ABSENT + 4, class_="absent")
            made.append(element("title", f"{drift.label}: {drift.reason}"))
            return made
        y = _EQUAL
        if drift.relative_l2:
            y = self.y(drift.relative_l2) if math.isfinite(drift.relative_l2) else _INFINITE
        if self.drift.leaves(drift):
            r *= 1.35
            path = f"M{x:.1f} {y - r:.1f}l{r:.1f} {r:.1f}l{-r:.1f} {r:.1f}l{-r:.1f} {-r:.1f}z"
            made = element("path", d=path, class_="beyond")
        else:
            made = element("circle", cx=x, cy=y, r=r, class_="within")
        made.append(element("title", f"{drift.label}: {difference(drift.relative_l2)}"))
        return made

    def first(self) -> Iterator[Element]:
        """Point at the first module that exceeds the tolerance."""
        first = self.drift.first
        if first is None:
            return
        x = self.x(self.drift.modules.index(first))
        yield element("line", x1=x, x2=x, y1=_TOP - 28, y2=_BOTTOM, class_="first")
        name = first.label if len(first.label) < 90 else f"…{first.label[-89:]}"
        label = f"first beyond: {name}, {difference(first.relative_l2)}"
        half = len(label) * _CHARACTER / 2
        if x > _WIDTH / 2:
            at, anchor = min(x + half, _WIDTH - 4), "end "
        else:
            at, anchor = max(x - half, 4.0), ""
        yield element("text", label, x=at, y=_TOP - 34, class_=f"{anchor}strong bad")


def _title(drift: DriftMap) -> str:
    first = drift.first
    said = "none exceeds the tolerance" if first is None else f"the first beyond is {first.label}"
    return f"Relative difference of {len(drift.compared)} modules in order of execution; {said}"


def draw_drift_map(drift: DriftMap) -> Markup:
    """Draw the relative difference of each module on a logarithmic scale.

    Args:
        drift: The map.

    Returns:
        An SVG element that uses the style sheet of the page.
    """
    drawing = _Picture(drift)
    content = [*drawing.bands(), *drawing.grid(), *drawing.tolerance(), *drawing.first()]
    content += [drawing.mark(index, module) for index, module in enumerate(drift.modules)]
    return picture("drift-picture", _title(drift), (_WIDTH, _HEIGHT), content)
