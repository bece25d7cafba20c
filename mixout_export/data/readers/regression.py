"""Reads tables for regression."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from mixout_export.data.labels import number_values
from mixout_export.data.metrics import regression_metrics
from mixout_export.data.readers.text_classification import TextClassification
from mixout_export.data.tables import Table


class Regression(TextClassification):
    """Reads what text classification reads, with a number in place of the label."""

    def labels(self, table: Table, column: str, names: Sequence[str]) -> NDArray[Any]:
        """Return the number of each row."""
        return number_values(table, column)

    def metrics(self, logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
        """Return the task's metrics."""
        return regression_metrics(logits, labels)
