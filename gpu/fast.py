"""Measure training steps on the device: time, memory, and time per kernel."""

import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.arms import build_step
from benchmarks.measure import Ratio, by_turns, markdown_table
from benchmarks.shapes import SHAPES, Batch, inputs_on
from gpu.results import Finding

_ARMS = (
    "plain", "plain again", "product left out", "dropout 0.1", "neuron 0.7", "neuron 0.9",
    "element 0.7", "literal 0.7", "neuron 0.7, whole gradient", "neuron 0.7, one pass",
    "neuron 0.7, dense gradient", "neuron 0.7, one pass, bf16 anchors",
    "neuron 0.9, one pass, bf16 anchors", "neuron 0.9, bf16 anchors, held, active",
)  # fmt: skip
_IMAGE_ARMS = ("plain", "plain again", "filter 0.8", "filter 0.8, whole gradient", "neuron 0.8")
_PROFILED = ("plain", "neuron 0.7", "neuron 0.7, one pass, bf16 anchors", "element 0.7")
_LARGE, _SMALL = Batch(32, 128), Batch(4, 32)
_FEWEST_ROUNDS, _MOST_ROUNDS = 5, 40
_KERNELS = 14


@dataclass(frozen=True)
class Comparison:
    """What `measure_steps` measures.

    Attributes:
        shape: Name of the model's shape on a GPU.
        batch: Sizes of the batch there.
        small: Name of the model's shape on a CPU.
        small_batch: Sizes of the batch there.
        arms: Names of the arms.
        headline: The arm that the summary names.
    """

    shape: str
    batch: Batch = _LARGE
    small: str = "tiny"
    small_batch: Batch = _SMALL
    arms: tuple[str, ...] = _ARMS
    headline: str = "neuron 0.7"


def _arms(arms: tuple[str, ...], one_pass: bool) -> tuple[str, ...]:
    """Return the arms to measure. `one_pass` says whether the one-pass kernel works here."""
    return tuple(arm for arm in arms if one_pass or "one pass" not in arm)


def _prepare(
    arms: tuple[str, ...], shape: str, batch: Batch, device: torch.device
) -> tuple[dict[str, Callable[[], None]], dict[str, int]]:
    """Build every arm. Return its step, and the peak memory of building it and doing two steps."""
    precision = "bf16" if device.type == "cuda" else "fp32"
    tensors = inputs_on(str(device), SHAPES[shape], batch)
    steps: dict[str, Callable[[], None]] = {}
    peaks: dict[str, int] = {}
    for arm in arms:
        before = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        step = build_step(arm, SHAPES[shape], device=str(device), precision=precision)
        steps[arm] = partial(step, tensors)
        for _ in range(2):
            steps[arm]()
        if device.type == "cuda":
            peaks[arm] = torch.cuda.max_memory_allocated() - before
    return steps, peaks


