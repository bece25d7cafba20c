"""Measure the peak memory of a training step. Each strategy runs in a process of its own.

python -m benchmarks.memory [--shape 22M] [--batch 32x128]
python -m benchmarks.memory --state [--shape BERT-base] [--batch 1x16]

With `--state`, the batch is small, so that the memory is that of the training state: weights,
anchors, gradients and the optimizer's state. Its tensors are counted, too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import arguments
from benchmarks.arms import build_model, build_step
from benchmarks.measure import markdown_table
from benchmarks.shapes import SHAPES, Batch, inputs_on
from mixout_export.layers import MixoutLayer

DEFAULT_ARMS = ("plain", "neuron 0.7", "element 0.7", "literal 0.7")
STATE_ARMS = (
    "plain",
    "neuron 0.9, dense gradient",
    "neuron 0.9",
    "neuron 0.9, bf16 anchors",
    "neuron 0.9, bf16 anchors, held, active",
)
_STEPS = 2
#: glibc settings with which freed memory returns to the system at once, so that it is not counted.
_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}


def _status(field: str) -> int:
    """Return a figure of this process in bytes: "VmRSS", or "VmHWM" for its largest so far."""
    status = Path("/proc/self/status").read_text()
    line = next(x for x in status.splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def _peak_bytes(device: str) -> int:
    """Return the peak memory of this process, or of the tensors on the GPU, in bytes."""
    return torch.cuda.max_memory_allocated() if device.startswith("cuda") else _status("VmHWM")


def measure_here(
    arm: str, shape: str, batch: Batch, *, device: str, precision: str
) -> dict[str, int]:
    """Run a few steps of one arm.

    Returns:
        In bytes, the peak memory of this process, what it had before there was a model, and the
        training state after a backward pass.
    """
    before = 0 if device.startswith("cuda") else _status("VmRSS")
    step = build_step(arm, SHAPES[shape], device=device, precision=precision)
    tensors = inputs_on(device, SHAPES[shape], batch)
    for _ in range(_STEPS):
        step(tensors)
    step.backward(tensors)
    counted = step.state_bytes()
    step.update()
    return {"peak": _peak_bytes(device), "before": before, **counted}


def anchor_bytes(arm: str, shape: str) -> int:
    """Return the size of an arm's anchors, in bytes."""
    layers = [m for m in build_model(arm, SHAPES[shape]).modules() if isinstance(m, MixoutLayer)]
    return sum(m.pretrained_weight.nbytes for m in layers)


def measure_memory(
    arms: tuple[str, ...], shape: str, batch: Batch, *, repeats: int, device: str, precision: str
) -> dict[str, Any]:
    """Measure each arm in a new process per repeat.

    Returns:
        The size of the anchors in bytes, and for each arm what `measure_here` returned.
    """
    found: dict[str, list[dict[str, int]]] = {arm: [] for arm in arms}
    for _ in range(repeats):
        for arm in arms:
            words = ["--one", arm, "--shape", shape, "--batch", str(batch)]
            words += ["--device", device, "--precision", precision]
            run = subprocess.run(
                [sys.executable, "-m", "benchmarks.memory", *words],
                check=True, capture_output=True, text=True, env={**os.environ, **_ALLOCATOR},
            )  # fmt: skip
            found[arm].append(json.loads(run.stdout))
    return {
        "shape": shape,
        "batch": [batch.examples, batch.size],
        "device": device,
        "anchors": anchor_bytes("neuron 0.7", shape),
        "arms": found,
    }


def _median(found: list[dict[str, int]], value: Callable[[dict[str, int]], int]) -> float:
    return statistics.median(value(each) for each in found)


def table(result: dict[str, Any]) -> str:
    """Return a measurement as Markdown."""
    plain = _median(result["arms"]["plain"], lambda one: one["peak"])
    rows = []
    for arm, found in result["arms"].items():
        peak = _median(found, lambda one: one["peak"])
        above = (peak - plain) / result["anchors"]
        rows.append(
            (arm, f"{peak / 1e6:.0f} MB", f"{(peak - plain) / 1e6:+.0f} MB", f"{above:.2f}")
        )
    head = ("arm", "peak", "above plain", "above plain / anchors")
    return f"{markdown_table(head, rows)}\n\nanchors: {result['anchors'] / 1e6:.0f} MB"


#: The parts of a training state.
_PARTS = ("weights", "anchors", "gradients", "optimizer")


def state_table(result: dict[str, Any]) -> str:
    """Return the training states of a measurement as Markdown."""

    def counted(one: dict[str, int]) -> int:
        return sum(one[part] for part in _PARTS)

    def resident(one: dict[str, int]) -> int:
        return one["peak"] - one["before"]

    plain = result["arms"]["plain"]
    rows = []
    for arm, found in result["arms"].items():
        parts = [f"{found[0][part] / 1e6:.0f}" for part in _PARTS]
        for value in (counted, resident):
            ours, theirs = _median(found, value), _median(plain, value)
            parts += [f"{ours / 1e6:.0f}", f"{ours / theirs:.3f}"]
        rows.append((arm, *parts))
    head = ("arm (MB)", *_PARTS, "counted", "÷ plain", "resident", "÷ plain")
    return markdown_table(head, rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--state", action="store_true", help="measure the training state")
    parser.add_argument("--shape", choices=list(SHAPES), help="default: 22M, or BERT-base")
    parser.add_argument("--batch", type=Batch.parse, help="default: 32x128, or 1x16")
    parser.add_argument("--repeats", type=arguments.positive, default=1)
    parser.add_argument("--device", type=arguments.device, default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    where = {"device": options.device, "precision": options.precision}
    shape = options.shape or ("BERT-base" if options.state else "22M")
    batch = options.batch or (Batch(1, 16) if options.state else Batch(32, 128))
    if options.one:
        print(json.dumps(measure_here(options.one, shape, batch, **where)))
        return
    arms, show = (STATE_ARMS, state_table) if options.state else (DEFAULT_ARMS, table)
    print(show(measure_memory(arms, shape, batch, repeats=options.repeats, **where)))


if __name__ == "__main__":
    main()
