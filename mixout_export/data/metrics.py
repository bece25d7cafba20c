"""Metrics of predictions, and which of two values is better."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixout_export.data.confusion import (
    LabelReport,
    confusion_matrix,
    confusion_metrics,
    label_scores,
    report_of,
)
from mixout_export.errors import ArgumentError
from mixout_export.tasks import TASKS, Task
from mixout_export.tasks.multi_label import MULTI_LABEL
from mixout_export.tasks.regression import REGRESSION
from mixout_export.tasks.text_classification import TEXT_CLASSIFICATION

Array = NDArray[Any]


def default_metric(task: Task, requested: str | None) -> str:
    """Return the metric that ranks checkpoints: the requested one, else the task's first."""
    name = task.metric if requested is None else requested
    if name not in task.metrics:
        raise ArgumentError(
            f"metric: got {name!r}, expected one of {', '.join(task.metrics)} for {task.name}"
        )
    return name


def classification_metrics(logits: Array, labels: Array) -> dict[str, float]:
    """Compute accuracy, F1, Matthews' correlation and macro F1.

    F1 is that of label 1 if there are two labels, else macro F1. Macro F1 is the unweighted mean
    over the labels that occur. Matthews' correlation of a constant prediction is 0 by convention.

    Args:
        logits: Shape (n, labels). If one is NaN, every metric is NaN: there is no prediction.
        labels: int64 class ids, shape (n,), n at least 1.
    """
    _check_shapes(logits, labels)
    if np.isnan(logits).any():
        return dict.fromkeys(TEXT_CLASSIFICATION.metrics, math.nan)
    predicted = logits.argmax(axis=1)
    return confusion_metrics(confusion_matrix(labels, predicted, logits.shape[1]))


def class_report(logits: Array, labels: Array, names: Sequence[str]) -> LabelReport:
    """Return the figures of each label, and which labels are confused.

    The arguments are those of `classification_metrics`, without NaN, and the label names.
    """
    return report_of(confusion_matrix(labels, logits.argmax(axis=1), logits.shape[1]), names)


def multi_label_report(logits: Array, labels: Array, names: Sequence[str]) -> LabelReport:
    """Return the figures of each label; the arguments are those of `multi_label_metrics`."""
    predicted, expected = logits > 0, labels > 0
    counts = (expected, predicted, predicted & expected)
    rows, found, right = (each.sum(axis=0).tolist() for each in counts)
    return LabelReport(
        tuple(
            label_scores(name, rows=rows[place], predicted=found[place], right=right[place])
            for place, name in enumerate(names)
        )
    )


def regression_metrics(logits: Array, labels: Array) -> dict[str, float]:
    """Compute the correlations of Pearson and Spearman, and the mean squared error.

    The correlations of a constant prediction, or of one that is not finite, are NaN. Such a run
    counts as failed.

    Args:
        logits: Shape (n, 1) or (n,).
        labels: Numbers, shape (n,), n at least 1.
    """
    table = logits.reshape(-1, 1) if logits.ndim == 1 else logits
    _check_shapes(table, labels)
    if table.shape[1] != 1:
        raise ArgumentError(f"metrics: got logits of shape {logits.shape}, expected one column")
    predicted, expected = table[:, 0].astype(np.float64), labels.astype(np.float64)
    values = dict.fromkeys(REGRESSION.metrics, math.nan)
    with warnings.catch_warnings(action="ignore"):  # the values say the same
        values["mse"] = float(np.mean((predicted - expected) ** 2))
        if len(labels) > 1 and np.isfinite(predicted).all():
            from scipy import stats  # half a second, which only a regression spends

            values["pearson"] = float(stats.pearsonr(predicted, expected).statistic)
            values["spearman"] = float(stats.spearmanr(predicted, expected).statistic)
    return values


def multi_label_metrics(logits: Array, labels: Array) -> dict[str, float]:
    """Compute micro and macro F1, and the share of texts with no wrong label.

    A label is predicted if its logit is above 0, that is, its probability is above one half. The
    F1 of a label that neither occurs nor is predicted is 0.

    Args:
        logits: Shape (n, labels). If one is NaN, every metric is NaN: there is no prediction.
        labels: Zeros and ones, shape (n, labels).
    """
    if np.isnan(logits).any():
        return dict.fromkeys(MULTI_LABEL.metrics, math.nan)
    predicted, expected = logits > 0, labels > 0
    counts = (expected.sum(axis=0), predicted.sum(axis=0), (predicted & expected).sum(axis=0))
    exact = int((predicted == expected).all(axis=1).sum())
    return multi_label_scores(*counts, exact=exact, rows=len(labels))


def multi_label_scores(
    expected: Array, predicted: Array, right: Array, *, exact: int, rows: int
) -> dict[str, float]:
    """Compute the metrics of `multi_label_metrics` from counts, which parts of the data add up to.

    Args:
        expected: In how many rows each label is right, shape (labels,).
        predicted: In how many rows it is predicted.
        right: In how many rows it is both.
        exact: Rows without a wrong label.
        rows: All rows.
    """
    sums = expected + predicted
    macro = np.divide(2.0 * right, sums, out=np.zeros(len(sums)), where=sums > 0)
    micro = 2 * right.sum() / sums.sum() if sums.any() else 0.0
    return {
        "micro_f1": float(micro),
        "macro_f1": float(macro.mean()),
        "accuracy": exact / rows,
    }


def most_frequent(ids: Array) -> int:
    """Return the most frequent of some class ids; the largest id if several are.

    The F1 of two labels is that of label 1, so with as many of each, the better constant wins.

    Args:
        ids: int64 class ids, at least one.
    """
    counts = np.bincount(ids.ravel())
    return int(len(counts) - 1 - counts[::-1].argmax())


def constant_logits(labels: Array, outputs: int) -> Array:
    """Return logits, shape (outputs,), of the best answer that does not depend on the input.

    Args:
        labels: int64 class ids, shape (n,): the answer is the most frequent one. Numbers, shape
            (n,): it is their mean. Zeros and ones, shape (n, labels): it has those labels that
            more than half of the rows have.
        outputs: Number of the model's outputs.
    """
    if labels.ndim == 2:
        return np.where(labels.mean(axis=0) > 0.5, 1.0, -1.0)
    if labels.dtype.kind == "f":
        return labels.mean(dtype=np.float64, keepdims=True)  # type: ignore[no-any-return]
    logits = np.zeros(outputs)
    logits[most_frequent(labels)] = 1.0
    return logits


def _check_shapes(logits: Array, labels: Array) -> None:
    if not len(labels) or labels.ndim != 1 or logits.ndim != 2 or len(logits) != len(labels):
        raise ArgumentError(
            f"metrics: got logits of shape {logits.shape} and labels of shape {labels.shape}, "
            "expected (n, labels) and (n,) with n at least 1"
        )


def is_lower_better(name: str) -> bool:
    """Return whether a smaller value of a metric is better."""
    known = {metric.name: metric for task in TASKS.values() for metric in task.reports}
    if name not in known:
        raise ArgumentError(f"metric: got {name!r}, expected one of {', '.join(known)}")
    return known[name].lower_is_better


def is_better(name: str, new: float, best: float | None) -> bool:
    """Return whether a value of a metric is better than the best so far; NaN never is."""
    lower = is_lower_better(name)
    if math.isnan(new):
        return False
    if best is None or math.isnan(best):
        return True
    return new < best if lower else new > best
