"""The encoded examples of a task."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mixout_export.data.confusion import LabelReport
from mixout_export.data.encoding import EncodedRows


@dataclass(frozen=True)
class Examples(ABC):
    """A table as the model of a task takes it, with the task's metrics.

    An example is one sequence, one group of choices, or one image. A row of the table may give
    several.

    Attributes:
        encoded: The inputs.
    """

    encoded: EncodedRows

    #: Size of an evaluation batch in training batches. It keeps nothing for a backward pass.
    evaluation_scale: ClassVar[int] = 2

    def __len__(self) -> int:
        return len(self.encoded)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Length of each example, by which similar ones share a batch, shape (examples,)."""
        return self.encoded.lengths

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """How many terms of a batch's mean loss come from each example, shape (examples,)."""
        return np.ones(len(self), np.int64)

    @property
    def rows(self) -> NDArray[np.int64]:
        """Row of the table that each example comes from, shape (examples,)."""
        return np.arange(len(self))

    @property
    def cut(self) -> Mapping[int, int]:
        """Row of the table that lost text → the tokens that it had before it was cut."""
        rows = self.rows
        return {int(rows[place]): length for place, length in self.encoded.cut.items()}

    @property
    def labeled(self) -> bool:
        """Whether the table has labels, so that there are metrics."""
        return self.encoded.labels is not None

    def collate(self, indices: Sequence[int], *, epoch: int | None = None) -> dict[str, Tensor]:
        """Return some examples as a batch with labels: name → tensor `(batch, …)`.

        Tasks that draw anew in each epoch use its number; None means evaluation.
        """
        return self.encoded.collate(indices, epoch=epoch)

    @abstractmethod
    def predict(self, indices: Sequence[int], outputs: Mapping[str, Tensor]) -> list[Any]:
        """Return one prediction for each example, small enough to be kept until the end.

        Args:
            indices: The examples of a batch that `collate` made without an epoch.
            outputs: The model's outputs, with its "loss" if it computed one.
        """

    def class_ids(self) -> Sequence[NDArray[np.int64]]:
        """Return the class ids that the loss of each example counts, if the task is to classify."""
        raise NotImplementedError

    def constant_predictions(self) -> Sequence[Any] | None:
        """Return the predictions of a model that answers the same whatever it reads.

        It always gives the most frequent answer of these examples, or the mean of numbers. None
        means that the task has no such answer.
        """
        return None

    def chance(self) -> dict[str, float]:
        """Return the task's metrics of a model that answers the same whatever it reads.

        The correlation of a constant is undefined; its value here is 0. Empty if the task has no
        such answer, or without labels.
        """
        predictions = self.constant_predictions() if self.labeled else None
        values = {} if predictions is None else self.metrics(predictions)
        return {name: 0.0 if math.isnan(value) else value for name, value in values.items()}

    def label_report(self, predictions: Sequence[Any]) -> LabelReport | None:
        """Return the figures of each label; None if the task has no labels to tell apart."""
        return None

    @abstractmethod
    def metrics(self, predictions: Sequence[Any]) -> dict[str, float]:
        """Return the task's metrics of the predictions for all examples, in their order.

        The values are NaN if outputs were not numbers.
        """
