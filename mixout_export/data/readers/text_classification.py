"""Reads tables for text classification with one label or any number of labels, and regression."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mixout_export.data.bad_rows import read_each
from mixout_export.data.columns import (
    ColumnNames,
    find_optional_label,
    find_texts,
    single_column,
)
from mixout_export.data.labels import (
    LabelMap,
    as_integer,
    label_ids,
    list_rows,
    number_values,
    show,
    text_values,
)
from mixout_export.data.metrics import (
    multi_label_metrics,
    multi_label_report,
    regression_metrics,
)
from mixout_export.data.reader import Reader
from mixout_export.data.readers.labeled import LabeledReader, LabeledRows
from mixout_export.data.table import Table
from mixout_export.data.texts import TextEncoding
from mixout_export.errors import DataError, RowError


class TextClassification(LabeledReader[TextEncoding]):
    """Reads a text, optionally a second text, and a label."""

    def find(
        self, table: Table, named: ColumnNames, labels: Sequence[str], *, labeled: bool = True
    ) -> ColumnNames:
        """Find text, second text and label."""
        text, pair = find_texts(table, named)
        return ColumnNames(text, pair, find_optional_label(table, named, labeled=labeled))

    def read(self, table: Table, columns: ColumnNames, encoding: TextEncoding) -> LabeledRows:
        """Read texts and labels."""
        texts = read_texts(table, columns)
        # The labels are checked before the texts are encoded, which takes longer.
        labels = self.labels_of(table, columns, encoding.labels)
        return self.labeled(replace(encoding.texts(*texts), labels=labels), encoding.labels)


class Regression(TextClassification):
    """Reads what text classification reads, with a number in place of the label."""

    uses: ClassVar[frozenset[str]] = frozenset()
    compute = staticmethod(regression_metrics)
    report = None

    label_values = Reader.label_values

    def labels(self, table: Table, columns: Sequence[str], names: Sequence[str]) -> NDArray[Any]:
        """Return the number of each row."""
        return number_values(table, single_column(table, columns, "--label-column"))


class MultiLabel(TextClassification):
    """Reads what text classification reads, with any number of labels.

    The labels are in one of these forms: columns of 0 and 1, named after the labels or given in
    their order; one column of lists; one column of names separated by "|" or commas. A list holds
    labels, or a 0 or 1 for each label. An empty cell means no labels.
    """

    uses: ClassVar[frozenset[str]] = frozenset()
    compute = staticmethod(multi_label_metrics)
    report = staticmethod(multi_label_report)

    def find(
        self, table: Table, named: ColumnNames, labels: Sequence[str], *, labeled: bool = True
    ) -> ColumnNames:
        """Find text, second text and labels. Columns named after the labels take precedence."""
        lower = {name.lower(): name for name in table.columns}
        if named.label is None and labels and all(name.lower() in lower for name in labels):
            text, pair = find_texts(table, named)
            return ColumnNames(text, pair, tuple(lower[name.lower()] for name in labels))
        return super().find(table, named, labels, labeled=labeled)

    def label_values(self, table: Table, named: ColumnNames) -> list[Any]:
        """Return the labels of all rows; of several columns, their names."""
        columns = find_optional_label(table, named, labeled=True) or ()
        if len(columns) > 1:
            return list(columns)
        parts = (_parts(table, columns[0], row, LabelMap(())) for row in range(table.rows))
        return [part for row in parts for part in row]

    def labels(self, table: Table, columns: Sequence[str], names: Sequence[str]) -> NDArray[Any]:
        """Return float32 zeros and ones, shape (rows, labels)."""
        labels = LabelMap(tuple(names))
        # One column with the name of the only label has a 0 or 1 in each row.
        indicator = len(names) == 1 and columns[0].lower() == names[0].lower()
        if len(columns) > 1 or indicator:
            return _from_columns(table, columns, labels)
        return _from_cells(table, columns[0], labels)


def _from_columns(table: Table, columns: Sequence[str], labels: LabelMap) -> NDArray[np.float32]:
    if len(columns) != len(labels.names):
        raise DataError(
            f"{table.name}: --label-column names {len(columns)} columns ({', '.join(columns)}), "
            f"but the checkpoint has {labels.describe()}; name one column for each label"
        )
    made = np.zeros((table.rows, len(columns)), np.float32)
    for place, column in enumerate(columns):
        values = [_indicator(value) for value in table.columns[column]]
        wrong = [row for row, value in enumerate(values) if value is None]
        if wrong:
            raise RowError(
                f"{table.name}: column {column!r} holds {show(table.columns[column][wrong[0]])} in "
                f"{list_rows(table, wrong)}, expected 0 or 1; correct those rows",
                dict.fromkeys(wrong, f"has neither 0 nor 1 in column {column!r}"),
            )
        made[:, place] = values
    return made


def _indicator(value: Any) -> int | None:
    """Return 0 or 1; None for anything else."""
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return int(value.strip().lower() == "true")
    number = as_integer(value)
    return number if number in (0, 1) else None


def _from_cells(table: Table, column: str, labels: LabelMap) -> NDArray[np.float32]:
    cells = read_each(range(table.rows), lambda row, _: _parts(table, column, row, labels))
    count = len(labels.names)
    made = np.zeros((table.rows, count), np.float32)
    indicators = [[_indicator(part) for part in cell] for cell in cells]
    if all(len(cell) == count and None not in cell for cell in indicators):
        made[:] = indicators
        return made
    rows = [row for row, cell in enumerate(cells) for _ in cell]
    ids = label_ids(table, column, labels, rows, [part for cell in cells for part in cell])
    made[rows, ids] = 1.0
    return made


def _parts(table: Table, column: str, row: int, labels: LabelMap) -> list[Any]:
    """Return the labels of a cell."""
    value = table.columns[column][row]
    if isinstance(value, (list, tuple)):
        return list(value)
    if value is None:
        raise RowError(
            f"{table.name}: column {column!r} has no value in {table.where(row)}, expected labels; "
            "write an empty list for no labels",
            {row: f"has no value in column {column!r}"},
        )
    if not isinstance(value, str) or value in labels.names:
        return [value]
    parts = [part.strip() for part in value.split("|" if "|" in value else ",")]
    return [part for part in parts if part]


def read_texts(table: Table, columns: ColumnNames) -> tuple[list[str], list[str] | None]:
    """Return the texts, and the second texts if there are any."""
    pairs = None if columns.text_pair is None else text_values(table, columns.text_pair)
    return text_values(table, columns.first), pairs
