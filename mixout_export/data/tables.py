"""Read data files exactly as they are, at once or in parts.

Text is never read as a missing value: "None", "NA" and "nan" are words. Only an empty field, a
JSON null, a parquet null and an absent JSON key are missing.
"""

import codecs
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mixout_export.data.bad_rows import BadRows
from mixout_export.data.decoding import check_start, encoding_of, undecodable
from mixout_export.data.separated import (
    FieldFormat,
    Record,
    declared_format,
    has_csv_quotes,
    other_format,
    parse,
)
from mixout_export.data.table import Table
from mixout_export.errors import DataError

__all__ = [
    "USUAL_FORMATS",
    "Table",
    "data_format",
    "is_data",
    "parquet_schema",
    "read_parts",
    "read_table",
]

T = TypeVar("T")

#: Splits of a saved data set that a model is trained on, and that it is evaluated on.
TRAINING_SPLITS, EVALUATION_SPLITS = ("train",), ("validation", "dev", "test")

_SAMPLE = 1 << 20  # bytes
_JSON_NAMES = {
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}

#: How the fields of a file are separated and quoted, by its suffix.
USUAL_FORMATS = {".csv": FieldFormat(",", "csv"), ".tsv": FieldFormat("\t", "none")}
_FORMATS = (*USUAL_FORMATS, ".jsonl", ".parquet")


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

    def sample(self) -> str:
        """Return the beginning of a text file, up to the end of a line.

        Raises:
            DataError: It is not text, or its encoding has to be guessed.
        """
        with self.opened() as stream:
            data = stream.read(_SAMPLE)
        check_start(self.path, data)
        codec = encoding_of(data)
        text = codecs.getincrementaldecoder(codec)("replace").decode(data)
        return text if len(data) < _SAMPLE else text[: text.rfind("\n") + 1]

    @contextmanager
    def text(self, *, newline: str) -> Iterator[Iterator[str]]:
        """Yield its lines with their ends; `newline` is that of `io.TextIOWrapper`."""
        with self.opened() as stream:
            codec = encoding_of(stream.read(4))
        try:
            with self.opened() as stream, io.TextIOWrapper(stream, codec, newline=newline) as lines:
                yield lines
        except UnicodeError as error:
            with self.opened() as stream:
                raise undecodable(self.path, stream.read(), codec) from error


def _twice(names: Sequence[str]) -> dict[str, str]:
    """Return the names that several columns have, each with what to do about it."""
    return {
        name: f"has two columns named {name!r}; rename one of them"
        for name, count in Counter(names).items()
        if count > 1 and name
    }


def _groups(records: Iterable[T], size: int | None) -> Iterator[tuple[int, list[T]]]:
    """Yield records in groups of a size, with the number of the first one; one may be empty."""
    remaining, first = iter(records), 0
    while (group := list(islice(remaining, size))) or not first:
        yield first, group
        first += len(group) or 1


def _from_records(
    path: Path, names: Sequence[str], records: Sequence[Record], first: int, bad: BadRows
) -> Table:
    """Make a table of records. Columns without a name are left out.

    A row may lack fields of nameless columns, and may have more fields if they are empty.

    Args:
        path: The file.
        names: The header.
        records: The rows.
        first: Number of the first one.
        bad: Collects those that cannot be read.
    """
    width = max((place for place, name in enumerate(names, start=1) if name), default=0)
    kept: list[Record] = []
    numbers: list[int] = []
    for number, record in enumerate(records, start=first):
        fields = record.fields
        if record.problem:
            bad.add(str(path), f"the row on line {record.line}", record.problem)
        elif len(fields) < width or any(fields[len(names) :]):
            expected = f"expected {len(names)} ({', '.join(name or '(none)' for name in names)})"
            where = f"row {number + 1} (line {record.line})"
            bad.add(str(path), where, f"has {len(fields)} fields, {expected}")
        else:
            kept.append(record)
            numbers.append(number)
    unreadable = _twice(names)
    nameless = [place for place, name in enumerate(names) if not name]
    if any(any(record.fields[place : place + 1]) for record in kept for place in nameless):
        unreadable[""] = "has columns without a name; name them in its first line"
    columns = {
        name: [record.fields[place] for record in kept]
        for place, name in enumerate(names)
        if name and name not in unreadable
    }
    lines = [record.line for record in kept]
    return Table(str(path), columns, len(kept), lines, numbers, first, unreadable)


