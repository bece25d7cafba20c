"""Reads tables for multi-label classification."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk
from torch import Tensor

from mixout_export.data.columns import ColumnNames, find_optional_label, find_texts
from mixout_export.data.encoding import Encoding
from mixout_export.data.examples import Examples
from mixout_export.data.labels import LabelMap, as_integer, label_ids, list_rows, show
from mixout_export.data.reader import Reader
from mixout_export.data.readers.text_classification import read_texts
from mixout_export.data.tables import Table
from mixout_export.errors import DataError
from mixout_export.tasks.multi_label import MULTI_LABEL


@dataclass(frozen=True)
class MultiLabelTexts(Examples):
    """Texts, each with a row of zeros and ones."""

    @property
    def labeled(self) -> bool:
        """Whether there are labels."""
        return self.encoded.labels is not None

    def predict(
        self, indices: Sequence[int], outputs: Mapping[str, Tensor]
    ) -> list[NDArray[np.float32]]:
        """Return each example's logits, shape (labels,)."""
        return list(outputs["logits"].float().cpu().numpy())

    def metrics(self, predictions: Sequence[NDArray[np.float32]]) -> dict[str, float]:
        """Return micro and macro F1, and the share of texts with no wrong label.

        A label is predicted if its logit is above 0, that is, its probability is above one half.
        The F1 of a label that neither occurs nor is predicted is 0.
        """
        logits, labels = np.stack(list(predictions)), np.asarray(self.encoded.labels).astype(int)
        if np.isnan(logits).any():
            return dict.fromkeys(MULTI_LABEL.metrics, float("nan"))
        predicted = (logits > 0).astype(int)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            micro, macro = (
                float(sk.f1_score(labels, predicted, average=average, zero_division=0.0))
                for average in ("micro", "macro")
            )
        accuracy = float(np.mean((predicted == labels).all(axis=1)))
        return {"micro_f1": micro, "macro_f1": macro, "accuracy": accuracy}


class MultiLabel(Reader):
    """Reads a text, optionally a second text, and any number of labels.

    The labels are in one of these forms: columns of 0 and 1, named after the labels or given in
    their order; one column of lists; one column of names separated by "|" or commas. A list holds
    labels, or a 0 or 1 for each label. An empty cell means no labels.
    """

    def find(
        self, table: Table, named: ColumnNames, labels: Sequence[str], *, labeled: bool = True
    ) -> ColumnNames:
        """Find text, second text and labels. Columns named after the labels take precedence."""
        text, pair = find_texts(table, text_column=named.text, text_pair_column=named.text_pair)
        lower = {name.lower(): name for name in table.columns}
        if named.label is None and labels and all(name.lower() in lower for name in labels):
            return ColumnNames(text, pair, tuple(lower[name.lower()] for name in labels))
        return ColumnNames(text, pair, find_optional_label(table, named, labeled=labeled))

    def read(self, table: Table, columns: ColumnNames, encoding: Encoding) -> MultiLabelTexts:
        """Read labels as float32 zeros and ones, shape (rows, labels)."""
        encoded = encoding.texts(*read_texts(table, columns))
        if columns.label is not None:
            labels = LabelMap(encoding.labels)
            if len(columns.label) > 1 or _is_indicator(table, columns.label, labels):
                targets = _from_columns(table, columns.label, labels)
            else:
                targets = _from_cells(table, columns.label[0], labels)
            encoded = replace(encoded, labels=targets)
        return MultiLabelTexts(encoded)


def _is_indicator(table: Table, columns: Sequence[str], labels: LabelMap) -> bool:
    """Return whether the column has a 0 or 1 for the only label."""
    return len(labels.names) == 1 and columns[0].lower() == labels.names[0].lower()


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
            raise DataError(
                f"{table.name}: column {column!r} holds {show(table.columns[column][wrong[0]])} in "
                f"{list_rows(table, wrong)}, expected 0 or 1; correct those rows"
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
    cells = [_parts(table, column, row, labels) for row in range(table.rows)]
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
        raise DataError(
            f"{table.name}: column {column!r} has no value in {table.where(row)}, expected labels; "
            "write an empty list for no labels"
        )
    if not isinstance(value, str) or value in labels.names:
        return [value]
    parts = [part.strip() for part in value.split("|" if "|" in value else ",")]
    return [part for part in parts if part]
