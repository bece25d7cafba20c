"""Data files are read exactly, or refused with one sentence."""

import csv
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mixout_export.data.tables import Table, read_parts, read_table
from mixout_export.errors import DataError

GLUE = Path(__file__).parents[2] / "shared" / "data" / "glue"

#: What naive readers alter: quotes, words for a missing value, separators that are not line feeds,
#: characters that str.strip or str.splitlines treats as space, a byte order mark, NUL.
NASTY = (
    *('"', '""', '"quoted"', "it's", 'a "b" c', '"open', "a,b", ",", "\\n", "\\"),
    *("None", "NA", "nan", "NaN", "null", "NULL", "N/A", "#N/A", "inf", "True", "1e5", "007"),
    *(" lead", "trail ", "  ", "\u2028", "a\u2028b\u2029c", "\x85", "\x0b\x0c", "\x1c\x1d\x1e"),
    *(
        "\ufeff",
        "a\ufeff",
        "\x00",
        "a\x00b",
        "\x08",
        "\xa0",
        "é",
        "e\u0301",
        "日本語",
        "🙂",
        "=1+1",
    ),
)
CSV_ONLY = ("a\nb", "\n", "a\r\nb", "lone\rreturn", "\r", "tab\tbed", "", '\n"', '",\n"')
TSV_ONLY = ("lone\rreturn", "\rx")

Rows = list[tuple[str, str, str]]


def zipped(data: bytes) -> bytes:
    """Compress without the time of day: the name of a test must be the same in every process."""
    return gzip.compress(data, mtime=0)


def _rows(*, seed: int, more: tuple[str, ...]) -> Rows:
    """Random rows of three fields, each field glued from nasty pieces."""
    draw = random.Random(seed)
    pieces = NASTY + more
    fields = ["".join(draw.choices(pieces, k=draw.randint(1, 3))) for _ in range(3 * 200)]
    fields[: len(pieces)] = draw.sample(pieces, len(pieces))
    return list(zip(fields[::3], fields[1::3], fields[2::3], strict=True))


def _by_column(rows: Rows) -> dict[str, list[str]]:
    return {name: [row[i] for row in rows] for i, name in enumerate(("text", "pair", "label"))}


def _write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "pair", "label"), *rows])


def _write_tsv(path: Path, rows: Rows) -> None:
    text = "".join("\t".join(row) + "\n" for row in [("text", "pair", "label"), *rows])
    path.write_bytes(text.encode())


def _write_jsonl(path: Path, rows: Rows) -> None:
    objects = [dict(zip(("text", "pair", "label"), row, strict=True)) for row in rows]
    path.write_bytes(b"".join(json.dumps(o, ensure_ascii=False).encode() + b"\n" for o in objects))


def _write_parquet(path: Path, rows: Rows) -> None:
    pq.write_table(pa.table(_by_column(rows)), path)


FORMATS: dict[str, tuple[Callable[[Path, Rows], None], tuple[str, ...]]] = {
    ".csv": (_write_csv, CSV_ONLY),
    ".tsv": (_write_tsv, TSV_ONLY),
    ".jsonl": (_write_jsonl, CSV_ONLY),
    ".parquet": (_write_parquet, CSV_ONLY),
}


