import math
from dataclasses import replace
from xml.etree.ElementTree import Element, fromstring

import pytest

from mixout_export.parity.drift_map import DriftMap, ModuleDrift
from mixout_export.report.drift_picture import draw_drift_map

TOLERANCE = 1e-5
PARTS = ("attention.query", "attention", "dense", "norm")


def named(layers: int) -> list[str]:
    """Return the modules of a small model in the order in which they end."""
    inside = [
        f"bert.layer.{layer}{dot}{part}"
        for layer in range(layers)
        for part in (*PARTS, "")
        for dot in ("." if part else "",)
    ]
    return ["bert.embeddings.word", "bert.embeddings", *inside, "bert", "classifier", ""]


def drift_map(*differences: float | None, layers: int = 2) -> DriftMap:
    """Give the first modules these differences, and the others little ones."""
    names = named(layers)
    values = [*differences, *[1e-7] * (len(names) - len(differences))]
    modules = tuple(
        ModuleDrift(
            name, "Linear", value, value, (2, 3), reason="" if value is not None else "gone"
        )
        for name, value in zip(names, values, strict=True)
    )
    return DriftMap(modules, TOLERANCE, "padding", (2, 16), 0.5)


def draw(drift: DriftMap) -> Element:
    return fromstring(draw_drift_map(drift))


def marks(drawn: Element) -> list[Element]:
    """Return what stands for modules, in the order of execution."""
    return [shape for shape in drawn if shape.tag != "text" and shape.find("title") is not None]


def texts(drawn: Element) -> list[str]:
    return [text.text or "" for text in drawn.iter("text")]


def test_each_module_is_a_mark_of_its_kind() -> None:
    drift = drift_map(0.0, 1e-7, None, 1e-3, math.inf)
    found = marks(draw(drift))
    assert len(found) == len(drift.modules)
    kinds = [mark.get("class") for mark in found]
    assert kinds[:5] == ["within", "within", "absent", "beyond", "beyond"]
    assert set(kinds[5:]) == {"within"}
    said = [mark.findtext("title") for mark in found[:5]]
    assert said == [
        "bert.embeddings.word: 0",
        "bert.embeddings: 1.0e-07",
        "bert.layer.0.attention.query: gone",
        "bert.layer.0.attention: 0.001",
        "bert.layer.0.dense: ∞",
    ]


def test_the_first_beyond_is_named_and_pointed_at() -> None:
    drawn = draw(drift_map(0.0, 1e-7, 1e-7, 2e-3, 5e-3))
    (label,) = [text for text in texts(drawn) if text.startswith("first beyond")]
    assert label == "first beyond: bert.layer.0.attention, 0.002"
    (line,) = [shape for shape in drawn.iter("line") if shape.get("class") == "first"]
    (path, *_) = drawn.iter("path")
    assert path.get("d", "").startswith(f"M{float(line.get('x1', '')):.1f} ")
    assert "the first beyond is bert.layer.0.attention" in drawn.findtext("title", "")


def test_where_none_is_beyond_none_is_pointed_at() -> None:
    drawn = draw(drift_map())
    assert not [text for text in texts(drawn) if text.startswith("first")]
    assert "none exceeds the tolerance" in drawn.findtext("title", "")
    assert "tolerance 1e-05" in texts(drawn)


def test_larger_differences_are_higher_and_later_modules_are_further_right() -> None:
    drawn = draw(drift_map(1e-9, 1e-8, 1e-7, 1e-6))
    dots = list(drawn.iter("circle"))
    heights = [float(dot.get("cy", "")) for dot in dots[:4]]
    places = [float(dot.get("cx", "")) for dot in dots]
    assert heights == sorted(heights, reverse=True)
    assert places == sorted(places)


def test_parts_of_the_model_are_named_where_there_is_room() -> None:
    assert {"embeddings", "layer 0", "layer 1"} <= set(texts(draw(drift_map())))
    many = texts(draw(drift_map(layers=24)))
    assert "layer 7" not in many
    assert {str(layer) for layer in range(24)} <= set(many)


@pytest.mark.parametrize("layers", [1, 40])
@pytest.mark.parametrize("value", [0.0, 1e-30, 1.0, 1e30, math.inf, None])
def test_everything_lies_within_the_picture(value: float | None, layers: int) -> None:
    drawn = draw(drift_map(*[value] * (5 * layers + 5), layers=layers))
    width, height = float(drawn.get("width", "")), float(drawn.get("height", ""))
    for shape in drawn.iter():
        for name in ("cx", "x", "x1", "x2"):
            assert 0 <= float(shape.get(name, 0)) <= width
        for name in ("cy", "y", "y1", "y2"):
            assert 0 <= float(shape.get(name, 0)) <= height


def test_a_map_of_no_modules_is_drawn() -> None:
    assert marks(draw(replace(drift_map(), modules=()))) == []


def test_names_are_escaped() -> None:
    hostile = ModuleDrift("</svg><script>", "Linear", 1.0, 1.0, (1,))
    drawn = draw_drift_map(replace(drift_map(), modules=(hostile,)))
    assert "<script" not in drawn
    assert drawn.count("</svg>") == 1
