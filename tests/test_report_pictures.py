import math
from xml.etree.ElementTree import Element, fromstring

import numpy as np
import pytest

from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.parity.compare import OutputComparison, OutputDifference, Tolerance
from mixout_export.report import words
from mixout_export.report.histogram_picture import draw_histogram
from mixout_export.report.svg import DecadeScale, element, picture

TOLERANCE = Tolerance(1e-5, 1e-4)


def compared(*differences: float) -> OutputDifference:
    comparison = OutputComparison("logits", TOLERANCE)
    candidate = np.array([differences])
    batch = Batch("shapes", {"input_ids": np.zeros((1, 2), dtype=np.int64)})
    comparison.add(batch, np.zeros_like(candidate), candidate)
    return comparison.result()


def columns(
    output: OutputDifference, tolerance: Tolerance | None = TOLERANCE
) -> dict[str, Element]:
    """Return the columns that are drawn, by what they are called."""
    drawn = fromstring(draw_histogram(output, tolerance, identity="h"))
    groups = {group.findtext("title"): group.find("rect") for group in drawn.iter("g")}
    return {name: column for name, column in groups.items() if column is not None}


def test_each_decade_has_its_column() -> None:
    found = columns(compared(0.0, 0.0, 1e-12, 3e-7, 4e-7, 2e-5, math.inf))
    kinds = {name: column.get("class") for name, column in found.items()}
    assert kinds == {
        "equal: 2": "equal",
        "below 10⁻¹⁰: 1": "within",
        "10⁻⁷ to 10⁻⁶: 2": "within",
        "10⁻⁵ to 10⁻⁴: 1": "beyond",
        "10² and more, or not finite: 1": "beyond",
    }


def test_columns_stand_in_order_on_one_line_and_more_is_higher() -> None:
    values = [3e-8] * 1000 + [3e-7] * 10 + [3e-6]
    found = list(columns(compared(*values)).values())
    lefts = [float(column.get("x", "")) for column in found]
    heights = [float(column.get("height", "")) for column in found]
    feet = {round(float(column.get("y", "")) + float(column.get("height", ""))) for column in found}
    assert lefts == sorted(lefts)
    assert heights == sorted(heights, reverse=True)
    assert heights[-1] > 4
    assert len(feet) == 1


def test_nothing_is_beyond_where_nothing_is_judged() -> None:
    (column,) = columns(compared(0.5), None).values()
    assert column.get("class") == "within"


def test_everything_lies_within_the_picture() -> None:
    for values in ((0.0,), (1e-12,), (math.inf,), (0.0, 1e-12, 1e-5, 1.0, math.inf)):
        drawn = fromstring(draw_histogram(compared(*values), TOLERANCE, identity="h"))
        width = float(drawn.get("width", ""))
        for shape in drawn.iter("rect"):
            left, across = float(shape.get("x", "")), float(shape.get("width", ""))
            assert 0 <= left < left + across <= width
            assert float(shape.get("y", "")) >= 0


def test_a_decade_scale_places_powers_at_equal_distances() -> None:
    scale = DecadeScale(-3, 1, 100.0, 0.0)
    assert [scale(10.0**e) for e in scale.exponents] == [100.0, 75.0, 50.0, 25.0, 0.0]
    assert (scale(1e-9), scale(1e9)) == (100.0, 0.0)


def test_pictures_escape_what_they_are_given() -> None:
    hostile = "<script>\"'&\u202e\0"
    drawn = picture("p", hostile, (10, 10), [element("text", hostile, class_=hostile)])
    assert "<script" not in drawn
    (text,) = fromstring(drawn).iter("text")
    assert text.text == text.get("class") == "<script>\"'&⟨U+202E⟩⟨U+0000⟩"


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
    assert words.difference(value) == shown


def test_only_all_is_shown_as_all() -> None:
    shares = [None, 0.0, 0.5, 0.99999, 1.0]
    assert [words.share(share) for share in shares] == ["–", "0 %", "50.00 %", "99.99 %", "100 %"]
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
