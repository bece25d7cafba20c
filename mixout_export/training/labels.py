"""Values of a table as texts and as targets."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixout_export.errors import DataError
from mixout_export.tasks import Task
from mixout_export.training.tables import Table

_SHOWN = 5


def _is_missing(value: Any) -> bool:
    return value is None or value == ""


def _rows(table: Table, rows: Sequence[int]) -> str:
    shown = ", ".join(table.where(row) for row in rows[:_SHOWN])
    return shown + (f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else "")


def _refuse_missing(table: Table, column: str) -> list[Any]:
    values = table.columns[column]
    missing = [row for row, value in enumerate(values) if _is_missing(value)]
    if missing:
        raise DataError(
            f"{table.name}: column {column!r} has no value in {_rows(table, missing)}; fill in or "
            "remove those rows"
        )
    return values


def text_values(table: Table, column: str) -> list[str]:
    """Return a column of texts.

    Raises:
        DataError: A text is missing, or is not text.
    """
    values = _refuse_missing(table, column)
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(
                f"{table.name}: column {column!r} holds the {type(value).__name__} {value!r} in "
                f"{table.where(row)}, expected text; choose the column with --text-column"
            )
    return values


def _as_class(value: Any) -> int | None:
    """Return an integer label, whether it is written as text, float or boolean; else None."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.isdigit() else None
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, (int, float)) and float(value).is_integer():
        return int(value)
    return None


def _class_ids(table: Table, column: str, names: Sequence[str]) -> NDArray[np.int64]:
    by_name = {name: index for index, name in enumerate(names)}
    ids = np.empty(table.rows, np.int64)
    for row, value in enumerate(_refuse_missing(table, column)):
        index = by_name.get(value.strip()) if isinstance(value, str) else None
        if index is None:
            index = _as_class(value)
        if index is None or not 0 <= index < len(names):
            raise DataError(
                f"{table.name}: column {column!r} holds the label {value!r} in "
                f"{table.where(row)}, the checkpoint has {len(names)} labels "
                f"({', '.join(names[:10])}); use those names or 0 to {len(names) - 1}, or run "
                "prepare again with --labels"
            )
        ids[row] = index
    return ids


def _numbers(table: Table, column: str) -> NDArray[np.float32]:
    numbers = np.empty(table.rows, np.float32)
    for row, value in enumerate(_refuse_missing(table, column)):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise DataError(
                f"{table.name}: column {column!r} holds {value!r} in {table.where(row)}, expected "
                "a finite number for regression"
            )
        numbers[row] = number
    return numbers


def encode_labels(
    table: Table, column: str, task: Task, names: Sequence[str] | None
) -> NDArray[Any]:
    """Return the targets of a column.

    Args:
        table: The data.
        column: Name of the label column.
        task: The task.
        names: The checkpoint's label names in the order of its outputs, None for regression.

    Returns:
        Shape (rows,): int64 class ids, where a value is one of the names, else an integer in
        0 … n - 1; float32 numbers for regression.

    Raises:
        DataError: A label is missing, unknown, or not a number.
    """
    if task.name == "regression":
        return _numbers(table, column)
    return _class_ids(table, column, names or ())
