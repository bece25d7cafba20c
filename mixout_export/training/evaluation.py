"""Loss and metrics of a model on the evaluation examples."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from mixout_export.data.examples import Examples
from mixout_export.training.batches import evaluation_batches, share_of
from mixout_export.training.device import to_device


@torch.no_grad()
def evaluate(
    accelerator: Accelerator, model: PreTrainedModel, examples: Examples, *, batch_size: int
) -> dict[str, float]:
    """Return the loss and the task's metrics, and leave the model in training mode.

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
    return {"loss": mean, **examples.metrics(predictions)}
