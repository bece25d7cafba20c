"""Files that spreadsheets and other programs write: read, or refused with the right remedy."""

from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from mixout_export.data.columns import ColumnNames, find_optional_label, find_texts
from mixout_export.data.separated import FieldFormat, has_csv_quotes
from mixout_export.data.table import join_tables
from mixout_export.data.tables import read_table
from mixout_export.errors import ArgumentError, DataError


def written(path: Path, text: str | bytes, encoding: str = "utf-8") -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_table(path, **options)
    return str(caught.value).removeprefix(str(path))


def test_nameless_columns_are_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "d.csv", "v1, v2 ,,,\nham,hello,,,\nspam,cash,more,,\nham,short\n")
    assert read_table(path).columns == {
        "v1": ["ham", "spam", "ham"],
        "v2": ["hello", "cash", "short"],
    }
    index = written(tmp_path / "i.csv", ",text,label\n0,a,x\n1,b,y\n")
    assert read_table(index).columns == {"text": ["a", "b"], "label": ["x", "y"]}


def test_empty_rows_and_fields_of_a_spreadsheet_are_no_data(tmp_path: Path) -> None:
    path = written(tmp_path / "d.csv", "text,label\na,1,,\n,\nb,2\n,,,\n")
    table = read_table(path)
    assert table.columns == {"text": ["a", "b"], "label": ["1", "2"]}
    assert table.lines == [2, 4]
    assert "has 3 fields, expected 2" in refusal(written(path, "text,label\na,1,x\n"))


def test_a_repeated_name_matters_only_if_it_is_read(tmp_path: Path) -> None:
    table = read_table(written(tmp_path / "d.csv", "text,label,id,id\na,x,1,2\n"))
    assert find_texts(table, ColumnNames()) == ("text", None)
    with pytest.raises(DataError, match="has two columns named 'id'; rename one"):
        table.column("id", option="--label-column")
    twice = read_table(written(tmp_path / "t.csv", "text,label,label\na,x,y\n"))
    with pytest.raises(DataError, match="has two columns named 'label'"):
        find_optional_label(twice, ColumnNames(), labeled=True)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".csv", "text,label\ngrün,1\n"),
        (".tsv", "text\tlabel\ngrün\t1\n"),
        (".jsonl", '{"text": "grün", "label": "1"}\n'),
    ],
)
def test_a_byte_order_mark_says_the_encoding(
    tmp_path: Path, suffix: str, text: str, encoding: str
) -> None:
    table = read_table(written(tmp_path / f"d{suffix}", text, encoding))
    assert table.columns == {"text": ["grün"], "label": ["1"]}


@pytest.mark.parametrize(
    ("encoding", "text", "name"),
    [
        ("cp1252", "Das Café hat schöne Türen, müde Gäste", "CP1252"),
        ("cp1252", "It’s fine", "CP1252"),
        ("cp1252", "über", "CP1252"),
        ("cp1252", "Très déçu – c’est à éviter, 5 €", "CP1252"),
        ("cp1250", "Zażółć gęślą jaźń, bardzo dobry film", "CP1250"),
        ("cp850", "schöne Türen, café là", "CP850"),
        ("cp1251", "Это хороший фильм, и я его люблю", "CP1251"),
        ("gb18030", "这是一部好电影，我喜欢", "GB18030"),
        ("cp932", "これは良い映画です", "CP932"),
        ("utf-16-le", "plain words", "UTF-16LE"),
        ("utf-16-be", "plain words", "UTF-16BE"),
    ],
)
def test_another_encoding_is_named(tmp_path: Path, encoding: str, text: str, name: str) -> None:
    said = refusal(written(tmp_path / "d.tsv", f"text\tlabel\n{text}\t1\n", encoding))
    assert f"seems to be {name}; convert it, for example with iconv -f {name} -t UTF-8" in said


def test_damaged_utf16_and_workbooks_are_named(tmp_path: Path) -> None:
    cut = "text\tlabel\na\tb\n".encode("utf-16")[:-1]
    assert "is not complete UTF-16 text" in refusal(written(tmp_path / "d.tsv", cut))
    assert "is a workbook" in refusal(written(tmp_path / "d.csv", b"PK\x03\x04" + b"\0" * 30))


