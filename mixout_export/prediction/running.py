"""Run a model on a part of a file."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.data.evaluation import model_inputs
from mixout_export.errors import CheckpointError
from mixout_export.prediction.answers import Answers, Part
from mixout_export.runners.runner import Runner


def run_part(
    runner: Runner,
    interface: ModelInterface,
    part: Part,
    answers: Answers,
    *,
    batch_size: int,
    advanced: Callable[[float], None] = lambda _: None,
) -> list[Any]:
    """Return what to keep of each example's outputs, in the order of the examples.

    Examples of similar length share a batch, so that there is little padding.

    Args:
        runner: Runs the model.
        interface: What the model takes.
        part: The examples.
        answers: Reads the outputs.
        batch_size: Examples in a batch; one if the model takes only single rows.
        advanced: Called with the number of rows that are done, after each batch.

    Raises:
        CheckpointError: The model does not accept a batch, or an output is not a number.
    """
    examples = part.examples
    order = np.argsort(-examples.lengths, kind="stable")
    size = batch_size if interface.takes_batches else 1
    rows_each = part.table.rows / len(examples)
    made: list[Any] = [None] * len(examples)
    for start in range(0, len(order), size):
        indices = order[start : start + size].tolist()
        outputs = runner.run(model_inputs(answers.inputs(examples, indices), interface))
        tensors = {name: torch.from_numpy(value) for name, value in outputs.items()}
        for value in tensors.values():
            _refuse_nan(value, part, indices)
        found = answers.predict(examples, indices, tensors)
        for index, prediction in zip(indices, found, strict=True):
            made[index] = prediction
        advanced(len(indices) * rows_each)
    return made


def _refuse_nan(value: torch.Tensor, part: Part, indices: list[int]) -> None:
    if not value.is_floating_point() or not value.isnan().any():
        return
    wrong = value.isnan().flatten(1).any(dim=1).nonzero()[0, 0]
    row = int(part.examples.rows[indices[int(wrong)]])
    raise CheckpointError(
        f"{part.table.name}: the model's outputs for {part.table.where(row)} are not numbers; "
        "compare the model with its checkpoint (verify), or use a model in fp32"
    )
