"""Measure the peak memory of a training step. Each strategy runs in a process of its own.

python -m benchmarks.memory [--shape 22M] [--batch 32x128]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import arguments
from benchmarks.arms import build_model, build_step
from benchmarks.measure import markdown_table
from benchmarks.shapes import SHAPES, Batch, inputs_on
from mixout_export.layers import MixoutLayer

DEFAULT_ARMS = ("plain", "neuron 0.7", "element 0.7", "literal 0.7")
_STEPS = 2
#: glibc settings with which freed memory returns to the system at once, so that it is not counted.
_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}


def _peak_bytes(device: str) -> int:
    """Return the peak memory of this process, or of the tensors on the GPU, in bytes."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    line = next(x for x in status.splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure_here(arm: str, shape: str, batch: Batch, *, device: str, precision: str) -> int:
    """Run a few steps of one arm and return the peak memory of this process, in bytes."""
    step = build_step(arm, SHAPES[shape], device=device, precision=precision)
    tensors = inputs_on(device, SHAPES[shape], batch)
    for _ in range(_STEPS):
        step(tensors)
    return _peak_bytes(device)


def anchor_bytes(arm: str, shape: str) -> int:
    """Return the size of an arm's anchors, in bytes."""
    layers = [m for m in build_model(arm, SHAPES[shape]).modules() if isinstance(m, MixoutLayer)]
    return sum(m.pretrained_weight.nbytes for m in layers)


def measure_memory(
    arms: tuple[str, ...], shape: str, batch: Batch, *, repeats: int, device: str, precision: str
) -> dict[str, Any]:
    """Measure each arm in a new process per repeat.

    Returns:
        The size of the anchors, and the peak of each repeat for each arm, in bytes.
    """
    peaks: dict[str, list[int]] = {arm: [] for arm in arms}
    for _ in range(repeats):
        for arm in arms:
            words = ["--one", arm, "--shape", shape, "--batch", str(batch)]
            words += ["--device", device, "--precision", precision]
            run = subprocess.run(
                [sys.executable, "-m", "benchmarks.memory", *words],
                check=True, capture_output=True, text=True, env={**os.environ, **_ALLOCATOR},
            )  # fmt: skip
            peaks[arm].append(json.loads(run.stdout))
    return {
        "shape": shape,
        "batch": [batch.examples, batch.size],
        "device": device,
        "anchors": anchor_bytes("neuron 0.7", shape),
        "peaks": peaks,
    }


def table(result: dict[str, Any]) -> str:
    """Return a measurement as Markdown."""
    plain = statistics.median(result["peaks"]["plain"])
    rows = []
    for arm, found in result["peaks"].items():
        peak = statistics.median(found)
        above = (peak - plain) / result["anchors"]
        rows.append(
            (arm, f"{peak / 1e6:.0f} MB", f"{(peak - plain) / 1e6:+.0f} MB", f"{above:.2f}")
        )
    head = ("arm", "peak", "above plain", "above plain / anchors")
    return f"{markdown_table(head, rows)}\n\nanchors: {result['anchors'] / 1e6:.0f} MB"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="22M")
    parser.add_argument("--batch", type=Batch.parse, default=Batch(32, 128))
    parser.add_argument("--repeats", type=arguments.positive, default=1)
    parser.add_argument("--device", type=arguments.device, default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    where = {"device": options.device, "precision": options.precision}
    if options.one:
        print(measure_here(options.one, options.shape, options.batch, **where))
        return
    print(table(measure_memory(
        DEFAULT_ARMS, options.shape, options.batch, repeats=options.repeats, **where
    )))  # fmt: skip


if __name__ == "__main__":
    main()
