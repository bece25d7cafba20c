"""Data files, read exactly.

Text is never taken for a missing value: "None", "NA" and "nan" are words. Only an empty field, a
JSON null, a parquet null and an absent JSON key are missing.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mixout_export.errors import DataError

_BOM = "\ufeff"


@dataclass(frozen=True)
class Table:
    """A data file's rows by column.

    Attributes:
        name: Where it came from, for messages.
        columns: Column name → one value per row. Text files hold strings.
        rows: Number of rows.
        lines: Line of the file on which each row starts, from 1; None where there are no lines.
    """

    name: str
    columns: dict[str, list[Any]]
    rows: int
    lines: list[int] | None = None

    def where(self, row: int) -> str:
        """Name a row as a user finds it: "row 3 (line 4)", counted from 1."""
        line = "" if self.lines is None else f" (line {self.lines[row]})"
        return f"row {row + 1}{line}"

    def column(self, name: str, *, option: str) -> list[Any]:
        """Return a column.

        Raises:
            DataError: There is no such column; the message names those there are.
        """
        if name not in self.columns:
            raise DataError(
                f"{self.name}: has no column {name!r}, it has {', '.join(self.columns)}; "
                f"choose with {option}"
            )
        return self.columns[name]


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8").removeprefix(_BOM)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: is not UTF-8, byte {data[error.start]:#04x} on line {line}; convert it "
            "(iconv -f LATIN1 -t UTF-8, say)"
        ) from error


def _read_bytes(path: Path, *, zipped: bool) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if zipped else data
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the path") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: is not a whole gzip file ({error}); copy it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _from_rows(
    path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], lines: list[int]
) -> Table:
    names = list(header)
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path}: has two columns named {name!r}; rename one")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(names):
            raise DataError(
                f"{path}: line {line} has {len(row)} fields, expected {len(names)} "
                f"({', '.join(names)})"
            )
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    return Table(str(path), columns, len(rows), lines)


def _read_tsv(path: Path, data: bytes) -> Table:
    # Not str.splitlines, which also splits at form feeds and Unicode's line separators.
    raw = _decode(path, data).split("\n")
    if raw and raw[-1] == "":
        raw.pop()
    records = [line.removesuffix("\r").split("\t") for line in raw]
    kept = [(n + 1, r) for n, r in enumerate(records) if r != [""] or len(records[0]) == 1]
    if not kept:
        return Table(str(path), {}, 0, [])
    return _from_rows(path, kept[0][1], [r for _, r in kept[1:]], [n for n, _ in kept[1:]])


def _read_csv(path: Path, data: bytes) -> Table:
    csv.field_size_limit(1 << 30)
    reader = csv.reader(io.StringIO(_decode(path, data), newline=""), strict=True)
    records: list[list[str]] = []
    lines: list[int] = []
    start = 1
    try:
        for record in reader:
            if record:
                records.append(record)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}: line {start} is not valid csv ({error}); mend it") from error
    if not records:
        return Table(str(path), {}, 0, [])
    return _from_rows(path, records[0], records[1:], lines[1:])


def _read_jsonl(path: Path, data: bytes) -> Table:
    objects: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(_decode(path, data).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}: line {number} is not valid JSON ({error})") from error
        if not isinstance(value, dict):
            raise DataError(
                f"{path}: line {number} holds a JSON {type(value).__name__}, expected an object"
            )
        objects.append(value)
        lines.append(number)
    names = list(dict.fromkeys(key for value in objects for key in value))
    columns = {name: [value.get(name) for value in objects] for name in names}
    return Table(str(path), columns, len(objects), lines)


def _read_parquet(path: Path, data: bytes) -> Table:
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{path}: is not a whole parquet file ({first})") from error
    return Table(
        str(path), {n: table.column(n).to_pylist() for n in table.column_names}, len(table)
    )


_READERS: dict[str, Callable[[Path, bytes], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def read_table(path: Path) -> Table:
    """Read a csv (RFC 4180), tsv (split at tabs, no quoting), jsonl or parquet file, or its .gz.

    Args:
        path: The file; its suffix tells the format.

    Returns:
        The table, at least one row.

    Raises:
        DataError: The file is missing, damaged, empty, not UTF-8, or of an unknown format.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    zipped = bool(suffixes) and suffixes[-1] == ".gz"
    kind = (suffixes[:-1] if zipped else suffixes)[-1:]
    if not kind or kind[0] not in _READERS:
        raise DataError(
            f"{path}: has an unknown format, expected one of {', '.join(_READERS)}, each also .gz"
        )
    table = _READERS[kind[0]](path, _read_bytes(path, zipped=zipped))
    if not table.rows:
        raise DataError(f"{path}: holds no rows, expected at least one")
    return table
