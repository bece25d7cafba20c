"""Read data files exactly as they are.

Text is never read as a missing value: "None", "NA" and "nan" are words. Only an empty field, a
JSON null, a parquet null and an absent JSON key are missing.
"""

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mixout_export.errors import ArgumentError, DataError

_BOM = "\ufeff"
_LARGEST_FIELD = 1 << 30  # characters; the csv module's own limit is 131,072
_JSON_NAMES = {
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}


@dataclass(frozen=True)
class Table:
    """The rows of a data file, by column.

    Attributes:
        name: Path of the file or name of the data set, for messages.
        columns: Column name → one value per row. In csv and tsv files, values are strings.
        rows: Number of rows.
        lines: Line of the file on which each row starts, from 1; None if the format has no lines.
        numbers: Number of each row in the file, from 0; None if the table has all rows.
    """

    name: str
    columns: dict[str, list[Any]]
    rows: int
    lines: list[int] | None = None
    numbers: list[int] | None = None

    def where(self, row: int) -> str:
        """Return where a row is in the file, counted from 1: "row 3 (line 4)"."""
        line = "" if self.lines is None else f" (line {self.lines[row]})"
        number = row if self.numbers is None else self.numbers[row]
        return f"row {number + 1}{line}"

    def head(self, count: int | None) -> "Table":
        """Return the first rows; None returns all."""
        if count is None or count >= self.rows:
            return self
        return self._take(range(count))

    def sample(self, count: int, *, seed: int) -> "Table":
        """Return rows that are chosen at random, in the order of the file.

        With the same seed, a larger sample contains every smaller one.

        Raises:
            ArgumentError: There are fewer rows.
        """
        if count > self.rows:
            raise ArgumentError(
                f"examples: got {count:,}, but {self.name} has only {self.rows:,} "
                f"row{'s' * (self.rows != 1)}; lower it, or leave it out to use all"
            )
        return self._take(sorted(np.random.default_rng(seed).permutation(self.rows)[:count]))

    def _take(self, rows: Sequence[int]) -> "Table":
        numbers = range(self.rows) if self.numbers is None else self.numbers
        return Table(
            self.name,
            {name: [values[row] for row in rows] for name, values in self.columns.items()},
            len(rows),
            None if self.lines is None else [self.lines[row] for row in rows],
            [int(numbers[row]) for row in rows],
        )

    def digest(self) -> str:
        """Return a SHA-256 of the names and values."""
        digest = hashlib.sha256()
        for name, values in self.columns.items():
            digest.update(repr((name, values)).encode())
        return digest.hexdigest()

    def column(self, name: str, *, option: str) -> list[Any]:
        """Return a column, which must exist."""
        if name not in self.columns:
            raise DataError(
                f"{self.name}: has no column {name!r}; its columns are "
                f"{', '.join(self.columns)}; choose one with {option}"
            )
        return self.columns[name]


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8").removeprefix(_BOM)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: is not UTF-8 text (byte {data[error.start]:#04x} on line {line}); convert "
            "it, for example with iconv -f LATIN1 -t UTF-8"
        ) from error


def _read_bytes(path: Path, *, zipped: bool) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if zipped else data
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the path") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: is not a complete gzip file ({error}); copy it again") from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check its permissions"
        ) from error


def _check_names(path: Path, names: Sequence[str]) -> None:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{path}: has two columns named {twice!r}; rename one of them")


def _from_records(path: Path, records: Sequence[list[str]], lines: Sequence[int]) -> Table:
    """Make a table of records, whose first one is the header, and of the lines they start on."""
    if not records:
        return Table(str(path), {}, 0, [])
    names, rows = records[0], records[1:]
    _check_names(path, names)
    table = Table(
        str(path),
        {name: [row[i] if i < len(row) else None for row in rows] for i, name in enumerate(names)},
        len(rows),
        list(lines[1:]),
    )
    for index, row in enumerate(rows):
        if len(row) != len(names):
            raise DataError(
                f"{path}: {table.where(index)} has {len(row)} fields, expected {len(names)} "
                f"({', '.join(names)}); correct that row"
            )
    return table


def _read_tsv(path: Path, data: bytes) -> Table:
    # Not str.splitlines, which also splits at form feeds and Unicode's line separators.
    raw = _decode(path, data).split("\n")
    if raw[-1] == "":
        raw.pop()
    records = [line.removesuffix("\r").split("\t") for line in raw]
    header = next((n for n, record in enumerate(records) if record != [""]), len(records))
    # In a file with one column, an empty line is an empty field. Otherwise it is no row.
    keep_blank = header < len(records) and len(records[header]) == 1
    kept = [n for n in range(header, len(records)) if keep_blank or records[n] != [""]]
    return _from_records(path, [records[n] for n in kept], [n + 1 for n in kept])


def _read_csv(path: Path, data: bytes) -> Table:
    csv.field_size_limit(_LARGEST_FIELD)
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
        raise DataError(
            f"{path}: the row on line {start} is not valid csv ({error}); correct its quotes"
        ) from error
    return _from_records(path, records, lines)


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dictionary of a JSON object; refuse a key that occurs twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} occurs twice in an object")
    return made


def _parse_json(path: Path, line: str, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line, object_pairs_hook=_json_object)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: line {number} is not valid JSON ({error.msg} at character {error.colno}); "
            "write one JSON object on each line"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: line {number} cannot be read as JSON ({error}); correct that line"
        ) from error
    if not isinstance(value, dict):
        raise DataError(
            f"{path}: line {number} holds {_JSON_NAMES[type(value)]}, expected an object with "
            "column names and values"
        )
    return value


def _read_jsonl(path: Path, data: bytes) -> Table:
    filled = enumerate(_decode(path, data).split("\n"), start=1)
    objects = {number: _parse_json(path, line, number) for number, line in filled if line.strip()}
    names = list(dict.fromkeys(key for value in objects.values() for key in value))
    columns = {name: [value.get(name) for value in objects.values()] for name in names}
    return Table(str(path), columns, len(objects), list(objects))


def _read_parquet(path: Path, data: bytes) -> Table:
    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(
            f"{path}: is not a complete parquet file ({reason}); copy it again"
        ) from error
    _check_names(path, table.column_names)
    columns: dict[str, list[Any]] = {}
    for name in table.column_names:
        try:
            columns[name] = table.column(name).to_pylist()
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise DataError(
                f"{path}: column {name!r} cannot be read ({error}); store it as another type"
            ) from error
    return Table(str(path), columns, len(table))


_READERS: dict[str, Callable[[Path, bytes], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def read_table(path: Path) -> Table:
    """Read a csv (RFC 4180), tsv (split at tabs, no quoting), jsonl or parquet file, also as .gz.

    The suffix says the format. The table has at least one row.

    Raises:
        DataError: The file is missing, damaged, empty, not UTF-8, or of an unknown format.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    zipped = bool(suffixes) and suffixes[-1] == ".gz"
    kind = (suffixes[:-1] if zipped else suffixes)[-1:]
    if path.exists() and (not kind or kind[0] not in _READERS):
        raise DataError(
            f"{path}: has an unknown format, expected one of {', '.join(_READERS)}, also with .gz"
        )
    data = _read_bytes(path, zipped=zipped)
    table = _READERS[kind[0]](path, data)
    if not table.columns:
        raise DataError(f"{path}: is empty, expected a header and at least one row")
    if not table.rows:
        raise DataError(
            f"{path}: has the columns {', '.join(table.columns)} but no rows, expected at least one"
        )
    return table
