"""Turn the values of a table into texts, class ids and numbers."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixout_export.data.bad_rows import read_each
from mixout_export.data.table import ClassValue, Table
from mixout_export.errors import RowError

_ROWS_SHOWN = 5
_NAMES_SHOWN = 10
_CHARACTERS_SHOWN = 60
_LONGEST_NUMBER = 18  # characters; any such integer fits in 64 bits
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?", re.ASCII)


def is_missing(value: Any) -> bool:
    """Return whether a cell is null or an empty text."""
    return value is None or (isinstance(value, str) and value == "")


def list_rows(table: Table, rows: Sequence[int]) -> str:
    """Return where rows are, for a message: the first five, and how many more."""
    shown = ", ".join(table.where(row) for row in rows[:_ROWS_SHOWN])
    return shown + (f" and {len(rows) - _ROWS_SHOWN} more" if len(rows) > _ROWS_SHOWN else "")


def show(value: Any) -> str:
    """Return a value for a message, cut if it is long."""
    text = repr(value)
    return text if len(text) <= _CHARACTERS_SHOWN else text[:_CHARACTERS_SHOWN] + "…"


def refuse_missing(table: Table, column: str) -> list[Any]:
    """Return the values of a column, which must all be present."""
    values = table.columns[column]
    missing = [row for row, value in enumerate(values) if is_missing(value)]
    if missing:
        raise RowError(
            f"{table.name}: column {column!r} has no value in {list_rows(table, missing)}; "
            "fill in the values or remove the rows",
            dict.fromkeys(missing, f"has no value in column {column!r}"),
        )
    return values


def require_text(
    table: Table, column: str, row: int, value: Any, *, option: str = "--text-column"
) -> str:
    """Return a cell, or a part of one, that must be text without incomplete characters.

    The message of the error names the option that chooses another column.
    """
    if not isinstance(value, str):
        kind = type(value).__name__
        raise RowError(
            f"{table.name}: column {column!r} holds the {kind} {show(value)} "
            f"in {table.where(row)}, expected text; choose another column with {option}",
            {row: f"has the {kind} {show(value)} in column {column!r}, expected text"},
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can express it, tokenizers cannot read it
        raise RowError(
            f"{table.name}: column {column!r} holds the incomplete character "
            f"{value[error.start]!r} (half of a surrogate pair) in {table.where(row)}; correct "
            "that text",
            {row: f"has an incomplete character in column {column!r}"},
        ) from error
    return value


def text_values(table: Table, column: str) -> list[str]:
    """Return a column of texts.

    A number is not converted to text, because the way it was written is no longer known.
    """
    values = refuse_missing(table, column)
    return read_each(values, lambda row, value: require_text(table, column, row, value))


def as_number(value: Any) -> Decimal | None:
    """Return a number, or a text that is one, as a number: "1", "1.0", 1 and 1.0 are the same."""
    if isinstance(value, str):
        text = value.strip()
        return Decimal(text) if len(text) <= _LONGEST_NUMBER and _NUMBER.fullmatch(text) else None
    if isinstance(value, (int, Decimal)):
        return Decimal(value)
    return Decimal(repr(value)) if isinstance(value, float) and math.isfinite(value) else None


def _is_whole(number: Decimal) -> bool:
    return number == number.to_integral_value()


def as_integer(value: Any) -> int | None:
    """Return a text, integer, float or boolean as a non-negative integer, else None."""
    number = as_number(value)
    return int(number) if number is not None and number >= 0 and _is_whole(number) else None


def label_name(value: Any) -> str:
    """Return the name that a label of a data file gets if it has none: one for each number."""
    if isinstance(value, ClassValue):
        return value.name
    if isinstance(value, bool):
        return str(value).lower()
    number = as_number(value)
    if number is None:
        return str(value).strip()
    return str(int(number)) if _is_whole(number) else str(number.normalize())


def _as_boolean(value: Any) -> Any:
    """Return a boolean for the texts that csv files have for it, and any other value as it is."""
    lower = value.strip().lower() if isinstance(value, str) else value
    return lower == "true" if lower in ("true", "false") else value


def _spellings(value: Any) -> tuple[str, ...]:
    """Return the names that a label may stand for, the likeliest first."""
    if isinstance(value, str):
        return value, value.strip()
    return (str(value), str(value).lower()) if isinstance(value, bool) else ()


@dataclass(frozen=True)
class LabelMap:
    """Maps the labels of a data file to a checkpoint's outputs.

    A label is one of the checkpoint's names, whatever its type: 1, 1.0, "1" and "1.0" all stand
    for the name "1". Otherwise it is an integer in 0 … n - 1, but only if no name is a number: if
    the names are "1" to "5", then 0 is not a label.

    Attributes:
        names: Label names in the order of the outputs.
    """

    names: tuple[str, ...]

    @property
    def takes_integers(self) -> bool:
        """Whether an integer stands for the output of that number."""
        return all(as_number(name) is None for name in self.names)

    def ids_of(self, values: Sequence[Any]) -> list[int | None]:
        """Return the output of each label; None if the label is unknown."""
        by_name = {name: index for index, name in enumerate(self.names)}
        numbers = [as_number(name) for name in self.names]
        counts = Counter(numbers)
        by_number = {
            number: index
            for index, number in enumerate(numbers)
            if number is not None and counts[number] == 1
        }
        by_place = range(len(self.names) if self.takes_integers else 0)
        # Classes with names of their own may be numbered in another order than the outputs.
        classes = {value.name for value in values if isinstance(value, ClassValue)}

        def find(value: Any) -> int | None:
            if isinstance(value, ClassValue) and classes & by_name.keys():
                return by_name.get(value.name)
            named = next((by_name[s] for s in _spellings(value) if s in by_name), None)
            number = as_number(_as_boolean(value)) if named is None else None
            if number is None:
                return named
            index = as_integer(number) if number not in by_number else by_number[number]
            return index if number in by_number or index in by_place else None

        return [find(value) for value in values]

    def describe(self) -> str:
        """Return the labels, for a message."""
        shown = ", ".join(self.names[:_NAMES_SHOWN])
        more = ", …" if len(self.names) > _NAMES_SHOWN else ""
        count = len(self.names)
        plural = "label" if count == 1 else "labels"
        integers = f", or their numbers 0 to {count - 1}" if count and self.takes_integers else ""
        return f"{count} {plural} ({shown}{more}{integers})"


def label_ids(
    table: Table, column: str, labels: LabelMap, rows: Sequence[int], values: Sequence[Any]
) -> NDArray[np.int64]:
    """Return the output of each label, shape (labels,).

    The values are the labels, and the rows say where in the table each is, from 0.
    """
    ids = labels.ids_of(values)
    unknown = [place for place, index in enumerate(ids) if index is None]
    if unknown:
        first = repr(values[unknown[0]])
        where = dict.fromkeys(rows[place] for place in unknown if repr(values[place]) == first)
        others = len({repr(values[place]) for place in unknown}) - 1
        also = f" (and {others} more unknown labels)" if others else ""
        raise RowError(
            f"{table.name}: column {column!r} holds the label {show(values[unknown[0]])} in "
            f"{list_rows(table, list(where))}{also}, but the checkpoint has {labels.describe()}; "
            "use those labels, or run prepare again with --labels",
            {rows[place]: f"has the unknown label {show(values[place])}" for place in unknown},
        )
    return np.array(ids, np.int64)


def _as_number(value: Any) -> float:
    """Return a finite number in the range of float32; NaN for anything else."""
    if isinstance(value, str) and ("_" in value or not value.isascii()):
        return math.nan  # only Python reads these as numbers
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if abs(number) <= float(np.finfo(np.float32).max) else math.nan


def number_values(table: Table, column: str) -> NDArray[np.float32]:
    """Return a column of finite numbers, shape (rows,)."""
    values = refuse_missing(table, column)
    numbers = [_as_number(value) for value in values]
    wrong = [row for row, number in enumerate(numbers) if math.isnan(number)]
    if wrong:
        raise RowError(
            f"{table.name}: column {column!r} holds {show(values[wrong[0]])} in "
            f"{list_rows(table, wrong)}, expected a number{_decimal_comma(values[wrong[0]])}; "
            "correct it, choose another column with --label-column, or run prepare with --task "
            "text-classification",
            {row: f"has {show(values[row])} in column {column!r}, not a number" for row in wrong},
        )
    return np.array(numbers, np.float32)


def _decimal_comma(value: Any) -> str:
    """Return a hint if a value would be a number with a point in place of its comma."""
    text = value.strip() if isinstance(value, str) else ""
    if text.count(",") != 1 or math.isnan(_as_number(text.replace(",", "."))):
        return ""
    return " with a decimal point, such as " + text.replace(",", ".")


def class_ids(table: Table, column: str, names: Sequence[str]) -> NDArray[np.int64]:
    """Return the class id of each row, shape (rows,), as a `LabelMap` of the names finds it."""
    values = refuse_missing(table, column)
    return label_ids(table, column, LabelMap(tuple(names)), range(table.rows), values)
