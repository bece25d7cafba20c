"""Collect the rows of data files that cannot be read, and skip them if the user allows it."""

import logging
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import NamedTuple, TypeVar

from mixout_export.data.table import Table
from mixout_export.errors import ArgumentError, DataError, RowError

logger = logging.getLogger(__name__)

T = TypeVar("T")
V = TypeVar("V")

#: Rows that a message lists.
_SHOWN = 50


class BadRow(NamedTuple):
    """A row that cannot be read.

    Attributes:
        file: Name of the file.
        where: Its place in the file: "row 3 (line 4)".
        problem: What is wrong with it, to follow the place.
    """

    file: str
    where: str
    problem: str


class BadRows:
    """The rows of a run's data files that cannot be read.

    Args:
        limit: Most rows that may be skipped, in all files together. None means that the user has
            no way to skip rows.

    Raises:
        ArgumentError: The limit is negative.
    """

    def __init__(self, limit: int | None = None) -> None:
        if limit is not None and limit < 0:
            raise ArgumentError(f"skip-bad-rows: got {limit}, expected 0 or more")
        self.limit = limit
        self._rows: list[BadRow] = []
        self._errors: list[RowError] = []

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def too_many(self) -> bool:
        """Whether there are more rows than may be skipped."""
        return len(self) > (self.limit or 0)

    def add(self, file: str, where: str, problem: str) -> None:
        """Add a row."""
        self._rows.append(BadRow(file, where, problem))

    def take(self, others: "BadRows") -> None:
        """Add the rows of another list.

        Raises:
            DataError: There are some, and the user has no way to skip them.
        """
        if self.limit is None and len(others):
            raise others.error()
        self._rows += others._rows

    def read(self, table: Table, read: Callable[[Table], T]) -> tuple[T, Table]:
        """Read a table, without the rows that cannot be read.

        All rows are checked, so that an error can list them together.

        Args:
            table: The data.
            read: Reads it.

        Returns:
            What was read, and the rows that it was read from.

        Raises:
            DataError: No row can be read, or the problem is not one of single rows.
        """
        while True:
            try:
                return read(table), table
            except RowError as error:
                if len(error.problems) == table.rows:
                    raise (self.error() if len(self) else error) from error
                table = self._without(table, error)

    def read_part(self, table: Table, read: Callable[[Table], T]) -> tuple[T, Table] | None:
        """Read a part of a file like `read`; return None if no row of a later part can be read.

        Raises:
            DataError: No row of the first part can be read, or the problem is not one of single
                rows.
        """
        if not table.first:
            return self.read(table, read)
        while table.rows:
            try:
                return read(table), table
            except RowError as error:
                table = self._without(table, error)
        return None

    def _without(self, table: Table, error: RowError) -> Table:
        """Add the rows of an error, and return the table without them."""
        self._errors.append(error)
        for row, problem in error.problems.items():
            self.add(table.name, table.where(row), problem)
        return table.without(error.problems)

    def finish(self) -> None:
        """Warn of the rows that were skipped.

        Raises:
            DataError: There are more than may be skipped. The message lists them.
        """
        if self.too_many:
            raise self.error()
        if self._rows:
            count = len(self)
            logger.warning("skipped %d row%s: %s", count, "s" * (count > 1), self.listed())

    def error(self) -> DataError:
        """Return the error that lists the rows."""
        count, skip = len(self), ""
        if self.limit is not None:
            skip = f"; to leave {'it' if count == 1 else 'them'} out, give --skip-bad-rows {count}"
        if len(self._errors) == 1 and len(self._errors[0].problems) == count:
            return DataError(f"{self._errors[0]}{skip}")
        if count == 1:
            return DataError(f"{self.listed()}; correct that row{skip}")
        return DataError(f"{count} rows cannot be read: {self.listed()}; correct them{skip}")

    def listed(self) -> str:
        """Return the rows in words, those of each file together."""
        shown = self._rows[:_SHOWN]
        files = [
            f"{file}: " + ", ".join(f"{row.where} {row.problem}" for row in rows)
            for file, rows in groupby(shown, key=lambda row: row.file)
        ]
        more = len(self) - len(shown)
        return "; ".join(files) + (f" and {more:,} more" if more else "")


def read_each(values: Iterable[V], read: Callable[[int, V], T]) -> list[T]:
    """Return what `read` makes of each row's number and value.

    Raises:
        RowError: The error of the first row that cannot be read, with the problems of all others.
    """
    made: list[T] = []
    errors: list[RowError] = []
    for row, value in enumerate(values):
        try:
            made.append(read(row, value))
        except RowError as error:
            errors.append(error)
    if errors:
        problems = {row: problem for each in errors for row, problem in each.problems.items()}
        more = len(problems) - len(errors[0].problems)
        also = f" (and {more:,} more such row{'s' * (more > 1)})" if more else ""
        raise RowError(f"{errors[0]}{also}", problems)
    return made
