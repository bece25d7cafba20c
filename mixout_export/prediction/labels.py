"""Answers that are one label, a set of labels, or a number."""

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mixout_export.data.confusion import (
    Confused,
    LabelScores,
    confusion_matrix,
    confusion_metrics,
    label_scores,
    most_confused,
    scores_by_label,
)
from mixout_export.data.examples import Examples
from mixout_export.data.metrics import multi_label_scores, regression_metrics
from mixout_export.data.readers.labeled import LabeledRows
from mixout_export.data.table_writer import Column
from mixout_export.prediction.answers import (
    Answers,
    Bins,
    Part,
    RowAnswer,
    Setting,
)

Logits = NDArray[np.float32]


def softmax(logits: Logits) -> NDArray[np.float64]:
    """Return probabilities along the last axis."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return cast(NDArray[np.float64], shifted / shifted.sum(axis=-1, keepdims=True))


class OneLabel(Answers):
    """One label for each row, with its probability."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        size = len(setting.labels)
        self._confusion = np.zeros((size, size), np.int64)
        self._said = np.zeros(size, np.int64)
        self._bins = Bins()

    def predict(
        self, examples: Examples, indices: Sequence[int], outputs: Mapping[str, Tensor]
    ) -> list[Any]:
        """Return each example's logits."""
        return examples.predict(indices, outputs)

    def answer(self, part: Part, predictions: Sequence[Any]) -> list[RowAnswer]:
        """Return the most likely label of each row."""
        shares = softmax(np.stack(list(predictions)))
        chosen = shares.argmax(axis=-1)
        return self.score(shares, chosen, cast(LabeledRows, part.examples).encoded.labels)

    def score(
        self, shares: NDArray[np.float64], chosen: NDArray[np.int64], right: NDArray[Any] | None
    ) -> list[RowAnswer]:
        """Return the answers, and count them if the right ones are known."""
        rows = np.arange(len(chosen))
        likely = shares[rows, chosen]
        self._said += np.bincount(chosen, minlength=len(self._said))
        if right is None:
            return [self._row(*one) for one in zip(chosen, likely, strict=True)]
        self._confusion += confusion_matrix(right, chosen, len(self._said))
        self._bins.add(likely, chosen == right)
        missed = np.where(chosen == right, 0.0, 1 - shares[rows, right])
        return [self._row(*one) for one in zip(chosen, likely, right, missed, strict=True)]

    def _row(
        self, chosen: int, share: float, right: int | None = None, error: float = 0.0
    ) -> RowAnswer:
        name = self.setting.label(int(chosen))
        expected = None if right is None else self.setting.label(int(right))
        return RowAnswer((name, float(share)), name, float(share), expected, float(error))

    def metrics(self) -> dict[str, float] | None:
        """Return accuracy, F1 and Matthews' correlation."""
        return confusion_metrics(self._confusion) if self._confusion.any() else None

    def by_label(self) -> tuple[LabelScores, ...]:
        """Return the figures of each label."""
        return scores_by_label(self._confusion, self.setting.labels) if self.metrics() else ()

    def confused(self, count: int) -> tuple[Confused, ...]:
        """Return which labels are confused most often."""
        return most_confused(self._confusion, self.setting.labels, count)

    def confusion(self) -> NDArray[np.int64] | None:
        """Return the confusion matrix."""
        return self._confusion if self._confusion.any() else None

    def said(self) -> dict[str, int]:
        """Return how often each label was predicted."""
        return dict(zip(self.setting.labels, self._said.tolist(), strict=True))

    def bins(self) -> Bins | None:
        """Return how often answers are right by their probability."""
        return self._bins if self._bins.rows.any() else None


