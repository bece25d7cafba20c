"""Write the rows of a data file again, with new columns, in the format of the file."""

import csv
import gzip
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mixout_export.data.separated import FieldFormat
from mixout_export.data.tables import USUAL_FORMATS, Table, parquet_schema

#: How a column's values are stored: text, an integer, a number, a list of texts, or anything that
#: JSON can express.
Kind = Literal["text", "integer", "number", "texts", "json"]

_ARROW: dict[Kind, pa.DataType] = {
    "text": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "texts": pa.list_(pa.string()),
    "json": pa.string(),
}


@dataclass(frozen=True)
class Column:
    """A new column.

    Attributes:
        name: Its name.
        kind: What its values are. Each may also be None.
        joiner: What separates the texts of a list where a cell holds only text.
    """

    name: str
    kind: Kind
    joiner: str = " "

    def as_text(self, value: Any) -> str:
        """Return a value for a cell that holds only text; "" for None."""
        if value is None:
            return ""
        if self.kind == "number":
            return f"{value:.6g}"
        if self.kind == "texts":
            return self.joiner.join(value)
        return _json(value) if self.kind == "json" else str(value)

    def as_arrow(self, value: Any) -> Any:
        """Return a value for a parquet file."""
        return _json(value) if self.kind == "json" and value is not None else value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


class TableWriter(ABC):
    """Writes the parts of a file one by one.

    Args:
        columns: The new columns.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns

    @abstractmethod
    def write(self, table: Table, values: Sequence[Sequence[Any]]) -> None:
        """Write the rows of a part. For each row, there is a value for each new column."""


class _RowWriter(TableWriter):
    """Writes a file of lines."""

    def __init__(self, file: IO[str], columns: Sequence[Column]) -> None:
        super().__init__(columns)
        self._file = file
        self._has_header = False

    def write(self, table: Table, values: Sequence[Sequence[Any]]) -> None:
        if not self._has_header:
            self._line([*table.columns, *(column.name for column in self._columns)])
            self._has_header = True
        for old, new in zip(zip(*table.columns.values(), strict=True), values, strict=True):
            added = (c.as_text(value) for c, value in zip(self._columns, new, strict=True))
            self._line([*old, *added])

    @abstractmethod
    def _line(self, fields: Sequence[str]) -> None:
        """Write a line."""


class _QuotedWriter(_RowWriter):
    def __init__(self, file: IO[str], columns: Sequence[Column], used: FieldFormat) -> None:
        super().__init__(file, columns)
        escapes = used.quoting == "backslash"
        # The csv module quotes a field with a carriage return only if lines end in one.
        self._writer = csv.writer(
            SimpleNamespace(write=lambda line: file.write(line.removesuffix("\r\n") + "\n")),
            delimiter=used.delimiter or ",",
            doublequote=not escapes,
            escapechar="\\" if escapes else None,
            lineterminator="\r\n",
        )

    def _line(self, fields: Sequence[str]) -> None:
        self._writer.writerow(fields)


class _UnquotedWriter(_RowWriter):
    def __init__(self, file: IO[str], columns: Sequence[Column], used: FieldFormat) -> None:
        super().__init__(file, columns)
        self._delimiter = used.delimiter or "\t"
        # Without quotes, what would end a field within a new text becomes a space.
        self._spaces = str.maketrans(dict.fromkeys((self._delimiter, "\n", "\r"), " "))

    def _line(self, fields: Sequence[str]) -> None:
        old = len(fields) - len(self._columns)
        new = [field.translate(self._spaces) for field in fields[old:]]
        self._file.write(self._delimiter.join([*fields[:old], *new]) + "\n")


class _JsonWriter(TableWriter):
    def __init__(self, file: IO[str], columns: Sequence[Column]) -> None:
        super().__init__(columns)
        self._file = file

    def write(self, table: Table, values: Sequence[Sequence[Any]]) -> None:
        names = [*table.columns, *(column.name for column in self._columns)]
        for old, new in zip(zip(*table.columns.values(), strict=True), values, strict=True):
            record = dict(zip(names, (*old, *new), strict=True))
            line = _json(record)
            if not line.isascii():
                try:
                    line.encode()
                except UnicodeEncodeError:  # half of a surrogate pair, which only JSON can express
                    line = json.dumps(record)
            self._file.write(line + "\n")


class _ParquetWriter(TableWriter):
    def __init__(self, file: pq.ParquetWriter, columns: Sequence[Column]) -> None:
        super().__init__(columns)
        self._file = file

    def write(self, table: Table, values: Sequence[Sequence[Any]]) -> None:
        new = {
            column.name: [column.as_arrow(row[place]) for row in values]
            for place, column in enumerate(self._columns)
        }
        self._file.write_table(pa.Table.from_pydict({**table.columns, **new}, self._file.schema))


def _line_writer(
    file: IO[str], kind: str, columns: Sequence[Column], fields: FieldFormat
) -> TableWriter:
    """Return what writes a file of lines."""
    if kind == ".jsonl":
        return _JsonWriter(file, columns)
    used = fields.completed(USUAL_FORMATS[kind])
    made = _UnquotedWriter if used.quoting == "none" else _QuotedWriter
    return made(file, columns, used)


@contextmanager
def table_writer(
    path: Path,
    kind: str,
    *,
    zipped: bool,
    source: Path,
    columns: Sequence[Column],
    fields: FieldFormat,
    left_out: Collection[str] = (),
) -> Iterator[TableWriter]:
    """Yield what writes the rows of a file, with new columns, to `path`.

    Args:
        path: The file to write.
        kind: The format of both files, as in ".csv".
        zipped: Whether to compress it with gzip.
        source: The file that the rows come from. A parquet file keeps the types of its columns.
        columns: The new columns.
        fields: How the fields of the source were said to be separated and quoted.
        left_out: Columns of a parquet file that cannot be read, and so are not written.
    """
    with ExitStack() as opened:
        raw = cast(IO[bytes], opened.enter_context(path.open("wb")))
        if zipped:  # without name and time, so that equal rows give equal bytes
            packed = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)
            raw = cast(IO[bytes], opened.enter_context(packed))
        if kind == ".parquet":
            whole = parquet_schema(source)
            old = [field for field in whole if field.name not in left_out]
            new = [pa.field(column.name, _ARROW[column.kind]) for column in columns]
            schema = pa.schema([*old, *new], whole.metadata)
            yield _ParquetWriter(opened.enter_context(pq.ParquetWriter(raw, schema)), columns)
        else:
            lines = io.TextIOWrapper(raw, encoding="utf-8", newline="", write_through=False)
            yield _line_writer(opened.enter_context(lines), kind, columns, fields)
