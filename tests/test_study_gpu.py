"""How runs of a study share GPUs. Nothing here needs one."""

from dataclasses import dataclass

import pytest
import torch

from mixout_export.stages.study.engines import local
from mixout_export.stages.study.engines.gpu import (
    GpuMemory,
    least_used,
    memory_after_run,
    visible_gpus,
    workers_on_gpus,
)
from mixout_export.stages.study.engines.local import LocalEngine, default_workers

GB = 1024**3


@dataclass
class Machine:
    gpus: int
    cores: int


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine that seems to have GPUs."""
    made = Machine(gpus=2, cores=8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: made.gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: made.gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(local, "available_cores", lambda: made.cores)
    return made


@pytest.mark.parametrize(
    ("free", "peak", "gpus", "most", "workers"),
    [
        (0.5, 4, 1, 16, 1),  # nothing fits beside the first run
        (5.3, 4, 1, 16, 1),  # 4 * 1.2 + 0.6 do not
        (5.5, 4, 1, 16, 2),
        (70, 4, 1, 16, 13),
        (70, 4, 1, 3, 3),
        (70, 4, 2, 64, 26),
        (70, 4, 2, 1, 1),
        (-1, 4, 1, 16, 1),
        (0.5, 4, 4, 16, 4),
        (70, 4, 2, 0, 1),  # each run has more threads than there are cores
    ],
)
def test_as_many_runs_as_memory_and_cores_allow(
    free: float, peak: float, gpus: int, most: int, workers: int
) -> None:
    memory = GpuMemory(free=int(free * GB), peak=int(peak * GB))
    assert workers_on_gpus(memory, gpus=gpus, most=most) == workers


def test_processes_are_divided_among_the_gpus() -> None:
    used: list[str | None] = []
    for _ in range(5):
        used.append(least_used(["0", "1"], used))
    assert used == ["0", "1", "0", "1", "0"]
    assert least_used(["0", "1"], ["0", "1", "1"]) == "0"
    assert least_used([], []) is None


def test_only_visible_gpus_are_used(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible_gpus(None) == visible_gpus("cuda") == ["0", "1"]
    assert visible_gpus("cpu") == visible_gpus("cuda:1") == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-abc")
    assert visible_gpus(None) == ["2", "GPU-abc"]
    machine.gpus = 0
    assert visible_gpus(None) == []


def test_at_first_there_is_one_run_on_each_gpu(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_workers(threads=1, device=None) == 2
    assert default_workers(threads=8, device=None) == 1
    assert default_workers(threads=1, device="cuda:1") == 1
    assert default_workers(threads=2, device="cpu") == 4
    machine.gpus = 0
    assert default_workers(threads=2, device=None) == 4
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert default_workers(threads=2, device=None) == 1


def test_the_first_run_decides_how_many_share_a_gpu(machine: Machine) -> None:
    engine = LocalEngine(threads=1)
    assert engine.workers == 2
    engine._grow(None)
    assert engine.workers == 2
    engine._grow(GpuMemory(free=11 * GB, peak=4 * GB))
    assert engine.workers == 6
    engine._grow(GpuMemory(free=0, peak=4 * GB))
    assert engine.workers == 6
    fixed = LocalEngine(workers=3, threads=1)
    fixed._grow(GpuMemory(free=11 * GB, peak=4 * GB))
    assert fixed.workers == 3


def test_a_run_on_the_cpu_uses_no_gpu_memory() -> None:
    assert memory_after_run("cpu") is None
