"""Text files of separated fields (csv and tsv): parse them, and notice a different format."""

import csv
import io
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

from mixout_export.errors import ArgumentError

#: Characters that separate fields, with their names. An option gives either.
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}

#: How fields are quoted: RFC 4180; not at all; as csv, with a backslash before inner quotes.
QUOTINGS = ("csv", "none", "backslash")
_QUOTES = {
    "csv": "its fields seem to be quoted as in a csv file",
    "none": "quotes seem to belong to its texts",
    "backslash": "quotes seem to have a backslash before them",
}

_LARGEST_FIELD = 1 << 30  # characters; the csv module's own limit is 131,072
_SAMPLE = 1 << 17  # characters
_SAMPLE_ROWS = 200

#: The first line of some files for Excel declares the delimiter: "sep=;". A program that saved the
#: file again may have quoted the line, or filled it up with delimiters.
_DECLARATION = re.compile(r'"?sep=(.)"?[,;\t| ]*(?:\r\n?|\n)', re.IGNORECASE)
_FIELD = re.compile(r'(?:"((?:[^"]|"")*)"|([^"\t\r\n]*))(\t|\r?\n|$)')

_INNER = re.compile(r'""|[\t\n]')

#: Rows from which on a column is noticed in which every field is enclosed in quotes.
_QUOTED_ROWS = 10


@dataclass(frozen=True)
class FieldFormat:
    """How the fields of a csv or tsv file are separated and quoted.

    Attributes:
        delimiter: One character, or its name in `DELIMITERS`; None takes that of the file's suffix.
        quoting: One of `QUOTINGS`; None takes "csv" for csv files and "none" for tsv files.
    """

    delimiter: str | None = None
    quoting: str | None = None

    def __post_init__(self) -> None:
        names = {name: character for character, name in DELIMITERS.items()}
        if self.delimiter is not None:
            found = {**names, "\\t": "\t"}.get(self.delimiter, self.delimiter)
            object.__setattr__(self, "delimiter", found)
            if len(found) != 1 or found in '"\r\n\\':
                raise ArgumentError(
                    f"delimiter: got {self.delimiter!r}, expected one character, or one of "
                    f"{', '.join(names)}"
                )
        if self.quoting is not None and self.quoting not in QUOTINGS:
            raise ArgumentError(
                f"quoting: got {self.quoting!r}, expected one of {', '.join(QUOTINGS)}"
            )

    def completed(self, usual: "FieldFormat") -> "FieldFormat":
        """Return the format with what it leaves open as in the usual one."""
        return FieldFormat(self.delimiter or usual.delimiter, self.quoting or usual.quoting)

    def difference(self, other: "FieldFormat") -> str:
        """Return in words how this format differs from another one, and the options for it."""
        seen, options = [], []
        if self.delimiter != other.delimiter:
            name = DELIMITERS.get(self.delimiter or "", self.delimiter)
            seen.append(f"its fields seem to be separated by {name}s")
            options.append(f"--delimiter {name}")
        if self.quoting != other.quoting:
            seen.append(_QUOTES[self.quoting or "csv"])
            options.append(f"--quoting {self.quoting}")
        return f"{' and '.join(seen)}, so give {' '.join(options)}"


class Record(NamedTuple):
    """A line of fields.

    Attributes:
        line: Line of the file on which it starts, from 1.
        fields: Its fields; empty if it is not valid.
        problem: What is wrong with it; "" if it is valid.
    """

    line: int
    fields: list[str]
    problem: str = ""


def declared_format(text: str, asked: FieldFormat, used: FieldFormat) -> tuple[FieldFormat, int]:
    """Return the format with the delimiter that the first line declares, and where rows begin."""
    found = _DECLARATION.match(text)
    if found is None:
        return used, 0
    return (used if asked.delimiter else replace(used, delimiter=found[1])), found.end()


