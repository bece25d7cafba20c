"""Read data files exactly as they are, at once or in parts.

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mixout_export.errors import ArgumentError, DataError

_UTF8 = "utf-8-sig"  # without the byte order mark, if there is one
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
        first: Number of the first row in the file, if the table is a part of it; else 0.
    """

    name: str
    columns: dict[str, list[Any]]
    rows: int
    lines: list[int] | None = None
    numbers: list[int] | None = None
    first: int = 0

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


@dataclass(frozen=True)
class _File:
    """A data file that is read from its beginning to its end.

    Attributes:
        path: The file.
        zipped: Whether it is compressed with gzip.
    """

    path: Path
    zipped: bool

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """Yield its bytes, decompressed, and turn errors of the whole block into ours."""
        try:
            with (gzip.open if self.zipped else open)(self.path, "rb") as stream:
                yield cast(BinaryIO, stream)
        except FileNotFoundError as error:
            raise DataError(f"{self.path}: no such file; check the path") from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(
                f"{self.path}: is not a complete gzip file ({error}); copy it again"
            ) from error
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be read ({error.strerror}); check its permissions"
            ) from error

    @contextmanager
    def text(self, *, newline: str) -> Iterator[Iterator[str]]:
        """Yield its lines with their ends; `newline` is that of `io.TextIOWrapper`."""
        try:
            with self.opened() as stream, io.TextIOWrapper(stream, _UTF8, newline=newline) as lines:
                yield lines
        except UnicodeDecodeError as error:
            raise self._undecodable(error) from error

    def _undecodable(self, found: UnicodeDecodeError) -> DataError:
        """Return the error for a file that is not UTF-8, and name the line."""
        where = f"byte {found.object[found.start]:#04x}"
        with self.opened() as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    line.decode(_UTF8)
                except UnicodeDecodeError as error:
                    where = f"byte {line[error.start]:#04x} on line {number}"
                    break
        return DataError(
            f"{self.path}: is not UTF-8 text ({where}); convert it, for example with "
            "iconv -f LATIN1 -t UTF-8"
        )


class _Record(NamedTuple):
    """A record of a text file, and the line on which it starts, from 1."""

    line: int
    value: Any


def _check_names(path: Path, names: Sequence[str]) -> None:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{path}: has two columns named {twice!r}; rename one of them")


def _from_rows(path: Path, names: Sequence[str], rows: Sequence[_Record], first: int) -> Table:
    """Make a table of rows with one field for each name; `first` is the number of the first."""
    table = Table(
        str(path),
        {
            name: [row.value[i] if i < len(row.value) else None for row in rows]
            for i, name in enumerate(names)
        },
        len(rows),
        [row.line for row in rows],
        list(range(first, first + len(rows))),
        first,
    )
    for index, row in enumerate(rows):
        if len(row.value) != len(names):
            raise DataError(
                f"{path}: {table.where(index)} has {len(row.value)} fields, expected {len(names)} "
                f"({', '.join(names)}); correct that row"
            )
    return table


def _groups(records: Iterable[_Record], size: int | None) -> Iterator[tuple[int, list[_Record]]]:
    """Yield records in groups of a size, with the number of the first one; one may be empty."""
    remaining, first = iter(records), 0
    while (group := list(islice(remaining, size))) or not first:
        yield first, group
        first += len(group) or 1


def _in_rows(file: _File, records: Iterator[_Record], size: int | None) -> Iterator[Table]:
    """Yield tables of records, of which the first one is the header."""
    header = next(records, None)
    if header is None:
        yield Table(str(file.path), {}, 0, [])
        return
    _check_names(file.path, header.value)
    for first, group in _groups(records, size):
        yield _from_rows(file.path, header.value, group, first)


def _tsv_records(lines: Iterable[str]) -> Iterator[_Record]:
    width = None
    for number, line in enumerate(lines, start=1):
        fields = line.removesuffix("\n").removesuffix("\r").split("\t")
        # In a file with one column, an empty line is an empty field. Otherwise it is no row.
        if fields != [""] or width == 1:
            width = width or len(fields)
            yield _Record(number, fields)


def _read_tsv(file: _File, size: int | None) -> Iterator[Table]:
    # Lines end at line feeds only, not at form feeds and Unicode's line separators.
    with file.text(newline="\n") as lines:
        yield from _in_rows(file, _tsv_records(lines), size)