class ManyLabels(Answers):
    """Any number of labels for each row. A label is predicted above a probability of one half."""

    columns = (Column("predicted", "texts", "|"), Column("probability", "json"))

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        #: For each label: in how many rows it is right, predicted, and both.
        self._counts = np.zeros((3, len(setting.labels)), np.int64)
        self._rows = self._exact = 0
        self._said = np.zeros(len(setting.labels), np.int64)

    def predict(
        self, examples: Examples, indices: Sequence[int], outputs: Mapping[str, Tensor]
    ) -> list[Any]:
        """Return each example's logits."""
        return examples.predict(indices, outputs)

    def answer(self, part: Part, predictions: Sequence[Any]) -> list[RowAnswer]:
        """Return the labels of each row."""
        logits = np.stack(list(predictions)).astype(np.float64)
        chosen = logits > 0
        shares = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
        self._said += chosen.sum(axis=0)
        labels = cast(LabeledRows, part.examples).encoded.labels
        if labels is None:
            return [self._row(*one) for one in zip(chosen, shares, strict=True)]
        right = labels.astype(bool)
        self._counts += [right.sum(axis=0), chosen.sum(axis=0), (right & chosen).sum(axis=0)]
        self._rows += len(right)
        self._exact += int((right == chosen).all(axis=1).sum())
        return [self._row(*one) for one in zip(chosen, shares, right, strict=True)]

    def _row(
        self, chosen: NDArray[Any], shares: NDArray[Any], right: NDArray[Any] | None = None
    ) -> RowAnswer:
        names = self._names(chosen)
        by_name = {
            name: round(float(share), 6)
            for name, share in zip(self.setting.labels, shares, strict=True)
        }
        said = ", ".join(names) or "no label"
        if right is None:
            return RowAnswer((names, by_name), said)
        missed = np.where(right, 1 - shares, shares)
        error = 0.0 if (right == chosen).all() else float(missed.max())
        expected = ", ".join(self._names(right)) or "no label"
        return RowAnswer((names, by_name), said, None, expected, error)

    def _names(self, chosen: NDArray[Any]) -> list[str]:
        return [self.setting.label(int(place)) for place in np.flatnonzero(chosen)]

    def metrics(self) -> dict[str, float] | None:
        """Return micro and macro F1, and the share of rows without a wrong label."""
        if not self._rows:
            return None
        return multi_label_scores(*self._counts, exact=self._exact, rows=self._rows)

    def by_label(self) -> tuple[LabelScores, ...]:
        """Return the figures of each label."""
        if not self._rows:
            return ()
        return tuple(
            label_scores(name, rows=int(rows), predicted=int(predicted), right=int(right))
            for name, rows, predicted, right in zip(self.setting.labels, *self._counts, strict=True)
        )

    def said(self) -> dict[str, int]:
        """Return how often each label was predicted."""
        return dict(zip(self.setting.labels, self._said.tolist(), strict=True))


class OneNumber(Answers):
    """One number for each row. Eight bytes a row are kept, because ranks need all numbers."""

    columns = (Column("predicted", "number"),)

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._predicted, self._right = array("f"), array("f")

    def predict(
        self, examples: Examples, indices: Sequence[int], outputs: Mapping[str, Tensor]
    ) -> list[Any]:
        """Return each example's number."""
        return examples.predict(indices, outputs)

    def answer(self, part: Part, predictions: Sequence[Any]) -> list[RowAnswer]:
        """Return the number of each row."""
        numbers = np.stack(list(predictions)).reshape(len(predictions)).astype(np.float32)
        labels = cast(LabeledRows, part.examples).encoded.labels
        if labels is None:
            return [RowAnswer((float(one),), f"{one:.4g}") for one in numbers]
        self._predicted.extend(numbers.tolist())
        self._right.extend(labels.tolist())
        return [
            RowAnswer((float(one),), f"{one:.4g}", None, f"{right:.4g}", abs(float(one - right)))
            for one, right in zip(numbers, labels, strict=True)
        ]

    def metrics(self) -> dict[str, float] | None:
        """Return the correlations and the mean squared error."""
        if not self._right:
            return None
        return regression_metrics(
            np.array(self._predicted, np.float32), np.array(self._right, np.float32)
        )
