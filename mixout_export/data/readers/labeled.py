"""Rows with a label, a number, or any number of labels, whatever the label is about."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mixout_export.data.columns import ColumnNames, find_optional_label, single_column
from mixout_export.data.confusion import LabelReport
from mixout_export.data.encoding import EncodedRows
from mixout_export.data.examples import Examples
from mixout_export.data.labels import class_ids, refuse_missing
from mixout_export.data.metrics import class_report, classification_metrics, constant_logits
from mixout_export.data.reader import E, Reader
from mixout_export.data.table import Table


@dataclass(frozen=True)
class LabeledRows(Examples):
    """Rows, each with a class id, a number, or a row of zeros and ones.

    Attributes:
        compute: Computes the metrics of the logits, shape (examples, outputs), and the labels.
        outputs: Number of the model's outputs.
        names: The label names; empty if the task has none.
        report: Returns the figures of each label from the same values and the names.
    """

    compute: Callable[[NDArray[Any], NDArray[Any]], dict[str, float]]
    outputs: int
    names: tuple[str, ...] = ()
    report: Callable[[NDArray[Any], NDArray[Any], Sequence[str]], LabelReport] | None = None

    def predict(
        self, indices: Sequence[int], outputs: Mapping[str, Tensor]
    ) -> list[NDArray[np.float32]]:
        """Return each example's logits, shape (labels,)."""
        return list(outputs["logits"].float().cpu().numpy())

    def class_ids(self) -> list[NDArray[np.int64]]:
        """Return the class id of each row, shape (1,)."""
        return list(np.asarray(self.encoded.labels)[:, None])

    def constant_predictions(self) -> list[NDArray[Any]]:
        """Return logits for the most frequent label, or the mean of numbers."""
        return [constant_logits(np.asarray(self.encoded.labels), self.outputs)] * len(self)

    def metrics(self, predictions: Sequence[NDArray[Any]]) -> dict[str, float]:
        """Return the task's metrics."""
        return self.compute(np.stack(list(predictions)), np.asarray(self.encoded.labels))

    def label_report(self, predictions: Sequence[NDArray[Any]]) -> LabelReport | None:
        """Return the figures of each label; None for numbers, and if a logit is not one."""
        logits = np.stack(list(predictions))
        if self.report is None or np.isnan(logits).any():
            return None
        return self.report(logits, np.asarray(self.encoded.labels), self.names)


class LabeledReader(Reader[E]):
    """Reads one label for each row, with what the label is about."""

    uses: ClassVar[frozenset[str]] = frozenset({"label-smoothing", "class-weights"})
    compute = staticmethod(classification_metrics)
    report: ClassVar[Callable[..., LabelReport] | None] = staticmethod(class_report)

    def label_values(self, table: Table, named: ColumnNames) -> list[Any]:
        """Return the label of each row."""
        columns = find_optional_label(table, named, labeled=True) or ()
        return refuse_missing(table, single_column(table, columns, "--label-column"))

    def labels(self, table: Table, columns: Sequence[str], names: Sequence[str]) -> NDArray[Any]:
        """Return the label of each row: a class id."""
        return class_ids(table, single_column(table, columns, "--label-column"), names)

    def labels_of(
        self, table: Table, columns: ColumnNames, names: Sequence[str]
    ) -> NDArray[Any] | None:
        """Return the label of each row; None without a column of labels."""
        return None if columns.label is None else self.labels(table, columns.label, names)

    def labeled(self, encoded: EncodedRows, names: tuple[str, ...]) -> LabeledRows:
        """Return encoded rows as the examples of a model with these labels."""
        return LabeledRows(encoded, self.compute, max(1, len(names)), names, self.report)
