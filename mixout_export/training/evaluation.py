"""Loss and metrics of a model on the evaluation examples."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from mixout_export.data.confusion import LabelReport
from mixout_export.data.examples import Examples
from mixout_export.training.batches import evaluation_batches, share_of
from mixout_export.training.device import to_device


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        metrics: The loss and the task's metrics.
        labels: The figures of each label; None if the task has none.
    """

    metrics: dict[str, float]
    labels: LabelReport | None


@torch.no_grad()
def evaluate(
    accelerator: Accelerator, model: PreTrainedModel, examples: Examples, *, batch_size: int
) -> Evaluation:
    """Return the loss, the task's metrics and the figures of each label.

    The model is in training mode afterwards.

    All processes share the examples. The model is not wrapped. An evaluation batch may hold more
    examples than `batch_size`, that of training, because it needs less memory.
    """
    batches = share_of(
        evaluation_batches(examples.lengths, batch_size=examples.evaluation_scale * batch_size),
        rank=accelerator.process_index,
        ranks=accelerator.num_processes,
    )
    model.eval()  # type: ignore[no-untyped-call]
    parts: list[tuple[list[int], list[Any], float]] = []
    for indices in batches:
        batch = to_device(examples.collate(indices), accelerator.device)
        with accelerator.autocast():
            output = model(**batch)
        parts.append((indices, examples.predict(indices, output), float(output.loss)))
    model.train()
    if accelerator.num_processes > 1:
        parts = gather_object(parts)
    predictions: list[Any] = [None] * len(examples)
    losses: dict[int, float] = {}  # by first example, so that a batch done twice counts once
    for indices, predicted, loss in parts:
        for index, prediction in zip(indices, predicted, strict=True):
            predictions[index] = prediction
        losses[indices[0]] = loss * int(examples.targets[indices].sum())
    mean = sum(losses.values()) / int(examples.targets.sum())
    metrics = {"loss": mean, **examples.metrics(predictions)}
    return Evaluation(metrics, examples.label_report(predictions))
