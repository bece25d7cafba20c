"""Estimate how long a run will take and how much memory it needs, before its first step."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from mixout_export.data.examples import Examples
from mixout_export.surgery.injection import mixout_layers
from mixout_export.training.device import to_device
from mixout_export.training.options import TrainOptions

#: A training step in forward passes of the evaluation: forward, twice as much backward, optimizer.
_STEP = 3.3
#: Bytes of a number. Each trained weight has three: its gradient and two moments.
_NUMBER = 4


@dataclass(frozen=True)
class RunEstimate:
    """What a run will need.

    Attributes:
        seconds: Time of the steps and evaluations that are left.
        memory: Bytes that the process has at the peak of a step, on the device that computes.
    """

    seconds: float
    memory: int


def estimate_run(
    accelerator: Accelerator,
    model: PreTrainedModel,
    train: Examples,
    evaluation: Examples | None,
    options: TrainOptions,
    *,
    steps: int,
    evaluations: int,
) -> RunEstimate:
    """Run the model twice, and estimate what the rest of the run needs.

    The run itself does not change: the generators' states are put back, and no gradient is
    computed. The model is in training mode afterwards.

    Args:
        accelerator: The device and its precision.
        model: The model.
        train: Training examples.
        evaluation: Evaluation examples, None without.
        options: The run's options.
        steps: Training steps that are left.
        evaluations: Evaluations that are left.
    """
    by_length = np.argsort(train.lengths, kind="stable")
    size = min(options.batch_size, len(train))
    longest = to_device(train.collate(by_length[-size:].tolist()), accelerator.device)
    memory = memory_in_use(accelerator.device) + training_bytes(model, options)
    memory += _activations(accelerator, model, longest)
    start = (len(train) - size) // 2
    typical = by_length[start : start + size].tolist()
    tokens = size * int(train.lengths[typical].max())
    per_token = _forward_seconds(accelerator, model, train, typical) / max(1, tokens)
    step = options.batch_size * options.gradient_accumulation * float(train.lengths.mean())
    evaluated = 0.0 if evaluation is None else float(evaluation.lengths.sum()) * evaluations
    return RunEstimate(per_token * (_STEP * steps * step + evaluated), memory)


def training_bytes(model: PreTrainedModel, options: TrainOptions) -> int:
    """Return the bytes of all gradients and of the optimizer's state."""
    numbers = 3 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    left_out = 3 if options.optimizer_scope == "active" else 1
    for layer in mixout_layers(model).values():
        if layer.compact_gradient() is not None:
            numbers -= left_out * int(layer.p * layer.weight.numel())
    return _NUMBER * numbers


def _activations(accelerator: Accelerator, model: PreTrainedModel, batch: dict[str, Tensor]) -> int:
    """Return the bytes that a forward pass keeps for the backward pass."""
    model.train()
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    total = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            total += storage.nbytes()
        return tensor

    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        accelerator.autocast(),
    ):
        model(**batch)
    return total


@torch.no_grad()
def _forward_seconds(
    accelerator: Accelerator, model: PreTrainedModel, examples: Examples, indices: Sequence[int]
) -> float:
    batch = to_device(examples.collate(indices), accelerator.device)
    model.eval()  # type: ignore[no-untyped-call]
    _wait(accelerator.device)
    started = time.monotonic()
    with accelerator.autocast():
        model(**batch)
    _wait(accelerator.device)
    model.train()
    return time.monotonic() - started


def _wait(device: torch.device) -> None:
    """Wait until a GPU has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_in_use(device: torch.device) -> int:
    """Return the bytes that this process has on a device; of a CPU, its resident memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