def _write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def _refusal(path: Path) -> str:
    """Return the message of the error that reading gives: one line that names the file."""
    with pytest.raises(DataError) as caught:
        read_table(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("suffix", FORMATS)
def test_nasty_text_survives_a_round_trip(tmp_path: Path, suffix: str, seed: int) -> None:
    write, more = FORMATS[suffix]
    rows = _rows(seed=seed, more=more)
    # A carriage return at the end of a tsv line cannot be told from a CRLF.
    rows = [(a, b, c.rstrip("\r")) for a, b, c in rows]
    path = tmp_path / f"data{suffix}"
    write(path, rows)
    table = read_table(path)
    assert table.columns == _by_column(rows)
    assert table.rows == len(rows)


@pytest.mark.parametrize("suffix", FORMATS)
def test_gz_and_upper_case_suffixes(tmp_path: Path, suffix: str) -> None:
    write, more = FORMATS[suffix]
    plain = tmp_path / f"data{suffix}"
    write(plain, _rows(seed=1, more=more))
    zipped = _write(tmp_path / f"a.b{suffix.upper()}.GZ", gzip.compress(plain.read_bytes()))
    expected = read_table(plain)
    assert read_table(zipped) == Table(str(zipped), expected.columns, expected.rows, expected.lines)


@pytest.mark.parametrize("size", [1, 7, 200, 1000])
@pytest.mark.parametrize("suffix", [*FORMATS, ".parquet.gz", ".csv.gz"])
def test_parts_are_the_whole(tmp_path: Path, suffix: str, size: int) -> None:
    write, more = FORMATS[suffix.removesuffix(".gz")]
    path = tmp_path / f"data{suffix.removesuffix('.gz')}"
    write(path, [(a, b, c.rstrip("\r")) for a, b, c in _rows(seed=2, more=more)])
    if suffix.endswith(".gz"):
        path = _write(tmp_path / f"data{suffix}", zipped(path.read_bytes()))
    whole, parts = read_table(path), list(read_parts(path, size))
    assert [part.rows for part in parts[:-1]] == [size] * (len(parts) - 1)
    for name, values in whole.columns.items():
        assert [value for part in parts for value in part.columns[name]] == values
    places = [part.where(row) for part in parts for row in range(part.rows)]
    assert places == [whole.where(row) for row in range(whole.rows)]


def test_a_later_part_of_a_jsonl_file_has_the_columns_of_all_before_it(tmp_path: Path) -> None:
    path = _write(tmp_path / "d.jsonl", '{"a": 1}\n{"b": 2}\n')
    assert [part.columns for part in read_parts(path, 1)] == [{"a": [1]}, {"a": [None], "b": [2]}]


def test_a_damaged_later_part_is_refused_as_the_whole_is(tmp_path: Path) -> None:
    path = _write(tmp_path / "d.csv", "a,b\n1,2\n3,4\n5\n")
    parts = read_parts(path, 2)
    assert next(parts).columns["a"] == ["1", "3"]
    with pytest.raises(DataError, match=r"row 3 \(line 4\) has 1 fields"):
        next(parts)


@pytest.mark.parametrize("name", sorted(p.relative_to(GLUE) for p in GLUE.rglob("*.tsv*")))
def test_glue_is_read_back_exactly(name: Path) -> None:
    path = GLUE / name
    data = path.read_bytes()
    lines = (gzip.decompress(data) if path.suffix == ".gz" else data).split(b"\n")
    assert lines.pop() == b""
    raw = [[field.decode("utf-8") for field in line.split(b"\t")] for line in lines]
    table = read_table(path)
    assert list(table.columns) == raw[0]
    assert table.rows == len(raw) - 1
    assert [list(row) for row in zip(*table.columns.values(), strict=True)] == raw[1:]
    assert table.lines == list(range(2, len(raw) + 1))


def test_glue_is_there_or_skipped() -> None:
    if not GLUE.is_dir():
        pytest.skip("no ../shared/data/glue")
    assert len(list(GLUE.rglob("*.tsv*"))) == 10


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_byte_order_mark_and_crlf_are_tolerated(tmp_path: Path, suffix: str) -> None:
    text = "text,label\r\nNA,1\r\n,2\r\n".replace(",", "," if suffix == ".csv" else "\t")
    table = read_table(_write(tmp_path / f"d{suffix}", b"\xef\xbb\xbf" + text.encode()))
    assert table.columns == {"text": ["NA", ""], "label": ["1", "2"]}
    assert table.lines == [2, 3]


@pytest.mark.parametrize("end", ["", "\n", "\n\n\n"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_the_end_of_the_last_line_does_not_matter(tmp_path: Path, suffix: str, end: str) -> None:
    lines = ['{"a": "x", "b": "y"}'] if suffix == ".jsonl" else ["a,b", "x,y"]
    text = "\n".join(lines) if suffix != ".tsv" else "\n".join(lines).replace(",", "\t")
    assert read_table(_write(tmp_path / f"d{suffix}", text + end)).columns == {
        "a": ["x"],
        "b": ["y"],
    }


def test_rows_are_named_by_their_line(tmp_path: Path) -> None:
    quoted = read_table(_write(tmp_path / "d.csv", 'a,b\n"1\n2",x\n\n3,y\n'))
    assert quoted.columns == {"a": ["1\n2", "3"], "b": ["x", "y"]}
    assert [quoted.where(row) for row in range(2)] == ["row 1 (line 2)", "row 2 (line 5)"]
    tabs = read_table(_write(tmp_path / "d.tsv", "\na\tb\n1\tx\n\n3\ty\n"))
    assert [tabs.where(row) for row in range(2)] == ["row 1 (line 3)", "row 2 (line 5)"]
    objects = read_table(_write(tmp_path / "d.jsonl", '{"a": 1}\n\n{"a": 2}\n'))
    assert [objects.where(row) for row in range(2)] == ["row 1 (line 1)", "row 2 (line 3)"]
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "d.parquet")
    assert read_table(tmp_path / "d.parquet").where(1) == "row 2"


def test_an_empty_line_is_an_empty_field_where_there_is_one_column(tmp_path: Path) -> None:
    table = read_table(_write(tmp_path / "d.tsv", "text\nx\n\ny\n"))
    assert table.columns == {"text": ["x", "", "y"]}


def test_tsv_quotes_are_text(tmp_path: Path) -> None:
    table = read_table(_write(tmp_path / "d.tsv", 'a\tb\n"x\ty"\n"one""two"\t"\n'))
    assert table.columns == {"a": ['"x', '"one""two"'], "b": ['y"', '"']}


def test_json_and_parquet_values_keep_their_types(tmp_path: Path) -> None:
    objects = [{"a": 1, "b": 1.5}, {"b": None, "c": True}, {"a": "1", "c": [1]}]
    text = "".join(json.dumps(value) + "\r\n" for value in objects)
    table = read_table(_write(tmp_path / "d.jsonl", text))
    expected: dict[str, list[Any]] = {
        "a": [1, None, "1"],
        "b": [1.5, None, None],
        "c": [None, True, [1]],
    }
    assert table.columns == expected
    columns = {"text": ["None", None], "label": [3, None], "score": [0.5, 1.0]}
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    assert read_table(tmp_path / "d.parquet").columns == columns


def test_a_field_may_be_longer_than_the_csv_module_allows(tmp_path: Path) -> None:
    csv.field_size_limit(131_072)  # the module's own limit, whatever ran before
    long = "x" * 200_000
    assert read_table(_write(tmp_path / "d.csv", f"a,b\n{long},1\n")).columns["a"] == [long]


def test_column_names_those_there_are(tmp_path: Path) -> None:
    table = read_table(_write(tmp_path / "d.csv", "a,b\n1,2\n"))
    assert table.column("b", option="--text-column") == ["2"]
    with pytest.raises(
        DataError, match="no column 'c'; its columns are a, b; choose one with --text"
    ):
        table.column("c", option="--text-column")


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("d.txt", "a\n1\n", "has an unknown format, expected one of .csv, .tsv, .jsonl, .parquet"),
        ("d", "a\n1\n", "has an unknown format"),
        ("d.gz", zipped(b"a\n1\n"), "has an unknown format"),
        ("d.csv", "", "is empty"),
        ("d.tsv", "\n\n", "is empty"),
        ("d.jsonl", "\n", "is empty"),
        ("d.csv.gz", zipped(b""), "is empty"),
        ("d.csv", "text,label\n", "has the columns text, label but no rows"),
        ("d.tsv", "text\tlabel", "has the columns text, label but no rows"),
        ("d.tsv", "a\ta\n1\t2\n", "has two columns named 'a'"),
        ("d.csv", "a,b\n1,2\n1,2,3\n", "row 2 (line 3) has 3 fields, expected 2 (a, b)"),
        ("d.csv", 'a,b\n"1\n1",2\n1\n', "row 2 (line 4) has 1 fields, expected 2 (a, b)"),
        ("d.tsv", "a\tb\n1\t2\t3\n", "row 1 (line 2) has 3 fields, expected 2 (a, b)"),
        ("d.tsv", "a\tb\n\n1\n", "row 1 (line 3) has 1 fields, expected 2 (a, b)"),
        ("d.csv", 'a,b\n1,2\n"open,3\n4,5\n', "the row on line 3 is not valid csv"),
        ("d.csv", 'a,b\n"x"y,2\n', "the row on line 2 is not valid csv"),
        ("d.csv", "a,b\n1,2\nx,caf\xe9".encode("latin-1"), "not UTF-8 text (byte 0xe9 on line 3)"),
        ("d.tsv", "a\tb\n".encode("utf-16"), "has the columns a, b but no rows"),
        ("d.jsonl", b'{"a": "\xff"}', "is not UTF-8 text (byte 0xff on line 1)"),
        ("d.jsonl", '{"a": 1}\n{"a": \n', "line 2 is not valid JSON (Expecting value"),
        ("d.jsonl", '{"a": 1}\n\n[1]\n', "line 3 holds an array, expected an object"),
        ("d.jsonl", '[{"a": 1}, {"a": 2}]', "is one JSON array, expected one object on each line"),
        ("d.jsonl", '[\n {\n  "a": 1\n }\n]\n', "is one JSON array"),
        ("d.jsonl", '"a"\n', "line 1 holds a string, expected an object"),
        ("d.jsonl", "null\n", "line 1 holds null, expected an object"),
        ("d.jsonl", '{"a": 1, "b": 2, "a": 3}\n', "line 1 cannot be read as JSON (the key 'a'"),
        ("d.jsonl", "[" * 200_000 + "\n", "line 1 cannot be read as JSON"),
        ("d.jsonl", '{"a": ' + "9" * 5000 + "}\n", "line 1 cannot be read as JSON"),
        ("d.csv.gz", "a,b\n1,2\n", "is not a complete gzip file"),
        ("d.csv.gz", zipped(b"a,b\n1,2\n" * 99)[:-9], "is not a complete gzip file"),
        ("d.csv.gz", zipped(b"a,b\n1,2\n")[:-8] + b"\0" * 8, "is not a complete gzip file"),
        ("d.csv.gz", zipped(b"a,b\n1,2\n")[:10] + b"\xff" * 20, "not a complete gzip file"),
        ("d.parquet", "", "is not a complete parquet file"),
        ("d.parquet", "text,label\n1,2\n", "is not a complete parquet file"),
    ],
)
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, name: str, data: bytes | str, expected: str
) -> None:
    assert expected in _refusal(_write(tmp_path / name, data))


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    for name in ("absent.csv", "absent.xlsx", "absent"):
        assert "no such file" in _refusal(tmp_path / name)
    (tmp_path / "folder.csv").mkdir()
    assert "holds no data" in _refusal(tmp_path / "folder.csv")


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    table = pa.table({"text": [f"sentence {i} of many" for i in range(500)]})
    pq.write_table(table, path, compression="gzip")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "is not a complete parquet file" in _refusal(path)
    path.write_bytes(whole[:100] + b"\xff" * 200 + whole[300:])
    assert "is not a complete parquet file" in _refusal(path)


def test_parquet_with_equal_names_no_rows_or_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table([[1], [2]], names=["a", "a"]), path)
    assert "has two columns named 'a'" in _refusal(path)
    pq.write_table(pa.table([[1], [2], ["x"]], names=["a", "a", "b"]), path)
    assert read_table(path).columns == {"b": ["x"]}
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), path)
    assert "has the columns a but no rows" in _refusal(path)
    raw = pa.array([b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"a": raw}), path)
    assert "column 'a' cannot be read" in _refusal(path)