def parse(lines: Iterable[str], used: FieldFormat, *, first_line: int = 1) -> Iterator[Record]:
    """Yield the records of lines, which keep their ends. An empty line gives no record."""
    if used.quoting == "none":
        yield from _split(lines, used.delimiter or "\t", first_line)
    else:
        yield from _parse_quoted(lines, used, first_line)


def _split(lines: Iterable[str], delimiter: str, first_line: int) -> Iterator[Record]:
    width = None
    for number, line in enumerate(lines, start=first_line):
        fields = line.removesuffix("\n").removesuffix("\r").split(delimiter)
        # In a file with one column, an empty line is an empty field. Otherwise it is no row.
        if fields != [""] or width == 1:
            width = width or len(fields)
            yield Record(number, fields)


def _parse_quoted(lines: Iterable[str], used: FieldFormat, first_line: int) -> Iterator[Record]:
    csv.field_size_limit(_LARGEST_FIELD)
    source, again = iter(lines), deque[str]()
    taken: list[str] = []  # the lines of the record that is being read

    def feed() -> Iterator[str]:
        while (line := again.popleft() if again else next(source, None)) is not None:
            taken.append(line)
            yield line

    line = first_line
    while True:
        reader = csv.reader(
            feed(),
            delimiter=used.delimiter or ",",
            escapechar="\\" if used.quoting == "backslash" else None,
            strict=True,
        )
        try:
            for fields in reader:
                if fields:
                    yield Record(line, fields)
                line += len(taken)
                taken.clear()
        except csv.Error as error:
            yield Record(line, [], f"is not valid csv ({error})")
            again.extendleft(reversed(taken[1:]))  # the lines that an open quote has swallowed
            taken.clear()
            line += 1
        else:
            return


def _sample(text: str) -> str:
    """Return the beginning of a text, cut at the end of a line."""
    if len(text) <= _SAMPLE:
        return text
    return text[: text.rfind("\n", 0, _SAMPLE) + 1]


def _regular_columns(text: str, used: FieldFormat) -> int:
    """Return the number of columns if the first rows have as many fields as the header; else 0."""
    lines = io.StringIO(text, newline="\n" if used.quoting == "none" else "")
    records = list(islice(parse(lines, used), _SAMPLE_ROWS))
    if len(records) < 2 or any(record.problem for record in records):
        return 0
    widths = {len(record.fields) for record in records}
    return widths.pop() if len(widths) == 1 else 0


def other_format(text: str, used: FieldFormat) -> FieldFormat | None:
    """Return another format in which the beginning of a text has the same fields in every row.

    Call it if the text does not fit the format that was used. None if no other one fits, or if the
    text has one column in it.
    """
    text = _sample(text)
    quotings = [q for q in ("csv", "backslash", "none") if (q != "backslash" or '\\"' in text)]
    for delimiter in dict.fromkeys([used.delimiter or ",", *DELIMITERS]):
        for quoting in quotings if '"' in text else [used.quoting or "csv"]:
            other = FieldFormat(delimiter, quoting)
            if other != used and _regular_columns(text, other) > 1:
                return other
    return None


def has_csv_quotes(text: str) -> bool:
    """Return whether a tab-separated text is evidently quoted as csv.

    It is if every field with a quote is a quoted field, and if one of them has a doubled quote, a
    tab or a line break inside, or if the whole header or all of a long column is quoted.
    """
    if '"' not in text:
        return False
    place, evident, rows = 0, False, 0
    row: list[bool] = []  # of each field, whether it is quoted
    header: list[bool] = []
    always: list[bool] = []  # of each column, whether all its fields are quoted
    while place < len(text):
        found = _FIELD.match(text, place)
        if found is None:
            return False  # a quote that csv would have doubled
        place = found.end()
        evident = evident or (found[1] is not None and _INNER.search(found[1]) is not None)
        row.append(found[1] is not None)
        if found[3] != "\t":
            if not header:
                header = always = row
            else:
                rows += 1
                always = row if rows == 1 else [*map(all, zip(always, row, strict=False))]
            row = []
    return evident or all(header) or (rows >= _QUOTED_ROWS and any(always))
