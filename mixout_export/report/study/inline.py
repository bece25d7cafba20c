"""Put an SVG picture of matplotlib into a page whose policy forbids inline styles."""

import re
from xml.etree.ElementTree import fromstring, tostring

from markupsafe import Markup

_HREF = "{http://www.w3.org/1999/xlink}href"
_NUMBER = re.compile(r"-?\d+\.\d{3,}")

#: Properties that every group repeats and no element here needs.
_DROPPED = frozenset(("font", "font-family", "font-style"))


def _rounded(text: str) -> str:
    return _NUMBER.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), text)


def _attributes(style: str) -> dict[str, str]:
    """Return a style as presentation attributes, which the page's style sheet can override."""
    properties = (part.partition(":") for part in style.split(";") if ":" in part)
    found = {name.strip(): value.strip() for name, _, value in properties}
    short = found.pop("font", "")
    size = re.search(r"[\d.]+px", short)
    if size:
        found["font-size"] = size[0]
    return {name: value for name, value in found.items() if name not in _DROPPED}


def inline(svg: str, description: str) -> Markup:
    """Return a picture as part of a page.

    Args:
        svg: What `plotting.as_svg` returned.
        description: The text alternative for people who cannot see the picture.
    """
    drawn = fromstring(svg)
    width, height = drawn.get("viewBox", "").split()[2:]
    for child in [*drawn.iterfind("{*}metadata"), *drawn.iterfind("{*}defs/{*}style/..")]:
        drawn.remove(child)  # of the definitions, those of clip paths stay
    for element in drawn.iter():
        element.tag = element.tag.rpartition("}")[2]
        if element.tag == "g":
            element.attrib.pop("id", None)
        element.attrib |= _attributes(element.attrib.pop("style", ""))
        if _HREF in element.attrib:
            element.set("href", element.attrib.pop(_HREF))
        for name in ("d", "x", "y", "transform", "points"):
            if name in element.attrib:
                element.set(name, _rounded(element.attrib[name]))
    for marker in drawn.iterfind(".//defs/path"):
        for name in ("fill", "stroke"):  # each use of a marker has them, where styles apply
            marker.attrib.pop(name, None)
    drawn.attrib = {
        "class": "plot",
        "viewBox": f"0 0 {width} {height}",
        "width": width,
        "height": height,
        "role": "img",
        "aria-label": description,
    }
    return Markup(tostring(drawn, encoding="unicode"))
