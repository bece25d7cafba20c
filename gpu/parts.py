"""The kit's parts, each run in a process of its own."""

import argparse
import importlib.metadata
import sys
import time
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.measure import machine
from gpu.correct import CHECKS, CHECKS_WITH_KIT, SLOW_CHECKS
from gpu.fast import BENCHMARKS
from gpu.kit import Kit
from gpu.results import Finding, Results
from gpu.seeds import compare_seeds
from gpu.whole import whole_workflow

_PACKAGES = ("transformers", "accelerate", "onnx", "onnxscript", "onnxruntime", "numpy", "triton")


def _device(name: str | None) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _describe(results: Results, device: torch.device) -> None:
    facts = machine(device.type)
    if device.type == "cuda":
        facts["memory"] = f"{torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB"
        facts["cuda"] = torch.version.cuda
    results.describe(device=device.type, **facts, **_versions())


def run_part(part: str, options: argparse.Namespace) -> int:
    """Run one part's steps and write what they find.

    Args:
        part: "correct", "fast", "whole" or "seeds".
        options: Device, folders, and until when the part may run.

    Returns:
        The exit code: 0, as a failed step is in the results.
    """
    deadline = time.monotonic() + options.until - time.time()
    device = _device(options.device)
    results = Results(options.out)
    _describe(results, device)
    kit = Kit.find(options.work / part, options.kit)
    steps: dict[str, Callable[[], Finding]] = {}
    if part == "correct":
        steps |= {name: partial(check, device) for name, check in CHECKS.items()}
        steps |= {name: partial(check, device, kit) for name, check in CHECKS_WITH_KIT.items()}
        steps |= {name: partial(check, device) for name, check in SLOW_CHECKS.items()}
    elif part == "fast":
        for number, (name, benchmark) in enumerate(BENCHMARKS.items()):
            steps[name] = partial(benchmark, device, deadline, len(BENCHMARKS) - number)
    elif part == "whole":
        steps["prepare, train, collapse, onnx, verify"] = partial(whole_workflow, device, kit)
    else:
        steps["plain and mixout over seeds"] = partial(compare_seeds, device, kit, deadline)
    for name, work in steps.items():
        step = results.run(part, name, work)
        print(f"{part}: {name}: {step.state} in {step.seconds:.1f} s", file=sys.stderr, flush=True)
    return 0
