"""Which labels a classifier takes for which, and the figures of each label."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

Counts = NDArray[np.int64]

#: Pairs of confused labels that a report names.
CONFUSED_SHOWN = 10


@dataclass(frozen=True)
class LabelScores:
    """The figures of one label.

    Attributes:
        label: Its name.
        rows: How often it is right.
        predicted: How often it was predicted.
        precision: Share of its predictions that are right, in [0, 1]; 0 without predictions.
        recall: Share of its rows that were found, in [0, 1]; 0 without rows.
        f1: Harmonic mean of both.
    """

    label: str
    rows: int
    predicted: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Confused:
    """How often one label was taken for another one."""

    expected: str
    predicted: str
    count: int


@dataclass(frozen=True)
class LabelReport:
    """The figures of all labels.

    Attributes:
        labels: Those of each label, in the order of the outputs.
        confused: The pairs of labels that are confused most often, the worst first.
    """

    labels: tuple[LabelScores, ...]
    confused: tuple[Confused, ...] = ()


def label_scores(label: str, *, rows: int, predicted: int, right: int) -> LabelScores:
    """Return a label's figures from counts."""
    precision, recall = (right / count if count else 0.0 for count in (predicted, rows))
    f1 = 2 * right / (rows + predicted) if rows + predicted else 0.0
    return LabelScores(label, rows, predicted, precision, recall, f1)


def confusion_matrix(labels: NDArray[np.integer], predicted: Counts, size: int) -> Counts:
    """Return how often each label was predicted as each other one, shape (size, size).

    Rows are the right labels. Matrices of parts of the data can be added.
    """
    places = labels.astype(np.int64) * size + predicted
    return np.bincount(places, minlength=size * size).reshape(size, size).astype(np.int64)


def confusion_metrics(confusion: Counts) -> dict[str, float]:
    """Return the metrics of `metrics.classification_metrics`."""
    labels, predicted = np.nonzero(confusion)
    weights = confusion[labels, predicted]
    with warnings.catch_warnings(action="ignore"):  # the values say the same
        binary, macro = (
            float(
                sk.f1_score(
                    labels, predicted, average=average, zero_division=0.0, sample_weight=weights
                )
            )
            for average in ("binary" if len(confusion) == 2 else "macro", "macro")
        )
        matthews = float(sk.matthews_corrcoef(labels, predicted, sample_weight=weights))
    accuracy = float(np.trace(confusion) / confusion.sum())
    return {"accuracy": accuracy, "f1": binary, "matthews": matthews, "macro_f1": macro}


def scores_by_label(confusion: Counts, names: Sequence[str]) -> tuple[LabelScores, ...]:
    """Return the figures of each label, in the order of the names."""
    return tuple(
        label_scores(
            name,
            rows=int(confusion[place].sum()),
            predicted=int(confusion[:, place].sum()),
            right=int(confusion[place, place]),
        )
        for place, name in enumerate(names)
    )


def report_of(confusion: Counts, names: Sequence[str]) -> LabelReport:
    """Return the figures of a confusion matrix."""
    return LabelReport(
        scores_by_label(confusion, names), most_confused(confusion, names, CONFUSED_SHOWN)
    )


def most_confused(confusion: Counts, names: Sequence[str], count: int) -> tuple[Confused, ...]:
    """Return the pairs of labels that are confused most often, at most `count`."""
    wrong = confusion - np.diag(np.diag(confusion))
    places = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = (divmod(int(place), len(names)) for place in places)
    return tuple(
        Confused(names[expected], names[predicted], int(wrong[expected, predicted]))
        for expected, predicted in pairs
        if wrong[expected, predicted]
    )
