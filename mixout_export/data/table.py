"""The rows of data files, by column."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mixout_export.errors import ArgumentError, DataError


class ClassValue(int):
    """The number of a class in a data set that names its classes.

    Args:
        number: The number, from 0.
        name: The name of the class.
    """

    name: str

    def __new__(cls, number: int, name: str) -> "ClassValue":
        """Create the number, with the name of its class."""
        value = super().__new__(cls, number)
        value.name = name
        return value


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
        unreadable: Column that cannot be read → why not, and what to do. Columns without a name are
            the column "" together.
        files: Name of the file of each row; None if all are from the file `name`.
    """

    name: str
    columns: dict[str, list[Any]]
    rows: int
    lines: list[int] | None = None
    numbers: list[int] | None = None
    first: int = 0
    unreadable: Mapping[str, str] = field(default_factory=dict)
    files: list[str] | None = None

    @property
    def short_name(self) -> str:
        """The name without folders, whose names may be private."""
        return " + ".join(Path(part).name for part in self.name.split(" + "))

    def where(self, row: int) -> str:
        """Return where a row is in the file, counted from 1: "row 3 (line 4)"."""
        has_line = self.lines is not None and self.lines[row] > 0
        line = f" (line {self.lines[row]})" if self.lines is not None and has_line else ""
        number = row if self.numbers is None else self.numbers[row]
        file = "" if self.files is None else f" of {self.files[row]}"
        return f"row {number + 1}{line}{file}"

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

    def parts(self, rows: int | None) -> Iterator["Table"]:
        """Yield the table in parts of at most so many rows; None yields it whole."""
        size = rows or self.rows or 1
        for start in range(0, self.rows or 1, size):
            part = self._take(range(start, min(start + size, self.rows)))
            yield replace(part, first=start)

    def without(self, rows: Collection[int]) -> "Table":
        """Return the table without some rows."""
        left_out = set(rows)
        return self._take([row for row in range(self.rows) if row not in left_out])

    def _take(self, rows: Sequence[int]) -> "Table":
        numbers = range(self.rows) if self.numbers is None else self.numbers
        return Table(
            self.name,
            {name: [values[row] for row in rows] for name, values in self.columns.items()},
            len(rows),
            None if self.lines is None else [self.lines[row] for row in rows],
            [int(numbers[row]) for row in rows],
            self.first,
            self.unreadable,
            None if self.files is None else [self.files[row] for row in rows],
        )

    def digest(self) -> str:
        """Return a SHA-256 of the names and values."""
        digest = hashlib.sha256()
        for name, values in self.columns.items():
            digest.update(repr((name, values)).encode())
        return digest.hexdigest()

    def column(self, name: str, *, option: str) -> list[Any]:
        """Return a column, which must exist and be readable."""
        if name in self.unreadable:
            raise DataError(f"{self.name}: {self.unreadable[name]}")
        if name not in self.columns:
            raise DataError(
                f"{self.name}: has no column {name!r}; its columns are {self.described()}; choose "
                f"one with {option}"
            )
        return self.columns[name]

    def described(self) -> str:
        """Return the names of the columns, for a message."""
        nameless = ", and others without a name" if "" in self.unreadable else ""
        return ", ".join(self.columns) + nameless


def join_tables(tables: Sequence[Table]) -> Table:
    """Return the rows of several tables, one after the other, with the columns that all have."""
    if len(tables) == 1:
        return tables[0]
    first = tables[0]
    unreadable = {name: why for table in tables for name, why in table.unreadable.items()}
    for table in tables:
        for name in first.columns:
            if name not in table.columns and name not in unreadable:
                unreadable[name] = (
                    f"the column {name!r} is missing in {table.name}, whose columns are "
                    f"{', '.join(table.columns)}; rename the columns so that all files agree"
                )
    names = [name for name in first.columns if name not in unreadable]
    return Table(
        " + ".join(table.name for table in tables),
        {name: [*chain.from_iterable(table.columns[name] for table in tables)] for name in names},
        sum(table.rows for table in tables),
        [line for table in tables for line in table.lines or [0] * table.rows],
        [number for table in tables for number in table.numbers or range(table.rows)],
        unreadable=unreadable,
        files=[table.name for table in tables for _ in range(table.rows)],
    )
