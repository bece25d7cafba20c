"""The device of a run, and accelerate's process-wide state."""

import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor

from mixout_export.errors import ArgumentError
from mixout_export.fast_linear.products import from_host
from mixout_export.files.output import partial_path
from mixout_export.training.options import PRECISIONS, TrainOptions


def check_device(name: str | None) -> None:
    """Check that a device exists here. None is the best that there is.

    Raises:
        ArgumentError: There is no such device.
    """
    if name is None or name == "cpu":
        return
    kind = name.split(":")[0]
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if kind not in available:
        raise ArgumentError(f"device: got {name!r}, expected cpu, cuda, cuda:N or mps")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    index = name.partition(":")[2]
    if not available[kind] or (index and not (index.isdigit() and int(index) < count)):
        raise ArgumentError(f"device: {name!r} is not available; leave --device out, or use cpu")


@contextmanager
def accelerated(options: TrainOptions, *, out: Path) -> Iterator[Accelerator]:
    """Yield accelerate's handle of device, precision, processes and tracker.

    Afterwards its process-wide state is reset, so that another run can choose differently. The
    caller starts the tracker with `init_trackers` once `OUT.partial` exists, because some trackers
    write there.

    Raises:
        ArgumentError: The device, the precision or the tracker is not available here.
    """
    check_device(options.device)
    if options.tracker is not None and importlib.util.find_spec(options.tracker) is None:
        raise ArgumentError(
            f"tracker: {options.tracker} is not installed; pip install {options.tracker}"
        )
    cpu = options.device == "cpu"
    on_gpu = not cpu and (torch.cuda.is_available() or torch.backends.mps.is_available())
    if options.precision == "fp16" and not on_gpu:
        raise ArgumentError(
            "precision: fp16 needs a GPU, and this machine has none; use bf16 or fp32"
        )
    if options.device is not None and not cpu:
        os.environ["ACCELERATE_TORCH_DEVICE"] = options.device
    try:
        yield Accelerator(
            cpu=cpu,
            mixed_precision=PRECISIONS[options.precision],
            log_with=options.tracker,
            project_dir=partial_path(out),
        )
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        PartialState._reset_state()
        os.environ.pop("ACCELERATE_TORCH_DEVICE", None)


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copy a batch from the host to the device without waiting for it."""
    return {name: from_host(value, device) for name, value in batch.items()}
