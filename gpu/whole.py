"""The complete workflow on the device, through the command line."""

import json
import subprocess
import sys
import time
from typing import Any

import onnxruntime
import torch

from benchmarks.measure import markdown_table
from gpu.kit import Kit
from gpu.results import CheckFailed, Finding

_CUDA_PROVIDER = "CUDAExecutionProvider"


def _command(*words: object, deadline: float) -> tuple[dict[str, Any], float]:
    """Run a command with --json; return its result and its duration in seconds."""
    started = time.monotonic()
    command = [sys.executable, "-m", "mixout_export_cli", *map(str, words), "--json"]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=max(0.1, deadline - started)
        )
    except subprocess.TimeoutExpired as error:
        raise CheckFailed(f"{words[0]} did not end in time") from error
    if run.returncode:
        last = " ".join((run.stderr or run.stdout).split())[-400:]
        raise CheckFailed(f"{words[0]} ended with exit code {run.returncode}: {last}")
    return json.loads(run.stdout), time.monotonic() - started


def _largest(verified: dict[str, Any]) -> float:
    return max((output["max_abs"] for output in verified["outputs"]), default=0.0)


def whole_workflow(device: torch.device, kit: Kit, deadline: float) -> Finding:
    """Take the kit's checkpoint from prepare to verify, training on the device.

    Args:
        device: Device to train on.
        kit: Checkpoint and data.
        deadline: Time at which to end, as `time.monotonic` gives it.
    """
    on_gpu = device.type == "cuda"
    rows, steps = (2000, 150) if on_gpu else (64, 4)
    data, work = kit.data(rows, 200 if on_gpu else 32), kit.work
    work.mkdir(parents=True, exist_ok=True)
    prepared, trained, collapsed, graph = (
        work / name for name in ("prepared", "trained", "collapsed", "onnx")
    )
    provider = "CPUExecutionProvider"
    if on_gpu and _CUDA_PROVIDER in onnxruntime.get_available_providers():
        provider = _CUDA_PROVIDER
    settings = ["--device", device, "--max-steps", steps, "--max-length", 64]
    settings += ["--precision", "bf16"] if on_gpu else ["--batch-size", 8]
    files = ["--train-file", data.train_file, "--eval-file", data.eval_file]
    commands: dict[str, list[object]] = {
        "prepare": [kit.base, prepared, "--task", "text-classification", "--labels", 2],
        "train": [prepared, trained, *files, *settings],
        "collapse": [trained, collapsed],
        "onnx": [collapsed, graph, "--no-verify"],
        "verify trained collapsed": [trained, collapsed],
        f"verify collapsed onnx --provider {provider}": [collapsed, graph, "--provider", provider],
    }
    table, figures = [], {}
    for name, words in commands.items():
        found, seconds = _command(name.split()[0], *words, deadline=deadline)
        what = ""
        if name == "train":
            what = ", ".join(f"{k} {v:.4f}" for k, v in found["metrics"].items())
        if name.startswith("verify"):
            what = f"largest difference {_largest(found):.2g}"
        table.append((name, f"{seconds:.1f}", what))
        figures[name] = {"seconds": seconds, "found": what}
    text = f"{len(commands)} commands with exit code 0, {steps} training steps on {device.type}"
    return Finding(text, markdown_table(("command", "seconds", "found"), table), figures)