def _without_empty_rows(records: Iterable[Record]) -> Iterator[Record]:
    """Leave out rows whose fields are all empty, as at the end of a spreadsheet."""
    for record in records:
        if len(record.fields) < 2 or any(record.fields):
            yield record


def _read_separated(
    file: _File, size: int | None, usual: FieldFormat, asked: FieldFormat, bad: BadRows
) -> Iterator[Table]:
    """Read a csv or tsv file, or say in which format it seems to be instead."""
    path, sample = file.path, file.sample()
    used = asked.completed(usual)
    used, start = declared_format(sample, asked, used)
    sample = sample[start:]
    if used.quoting == "none" and asked.quoting is None and has_csv_quotes(sample):
        raise DataError(
            f"{path}: its fields are quoted as in a csv file, but a tsv file is read without "
            "quotes; give --quoting csv, or --quoting none if the quotes belong to the text"
        )
    # Without quotes, lines end at line feeds only.
    with file.text(newline="\n" if used.quoting == "none" else "") as lines:
        skipped = len(list(islice(lines, 1 if start else 0)))
        records = _without_empty_rows(parse(lines, used, first_line=skipped + 1))
        header = next(records, None)
        if header is None:
            yield Table(str(path), {}, 0, [])
            return
        if header.problem:
            raise DataError(f"{path}: the row on line {header.line} {header.problem}; correct it")
        names = [name.strip() for name in header.fields]
        other = other_format(sample, used) if len(names) == 1 and not asked.delimiter else None
        if other is not None:
            raise DataError(f"{path}: has the single column {names[0]!r}; {other.difference(used)}")
        for first, group in _groups(records, size):
            own = BadRows(bad.limit)
            table = _from_records(path, names, group, first, own)
            if own.too_many and (other := other_format(sample, used)) is not None:
                raise DataError(f"{own.error()}; {other.difference(used)}")
            bad.take(own)
            yield table


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dictionary of a JSON object; refuse a key that occurs twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} occurs twice in an object")
    return made


def _parse_json(line: str) -> dict[str, Any]:
    """Return the object on a line.

    Raises:
        ValueError: The line holds no object. The message says what is wrong with it.
    """
    try:
        value = json.loads(line, object_pairs_hook=_json_object)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"is not valid JSON ({error.msg} at character {error.colno}), expected one JSON object "
            "on each line"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(
            f"holds {_JSON_NAMES[type(value)]}, expected an object with column names and values"
        )
    return value


def _is_json_array(text: str) -> bool:
    """Return whether a text begins with an array of objects, on one line or on several."""
    return re.match(r"\s*\[\s*(\{|$)", text) is not None


def _read_jsonl(file: _File, size: int | None, bad: BadRows) -> Iterator[Table]:
    names: dict[str, None] = {}
    if _is_json_array(file.sample()):
        raise DataError(
            f"{file.path}: is one JSON array, expected one object on each line; write it so, for "
            "example with jq -c '.[]'"
        )
    with file.text(newline="\n") as lines:
        filled = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
        for first, group in _groups(filled, size):
            kept: list[tuple[int, int, dict[str, Any]]] = []
            own = BadRows(bad.limit)
            for number, (line_number, line) in enumerate(group, start=first):
                try:
                    kept.append((number, line_number, _parse_json(line)))
                except ValueError as error:
                    own.add(str(file.path), f"line {line_number}", str(error))
            bad.take(own)
            names |= dict.fromkeys(key for _, _, value in kept for key in value)
            yield Table(
                str(file.path),
                {name: [value.get(name) for _, _, value in kept] for name in names},
                len(kept),
                [line_number for _, line_number, _ in kept],
                [number for number, _, _ in kept],
                first,
            )


def _read_parquet(file: _File, size: int | None) -> Iterator[Table]:
    with file.opened() as stream:
        try:
            # A gzip file cannot be searched from its end, where parquet begins.
            source = io.BytesIO(stream.read()) if file.zipped else stream
            parquet = pq.ParquetFile(source)
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
    unreadable = _twice(data.schema.names)
    for name in data.schema.names:
        if name in unreadable:
            continue
        try:
            columns[name] = data.column(name).to_pylist()
        except (pa.ArrowException, ValueError, OverflowError) as error:
            unreadable[name] = f"column {name!r} cannot be read ({error}); store it as another type"
    numbers = list(range(first, first + len(data)))
    return Table(str(path), columns, len(data), None, numbers, first, unreadable)


