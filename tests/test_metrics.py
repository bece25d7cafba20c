"""Metrics against their closed forms."""

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mixout_export.data.metrics import (
    classification_metrics,
    default_metric,
    is_better,
    regression_metrics,
)
from mixout_export.errors import ArgumentError
from mixout_export.tasks import TASKS

CLASSES = "text-classification"


def _logits(predicted: list[int], classes: int) -> NDArray[np.float32]:
    """Logits whose largest entry is at the predicted class, shape (n, classes)."""
    return np.eye(classes, dtype=np.float32)[predicted] - 0.5


def _counts(predicted: list[int], labels: list[int], positive: int) -> tuple[int, int, int, int]:
    pairs = [(p == positive, t == positive) for p, t in zip(predicted, labels, strict=True)]
    return (
        pairs.count((True, True)),
        pairs.count((True, False)),
        pairs.count((False, True)),
        pairs.count((False, False)),
    )


def _f1(predicted: list[int], labels: list[int], positive: int) -> float:
    true_positive, false_positive, false_negative, _ = _counts(predicted, labels, positive)
    whole = 2 * true_positive + false_positive + false_negative
    return 2 * true_positive / whole if whole else 0.0


def test_two_classes() -> None:
    predicted, labels = [1, 1, 1, 0, 0, 1, 0, 1], [1, 0, 1, 0, 1, 1, 0, 0]
    tp, fp, fn, tn = _counts(predicted, labels, 1)
    matthews = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    values = classification_metrics(_logits(predicted, 2), np.array(labels))
    one, zero = _f1(predicted, labels, 1), _f1(predicted, labels, 0)
    expected = {"accuracy": 5 / 8, "f1": one, "matthews": matthews, "macro_f1": (one + zero) / 2}
    assert values == pytest.approx(expected, abs=1e-12)


def test_three_classes_take_the_mean_f1() -> None:
    predicted, labels = [0, 1, 2, 2, 1, 0, 0], [0, 1, 1, 2, 1, 2, 0]
    values = classification_metrics(_logits(predicted, 3), np.array(labels))
    expected = sum(_f1(predicted, labels, c) for c in range(3)) / 3
    assert values["f1"] == pytest.approx(expected, abs=1e-12)
    assert values["accuracy"] == pytest.approx(5 / 7, abs=1e-12)