@pytest.mark.parametrize(
    ("name", "text", "option"),
    [
        ("d.csv", "text;label\na, b;1\nc;2\n", "--delimiter semicolon"),
        ("d.csv", "text;label\nfine;1\nc;2\n", "--delimiter semicolon"),
        ("d.csv", "text\tlabel\na, b\t1\n", "--delimiter tab"),
        ("d.csv", "text|label\na|1\n", "--delimiter pipe"),
        ("d.tsv", "text,label\na,1\n", "--delimiter comma"),
        ("d.csv", 'text;label\n"a; b";1\nc;2\n', "--delimiter semicolon"),
        ("d.csv", 'text,label\n"a \\"b\\", c",1\nd,2\n', "--quoting backslash"),
        ("d.csv", 'text,label\n"Hi" he said,1\nd,2\n', "--quoting none"),
        ("d.tsv", 'text\tlabel\n"a ""b"" c"\t1\nd\t2\n', "--quoting csv"),
        ("d.tsv", 'text\tlabel\n"a\nb"\t1\nd\t2\n', "--quoting csv"),
        ("d.tsv", '"text"\t"label"\n"a"\t"1"\n', "--quoting csv"),
    ],
)
def test_another_delimiter_or_quoting_is_named_and_can_be_given(
    tmp_path: Path, name: str, text: str, option: str
) -> None:
    path = written(tmp_path / name, text)
    assert f"give {option}" in refusal(path)
    key, value = option.removeprefix("--").split()
    assert list(read_table(path, fields=FieldFormat(**{key: value})).columns) == ["text", "label"]


@pytest.mark.parametrize(
    "declared", ["sep=;", "SEP=;", '"sep=;"', "sep=;;", "sep=;,", "\ufeffsep=; "]
)
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_file_may_declare_its_delimiter(tmp_path: Path, declared: str, suffix: str) -> None:
    text = f"{declared}\r\ntext;label\r\na, b;1\r\n"
    table = read_table(written(tmp_path / f"d.{suffix}", text))
    assert (table.columns, table.lines) == ({"text": ["a, b"], "label": ["1"]}, [3])


def test_ordinary_quotes_in_tab_separated_text_are_no_csv_quotes() -> None:
    assert not has_csv_quotes('a\tb\n"whole sentence."\t1\nother\t0\n')
    assert not has_csv_quotes('a\tb\n"one" and "two"\t1\n"x ""y"" z"\t0\n')
    assert not has_csv_quotes("a\tb\nit's\t1\n")
    rows = "".join(f'"sentence {i}"\t{i}\n' for i in range(10))
    assert has_csv_quotes(f"a\tb\n{rows}")
    assert not has_csv_quotes(f"a\tb\n{rows}plain\t1\n")


def test_options_of_the_format_are_checked() -> None:
    assert FieldFormat("tab") == FieldFormat("\t") == FieldFormat("\\t")
    for values in ({"delimiter": "ab"}, {"delimiter": '"'}, {"quoting": "double"}):
        with pytest.raises(ArgumentError):
            FieldFormat(**values)


def test_all_malformed_rows_are_listed(tmp_path: Path) -> None:
    said = refusal(written(tmp_path / "d.csv", 'a,b\n1,2,3\n"x"y,1\n5,6\n7\n'))
    assert "3 rows" in str(said)
    for where in ("row 1 (line 2) has 3", "the row on line 3 is not valid", "row 4 (line 5) has 1"):
        assert where in said
    assert "skip" not in said  # reading alone has no such option


def test_saved_data_sets_are_read_with_the_names_of_their_classes(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    data = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
    data.save_to_disk(tmp_path / "one")
    table = read_table(tmp_path / "one")
    assert table.columns == {"text": ["a", "b"], "label": [0, 1]}
    assert [value.name for value in table.columns["label"]] == ["no", "yes"]
    DatasetDict(train=data, validation=data.select([1])).save_to_disk(tmp_path / "two")
    assert read_table(tmp_path / "two", splits=["validation"]).rows == 1
    assert "has the splits train, validation" in refusal(tmp_path / "two")


def test_joined_files_keep_their_places_and_common_columns(tmp_path: Path) -> None:
    one = read_table(written(tmp_path / "one.csv", "text,label,id\na,x,7\n"))
    two = read_table(written(tmp_path / "two.jsonl", '{"label": "y", "text": "b"}\n'))
    table = join_tables([one, two])
    assert table.columns == {"text": ["a", "b"], "label": ["x", "y"]}
    assert table.where(1) == f"row 1 (line 1) of {tmp_path / 'two.jsonl'}"
    with pytest.raises(DataError, match=r"'id' is missing in .*two\.jsonl"):
        table.column("id", option="--label-column")
