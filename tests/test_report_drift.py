import math
from dataclasses import replace
from itertools import pairwise
from xml.etree.ElementTree import Element, fromstring

import pytest
from report_pages import points, without_definitions

from mixout_export.parity.drift import DriftMap, ModuleDrift
from mixout_export.report.pictures import draw_drift_map

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
    return without_definitions(fromstring(draw_drift_map(drift)))


def of_class(drawn: Element, kind: str) -> list[Element]:
    """Return the shapes of a class."""
    shapes = ("use", "path", "text")
    groups = [group for group in drawn.iter("g") if group.get("class") == kind]
    return [shape for group in groups for shape in group.iter() if shape.tag in shapes]


def marks(drawn: Element) -> list[tuple[str, str, float, float]]:
    """Return class, text, x and y of what stands for modules, from left to right."""
    found = [
        (kind, mark.findtext("title", ""), *points(mark)[0])
        for kind in ("within", "beyond", "absent")
        for mark in of_class(drawn, kind)
    ]
    return sorted(found, key=lambda mark: mark[2])


def texts(drawn: Element) -> list[str]:
    return [text.text or "" for text in drawn.iter("text")]


def test_each_module_is_a_mark_of_its_kind() -> None:
    drift = drift_map(0.0, 1e-7, None, 1e-3, math.inf)
    found = marks(draw(drift))
    assert len(found) == len(drift.modules)
    kinds = [kind for kind, *_ in found]
    assert kinds[:5] == ["within", "within", "absent", "beyond", "beyond"]
    assert set(kinds[5:]) == {"within"}
    assert [text for _, text, *_ in found[:5]] == [
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
    (line,) = of_class(drawn, "first")
    (mark, *_) = of_class(drawn, "beyond")
    ((x, _),) = points(mark)
    assert [place for place, _ in points(line)] == [x, x]
    assert "the first beyond is bert.layer.0.attention" in drawn.findtext("title", "")


def test_where_none_is_beyond_none_is_pointed_at() -> None:
    drawn = draw(drift_map())
    assert not [text for text in texts(drawn) if text.startswith("first")]
    assert "none exceeds the tolerance" in drawn.findtext("title", "")
    assert "tolerance 1e-05" in texts(drawn)


def test_larger_differences_are_higher_at_equal_distances_and_later_modules_further_right() -> None:
    drawn = draw(drift_map(1e-9, 1e-8, 1e-7, 1e-6, 0.0, math.inf, None))
    dots = marks(drawn)
    assert [text.rpartition(": ")[2] for _, text, *_ in dots[:4]] == [
        "1.0e-09", "1.0e-08", "1.0e-07", "1.0e-06",
    ]  # fmt: skip
    heights = [y for *_, y in dots]
    steps = [above - below for below, above in pairwise(heights[:4])]
    assert steps[0] < 0
    assert steps == pytest.approx(steps[:1] * 3, abs=0.01)
    equal, infinite, absent = heights[4:7]
    assert infinite < heights[3] < heights[0] < equal < absent
    places = {text.text: points(text)[0][1] for text in drawn.iter("text")}
    rows = {"equal": equal, "∞": infinite, "n/a": absent, "10⁻⁷": heights[2]}
    assert {name: places[name] for name in rows} == pytest.approx(rows, abs=6)


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
    places = [point for shape in drawn.iter() for point in points(shape)]
    assert len(places) > 10
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places)


def test_a_map_of_no_modules_is_drawn() -> None:
    assert marks(draw(replace(drift_map(), modules=()))) == []


def test_names_are_escaped() -> None:
    hostile = ModuleDrift("</svg><script>$x^2$\u202e\0日", "Linear", 1.0, 1.0, (1,))
    drawn = draw_drift_map(replace(drift_map(), modules=(hostile,)))
    assert "<script" not in drawn
    said = "first beyond: </svg><script>$x^2$⟨U+202E⟩⟨U+0000⟩日, 1"
    assert said in texts(fromstring(drawn))
    assert drawn.count("</svg>") == 1