def test_f1_follows_the_head_not_the_labels_that_happen_to_occur() -> None:
    predicted, labels = [0, 1, 1, 0], [0, 1, 0, 0]
    both = [_f1(predicted, labels, c) for c in range(2)]
    two = classification_metrics(_logits(predicted, 2), np.array(labels))["f1"]
    three = classification_metrics(_logits(predicted, 3), np.array(labels))["f1"]
    assert two == pytest.approx(both[1], abs=1e-12)
    assert three == pytest.approx(sum(both) / 2, abs=1e-12)
    assert two != pytest.approx(three)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, equal values share the mean of theirs."""
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


def _pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))


@pytest.mark.parametrize("shape", [(40, 1), (40,)])
def test_regression(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 11, 40).astype(np.float32) / 2
    predicted = (labels + rng.normal(size=40)).astype(np.float32).round(1)
    values = regression_metrics(predicted.reshape(shape), labels)
    a, b = predicted.astype(np.float64), labels.astype(np.float64)
    assert values == pytest.approx(
        {
            "pearson": _pearson(a, b),
            "spearman": _pearson(_ranks(a), _ranks(b)),
            "mse": float(((a - b) ** 2).mean()),
        },
        abs=1e-12,
    )


def test_correlation_is_computed_in_double_precision() -> None:
    """A large offset leaves few bits of a float32 mean; the correlation is still exactly 1."""
    labels = np.arange(2000, dtype=np.float32)
    values = regression_metrics(labels + np.float32(2**23), labels)
    assert values["pearson"] == pytest.approx(1.0, abs=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("wrong", [0, 1])
def test_a_constant_prediction_has_no_correlation(wrong: int) -> None:
    labels = np.array([0.0, 1.0, 2.0], np.float32)
    constant = np.full(3, 1.1, np.float32)
    predicted, targets = (constant, labels) if wrong == 0 else (labels, constant)
    values = regression_metrics(predicted, targets)
    assert math.isnan(values["pearson"])
    assert math.isnan(values["spearman"])
    assert values["mse"] == pytest.approx(float(((labels - constant) ** 2).mean()), rel=1e-6)


@pytest.mark.filterwarnings("error")
def test_a_constant_class_has_matthews_zero() -> None:
    labels = np.array([0, 1, 1, 0, 1])
    one = classification_metrics(_logits([1] * 5, 2), labels)
    assert one == pytest.approx(
        {"accuracy": 0.6, "f1": 0.75, "matthews": 0.0, "macro_f1": 0.375}, abs=1e-12
    )
    zero = classification_metrics(_logits([0] * 5, 2), labels)
    assert zero == pytest.approx(
        {"accuracy": 0.4, "f1": 0.0, "matthews": 0.0, "macro_f1": 2 / 7}, abs=1e-12
    )
    same = classification_metrics(_logits([1] * 5, 2), np.ones(5, np.int64))
    assert same == {"accuracy": 1.0, "f1": 1.0, "matthews": 0.0, "macro_f1": 1.0}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rows", [1, 2])
def test_very_few_rows(rows: int) -> None:
    values = regression_metrics(np.arange(rows) * 1.0, np.arange(rows) * 2.0)
    assert math.isnan(values["pearson"]) == (rows == 1)
    assert classification_metrics(_logits([0] * rows, 2), np.zeros(rows))["accuracy"] == 1.0


@pytest.mark.filterwarnings("error")
def test_predictions_that_are_not_numbers_count_as_failed() -> None:
    logits = _logits([0, 1, 1], 2)
    logits[1, 0] = math.nan
    values = classification_metrics(logits, np.array([0, 1, 1]))
    assert all(math.isnan(value) for value in values.values())
    for bad in (math.nan, math.inf):
        predicted = np.array([0.0, bad, 2.0])
        values = regression_metrics(predicted, np.array([0.0, 1.0, 2.0]))
        assert math.isnan(values["pearson"])
        assert math.isnan(values["spearman"])
        assert not is_better("mse", values["mse"], 1e9)


def test_degenerate_predictions_leave_stderr_empty() -> None:
    code = (
        "import numpy as np\n"
        "from mixout_export.data.metrics import classification_metrics, regression_metrics\n"
        "labels = np.array([0., 1., 2.])\n"
        "regression_metrics(np.ones(3), labels)\n"
        "regression_metrics(np.array([1, 1 + 1e-15, 1]), labels)\n"
        "regression_metrics(np.array([1, np.inf, 1]), labels)\n"
        "classification_metrics(np.zeros((3, 2)), labels * 0)\n"
        "classification_metrics(np.zeros((3, 3)), labels)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    ("compute", "logits", "labels"),
    [
        (classification_metrics, (3, 2), (4,)),
        (classification_metrics, (0, 2), (0,)),
        (classification_metrics, (3,), (3,)),
        (classification_metrics, (3, 2), (3, 1)),
        (regression_metrics, (3, 2), (3,)),
        (regression_metrics, (4,), (3,)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    compute: Callable[..., Any], logits: tuple[int, ...], labels: tuple[int, ...]
) -> None:
    with pytest.raises(ArgumentError, match="metrics: got logits of shape"):
        compute(np.zeros(logits), np.zeros(labels))


def test_metrics_of_a_task() -> None:
    ids, numbers = np.array([0, 1]), np.array([0.0, 1.0])
    assert tuple(classification_metrics(np.eye(2), ids)) == TASKS[CLASSES].metrics
    assert tuple(regression_metrics(numbers, numbers)) == TASKS["regression"].metrics
    assert default_metric(TASKS[CLASSES], None) == "accuracy"
    assert default_metric(TASKS["regression"], None) == "pearson"
    assert default_metric(TASKS[CLASSES], "matthews") == "matthews"


@pytest.mark.parametrize(
    ("task", "name", "expected"),
    [
        (
            CLASSES,
            "bleu",
            "metric: got 'bleu', expected one of accuracy, f1, matthews, macro_f1",
        ),
        (CLASSES, "pearson", "metric: got 'pearson', expected one of accuracy, f1, matthews"),
        ("regression", "accuracy", "got 'accuracy', expected one of pearson, spearman, mse for"),
        ("masked-lm", "accuracy", "expected one of loss, perplexity for masked-lm"),
    ],
)
def test_metrics_that_do_not_fit_are_refused(task: str, name: str, expected: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        default_metric(TASKS[task], name)
    assert expected in str(caught.value)


@pytest.mark.parametrize("name", sorted({name for task in TASKS.values() for name in task.metrics}))
def test_is_better(name: str) -> None:
    greater = name not in ("mse", "loss", "perplexity")
    assert is_better(name, 0.2, 0.1) is greater
    assert is_better(name, 0.1, 0.2) is not greater
    assert not is_better(name, 0.1, 0.1)
    assert is_better(name, -1.0, None)
    assert is_better(name, -1.0, math.nan)
    assert not is_better(name, math.nan, None)
    assert not is_better(name, math.nan, 0.1)
    assert not is_better(name, math.nan, math.nan)


def test_is_better_refuses_an_unknown_metric() -> None:
    with pytest.raises(ArgumentError, match="got 'bleu', expected one of accuracy"):
        is_better("bleu", 1.0, 0.0)