def _csv_records(path: Path, lines: Iterable[str]) -> Iterator[_Record]:
    csv.field_size_limit(_LARGEST_FIELD)
    reader = csv.reader(lines, strict=True)
    start = 1
    try:
        for record in reader:
            if record:
                yield _Record(start, record)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}: the row on line {start} is not valid csv ({error}); correct its quotes"
        ) from error


def _read_csv(file: _File, size: int | None) -> Iterator[Table]:
    with file.text(newline="") as lines:
        yield from _in_rows(file, _csv_records(file.path, lines), size)


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


def _read_jsonl(file: _File, size: int | None) -> Iterator[Table]:
    names: dict[str, None] = {}
    with file.text(newline="\n") as lines:
        objects = (
            _Record(number, _parse_json(file.path, line, number))
            for number, line in enumerate(lines, start=1)
            if line.strip()
        )
        for first, group in _groups(objects, size):
            names |= dict.fromkeys(key for record in group for key in record.value)
            yield Table(
                str(file.path),
                {name: [record.value.get(name) for record in group] for name in names},
                len(group),
                [record.line for record in group],
                list(range(first, first + len(group))),
                first,
            )


def _read_parquet(file: _File, size: int | None) -> Iterator[Table]:
    with file.opened() as stream:
        try:
            # A gzip file cannot be searched from its end, where parquet begins.
            source = io.BytesIO(stream.read()) if file.zipped else stream
            parquet = pq.ParquetFile(source)
            _check_names(file.path, parquet.schema_arrow.names)
            first = 0
            whole = parquet.metadata.num_rows or 1
            for batch in parquet.iter_batches(batch_size=size or whole):
                yield _from_arrow(file.path, batch, first)
                first += len(batch)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, IsADirectoryError | FileNotFoundError | PermissionError):
                raise
            reason = str(error).split("\n")[0]
            raise DataError(
                f"{file.path}: is not a complete parquet file ({reason}); copy it again"
            ) from error
        if not first:
            yield _from_arrow(file.path, parquet.schema_arrow.empty_table(), 0)


def parquet_schema(path: Path) -> pa.Schema:
    """Return the names and types of a parquet file's columns."""
    with _File(path, data_format(path)[1]).opened() as stream:
        return pq.ParquetFile(
            io.BytesIO(stream.read()) if path.suffix == ".gz" else stream
        ).schema_arrow


def _from_arrow(path: Path, data: pa.Table | pa.RecordBatch, first: int) -> Table:
    columns: dict[str, list[Any]] = {}
    for name in data.schema.names:
        try:
            columns[name] = data.column(name).to_pylist()
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise DataError(
                f"{path}: column {name!r} cannot be read ({error}); store it as another type"
            ) from error
    numbers = list(range(first, first + len(data)))
    return Table(str(path), columns, len(data), None, numbers, first)


_READERS: dict[str, Callable[[_File, int | None], Iterator[Table]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def data_format(path: Path) -> tuple[str, bool]:
    """Return the suffix that says a file's format, and whether the file is compressed.

    Raises:
        DataError: There is such a file, but its format is unknown.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    zipped = bool(suffixes) and suffixes[-1] == ".gz"
    kind = (suffixes[:-1] if zipped else suffixes)[-1:]
    if not kind or kind[0] not in _READERS:
        if not path.exists():
            raise DataError(f"{path}: no such file; check the path")
        raise DataError(
            f"{path}: has an unknown format, expected one of {', '.join(_READERS)}, also with .gz"
        )
    return kind[0], zipped


def read_parts(path: Path, rows: int | None) -> Iterator[Table]:
    """Read a data file in parts, so that a large one need not fit into memory.

    The format is as in `read_table`. Each part has at most `rows` rows; None gives one part. A part
    of a jsonl file has the columns of all parts before it, and its own.

    Raises:
        DataError: The file is missing, damaged, empty, not UTF-8, or of an unknown format.
    """
    kind, zipped = data_format(path)
    for table in _READERS[kind](_File(path, zipped), rows):
        if not table.columns:
            raise DataError(f"{path}: is empty, expected a header and at least one row")
        if not table.rows:
            raise DataError(
                f"{path}: has the columns {', '.join(table.columns)} but no rows, expected at "
                "least one"
            )
        yield table


def read_table(path: Path) -> Table:
    """Read a csv (RFC 4180), tsv (split at tabs, no quoting), jsonl or parquet file, also as .gz.

    The suffix says the format. The table has at least one row.

    Raises:
        DataError: The file is missing, damaged, empty, not UTF-8, or of an unknown format.
    """
    (table,) = read_parts(path, None)
    return replace(table, numbers=None)