def data_format(path: Path) -> tuple[str, bool]:
    """Return the suffix that says a file's format, and whether the file is compressed.

    Raises:
        DataError: There is such a file, but its format is unknown.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    zipped = bool(suffixes) and suffixes[-1] == ".gz"
    kind = (suffixes[:-1] if zipped else suffixes)[-1:]
    if not kind or kind[0] not in _FORMATS:
        if not path.exists():
            raise DataError(f"{path}: no such file; check the path")
        raise DataError(
            f"{path}: has an unknown format, expected one of {', '.join(_FORMATS)}, also with .gz"
        )
    return kind[0], zipped


def is_data(path: Path) -> bool:
    """Return whether a path is a data file or a saved data set, by its name and contents."""
    if path.is_dir():
        from mixout_export.data.hub import is_saved_dataset

        return is_saved_dataset(path)
    return path.is_file() and not {s.lower() for s in path.suffixes[-2:]}.isdisjoint(_FORMATS)


def _read_folder(folder: Path, splits: Sequence[str]) -> Table:
    from mixout_export.data.hub import is_saved_dataset, read_saved_dataset
    from mixout_export.data.image_folder import read_image_folder

    return (
        read_saved_dataset(folder, splits)
        if is_saved_dataset(folder)
        else read_image_folder(folder)
    )


def _read(
    path: Path, rows: int | None, fields: FieldFormat, bad: BadRows, splits: Sequence[str]
) -> Iterator[Table]:
    if path.is_dir():
        yield from _read_folder(path, splits).parts(rows)
        return
    kind, zipped = data_format(path)
    file = _File(path, zipped)
    if kind == ".parquet":
        yield from _read_parquet(file, rows)
    elif kind == ".jsonl":
        yield from _read_jsonl(file, rows, bad)
    else:
        yield from _read_separated(file, rows, USUAL_FORMATS[kind], fields, bad)


def read_parts(
    path: Path,
    rows: int | None,
    *,
    fields: FieldFormat | None = None,
    bad: BadRows | None = None,
    splits: Sequence[str] = (),
) -> Iterator[Table]:
    """Read a data file in parts, so that a large one need not fit into memory.

    The format is as in `read_table`. Each part has at most `rows` rows; None gives one part. A part
    of a jsonl file has the columns of all parts before it, and its own. A part without a row that
    can be read is left out.

    Args:
        path: The file or folder.
        rows: Most rows of a part.
        fields: How the fields of a csv or tsv file are separated and quoted.
        bad: Collects the rows that cannot be read. None refuses them.
        splits: Names of the split to read, if a folder has several. The first one that is there
            is read.

    Raises:
        DataError: The file is missing, damaged, empty, not text in a known encoding, or of an
            unknown format.
    """
    bad = BadRows() if bad is None else bad
    found = 0
    for table in _read(path, rows, fields or FieldFormat(), bad, splits):
        if not table.columns:
            if len(bad):
                raise bad.error()
            for problem in table.unreadable.values():
                raise DataError(f"{path}: {problem}")
            raise DataError(f"{path}: is empty, expected a header and at least one row")
        found += table.rows
        if table.rows:
            yield table
    if not found:
        if len(bad):
            raise bad.error()
        raise DataError(
            f"{path}: has the columns {', '.join(table.columns)} but no rows, expected at least one"
        )


def read_table(
    path: Path,
    *,
    fields: FieldFormat | None = None,
    bad: BadRows | None = None,
    splits: Sequence[str] = (),
) -> Table:
    """Read a csv (RFC 4180), tsv (split at tabs, no quoting), jsonl or parquet file, also as .gz.

    The suffix says the format. A folder that `datasets.save_to_disk` wrote is read too, and so is a
    folder of images. The table has at least one row. The arguments and errors are those of
    `read_parts`.
    """
    (table,) = read_parts(path, None, fields=fields, bad=bad, splits=splits)
    all_rows = table.numbers == list(range(table.rows))
    return replace(table, numbers=None) if all_rows else table
