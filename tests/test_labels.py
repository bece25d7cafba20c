"""Labels become targets, or the message names value, rows and remedy."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixout_export.data.labels import LabelMap, class_ids, number_values, text_values
from mixout_export.data.table import ClassValue
from mixout_export.data.tables import Table, read_table
from mixout_export.errors import DataError

DEFAULT = ("LABEL_0", "LABEL_1")
STARS = ("1", "2", "3", "4", "5")


def _table(values: list[Any]) -> Table:
    lines = list(range(2, len(values) + 2))
    return Table("data.tsv", {"label": values}, len(values), lines)


def _ids(values: list[Any], names: tuple[str, ...]) -> list[int]:
    ids = class_ids(_table(values), "label", names)
    assert ids.dtype == np.int64
    assert ids.shape == (len(values),)
    return [int(index) for index in ids]


@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        (["LABEL_1", "LABEL_0"], DEFAULT, [1, 0]),
        (["1", "0", " 1", "1\r"], DEFAULT, [1, 0, 1, 1]),
        ([1, 0, 1.0, True, False], DEFAULT, [1, 0, 1, 1, 0]),
        (["no", "yes", "1", 0], ("yes", "no"), [1, 0, 1, 0]),
        (["not entailment", " entailment "], ("entailment", "not entailment"), [1, 0]),
        (["1.0", "0.0", "1."], DEFAULT, [1, 0, 1]),
        (["True", "false", " TRUE"], DEFAULT, [1, 0, 1]),
        (["1", 2, 1.0], ("1.0", "2.0"), [0, 1, 0]),
        ([0.5, "0.50", "1.5"], ("0.5", "1.5"), [0, 0, 1]),
        ([ClassValue(0, "no"), ClassValue(1, "yes")], ("yes", "no"), [1, 0]),
        ([ClassValue(0, "no"), ClassValue(1, "yes")], DEFAULT, [0, 1]),
        # Names that are numbers: how a format types a label must not change its meaning.
        (["1", "5", "3"], STARS, [0, 4, 2]),
        ([1, 5, 3.0], STARS, [0, 4, 2]),
        (["1", "0"], ("1", "0"), [0, 1]),
        ([1, 0, 1.0], ("1", "0"), [0, 1, 0]),
        ([-1, 1], ("-1", "1"), [0, 1]),
        ([True, False], ("True", "False"), [0, 1]),
        ([True, False], ("true", "false"), [0, 1]),
        (["None", "nan", "NA"], ("NA", "None", "nan"), [1, 2, 0]),
        ([" a", "a"], ("a", " a"), [1, 0]),
    ],
)
def test_class_ids(values: list[Any], names: tuple[str, ...], expected: list[int]) -> None:
    assert _ids(values, names) == expected


def _refusal(values: list[Any], names: tuple[str, ...] = (), *, regression: bool = False) -> str:
    def read() -> Any:
        table = _table(values)
        return number_values(table, "label") if regression else class_ids(table, "label", names)

    with pytest.raises(DataError) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "value",
    [
        *("2", 2, 2.0, "-1", -1, -1.0, "2.0", 0.5, "maybe", "label_1", math.nan, math.inf, [1]),
        *(10**400, "9" * 5000, "²", "1_0"),
    ],
)
def test_unknown_labels_are_refused(value: Any) -> None:
    shown = repr(value)[:50]
    message = _refusal(["0", "1", value], DEFAULT)
    assert message.startswith(f"data.tsv: column 'label' holds the label {shown}")
    known = "2 labels (LABEL_0, LABEL_1, or their numbers 0 to 1)"
    assert f"in row 3 (line 4), but the checkpoint has {known}" in message
    assert message.endswith("run prepare again with --labels")
    assert len(message) < 300


def test_unknown_labels_are_listed_with_rows_and_count() -> None:
    message = _refusal(["2", "0", *["2"] * 7, "x", "y"], DEFAULT)
    rows = ", ".join(f"row {row} (line {row + 1})" for row in (1, 3, 4, 5, 6))
    assert f"the label '2' in {rows} and 3 more (and 2 more unknown labels)" in message


def test_integers_are_no_ids_where_names_are_numbers() -> None:
    message = _refusal(["1", "0"], STARS)
    assert "the label '0' in row 2" in message
    assert "the checkpoint has 5 labels (1, 2, 3, 4, 5);" in message
    assert not LabelMap(STARS).takes_integers
    assert LabelMap(DEFAULT).takes_integers


def test_a_decimal_comma_is_explained() -> None:
    message = _refusal(["0.5", " 1,25"], regression=True)
    assert "expected a number with a decimal point, such as 1.25; correct it" in message
    assert "decimal point" not in _refusal(["0.5", "1,000,000"], regression=True)


def test_long_lists_of_names_are_cut() -> None:
    names = tuple(f"name{i}" for i in range(30))
    message = _refusal(["x"], names)
    assert "30 labels (name0, " in message
    assert "name9, …, or their numbers 0 to 29)" in message
    assert "name10" not in message


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("missing", ["", None])
def test_missing_values_are_refused_with_their_rows(missing: Any, regression: bool) -> None:
    message = _refusal([missing, "1", *[missing] * 6], DEFAULT, regression=regression)
    rows = ", ".join(f"row {row} (line {row + 1})" for row in (1, 3, 4, 5, 6))
    assert f"column 'label' has no value in {rows} and 2 more; fill in" in message


def test_numbers() -> None:
    values = ["0.5", "-1e3", " 2 ", 3, 4.25, True, "1.400"]
    numbers = number_values(_table(values), "label")
    assert numbers.dtype == np.float32
    expected = np.array([0.5, -1000, 2, 3, 4.25, 1, 1.4], np.float32)
    np.testing.assert_array_equal(numbers, expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "value",
    ["good", "nan", "inf", "-inf", math.nan, math.inf, "1e39", 1e300, 10**400, "1_000", "１", [1]],
)
def test_what_is_no_number_is_refused(value: Any) -> None:
    message = _refusal(["1", value, value], regression=True)
    assert "in row 2 (line 3), row 3 (line 4), expected a number;" in message
    assert message.startswith(f"data.tsv: column 'label' holds {repr(value)[:50]}")


def test_texts_are_returned_as_they_are() -> None:
    texts = ["NA", "None", "nan", " ", "\u2028", "🙂"]
    assert text_values(_table(texts), "label") == texts


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, "holds the int 3 in row 2 (line 3), expected text"),
        (1.5, "holds the float 1.5 in row 2 (line 3), expected text"),
        (math.nan, "holds the float nan in row 2 (line 3), expected text"),
        (["a"], "holds the list ['a'] in row 2 (line 3), expected text"),
        (b"a", "holds the bytes b'a' in row 2 (line 3), expected text"),
        ("a\ud83d", "(half of a surrogate pair) in row 2 (line 3)"),
        (None, "has no value in row 2 (line 3); fill in the values or remove"),
        ("", "has no value in row 2 (line 3); fill in the values or remove"),
    ],
)
def test_what_is_no_text_is_refused(value: Any, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        text_values(_table(["x", value]), "label")
    assert expected in str(caught.value)
    str(caught.value).encode()  # the message itself can be written to a terminal


def test_an_absent_json_key_and_a_null_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "null"}\n{"text": null}\n{"other": 1}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"no value in row 2 \(line 2\), row 3 \(line 3\); fill"):
        text_values(read_table(path), "text")


def test_unused_columns_may_have_gaps(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("note,label\n,1\nx,0\n", encoding="utf-8")
    assert class_ids(read_table(path), "label", DEFAULT).tolist() == [1, 0]
