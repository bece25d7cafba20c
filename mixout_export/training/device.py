"""The device a run uses, and accelerate's hold on it."""

import importlib.util
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from mixout_export.errors import ArgumentError
from mixout_export.files.output import partial_path
from mixout_export.training.options import PRECISIONS, TrainOptions


def _check_device(name: str | None) -> None:
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
        raise ArgumentError(f"device: {name!r} is not there; leave --device out, or use cpu")


def make_accelerator(options: TrainOptions, *, project: Path) -> Accelerator:
    """Set up accelerate for a run; `start_tracker` once the run's folder is there.

    Args:
        options: Device, precision and tracker.
        project: The run's OUT.

    Raises:
        ArgumentError: The device, or the precision on it, or the tracker is not to be had.
    """
    _check_device(options.device)
    if options.tracker is not None and importlib.util.find_spec(options.tracker) is None:
        raise ArgumentError(
            f"tracker: {options.tracker} is not installed; pip install {options.tracker}"
        )
    if options.device is not None and options.device != "cpu":
        os.environ["ACCELERATE_TORCH_DEVICE"] = options.device
    cpu = options.device == "cpu"
    on_gpu = not cpu and (torch.cuda.is_available() or torch.backends.mps.is_available())
    if options.precision == "fp16" and not on_gpu:
        raise ArgumentError("precision: fp16 needs a GPU, there is none; use bf16 or fp32")
    return Accelerator(
        cpu=cpu,
        mixed_precision=PRECISIONS[options.precision],
        log_with=options.tracker,
        project_dir=partial_path(project),
    )


def start_tracker(accelerator: Accelerator, options: TrainOptions, *, project: Path) -> None:
    """Start the tracker, if there is one: some write into the run's folder from here on.

    Args:
        accelerator: From `make_accelerator`.
        options: The tracker's name.
        project: The run's OUT, whose name the tracker shows.
    """
    if options.tracker is not None:
        accelerator.init_trackers(project.name)


def release_accelerator() -> None:
    """Forget accelerate's process-wide state, so that another run can choose differently."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()
    os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
