"""Labels of a new head: from options, and from the training data."""

from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from mixout_export.data.label_names import labels_of_files, ordered_names
from mixout_export.errors import ArgumentError, DataError
from mixout_export_cli.commands.prepare import _parse_labels


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), None),
        (("4",), 4),
        (("a, b,c",), ["a", "b", "c"]),
        (('"a, b",c',), ["a, b", "c"]),
        (('c, "a, b"',), ["c", "a, b"]),
        (("a, b", "c"), ["a, b", "c"]),
        (("4", "5"), ["4", "5"]),
    ],
)
def test_labels_are_one_option_or_several(given: tuple[str, ...], expected: object) -> None:
    assert _parse_labels(given) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_labels_are_the_lines_of_a_file(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("Food, drinks\r\n\r\nReisen für alle \r\n".encode(encoding))
    assert _parse_labels((f"@{path}",)) == ["Food, drinks", "Reisen für alle"]
    with pytest.raises(DataError, match="no such file"):
        _parse_labels((f"@{tmp_path / 'absent'}",))


def test_different_labels_are_sorted() -> None:
    assert ordered_names(["spam", "ham ", "spam"]) == ["ham", "spam"]
    assert ordered_names(["10", 2, 1.0, "1.0"]) == ["1", "2", "10"]
    assert ordered_names([True, False]) == ["false", "true"]


def test_labels_come_from_all_files_of_a_task(tmp_path: Path) -> None:
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text("v1,v2\nspam,a\nham,b\n")
    two.write_text("v1,v2\nnews,a\n")
    found = labels_of_files([one, two], "text-classification", label_column="v1")
    assert found == ["ham", "news", "spam"]
    words = tmp_path / "words.tsv"
    words.write_text("tokens\ttags\na b\tO B-X\nc\tI-X\n")
    assert labels_of_files([words], "token-classification") == ["B-X", "I-X", "O"]
    many = tmp_path / "many.csv"
    many.write_text("text,labels\na,x|y\nb,\nc,z\n")
    assert labels_of_files([many], "multi-label") == ["x", "y", "z"]


def test_the_classes_of_a_saved_data_set_keep_their_order(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "maybe"])})
    data = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    data.save_to_disk(tmp_path / "d")
    assert labels_of_files([tmp_path / "d"], "text-classification") == ["no", "maybe"]


def test_labels_that_differ_in_case_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "d.csv"
    path.write_text("text,label\na,yes\nb,No\nc,Yes\n")
    assert labels_of_files([path], "text-classification") == ["No", "Yes", "yes"]
    assert "'Yes' and 'yes' differ only in upper and lower case" in caplog.text
    path.write_text("text,label\na,yes\nb,No\n")
    caplog.clear()
    labels_of_files([path], "text-classification")
    assert not caplog.text


def test_what_has_no_labels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("text,label\n" + "".join(f"a,{i}.5\n" for i in range(60)))
    with pytest.raises(ArgumentError, match="give --task"):
        labels_of_files([path], None)
    with pytest.raises(ArgumentError, match="has no labels"):
        labels_of_files([path], "regression")
    with pytest.raises(DataError, match="60 different labels in 60 rows"):
        labels_of_files([path], "text-classification")
