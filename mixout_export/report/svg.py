"""Build inline SVG pictures that use the style sheet of the page."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from xml.etree.ElementTree import Element, tostring

from markupsafe import Markup

from mixout_export.printable import printable


def _attribute(value: str | float) -> str:
    return printable(value) if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")


def element(
    tag: str, content: str | Iterable[Element] = "", /, **attributes: str | float
) -> Element:
    """Create an element. `class_` and `stroke_width` set the attributes class and stroke-width.

    Args:
        tag: Name of the element.
        content: Its text, or the elements in it.
        attributes: Its attributes. Numbers are rounded to a tenth.
    """
    names = {name: name.removesuffix("_").replace("_", "-") for name in attributes}
    made = Element(tag, {names[name]: _attribute(value) for name, value in attributes.items()})
    if isinstance(content, str):
        made.text = printable(content) or None
    else:
        made.extend(content)
    return made


def picture(
    identity: str, title: str, size: tuple[float, float], content: Iterable[Element]
) -> Markup:
    """Return a picture as part of a page.

    Args:
        identity: An id that is unique on the page.
        title: A description for screen readers.
        size: Width and height in pixels.
        content: The elements.
    """
    width, height = size
    whole = element(
        "svg",
        [element("title", title, id=identity), *content],
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
        aria_labelledby=identity,
    )
    return Markup(tostring(whole, encoding="unicode"))


@dataclass(frozen=True)
class DecadeScale:
    """A logarithmic scale.

    Attributes:
        first: Exponent of the lower end.
        last: Exponent of the upper end.
        start: Position of the lower end in pixels.
        stop: Position of the upper end in pixels.
    """

    first: int
    last: int
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Return the position of a positive value in pixels. Values outside are put at the ends."""
        place = (math.log10(value) - self.first) / (self.last - self.first)
        return self.start + min(1.0, max(0.0, place)) * (self.stop - self.start)

    @property
    def exponents(self) -> range:
        """The exponents from end to end."""
        return range(self.first, self.last + 1)
