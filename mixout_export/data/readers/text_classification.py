"""Reads tables for text classification."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mixout_export.data.columns import (
    ColumnNames,
    find_optional_label,
    find_texts,
    single_column,
)
from mixout_export.data.encoding import Encoding
from mixout_export.data.examples import Examples
from mixout_export.data.labels import class_ids, text_values
from mixout_export.data.metrics import classification_metrics
from mixout_export.data.reader import Reader
from mixout_export.data.tables import Table


@dataclass(frozen=True)
class LabeledTexts(Examples):
    """Texts with one class id or number each.

    Attributes:
        compute: Computes the metrics of logits `(examples, outputs)` and labels `(examples,)`.
    """

    compute: Callable[[NDArray[Any], NDArray[Any]], dict[str, float]]

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
        """Return the task's metrics."""
        return self.compute(np.stack(list(predictions)), np.asarray(self.encoded.labels))


class TextClassification(Reader):
    """Reads a text, optionally a second text, and a label."""

    def find(
        self, table: Table, named: ColumnNames, labels: Sequence[str], *, labeled: bool = True
    ) -> ColumnNames:
        """Find text, second text and label."""
        text, pair = find_texts(table, text_column=named.text, text_pair_column=named.text_pair)
        label = find_optional_label(table, named, labeled=labeled)
        return ColumnNames(text, pair, label)

    def read(self, table: Table, columns: ColumnNames, encoding: Encoding) -> LabeledTexts:
        """Read texts and labels."""
        encoded = encoding.texts(*read_texts(table, columns))
        if columns.label is not None:
            column = single_column(table, columns.label, "--label-column")
            encoded = replace(encoded, labels=self.labels(table, column, encoding.labels))
        return LabeledTexts(encoded, self.metrics)

    def labels(self, table: Table, column: str, names: Sequence[str]) -> NDArray[Any]:
        """Return the label of each row: a class id."""
        return class_ids(table, column, names)

    def metrics(self, logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
        """Return the task's metrics."""
        return classification_metrics(logits, labels)


def read_texts(table: Table, columns: ColumnNames) -> tuple[list[str], list[str] | None]:
    """Return the texts, and the second texts if there are any.

    Raises:
        DataError: A value is missing or is not text.
    """
    pairs = None if columns.text_pair is None else text_values(table, columns.text_pair)
    return text_values(table, columns.first), pairs
