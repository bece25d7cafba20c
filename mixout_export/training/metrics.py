"""Metrics of predictions, and which of two values is better."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sk

from mixout_export.errors import ArgumentError
from mixout_export.tasks import Task

Array = NDArray[Any]


def _accuracy(predicted: Array, labels: Array) -> float:
    return float(np.mean(predicted == labels))


def _f1(predicted: Array, labels: Array) -> float:
    binary = max(int(predicted.max()), int(labels.max())) <= 1
    average = "binary" if binary else "macro"
    return float(sk.f1_score(labels, predicted, average=average, zero_division=0.0))


def _matthews(predicted: Array, labels: Array) -> float:
    return float(sk.matthews_corrcoef(labels, predicted))


def _is_constant(values: Array) -> bool:
    return bool(np.ptp(values) == 0.0)


def _pearson(predicted: Array, labels: Array) -> float:
    if len(labels) < 2 or _is_constant(predicted) or _is_constant(labels):
        return math.nan
    return float(stats.pearsonr(predicted, labels).statistic)


def _spearman(predicted: Array, labels: Array) -> float:
    if len(labels) < 2 or _is_constant(predicted) or _is_constant(labels):
        return math.nan
    return float(stats.spearmanr(predicted, labels).statistic)


def _mse(predicted: Array, labels: Array) -> float:
    return float(np.mean((predicted.astype(np.float64) - labels.astype(np.float64)) ** 2))


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: Its name.
        tasks: Names of the tasks it fits.
        greater_is_better: Whether a larger value is better.
        compute: Value from predictions (class ids or numbers) and labels, both of shape (n,).
    """

    name: str
    tasks: tuple[str, ...]
    greater_is_better: bool
    compute: Callable[[Array, Array], float]


_CLASSIFICATION, _REGRESSION = ("text-classification",), ("regression",)

#: F1 is that of label 1 where there are two labels, else the mean over labels. A constant
#: prediction has no correlation: Pearson and Spearman are NaN, which counts as a failed run.
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


def metrics_of(task_name: str) -> dict[str, Metric]:
    """Return the metrics that fit a task."""
    return {name: metric for name, metric in METRICS.items() if task_name in metric.tasks}


def default_metric(task: Task, requested: str | None) -> str:
    """Return the metric that ranks checkpoints: the requested one, else the task's.

    Raises:
        ArgumentError: The metric does not fit the task; the message lists those that do.
    """
    fitting = metrics_of(task.name)
    name = task.metric if requested is None else requested
    if name not in fitting:
        raise ArgumentError(
            f"metric: got {name!r}, expected one of {', '.join(fitting)} for {task.name}"
        )
    return name


def compute_metrics(task_name: str, logits: Array, labels: Array) -> dict[str, float]:
    """Compute every metric that fits a task.

    Args:
        task_name: The task.
        logits: Shape (n, labels), or (n, 1) or (n,) for regression.
        labels: Shape (n,).

    Returns:
        Metric name → value.
    """
    predicted = logits.reshape(len(labels), -1)
    predicted = predicted[:, 0] if task_name == "regression" else predicted.argmax(axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitting = metrics_of(task_name)
        return {name: metric.compute(predicted, labels) for name, metric in fitting.items()}


def is_better(name: str, new: float, best: float | None) -> bool:
    """Tell whether a value of a metric is better than the best so far; NaN never is."""
    if math.isnan(new):
        return False
    if best is None or math.isnan(best):
        return True
    return new > best if METRICS[name].greater_is_better else new < best
