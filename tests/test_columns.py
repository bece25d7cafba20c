"""Columns are found by their usual names, or the message says how to choose."""

from pathlib import Path

import pytest

from mixout_export.data.columns import ColumnNames, find_optional_label, find_texts
from mixout_export.data.readers.text_classification import TextClassification
from mixout_export.data.tables import Table, read_table
from mixout_export.errors import DataError


def _table(*names: str) -> Table:
    return Table("data.tsv", {name: ["x"] for name in names}, 1, [2])


def find(table: Table, **named: str) -> tuple[str | None, str | None, str]:
    """Return the text, the second text and the label."""
    found = TextClassification().find(table, ColumnNames.named(**named), ())
    assert found.label is not None
    (label,) = found.label
    return found.text, found.text_pair, label


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("idx", "sentence", "label"), ("sentence", None, "label")),
        (("idx", "sentence1", "sentence2", "label"), ("sentence1", "sentence2", "label")),
        (("premise", "hypothesis", "label", "idx"), ("premise", "hypothesis", "label")),
        (("question1", "question2", "label"), ("question1", "question2", "label")),
        (("question", "sentence", "label"), ("question", "sentence", "label")),
        (("text", "text_pair", "labels"), ("text", "text_pair", "labels")),
        (("text", "target"), ("text", None, "target")),
        (("review", "stars"), ("review", None, "stars")),
        (("content", "category", "idx2"), ("content", None, "category")),
        (("premise", "class"), ("premise", None, "class")),
        (("sentence1", "label"), ("sentence1", None, "label")),
        (("Text", "Label"), ("Text", None, "Label")),
        (("Text", "text", "label"), ("text", None, "label")),
        (("text", "Text", "label"), ("text", None, "label")),
        # A canonical label wins over other usual names; a second text is not taken by accident.
        (("text", "score", "label"), ("text", None, "label")),
        (("text", "labels", "label"), ("text", None, "label")),
        (("text", "sentence2", "label"), ("text", None, "label")),
        (("sentence", "hypothesis", "label"), ("sentence", None, "label")),
    ],
)
def test_usual_names(names: tuple[str, ...], expected: tuple[str, str | None, str]) -> None:
    assert find(_table(*names)) == expected


def test_named_columns_win() -> None:
    table = _table("sentence1", "sentence2", "other", "label", "grade")
    everything = find(table, text="other", text_pair="sentence1", label="grade")
    assert everything == ("other", "sentence1", "grade")
    alone = find(table, text="sentence1")
    assert alone == ("sentence1", None, "label")


def test_a_named_pair_joins_the_text_that_is_found() -> None:
    assert find(_table("text", "reply", "label"), text_pair="reply") == ("text", "reply", "label")
    assert find(_table("sentence", "text", "label"), text_pair="sentence") == (
        "text",
        "sentence",
        "label",
    )
    table = _table("question", "sentence", "passage", "label")
    assert find(table, text_pair="passage") == ("question", "passage", "label")


@pytest.mark.parametrize(
    ("names", "named", "expected"),
    [
        (("a", "b"), {}, "no column has a usual name for the text; its columns are a, b"),
        (("sentence", "text", "label"), {}, "several columns may hold the text (sentence, text)"),
        (("question", "sentence", "passage", "label"), {}, "question + sentence, question + pas"),
        (("text", "y"), {}, "no column has a usual name for labels; its columns are text, y"),
        (("text", "score", "stars"), {}, "several columns may hold labels (score, stars)"),
        (("text", "label"), {"text": "b"}, "no column 'b'; its columns are text, label"),
        (("text", "label"), {"text_pair": "b"}, "choose one with --text-pair-column"),
        (("text", "label"), {"label": "b"}, "choose one with --label-column"),
        (
            ("text", "label"),
            {"text": "text", "text_pair": "text"},
            "column 'text' is both the text and the second text",
        ),
    ],
)
def test_what_cannot_be_found_is_refused(
    names: tuple[str, ...], named: dict[str, str], expected: str
) -> None:
    with pytest.raises(DataError) as caught:
        find(_table(*names), **named)
    message = str(caught.value)
    assert expected in message
    assert message.startswith("data.tsv: ")


@pytest.mark.parametrize(
    ("names", "option"),
    [(("a", "label"), "--text-column"), (("text", "a"), "--label-column")],
)
def test_the_message_names_the_option(names: tuple[str, ...], option: str) -> None:
    with pytest.raises(DataError, match=f"choose one with {option}($|,)"):
        find(_table(*names))


def test_a_file_without_a_header_and_nameless_columns_are_named(tmp_path: Path) -> None:
    file = tmp_path / "d.csv"
    file.write_text("a good film,1\na bad one,0\n")
    with pytest.raises(DataError, match="write the names of the columns on the first line"):
        find_texts(read_table(file), ColumnNames())
    file.write_text("text,\na good film,1\n")
    with pytest.raises(DataError, match="its columns are text, and others without a name"):
        find_optional_label(read_table(file), ColumnNames(), labeled=True)
