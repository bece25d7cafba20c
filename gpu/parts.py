"""The kit's parts, each run in a process of its own."""

import argparse
import importlib.metadata
import sys
import time
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.measure import machine
from gpu.correct import CHECKS, CHECKS_WITH_KIT, KERNEL_CHECKS, ONE_PASS
from gpu.fast import BENCHMARKS
from gpu.kit import Kit
from gpu.results import PASSED, CheckFailed, Finding, Results
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


def _steps(
    part: str, device: torch.device, kit: Kit, results: Results, deadline: float
) -> dict[str, Callable[[], Finding]]:
    """Return a part's steps in order."""
    if part == "correctness":
        torch.set_float32_matmul_precision("highest")
        # the tolerances assume that half-precision products accumulate in float32
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        return {
            **{name: partial(check, device) for name, check in CHECKS.items()},
            **{name: partial(check, device, kit) for name, check in CHECKS_WITH_KIT.items()},
        }
    if part == "kernels":
        return {name: partial(check, device) for name, check in KERNEL_CHECKS.items()}
    if part == "speed":
        right = any(step.name == ONE_PASS and step.state == PASSED for step in results.steps)
        return {
            name: partial(benchmark, device, deadline, len(BENCHMARKS) - number, right)
            for number, (name, benchmark) in enumerate(BENCHMARKS.items())
        }
    if part == "workflow":
        return {
            "prepare, train, collapse, onnx, verify": partial(whole_workflow, device, kit, deadline)
        }
    return {"plain and mixout over seeds": partial(compare_seeds, device, kit, deadline)}


def _in_time(work: Callable[[], Finding], deadline: float) -> Finding:
    if time.monotonic() > deadline:
        raise CheckFailed("no time was left for this check")
    return work()


def run_part(part: str, options: argparse.Namespace) -> int:
    """Run one part's steps and write what they find.

    Args:
        part: "correctness", "kernels", "speed", "workflow" or "seeds".
        options: Device, folders, and until when the part may run.

    Returns:
        The exit code: 0, as a failed step is in the results.
    """
    deadline = time.monotonic() + options.until - time.time()
    device = _device(options.device)
    results = Results(options.out)
    kit = Kit.find(options.work / part, options.kit)
    _describe(results, device)
    results.describe(data=kit.train_file.parent.name)
    for name, work in _steps(part, device, kit, results, deadline).items():
        print(f"{part}: {name} …", file=sys.stderr, flush=True)
        step = results.run(part, name, partial(_in_time, work, deadline))
        print(f"{part}: {name}: {step.state} in {step.seconds:.1f} s", file=sys.stderr, flush=True)
    return 0
