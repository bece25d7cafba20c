"""Time functions that take turns, and describe the machine."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Ratio:
    """Ratio of two arms' durations, computed round by round.

    Attributes:
        median: Median of the ratios.
        low: First quartile of the ratios.
        high: Third quartile of the ratios.
        pairs: Number of rounds.
    """

    median: float
    low: float
    high: float
    pairs: int

    @classmethod
    def of(cls, numerators: Sequence[float], denominators: Sequence[float]) -> "Ratio":
        """Compute the ratio of two lists of durations from the same rounds."""
        ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
        low, high = np.quantile(ratios, (0.25, 0.75))
        return cls(statistics.median(ratios), float(low), float(high), len(ratios))

    def __str__(self) -> str:
        """Return median and quartiles, for example `0.850 (0.830 to 0.870)`."""
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def by_turns(
    arms: dict[str, Callable[[], Any]],
    *,
    rounds: int,
    warmup: int = 2,
    device: str = "cpu",
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, list[float]]:
    """Time each arm once per round. Each round starts with another arm.

    Args:
        arms: Name → function to time.
        rounds: Number of rounds that are measured.
        warmup: Number of rounds before those.
        device: Device on which the functions work. A GPU is synchronized before time is taken.
        report: Called with a line of text at the end of each round.

    Returns:
        Name → seconds of each round, in order.
    """
    names = list(arms)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warmup, rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            _wait(device)
            started = time.perf_counter()
            arms[name]()
            _wait(device)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - started)
        report(f"round {turn + 1} of {rounds}")
    return seconds


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return the date, the machine and the versions."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = lines[0].partition(":")[2].strip() if lines else cpu
    described = {
        "date": date.today().isoformat(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device.startswith("cuda"):
        described["gpu"] = torch.cuda.get_device_name()
    return described


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
