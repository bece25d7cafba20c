import math
from dataclasses import dataclass, replace
from xml.etree.ElementTree import Element, fromstring

import numpy as np
import pytest
from report_pages import points, without_definitions

from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.parity.compare import OutputComparison, OutputDifference, Tolerance
from mixout_export.report import words
from mixout_export.report.pictures import draw_histogram
from mixout_export.rounding import difference, share

TOLERANCE = Tolerance(1e-5, 1e-4)


def compared(*differences: float) -> OutputDifference:
    comparison = OutputComparison("logits", TOLERANCE)
    candidate = np.array([differences])
    batch = Batch("shapes", {"input_ids": np.zeros((1, 2), dtype=np.int64)})
    comparison.add(batch, np.zeros_like(candidate), candidate)
    return comparison.result()


def draw(output: OutputDifference, tolerance: Tolerance | None = TOLERANCE) -> Element:
    return without_definitions(fromstring(draw_histogram(output, tolerance, identity="h")))


@dataclass(frozen=True)
class Column:
    kind: str
    left: float
    top: float
    right: float
    foot: float


def columns(output: OutputDifference, tolerance: Tolerance | None = TOLERANCE) -> dict[str, Column]:
    """Return the columns that are drawn, by what they are called."""
    found = {}
    for group in draw(output, tolerance).iter("g"):
        for shape in group.findall("path"):
            if shape.find("title") is not None:
                xs, ys = zip(*points(shape), strict=True)
                kind = group.get("class", "")
                title = shape.findtext("title", "")
                found[title] = Column(kind, min(xs), min(ys), max(xs), max(ys))
    return found


def test_each_decade_has_its_column() -> None:
    found = columns(compared(0.0, 0.0, 1e-12, 3e-7, 4e-7, 2e-5, math.inf))
    assert {name: column.kind for name, column in found.items()} == {
        "equal: 2": "equal",
        "below 10⁻¹⁰: 1": "within",
        "10⁻⁷ to 10⁻⁶: 2": "within",
        "10⁻⁵ to 10⁻⁴: 1": "beyond",
        "10² and more, or not finite: 1": "beyond",
    }


def test_columns_stand_in_order_on_one_line_and_more_is_higher() -> None:
    values = [3e-8] * 1000 + [3e-7] * 10 + [3e-6]
    found = list(columns(compared(*values)).values())
    lefts = [column.left for column in found]
    heights = [column.foot - column.top for column in found]
    assert lefts == sorted(lefts)
    assert heights == sorted(heights, reverse=True)
    assert heights[-1] > 4
    assert len({round(column.foot) for column in found}) == 1


def test_the_number_of_values_is_above_their_column() -> None:
    output = compared(*[3e-8] * 1000, *[3e-7] * 10)
    labels = {text.text: points(text)[0] for text in draw(output).iter("text")}
    for number, column in zip(("1.0k", "10"), columns(output).values(), strict=True):
        x, y = labels[number]
        assert x == pytest.approx((column.left + column.right) / 2, abs=1)
        assert column.top - 15 < y < column.top


def test_nothing_is_beyond_where_nothing_is_judged() -> None:
    (column,) = columns(compared(0.5), None).values()
    assert column.kind == "within"
    assert not [group for group in draw(compared(0.5), None).iter("g") if is_limit(group)]


def is_limit(group: Element) -> bool:
    return group.get("class") == "limit"


@pytest.mark.parametrize("atol", [1e-20, 1e-5, 3e-3, 1e9])
def test_the_tolerance_parts_the_columns(atol: float) -> None:
    """A tolerance smaller or larger than all decades is at the end of the axis."""
    output = compared(0.0, 2e-11, 2e-8, 2e-5, 2e-2, 20.0, 2000.0)
    (limit,) = [group for group in draw(output, Tolerance(atol, 0)).iter("g") if is_limit(group)]
    (path,) = limit.findall("path")
    (x, _), _ = points(path)
    for column in columns(output, Tolerance(atol, 0)).values():
        if column.kind == "beyond":
            assert column.left >= x - 1
        elif atol < 1e9:
            assert column.left < x
    texts = [text.text for text in draw(output, Tolerance(atol, 0)).iter("text")]
    assert f"atol {atol:g}" in texts


@pytest.mark.parametrize("atol", [1e-20, 1e-5, 1e9])
@pytest.mark.parametrize("values", [(0.0,), (1e-12,), (math.inf,), (0.0, 1e-12, 1e-5, 1.0, 1e30)])
def test_everything_lies_within_the_picture(values: tuple[float, ...], atol: float) -> None:
    drawn = draw(compared(*values), Tolerance(atol, 0))
    width, height = float(drawn.get("width", "")), float(drawn.get("height", ""))
    places = [point for shape in drawn.iter() for point in points(shape)]
    assert len(places) > 10
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places)


def test_pictures_are_the_same_each_time_and_need_no_styles() -> None:
    output = compared(0.0, 1e-7, 1e-3)
    drawn = draw_histogram(output, TOLERANCE, identity="h")
    assert drawn == draw_histogram(output, TOLERANCE, identity="h")
    assert "style" not in drawn  # the page's policy forbids it
    assert "metadata" not in drawn


def test_pictures_escape_what_they_are_given() -> None:
    output = replace(compared(0.0), name="<script>\"'&\u202e\0")
    drawn = draw_histogram(output, TOLERANCE, identity="h")
    assert "<script" not in drawn
    assert "<script>\"'&⟨U+202E⟩⟨U+0000⟩" in fromstring(drawn).findtext("title", "")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0.0, "0"),
        (1.26e-6, "1.3e-06"),
        (9.9e-4, "9.9e-04"),
        (0.00123, "0.0012"),
        (0.77, "0.77"),
        (1.74, "1.7"),
        (123.4, "123"),
        (1.2e5, "1.2e+05"),
        (math.inf, "∞"),
    ],
)
def test_differences_are_shown_in_two_digits(value: float | None, shown: str) -> None:
    assert difference(value) == shown


def test_only_all_is_shown_as_all() -> None:
    shares = [None, 0.0, 0.5, 0.99999, 1.0]
    assert [share(value) for value in shares] == ["–", "0 %", "50.00 %", "99.99 %", "100 %"]
    counts = [0, 998, 999, 1000, 12_345, 999_950, 3_400_000]
    assert [words.short_count(number) for number in counts] == [
        "0", "998", "999", "1.0k", "12k", "1.0M", "3.4M",
    ]  # fmt: skip
    assert words.sentence("a is b") == "A is b."
    assert words.file_size(90_869_516) == "90.9 MB"


def test_a_clause_becomes_a_sentence_but_a_path_stays_as_it_is() -> None:
    assert words.sentence("output 'logits' differs") == "Output 'logits' differs."
    assert words.sentence("changed/model.safetensors: was changed") == (
        "changed/model.safetensors: was changed."
    )
    assert words.sentence("its SHA-256 is ab12…") == "Its SHA-256 is ab12…"