def measure_steps(
    of: Comparison, device: torch.device, deadline: float, parts: int, one_pass: bool
) -> Finding:
    """Time the arms, which take turns, and report their peak memory.

    Args:
        of: The arms, and the sizes of the model and of the batch.
        device: Device to measure.
        deadline: Time at which the part must end, as `time.monotonic` gives it.
        parts: Number of benchmarks that share the remaining time.
        one_pass: Whether the one-pass kernel is among the arms.
    """
    started, left = time.monotonic(), deadline - time.monotonic()
    on_gpu = device.type == "cuda"
    shape, batch = (of.shape, of.batch) if on_gpu else (of.small, of.small_batch)
    steps, peaks = _prepare(_arms(of.arms, one_pass), shape, batch, device)
    trial = by_turns(steps, rounds=2, warmup=1, device=device.type)
    each = sum(times[-1] for times in trial.values())
    until = started + left / parts
    rounds = int((until - time.monotonic()) / each) if each else _MOST_ROUNDS
    rounds = max(_FEWEST_ROUNDS, min(_MOST_ROUNDS, rounds))
    seconds = by_turns(steps, rounds=rounds, warmup=0, device=device.type)
    rows = []
    for arm, times in seconds.items():
        memory = f"{peaks[arm] / 2**30:.2f} GiB" if arm in peaks else "-"
        median = sorted(times)[len(times) // 2]
        against = Ratio.of(times, seconds["plain"])
        dropout = "-"
        if "dropout 0.1" in seconds:
            dropout = f"{Ratio.of(times, seconds['dropout 0.1']).median:.3f}"
        rows.append((arm, f"{1000 * median:.1f}", against, dropout, memory))
    control = Ratio.of(seconds["plain again"], seconds["plain"]).median
    ours = Ratio.of(seconds[of.headline], seconds["plain"]).median
    head = ("arm", "ms", "against plain (quartiles)", "against dropout 0.1", "peak memory")
    precision = "bf16 over fp32 weights" if on_gpu else "fp32"
    text = (
        f"{shape}, {batch}, {precision}, fused AdamW, {rounds} rounds: {of.headline} takes "
        f"{ours:.3f} of a plain step (control {control:.3f})"
    )
    return Finding(text, markdown_table(head, rows), {"seconds": seconds, "peaks": peaks})


def _kernel_times(step: Callable[[], None], device: torch.device, steps: int) -> Counter[str]:
    """Return the kernels (on a CPU: operations) with their microseconds per step."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiled:
        for _ in range(steps):
            step()
        if on_gpu:
            torch.cuda.synchronize()
    times: Counter[str] = Counter()
    for event in profiled.key_averages():
        if on_gpu and (event.device_type != DeviceType.CUDA or event.is_user_annotation):
            continue
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        times[_short(event.key)] += spent / steps
    return times


def _host_seconds(step: Callable[[], None], device: torch.device) -> float:
    """Return the median CPU time to launch a step. If it exceeds the kernels' time, it limits."""
    found = []
    for _ in range(5):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        step()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def _short(kernel: str) -> str:
    """Return a kernel's name without its long template arguments."""
    name = kernel.removeprefix("void ").replace("|", "/")
    base = name.split("<")[0]
    inner = [word for word in ("Functor", "Kernel", "lambda") if word in name]
    detail = ""
    if inner and "<" in name:  # elementwise kernels differ only in their functor
        found = [w for w in name.replace("<", ",").replace("(", ",").split(",") if "Functor" in w]
        detail = f" {found[0].split('::')[-1].strip()}" if found else ""
    return f"{base}{detail}"[:80]


def profile_steps(device: torch.device, deadline: float, parts: int, one_pass: bool) -> Finding:
    """List the kernels of a mixout step, sorted by the difference from a plain step."""
    on_gpu = device.type == "cuda"
    shape, batch = ("BERT-large", _LARGE) if on_gpu else ("tiny", _SMALL)
    arms = tuple(arm for arm in _PROFILED if arm in _arms(_ARMS, one_pass))
    steps, _ = _prepare(arms, shape, batch, device)
    queued = {arm: _host_seconds(step, device) for arm, step in steps.items()}
    times = {arm: _kernel_times(step, device, 3) for arm, step in steps.items()}
    names = Counter[str]()
    for arm in arms[1:]:
        for kernel in times[arm] | times["plain"]:
            apart = abs(times[arm][kernel] - times["plain"][kernel])
            names[kernel] = max(names[kernel], apart)  # type: ignore[assignment]
    shown = [kernel for kernel, _ in names.most_common(_KERNELS)]
    rows: list[tuple[Any, ...]] = [
        (f"`{kernel}`", *(f"{times[arm][kernel] / 1000:.2f}" for arm in arms)) for kernel in shown
    ]
    rest = {arm: sum(times[arm].values()) - sum(times[arm][k] for k in shown) for arm in arms}
    rows.append(("all others", *(f"{rest[arm] / 1000:.2f}" for arm in arms)))
    rows.append(("sum", *(f"{sum(times[arm].values()) / 1000:.2f}" for arm in arms)))
    rows.append(("CPU time to launch the step", *(f"{1000 * queued[arm]:.2f}" for arm in arms)))
    what = "kernel" if on_gpu else "operation"
    text = f"{shape}, {batch}: milliseconds per training step, sorted by the difference from plain"
    data = {arm: dict(of.most_common(60)) for arm, of in times.items()}
    table = markdown_table((what, *arms), rows)
    return Finding(text, table, {"microseconds": data, "host_seconds": queued})


_IMAGES = Comparison(
    "ResNet-18", Batch(64, 224), "tiny ResNet", Batch(2, 32), _IMAGE_ARMS, "filter 0.8"
)

Benchmark = Callable[[torch.device, float, int, bool], Finding]

#: Name → benchmark. The benchmarks share the time of the part.
BENCHMARKS: dict[str, Benchmark] = {
    "a step at BERT-large's shape": partial(measure_steps, Comparison("BERT-large")),
    "a step at BERT-base's shape": partial(measure_steps, Comparison("BERT-base")),
    "a step at ResNet-18's shape": partial(measure_steps, _IMAGES),
    "where the time goes": profile_steps,
}
