"""The loss of a classifier with label smoothing or class weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixout_export.data.encoding import IGNORED
from mixout_export.data.examples import Examples
from mixout_export.errors import ArgumentError
from mixout_export.training.options import BALANCED, TrainOptions


@dataclass(frozen=True)
class Criterion:
    """Cross entropy as PyTorch computes it with label smoothing and class weights.

    The loss of a batch is a mean over its targets, each weighted by its class.

    Attributes:
        smoothing: The share of each target that is spread evenly over all classes, in [0, 1).
        weights: Weight of each class, shape (classes,); None weights all the same.
    """

    smoothing: float
    weights: NDArray[np.float64] | None

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch.

        Args:
            logits: Shape (…, classes).
            labels: int64 class ids, shape (…); -100 is left out.
        """
        flat = logits.reshape(-1, logits.shape[-1]).float()
        weights = None
        if self.weights is not None:
            weights = torch.tensor(self.weights, dtype=torch.float32, device=flat.device)
        return torch.nn.functional.cross_entropy(
            flat,
            labels.reshape(-1),
            weight=weights,
            ignore_index=IGNORED,
            label_smoothing=self.smoothing,
        )

    def targets(self, examples: Examples) -> NDArray[Any]:
        """Return the weight of each example in the mean loss of a batch, shape (examples,)."""
        if self.weights is None:
            return examples.targets
        return np.array([self.weights[ids].sum() for ids in examples.class_ids()])


def balanced_weights(ids: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Return weights with which all classes that occur count the same, shape (classes,).

    The weight of a class is n / (k · its count), for n labels of k classes, as in scikit-learn. A
    class that does not occur has weight 1.
    """
    counts = np.bincount(ids, minlength=classes)
    there = counts > 0
    weights = np.ones(classes)
    weights[there] = len(ids) / (there.sum() * counts[there])
    return weights


def build_criterion(
    options: TrainOptions, train: Examples, labels: Sequence[str]
) -> Criterion | None:
    """Return the loss that the options ask for; None if it is the model's own.

    Args:
        options: The run's options, which fit the task.
        train: The training examples, whose labels "balanced" counts.
        labels: Label names in the order of the model's outputs.

    Raises:
        ArgumentError: There is not one weight for each label.
    """
    if not options.label_smoothing and options.class_weights is None:
        return None
    weights = None
    if options.class_weights == BALANCED:
        weights = balanced_weights(np.concatenate(list(train.class_ids())), len(labels))
    elif options.class_weights is not None:
        weights = np.array([float(part) for part in options.class_weights.split(",")])
        if len(weights) != len(labels):
            raise ArgumentError(
                f"class-weights: got {len(weights)} weights, expected {len(labels)}, one for each "
                f"label in this order: {', '.join(labels)}"
            )
    return Criterion(options.label_smoothing, weights)
