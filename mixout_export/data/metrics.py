"""Metrics of predictions, and which of two values is better."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

from mixout_export.errors import ArgumentError
from mixout_export.tasks import TASKS, Task

Array = NDArray[Any]


def _accuracy(predicted: Array, labels: Array, classes: int) -> float:
    return float(np.mean(predicted == labels))


def _f1(predicted: Array, labels: Array, classes: int) -> float:
    average = "binary" if classes == 2 else "macro"
    return float(sk.f1_score(labels, predicted, average=average, zero_division=0.0))


def _matthews(predicted: Array, labels: Array, classes: int) -> float:
    return float(sk.matthews_corrcoef(labels, predicted))


def _has_no_correlation(predicted: Array, labels: Array) -> bool:
    """Tell what scipy refuses; of a constant it gives NaN by itself."""
    return len(labels) < 2 or not np.isfinite(predicted).all()


def _pearson(predicted: Array, labels: Array, classes: int) -> float:
    from scipy import stats  # half a second, which only a regression spends

    if _has_no_correlation(predicted, labels):
        return math.nan
    return float(stats.pearsonr(predicted, labels).statistic)


def _spearman(predicted: Array, labels: Array, classes: int) -> float:
    from scipy import stats

    if _has_no_correlation(predicted, labels):
        return math.nan
    return float(stats.spearmanr(predicted, labels).statistic)


def _mse(predicted: Array, labels: Array, classes: int) -> float:
    return float(np.mean((predicted - labels) ** 2))


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: Its name.
        tasks: Names of the tasks it fits.
        greater_is_better: Whether a larger value is better.
        compute: Value from predictions and labels, both of shape (n,), int64 class ids or float64
            numbers, and the number of classes (1 for regression).
    """

    name: str
    tasks: tuple[str, ...]
    greater_is_better: bool
    compute: Callable[[Array, Array, int], float]


_CLASSIFICATION, _REGRESSION = ("text-classification",), ("regression",)

#: F1 is that of label 1 where the head has two labels, else the unweighted mean over the labels
#: that occur. A constant prediction has no correlation: Pearson and Spearman are NaN, which counts
#: as a failed run; Matthews is 0 there, by convention.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", _CLASSIFICATION, True, _accuracy),
        Metric("f1", _CLASSIFICATION, True, _f1),
        Metric("matthews", _CLASSIFICATION, True, _matthews),
        Metric("pearson", _REGRESSION, True, _pearson),
        Metric("spearman", _REGRESSION, True, _spearman),
        Metric("mse", _REGRESSION, False, _mse),
    )
}


#: Metrics of which a smaller value is better, beside those above that say so.
_SMALLER_IS_BETTER = ("loss", "perplexity")


def metrics_of(task_name: str) -> dict[str, Metric]:
    """Return the metrics of one prediction and one label an example that fit a task."""
    return {name: metric for name, metric in METRICS.items() if task_name in metric.tasks}


def default_metric(task: Task, requested: str | None) -> str:
    """Return the metric that ranks checkpoints: the requested one, else the task's.

    Raises:
        ArgumentError: The metric does not fit the task; the message lists those that do.
    """
    name = task.metric if requested is None else requested
    if name not in task.metrics:
        raise ArgumentError(
            f"metric: got {name!r}, expected one of {', '.join(task.metrics)} for {task.name}"
        )
    return name


def compute_metrics(task_name: str, logits: Array, labels: Array) -> dict[str, float]:
    """Compute every metric that fits a task.

    Args:
        task_name: The task.
        logits: Shape (n, labels), or (n, 1) or (n,) for regression; a NaN in the logits of a
            classifier makes every metric NaN, for there is no prediction.
        labels: Shape (n,), n at least 1.

    Returns:
        Metric name → value.

    Raises:
        ArgumentError: The shapes do not fit each other.
    """
    regression = task_name == "regression"
    rows = len(labels)
    table = logits.reshape(-1, 1) if regression and logits.ndim == 1 else logits
    if not rows or labels.ndim != 1 or table.ndim != 2 or len(table) != rows:
        raise ArgumentError(
            f"metrics: got logits of shape {logits.shape} and labels of shape {labels.shape}, "
            "expected (n, labels) and (n,) with n at least 1"
        )
    if regression and table.shape[1] != 1:
        raise ArgumentError(f"metrics: got logits of shape {logits.shape}, expected one column")
    fitting = metrics_of(task_name)
    if regression:
        predicted, labels = table[:, 0].astype(np.float64), labels.astype(np.float64)
    elif np.isnan(table).any():
        return dict.fromkeys(fitting, math.nan)
    else:
        predicted = table.argmax(axis=1)
    # Both libraries warn of degenerate predictions, which the values above already tell.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classes = table.shape[1]
        return {name: one.compute(predicted, labels, classes) for name, one in fitting.items()}


def is_better(name: str, new: float, best: float | None) -> bool:
    """Tell whether a value of a metric is better than the best so far; NaN never is.

    Raises:
        ArgumentError: There is no such metric; the message lists those there are.
    """
    known = dict.fromkeys(metric for task in TASKS.values() for metric in task.metrics)
    if name not in known:
        raise ArgumentError(f"metric: got {name!r}, expected one of {', '.join(known)}")
    if math.isnan(new):
        return False
    if best is None or math.isnan(best):
        return True
    smaller = name in _SMALLER_IS_BETTER or (
        name in METRICS and not METRICS[name].greater_is_better
    )
    return new < best if smaller else new > best
