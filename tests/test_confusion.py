"""The figures of labels are those of scikit-learn on the whole data."""

import numpy as np
import pytest
from sklearn import metrics as sk

from mixout_export.data.confusion import (
    Confused,
    confusion_matrix,
    confusion_metrics,
    most_confused,
    scores_by_label,
)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_metrics_of_parts_are_those_of_the_whole(size: int) -> None:
    rng = np.random.default_rng(size)
    labels, predicted = rng.integers(0, size, (2, 400))
    parts = zip(np.split(labels, 4), np.split(predicted, 4), strict=True)
    confusion = sum(confusion_matrix(part, guess, size) for part, guess in parts)
    found = confusion_metrics(np.asarray(confusion))
    average = "binary" if size == 2 else "macro"
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert found["f1"] == pytest.approx(sk.f1_score(labels, predicted, average=average))
    assert found["matthews"] == pytest.approx(sk.matthews_corrcoef(labels, predicted))
    expected = sk.precision_recall_fscore_support(labels, predicted, zero_division=0.0)
    scores = scores_by_label(np.asarray(confusion), [str(index) for index in range(size)])
    rows = [(score.precision, score.recall, score.f1, score.rows) for score in scores]
    np.testing.assert_allclose(rows, np.transpose(expected))


def test_a_label_that_never_occurs_does_not_count_in_the_mean() -> None:
    labels, predicted = np.array([0, 0, 1]), np.array([0, 1, 1])
    confusion = confusion_matrix(labels, predicted, 4)
    expected = sk.f1_score(labels, predicted, average="macro")
    assert confusion_metrics(confusion)["f1"] == pytest.approx(expected)


def test_the_most_confused_labels_come_first() -> None:
    labels, predicted = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 1, 1, 1, 0, 2])
    confusion = confusion_matrix(labels, predicted, 3)
    assert most_confused(confusion, ("a", "b", "c"), 5) == (
        Confused("a", "b", 2),
        Confused("c", "a", 1),
    )
    assert most_confused(confusion, ("a", "b", "c"), 1) == (Confused("a", "b", 2),)
